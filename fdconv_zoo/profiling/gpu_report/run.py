"""Runs the sections of the report, each in a process of its own, which may crash or hang without stopping the rest."""

import faulthandler
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from fdconv_zoo.profiling.gpu_report import (
    convolutions,
    correctness,
    environment,
    learning,
    profiles,
    speed,
    suite,
)
from fdconv_zoo.profiling.gpu_report.document import Document, summary_lines
from fdconv_zoo.profiling.gpu_report.section import DeviceLostError, Item, Recorder, Settings, release_memory


class Section(NamedTuple):
    """A section of the report.

    Attributes:
        title: its heading.
        items: makes its items.
        share: its weight when the remaining time is divided among it and the sections after it.
    """

    title: str
    items: Callable[[Settings], list[Item]]
    share: float


SECTIONS = {
    "environment": Section("Environment", environment.items, 8),
    "speed": Section("Speed and memory beside plain timm", speed.items, 58),
    "correctness": Section("Correctness", correctness.items, 18),
    "profiles": Section("Kernels of a step", profiles.items, 10),
    "suite": Section("Tests", suite.items, 16),
    "convolutions": Section("Convolutions with a kernel for each image", convolutions.items, 4),
    "learning": Section("Training on Fashion-MNIST", learning.items, 25),
}
GRACE = 2  # seconds that an item has to record its results when its time is over
LOG_TAIL = 6000  # characters


def write_report(
    settings: Settings,
    folder: Path,
    seconds: float,
    sections: Mapping[str, Section] = SECTIONS,
    show: Callable[[str], None] = print,
) -> Document:
    """Run sections and write ``report.md`` and ``report.json`` after each.

    Args:
        settings: what the report covers.
        folder: folder of the report, which is created if it does not exist.
        seconds: time for all sections together; each gets its share of the time that is left.
        sections: the sections by name, in order.
        show: prints a line.

    Returns:
        The report.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports torch and timm once, and no process inherits a CUDA context
    document, end = Document(), time.monotonic() + seconds
    shares = sum(section.share for section in sections.values())
    for name, section in sections.items():
        start = time.monotonic()
        deadline = start + max(end - start, 0) * section.share / shares
        shares -= section.share
        document.start(name, section.title)
        show(f"== {section.title}: {deadline - start:.0f} s")
        _run_section(context, section, settings, deadline, document, show)
        document.finish(time.monotonic() - start)
        document.write(folder)
    for line in summary_lines(document):
        show(line)
    return document


def _run_section(
    context: multiprocessing.context.BaseContext,
    section: Section,
    settings: Settings,
    deadline: float,
    document: Document,
    show: Callable[[str], None],
) -> None:
    """Run a section; if an item ends its process, continue with the next item in a new one."""
    first = 0
    with tempfile.TemporaryDirectory() as folder:
        while first is not None:
            log = Path(folder) / f"{first}.txt"
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(sender, section, first, settings, deadline, log))
            process.start()
            sender.close()
            try:
                first = _follow(receiver, deadline, document, show, log, first)
            finally:
                process.kill()
                process.join()


def _follow(
    events: Connection, deadline: float, document: Document, show: Callable[[str], None], log: Path, first: int
) -> int | None:
    """Record the events of a process until it ends; return the index of the next item to run, None if there is none."""
    index, item, item_end = first - 1, "start of the process", deadline
    while True:
        try:
            if not events.poll(max(min(deadline, item_end) + GRACE - time.monotonic(), 0)):
                is_over = time.monotonic() >= deadline
                document.failure(
                    f"{item}: stopped at the end of {'the section' if is_over else 'its'} time", _tail(log)
                )
                show(f"   {item}: stopped, out of time")
                return None if is_over else index + 1
            kind, *event = events.recv()
        except EOFError:
            document.failure(f"{item}: the process died", _tail(log))
            show(f"   {item}: the process died\n{_tail(log)}")
            return index + 1 if index >= first else None
        if kind == "start":
            index, item, item_end = event
            show(f"   {item}")
        elif kind == "row":
            document.row(*event)
        elif kind == "note":
            document.note(*event)
        elif kind == "failure":
            if document.failure(*event):
                show(f"FAILED {event[0]}\n{event[1]}")
            else:
                show(f"FAILED {event[0]}: as before")
        else:
            return event[0]  # "end"


def _own_stream(device: str) -> AbstractContextManager:
    """A stream for all work: captures of CUDA graphs must not find autograd nodes that belong to the default stream."""
    return torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext()


def _tail(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return text[-LOG_TAIL:]


def _work(events: Connection, section: Section, first: int, settings: Settings, deadline: float, log: Path) -> None:
    """Run the items of a section in this process, starting at index ``first``."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable(file=output)
    recorder = Recorder(events.send, deadline)
    recorder.item = "preparation"
    try:
        items = section.items(settings)
    except Exception:
        recorder.failure("failed", traceback.format_exc())
        items = []
    stream = _own_stream(settings.device)
    for index, item in enumerate(items[first:], first):
        if recorder.seconds_left < 1:
            recorder.note(f"No time was left for: {', '.join(item.name for item in items[index:])}.")
            break
        recorder.item = item.name
        limit = min(item.limit, recorder.seconds_left)
        events.send(("start", index, item.name, time.monotonic() + limit))
        faulthandler.dump_traceback_later(limit + GRACE / 2, file=output)  # where it hangs, if it does
        try:
            with recorder.attempt("failed"), stream:
                item.run(recorder)
        except DeviceLostError:
            recorder.note(f"A new process continues after {item.name}, which has left the GPU unusable.")
            events.send(("end", index + 1))
            return
        faulthandler.cancel_dump_traceback_later()
        release_memory()
    events.send(("end", None))
