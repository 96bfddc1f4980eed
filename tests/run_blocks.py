"""Run the code blocks of a page, so that what users copy is what is tested.

All ``python`` blocks of a page run in order in one namespace, in an empty folder; its ``bash`` blocks run between them
in the same folder, stop at the first error, and find the commands of this environment first. There is no network. A
block right after the comment ``<!-- not run: REASON -->`` is left out, where the reason begins with one of `REASONS`.

    python tests/run_blocks.py README.md docs/guides/deploy.md
"""

import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# What a block may need that a test does not have.
REASONS = (
    "needs a GPU",
    "needs a network",
    "needs an account",
    "needs several machines",
    "takes minutes",
    "takes hours",
)

LANGUAGES = ("python", "bash")

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)``` *$", re.M | re.S)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z", re.S)
_HEADING = re.compile(r"^#+ +(.+?) *$", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int  # of its first line of text, counted from 1
    heading: str  # the nearest above it
    not_run: str | None  # the reason


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, of any language, in order."""
    content, blocks, heading, end = page.read_text(encoding="utf-8"), [], "", 0
    for found in _FENCE.finditer(content):
        between = content[end : found.start()]
        heading = [heading, *_HEADING.findall(between)][-1]
        reason = _NOT_RUN.search(between)
        blocks.append(
            Block(
                found["language"],
                textwrap.dedent(found["text"]),
                content.count("\n", 0, found.start("text")) + 1,
                heading,
                reason and " ".join(reason[1].split()),
            )
        )
        end = found.end()
    return blocks


def run_python(block: Block, page: Path, scope: dict[str, object]) -> None:
    """Run a block in this process. Tracebacks have the lines of the page."""
    exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), scope)


def run_bash(block: Block, page: Path) -> None:
    """Run a block in a shell of its own, in the working directory."""
    result = subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], check=False)
    if result.returncode:
        raise SystemExit(f"{page}:{block.line}: exit status {result.returncode} of\n\n{block.text}")


def run_here(page: Path, languages: Sequence[str] = LANGUAGES) -> None:
    """Run the blocks of a page in this process, in the working directory."""
    scope: dict[str, object] = {"__name__": "__main__"}
    for block in read_blocks(page):
        if block.not_run or block.language not in languages:
            continue
        start = time.perf_counter()
        run_python(block, page, scope) if block.language == "python" else run_bash(block, page)
        print(f"{page}:{block.line}: {block.language}, {time.perf_counter() - start:.1f} s", flush=True)


def run_page(page: Path, languages: Sequence[str] = LANGUAGES, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the blocks of a page in a process of its own, with an empty folder and empty caches.

    Args:
        page: the file.
        languages: which of its blocks to run.
        **options: of `subprocess.run`, such as where its output goes.

    Returns:
        The ended process. Its status is 0 if no block failed.
    """
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as folder:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": cache,
            "TORCH_HOME": cache,
            "MPLBACKEND": "agg",
        }
        environment.setdefault("OMP_NUM_THREADS", "1")
        command = [sys.executable, __file__, "--here", str(page.resolve()), *languages]
        return subprocess.run(command, cwd=folder, env=environment, text=True, check=False, **options)


def main(arguments: list[str]) -> int:
    """Run pages; the status is 1 if a block failed."""
    if arguments[:1] == ["--here"]:
        run_here(Path(arguments[1]), arguments[2:])
        return 0
    return max(run_page(Path(name)).returncode != 0 for name in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
