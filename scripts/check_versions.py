#!/usr/bin/env python
"""Test the package with the oldest and the newest libraries that it allows, and write the results to a table.

For each row, uv installs the package into a fresh virtual environment, and a short set of tests runs there. This
downloads torch, so a row takes minutes, and gigabytes of disk space:

    python scripts/check_versions.py                                  # all rows, with this Python
    python scripts/check_versions.py --rows newest --python 3.10 3.12 3.13

--python takes versions that uv finds on this machine, or paths. Measuring a row again replaces it in the table.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "timm", "huggingface_hub", "accelerate", "transformers")

_LAYERS = ("test_fdconv", "test_reference", "test_loaders", "test_resnet", "test_typed_use")
_TRAINING = (
    *_LAYERS,
    "test_pretrained",
    "test_conversion",
    "test_hub_download",
    "test_publish",
    "test_dense_prediction",
    "test_user_path",
)
_ALL = (*_TRAINING, "test_export")


class Row(NamedTuple):
    """A set of libraries.

    Attributes:
        title: Title of the row in the table.
        requirements: What is installed.
        resolution: uv's resolution strategy: which versions are installed.
        tests: Names of files in ``tests/``.
    """

    title: str
    requirements: tuple[str, ...]
    resolution: str
    tests: tuple[str, ...]


# What the tests themselves need. Torchvision is a dependency of timm: if it is not named here, its newest version is
# installed, which requires the newest torch. On a CPU, torch.compile of torch 2.6 needs setuptools, but torch does not
# require it.
_TOOLS = (
    "accelerate>=1.2",
    "hypothesis>=6.100",
    "packaging>=23.0",
    "pytest>=8.0",
    "setuptools>=60",
    "torchvision>=0.21",
)
ROWS = {
    "layers": Row("layers and models, oldest", (".", *_TOOLS), "lowest-direct", _LAYERS),
    "training": Row("training, oldest", (".[dense,analysis]", *_TOOLS), "lowest-direct", _TRAINING),
    "oldest": Row("everything, oldest", (".[test]",), "lowest-direct", _ALL),
    "newest": Row("everything, newest", (".[test]",), "highest", _ALL),
}

_HEAD = f"""\
# Versions

The oldest and the newest libraries that work. Each row is a fresh environment, with the result of a short set of tests:
layers against the authors' recordings, every way to load weights, and torch.compile. Rows with training add conversion,
downloads, publishing, prediction of segmenters and detectors, and a user's path from a folder of images to a published
model. Rows with everything add export to ONNX. "Oldest" are the lower bounds of `pyproject.toml`, or what these
libraries require of each other: training needs a newer timm than layers do, and export a newer torch.

`make versions` measures the rows for its own Python, `scripts/check_versions.py --python` those for others.

| libraries | Python | {" | ".join(LIBRARIES)} | tests |
| --- | --- | {"--- | " * len(LIBRARIES)}--- |
"""


def main() -> None:
    """Measure the rows that the flags name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which sets of libraries")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="versions or paths of interpreters")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "versions.md", help="written to")
    args = parser.parse_args()
    failed = False
    for python in args.python:
        for name in args.rows:
            with tempfile.TemporaryDirectory() as folder:
                cells = measure(ROWS[name], python, Path(folder))
            text = args.table.read_text(encoding="utf-8") if args.table.exists() else _HEAD
            args.table.write_text(with_row(text, cells), encoding="utf-8")
            print(f"{args.table}: {' | '.join(cells)}", flush=True)
            failed |= not cells[-1].endswith("passed")
    sys.exit(failed)


def measure(row: Row, python: str, folder: Path) -> list[str]:
    """Install and test a row.

    Args:
        row: the libraries and the tests.
        python: version or path of the interpreter.
        folder: for the environment.

    Returns:
        The cells of the table's row; the last ends in ``passed`` if all tests passed.
    """
    interpreter = folder / "bin" / "python"
    _uv("venv", "--quiet", "--no-python-downloads", "--python", python, str(folder))
    install = ("pip", "install", "--quiet", "--python", str(interpreter), "--resolution", row.resolution)
    _uv(*install, *row.requirements)
    version = (interpreter, "-c", "import platform; print(platform.python_version())")
    python = subprocess.run(version, check=True, capture_output=True, text=True).stdout.strip()
    lines = _uv("pip", "freeze", "--python", str(interpreter)).splitlines()
    versions = dict(line.replace("-", "_").split("==") for line in lines if "==" in line)
    # Not `python -m pytest`, which would import the package from the working tree.
    tests = [f"tests/{name}.py" for name in row.tests]
    command = [folder / "bin" / "pytest", "-q", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        print(run.stdout)
    return [row.title, python, *(versions.get(name, "-") for name in LIBRARIES), outcome(run.stdout)]


def outcome(output: str) -> str:
    """Return the counts in the last line of pytest's output, such as ``2 failed, 310 passed``, except skipped tests."""
    counts = re.findall(r"(\d+ (?:failed|passed|errors?))\b", output.strip().rpartition("\n")[2])
    return ", ".join(counts) or "did not run"


def with_row(table: str, cells: Sequence[str]) -> str:
    """Append a row to a table, and remove the row for the same libraries and minor version of Python."""
    title, python = cells[0], cells[1].rpartition(".")[0]
    same = f"| {title} | {python}."
    lines = [line for line in table.splitlines() if not line.startswith(same)]
    return "\n".join([*lines, f"| {' | '.join(cells)} |"]) + "\n"


def _uv(*arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "uv", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if run.returncode:
        sys.exit(f"uv {' '.join(arguments)} failed.")
    return run.stdout


if __name__ == "__main__":
    main()
