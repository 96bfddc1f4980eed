"""Runs of a comparison in parallel, each in its own process."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from fdconv_zoo.errors import RunFolderError, UserError


def run_side_by_side(job: Callable[[Any], Any], items: Sequence[Any], logs: Sequence[Path], processes: int) -> None:
    """Call `job` with each item, in up to `processes` processes at once, and append its output to a file.

    CPU threads are divided evenly among the processes. After a job has failed, no further job is started.

    Args:
        job: A function of a module. Its results are discarded.
        items: Arguments of the calls, one each; they must be picklable.
        logs: Log file of each item.
        processes: Largest number of processes.

    Raises:
        RunFolderError: a job has failed.
    """
    threads = max(1, torch.get_num_threads() // processes)
    waiting = list(zip(items, logs, strict=True))
    running: dict[Future[Any], Path] = {}
    failed: list[tuple[BaseException, Path]] = []
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        while running or (waiting and not failed):
            while waiting and not failed and len(running) < processes:  # the pool itself would queue one more
                item, log = waiting.pop(0)
                running[pool.submit(_run, job, item, log)] = log
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                log = running.pop(future)
                if (error := future.exception()) is not None:
                    failed.append((error, log))
    if failed:
        error, log = failed[0]
        reason = f": {error}" if isinstance(error, UserError) else f" ({type(error).__name__})"
        raise RunFolderError(f"a run failed{reason}. What it printed is in {log}") from error


def _run(job: Callable[[Any], Any], item: Any, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
        try:
            job(item)
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
