"""Runs the repository's GPU tests in parallel, since they spend most of their time compiling on a CPU."""

import ast
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from fdconv_zoo.profiling.gpu_report.section import Item, Recorder, Settings

# A test runs here if it, or its whole file, is for a GPU.
_FILE_MARK = "\nfrom interpreter import "
_TEST_MARKS = ("cuda.is_available()", "mark.gpu")
TAIL = 4000  # characters of the output


def find_tests(root: Path) -> tuple[str, ...]:
    """Find the tests to run on a GPU, as pytest names them, those of the Triton path first."""
    found = []
    for path in sorted((root / "tests").glob("test_*.py"), key=lambda path: ("triton" not in path.name, path.name)):
        text = path.read_text()
        is_whole = _FILE_MARK in text
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = "".join(ast.unparse(decorator) for decorator in node.decorator_list)
                if is_whole or any(mark in marks for mark in _TEST_MARKS):
                    found.append(f"{path.relative_to(root)}::{node.name}")
    return tuple(found)


def items(settings: Settings) -> list[Item]:
    """Return one item, which runs all tests, or none without tests."""
    return [Item("tests", partial(_run_tests, settings.tests, settings.root), limit=200)] if settings.tests else []


def _run_tests(names: tuple[str, ...], root: Path, recorder: Recorder) -> None:
    end = time.monotonic() + recorder.seconds_left - 2
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=10", "-p", "no:cacheprovider", "-rs"]
    waiting, running = list(names), {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < max((os.cpu_count() or 1) // 2, 1):
                name, log = waiting.pop(0), Path(folder) / f"{len(waiting)}.txt"
                with log.open("wb") as output:
                    process = subprocess.Popen([*command, name], cwd=root, stdout=output, stderr=subprocess.STDOUT)
                running[name] = process, log
            is_over = time.monotonic() > end
            for name, (process, log) in list(running.items()):
                code = process.poll()
                if code is None and not is_over:
                    continue
                process.kill()
                process.wait()
                del running[name]
                _record(recorder, name, "stopped, out of time" if code is None else f"exit code {code}", log)
            if is_over:
                break
            time.sleep(0.2)
    if waiting:
        recorder.note(f"No time was left for: {', '.join(waiting)}.")


def _record(recorder: Recorder, name: str, result: str, log: Path) -> None:
    output = log.read_text(encoding="utf-8", errors="replace")
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
    recorder.row("tests", test=name.removeprefix("tests/"), result=result, summary=last)
    if result != "exit code 0":
        recorder.failure(f"{name}: {result}", output[-TAIL:])
