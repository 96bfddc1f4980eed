"""`learning.jsonl`: the measurements of `--watch`, one JSON object per line and update."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fdconv_zoo.store.files import write_text

NAME = "learning.jsonl"


def append_learning(folder: Path, row: Mapping[str, Any]) -> None:
    """Add a row to the file in a run's folder."""
    with (folder / NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_learning(folder: Path) -> list[dict[str, Any]]:
    """Read the rows in a run's folder, up to the first incomplete line of a killed run; empty if there is no file."""
    path = folder / NAME
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def cut_learning(folder: Path, update: int) -> None:
    """Remove the rows after `update`, which a run wrote after the checkpoint from which it is resumed."""
    if (folder / NAME).is_file():
        rows = [row for row in read_learning(folder) if row["update"] <= update]
        write_text(folder / NAME, "".join(json.dumps(row) + "\n" for row in rows))
