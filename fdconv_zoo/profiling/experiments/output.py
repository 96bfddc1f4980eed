"""Writes the results of an experiment: a table in Markdown, JSON, and a picture."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from fdconv_zoo.profiling.learning_curves import COLOURS, PATTERNS
from fdconv_zoo.profiling.processor import cpu_name
from fdconv_zoo.store.files import replacing, write_text


def write_results(folder: Path, name: str, table: str, results: Any, figure: Figure | None) -> None:
    """Write ``NAME.md``, ``NAME.json`` (with a description of the machine) and ``NAME.png`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = {
        "processor": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }
    write_text(folder / f"{name}.json", json.dumps({"machine": machine, "results": results}, indent=2) + "\n")
    write_text(folder / f"{name}.md", table + "\n")
    if figure is not None:
        with replacing(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table, with the first column aligned left and all others aligned right."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def forms_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of `measure_forms`: multiply-adds (1e9) that each form adds to the plain network, and times.

    Times are medians with interquartile ranges, and multiples of the plain network's.
    """
    plain = rows[0]
    kinds = ("products", "norms", "transforms", "elementwise")
    titles = ["FBM", "path", "get_flops", *(f"+ {kind}" for kind in kinds), "+ get_flops", "+ all"]
    titles += ["inference, ms", "x", "training step, ms", "x"]
    cells = []
    for row in rows:
        added = [f"{(row[key] - plain[key]) / 1e9:.3f}" for key in (*kinds, "get_flops", "total")]
        cells.append([row["form"], row["path"] or "", f"{row['get_flops'] / 1e9:.2f}", *added])
        for kind in ("forward", "training"):
            cells[-1] += [
                _milliseconds(row, kind),
                f"{row[f'{kind}_seconds'] / plain[f'{kind}_seconds']:.2f}",
            ]
    return markdown(titles, cells)


def _milliseconds(row: dict[str, Any], kind: str) -> str:
    return f"{1e3 * row[f'{kind}_seconds']:.1f} ± {1e3 * row[f'{kind}_iqr_seconds']:.1f}"


def draw_forms(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw the multiply-adds that each form adds, by kind, and the times as multiples of the plain network's."""
    plain, rows = rows[0], rows[1:]
    labels = [f"{row['form']}, {row['path']}" if row["path"] else row["form"] for row in rows]
    figure = Figure(figsize=(13, 1.4 + 0.34 * len(rows)), layout="constrained")
    work, forward, training = figure.subplots(1, 3, sharey=True)
    left = [0.0] * len(rows)
    for kind, colour in zip(("products", "norms", "transforms", "elementwise"), COLOURS[1:], strict=False):
        widths = [(row[kind] - plain[kind]) / 1e9 for row in rows]
        work.barh(labels, widths, left=left, color=colour, label=kind)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    work.set_title("Added multiply-adds (1e9)")
    work.legend(frameon=False)
    work.invert_yaxis()
    for axes, kind, title in ((forward, "forward", "Inference"), (training, "training", "Training step")):
        bars = axes.barh(labels, [row[f"{kind}_seconds"] / plain[f"{kind}_seconds"] for row in rows], color=COLOURS[2])
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.axvline(1, color="black", linestyle="--", linewidth=1)
        axes.margins(x=0.15)
        axes.set_title(f"{title} (plain network = 1)")
    for axes in (work, forward, training):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def swin_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of `measure_swin`: theoretical and measured costs as multiples of the plain twin's."""
    titles = ["image", "batch", "path", "get_flops x", "all multiply-adds x", "inference, ms", "x"]
    titles += ["training step, ms", "x"]
    cells = []
    for row in rows:
        cells.append([str(row["image_size"]), str(row["batch_size"]), row["path"] or "plain twin"])
        cells[-1] += [f"{row['get_flops_ratio']:.2f}", f"{row['total_ratio']:.2f}"]
        for kind in ("forward", "training"):
            cells[-1] += [_milliseconds(row, kind), f"{row[f'{kind}_ratio']:.2f}"]
    return markdown(titles, cells)


def draw_swin(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw time ratios over the batch size, a line for each path and image size, and the theoretical ratios in grey."""
    rows = [row for row in rows if row["path"] is not None]
    sizes, paths = (list(dict.fromkeys(row[key] for row in rows)) for key in ("image_size", "path"))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, kind, title in zip(panels, ("forward", "training"), ("Inference", "Training step"), strict=True):
        for number, path in enumerate(paths):
            for size, pattern in zip(sizes, PATTERNS * len(sizes), strict=False):
                own = [row for row in rows if (row["path"], row["image_size"]) == (path, size)]
                batches, ratios = [row["batch_size"] for row in own], [row[f"{kind}_ratio"] for row in own]
                label = f"{path}, {size}x{size}"
                axes.plot(batches, ratios, pattern, marker="o", color=COLOURS[number + 1], label=label)
        for size, pattern in zip(sizes, PATTERNS * len(sizes), strict=False):
            theory = next(row["total_ratio"] for row in rows if row["image_size"] == size)
            axes.axhline(theory, color="grey", linestyle=pattern, linewidth=1, label=f"multiply-adds, {size}x{size}")
        axes.set_title(f"{title} (plain twin = 1)")
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, map(str, batches))
        axes.set_xlabel("Images in a batch")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure
