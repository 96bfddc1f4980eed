"""Formats costs and their ratios to the plain twin's as a table and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """Format of a figure in the table.

    Attributes:
        heading: The column's title, with the unit.
        unit: The heading's unit, as a multiple of the figure's own.
        digits: Number of decimals.
    """

    heading: str
    unit: float
    digits: int


COLUMNS = {
    "parameters": Column("params/M", 1e6, 3),
    "multiply_adds": Column("GMACs", 1e9, 3),
    "multiply_adds_without_low_passes": Column("w/o LP", 1e9, 3),
    "forward_seconds": Column("forward/ms", 1e-3, 1),
    "forward_added_seconds": Column("+ ms", 1e-3, 1),
    "train_seconds": Column("train/ms", 1e-3, 1),
    "train_added_seconds": Column("+ ms", 1e-3, 1),
    "saved_bytes": Column("saved/MB", 1e6, 1),
    "peak_bytes": Column("peak/MB", 1e6, 1),
}


def add_increments(figures: Mapping[str, dict[str, Any]], chain: Sequence[str]) -> None:
    """Add to each model's figures the differences of its times from those of the previous model in `chain`.

    Args:
        figures: The figures of each model, by its name; changed in place.
        chain: Names of models, each with one more part than the one before. Other models get None.
    """
    for name, own in figures.items():
        before = figures[chain[chain.index(name) - 1]] if name in chain[1:] else None
        for kind in ("forward", "train"):
            time = own[f"{kind}_seconds"]
            own[f"{kind}_added_seconds"] = time - before[f"{kind}_seconds"] if before and time is not None else None


def ratios_to(twin: Mapping[str, Any], costs: Mapping[str, Any]) -> dict[str, float | None]:
    """Compute costs as multiples of the twin's, named `<figure>_ratio`; None if one was not measured."""
    ratios = {}
    for key in COLUMNS:
        own, reference = costs[key], twin[key.replace("_added", "")]
        ratios[f"{key}_ratio"] = own / reference if own is not None and reference else None
    return ratios


def table_header(columns: Mapping[str, Column], name_width: int) -> str:
    """Format the first line of the table."""
    headings = "".join(f"  {column.heading:>10}  {'x':>5}" for column in columns.values())
    return f"{'model':<{name_width}}  batch  {'image':>9}{headings}"


def table_line(row: Mapping[str, Any], columns: Mapping[str, Column], name_width: int) -> str:
    """Format a model's line; figures that were not measured are blank."""

    def cell(key: str, column: Column) -> str:
        if row[key] is None:
            return " " * 19
        return f"  {row[key] / column.unit:>10.{column.digits}f}  {row[key + '_ratio']:>5.2f}"

    figures = "".join(cell(key, column) for key, column in columns.items())
    return f"{row['model']:<{name_width}}  {row['batch_size']:>5}  {row['image_size']:>9}{figures}".rstrip()


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows with the same keys as CSV; empty without rows."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
