"""The table of a comparison: results of each model, differences from the reference, and costs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fdconv_zoo.index.table import quantity
from fdconv_zoo.profiling.paired import CONFIDENCE, PairedDifference, paired_difference


def summarize(
    rows: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """Summarize the runs of one model over its seeds.

    Args:
        rows: The runs' figures, one row for each seed.
        reference: Figures of the first model, for the same seeds in the same order; may be `rows` itself.
        metrics: Keys of the metrics; those that the rows do not have are left out.

    Returns:
        ``seeds``, ``images``, and for each metric its mean, its sample standard deviation (None for one seed), and the
        `PairedDifference` from the reference as a mapping (None for the reference itself).
    """
    summary: dict[str, Any] = {"seeds": len(rows), "images": rows[0]["images"]}
    for metric in metrics:
        if any(metric not in row for row in rows):
            continue
        values = [row[metric] for row in rows]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        summary |= {f"{metric}_mean": statistics.mean(values), f"{metric}_std": deviation}
        is_paired = rows is not reference and all(metric in row for row in reference)
        difference = paired_difference(values, [row[metric] for row in reference]) if is_paired else None
        summary[f"{metric}_difference"] = difference and asdict(difference)
    return summary


def as_table(table: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]) -> str:
    """Format summaries and costs as Markdown.

    Args:
        table: One row for each model, the reference first, as `summarize` and `measure_costs` return them together.
        metrics: Name of each metric by its key; those that the first row does not have are left out.
    """
    shown = {key: name for key, name in metrics.items() if f"{key}_mean" in table[0]}
    titles = ["model", "parameters", "multiply-adds"]
    for name in shown.values():
        titles += [f"{name}, mean", "std", f"difference [{100 * CONFIDENCE:.0f} %]"]
    titles += ["seeds", "time of a training step", "memory kept for backward"]
    lines = [_line(titles), "| --- |" + " ---: |" * (len(titles) - 1)]
    for row in table:
        cells = [f"`{row['model']}`", f"{row['parameters']:,}", quantity(row["multiply_adds"])]
        for key in shown:
            deviation = row[f"{key}_std"]
            cells += [f"{row[f'{key}_mean']:.2f} %", "" if deviation is None else f"{deviation:.2f}"]
            cells.append(format_difference(row[f"{key}_difference"]))
        cells += [str(row["seeds"]), f"{row['step_time']:.1f} x", f"{row['saved_memory']:.2f} x"]
        lines.append(_line(cells))
    return "\n".join(lines)


def format_difference(difference: Mapping[str, float | None] | None) -> str:
    """Format a `PairedDifference`, given as a mapping, with its interval if it has one; None for the reference."""
    if difference is None:
        return "reference"
    found = PairedDifference(**difference)
    interval = "" if found.low is None else f" [{found.low:+.2f}, {found.high:+.2f}]"
    return f"{found.mean:+.2f}{interval}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
