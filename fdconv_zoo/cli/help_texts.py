"""Texts of `--help`, stored in files to show them without loading torch, which takes seconds.

`make help` writes the files, and a test compares them with the flags.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "help"
FLAGS = (["-h"], ["--help"])


def stored_help(name: str) -> str | None:
    """Return the help of a command; None if it is not stored."""
    file = FOLDER / f"{name}.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else None
