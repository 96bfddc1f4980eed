"""Draws the table of a benchmark as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fdconv_zoo.store.files import replacing

PANELS = {
    "forward_seconds_ratio": "inference time",
    "train_seconds_ratio": "time of a training step",
    "saved_bytes_ratio": "bytes saved for backward",
    "peak_bytes_ratio": "peak memory of a training step",
}


def draw_ratios(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw costs as multiples of the plain twin's: one panel per figure, one bar per model and setting.

    Args:
        rows: Rows of the table, grouped by setting, with ``model``, ``twin``, ``batch_size``, ``image_size`` and the
            ratios (None if not measured). Twins are not drawn; they are the line at 1.
        path: Path of the PNG.
    """
    rows = [row for row in rows if row["model"] != row["twin"]]
    panels = {key: title for key, title in PANELS.items() if any(row[key] is not None for row in rows)}
    lines = _add_headings(rows)
    figure = Figure(figsize=(3 + 3 * len(panels), 1.2 + 0.24 * len(lines)), layout="constrained")
    figure.suptitle("Multiples of the plain model")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0] if panels else []
    for panel, (key, title) in zip(axes, panels.items(), strict=True):
        _draw_panel(panel, [None if isinstance(line, str) else line[key] for line in lines], title)
    if panels:
        axes[0].set_yticks(range(len(lines)), [line if isinstance(line, str) else line["model"] for line in lines])
        axes[0].invert_yaxis()
        for label, line in zip(axes[0].get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if isinstance(line, str) else "normal")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _add_headings(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | str]:
    """Insert a line of text before the rows of each setting."""
    lines: list[Mapping[str, Any] | str] = []
    last = None
    for row in rows:
        heading = f"batch {row['batch_size']}, {row['image_size']}"
        lines += [row] if heading == last else [heading, row]
        last = heading
    return lines


def _draw_panel(axes: Axes, ratios: Sequence[float | None], title: str) -> None:
    measured = [(place, ratio) for place, ratio in enumerate(ratios) if ratio is not None]
    # Highlight the costs beyond the plain model's.
    blue, orange = colormaps["tab10"].colors[:2]
    bars = axes.barh(*zip(*measured, strict=True), height=0.8, color=blue)
    beyond = [(place, max(ratio - 1, 0)) for place, ratio in measured]
    axes.barh(*zip(*beyond, strict=True), left=1, height=0.8, color=orange)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.margins(x=0.15)
    axes.set_title(title, fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
