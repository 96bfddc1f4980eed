"""The tests of the repository that need a GPU."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

from fdconv_zoo.profiling.gpu_report.section import Item, Recorder, Settings

_MARK = "mark.gpu"
# A file of tests belongs here if a GPU runs more of them, or others.
_NEEDS_GPU = re.compile(rf"cuda\.is_available\(\)|{re.escape(_MARK)}")
TAIL = 12000  # characters of the output


def find_tests(root: Path) -> tuple[str, ...]:
    """The files of tests that are for a GPU too, those of the Triton path first."""
    files = [
        path
        for path in sorted((root / "tests").glob("test_*.py"))
        if path.name != "test_gpu_report.py" and _NEEDS_GPU.search(path.read_text())
    ]
    files.sort(key=lambda path: "triton" not in path.name)
    return tuple(str(path.relative_to(root)) for path in files)


def items(settings: Settings) -> list[Item]:
    """One for each file."""
    return [Item(name, partial(_run_tests, name, settings.root), limit=100) for name in settings.tests]


def _run_tests(name: str, root: Path, recorder: Recorder) -> None:
    limit = min(95, recorder.seconds_left)
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=20", "-p", "no:cacheprovider", "-rs", name]
    if _MARK in (root / name).read_text(encoding="utf-8"):
        command += ["-m", "gpu"]  # the others need none
    try:
        done = subprocess.run(
            command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit, check=False
        )
        output, result = done.stdout, f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output, result = (error.stdout or b"").decode(errors="replace"), "stopped, out of time"
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
    recorder.row("tests", file=name, result=result, summary=last)
    if result != "exit code 0":
        recorder.failure(result, output[-TAIL:])
