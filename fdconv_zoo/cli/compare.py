"""Train a recipe's model and its twins with other convolutions from several seeds, and compare them.

    python scripts/make_sample.py --full data/fashion_mnist
    fdconv-zoo compare --config resnet10s_fdconv.fashion_mnist --output runs/compare \\
        --models resnet10s_plain resnet10s_fdconv resnet10s_odconv resnet10s_condconv --dataset data/fashion_mnist
    fdconv-zoo compare --config resnet10s_fdconv.fashion_mnist.segment_canvases \\
        --output runs/compare_segment --start-from runs/compare \\
        --models resnet10s_plain resnet10s_fdw resnet10s_fdw_ksm resnet10s_fdconv resnet10s_odconv

Each run keeps its last epoch's weights: none is chosen by its results. Classifiers are then tested once on a split that
training does not see. For segmentation and detection, the figures are those of the validation images. Killed and
started again, it continues with what is not done. At the end, the models' training steps are timed,
interleaved. The table is printed, and written to `comparison.json`.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

import fdconv_zoo.profiling.mobile_twins  # noqa: F401  registers them
from fdconv_zoo.cli import validate
from fdconv_zoo.cli.detect import DetectionTask
from fdconv_zoo.cli.recipes import HelpFormatter
from fdconv_zoo.cli.segment import SegmentationTask
from fdconv_zoo.cli.task import CommandTask, run_task
from fdconv_zoo.cli.train import ClassificationTask
from fdconv_zoo.conversion.costs import count_parameters
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import read_entry
from fdconv_zoo.profiling.timing import time_interleaved, training_step
from fdconv_zoo.profiling.twins import TWINS, trained_twin
from fdconv_zoo.store.files import write_text

TASKS = {task.name: task for task in (ClassificationTask, SegmentationTask, DetectionTask)}
METRICS = {
    ClassificationTask: {"top1": "top-1"},
    SegmentationTask: {"miou": "mIoU"},
    DetectionTask: {"box_ap": "box AP", "mask_ap": "mask AP"},
}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="fdconv-zoo compare",
        description=__doc__.partition("\n")[0],
        epilog="All other flags are those of the training command of the recipe.",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="NAME", help="entry with the recipe of all runs")
    parser.add_argument("--test-split", default="test", metavar="NAME", help="split to test classifiers on")
    parser.add_argument("--models", nargs="+", required=True, help=f"timm names, and {', '.join(TWINS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the runs of each model")
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="DIR",
        help="--output of an earlier comparison: a model starts from the weights with the same seed there, those of "
        "the plain twin if it can load them, else its own",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for a folder per run, and the table")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; `argv` is the command line without the program."""
    args, recipe = build_parser().parse_known_args(argv)
    task_type = TASKS[read_entry(args.config).task]
    metrics = METRICS[task_type]
    flags = ["--config", args.config, *recipe]
    runs = [
        (model, seed, starting_weights(args.start_from, model, seed)) for seed in args.seeds for model in args.models
    ]
    rows = []
    for model, seed, weights in runs:
        run = args.output / f"{model}-seed{seed}"
        own = [*flags, "--model", model, "--seed", str(seed), "--output", str(run), *weights]
        rows.append({"model": model, "seed": seed, **train_and_test(task_type, own, run, args.test_split)})
    accelerator = Accelerator()
    networks, steps = networks_and_steps(task_type, [*flags, "--output", str(args.output)], args.models, accelerator)
    medians = [median for median, _ in time_interleaved(steps, 10, accelerator.device)]
    table = []
    for model, network, median in zip(args.models, networks, medians, strict=True):
        own = [row for row in rows if row["model"] == model]
        costs = {"parameters": count_parameters(network), "step_time": median / min(medians)}
        table.append({"model": model, **costs, **summarize(own, metrics)})
    write_text(args.output / "comparison.json", json.dumps({"models": table, "runs": rows}, indent=2) + "\n")
    print(as_table(table, metrics))


def starting_weights(comparison: Path | None, model: str, seed: int) -> list[str]:
    """Return the flags that make a run start from weights of an earlier comparison.

    Raises:
        ConfigError: there are no such weights.
    """
    if comparison is None:
        return []
    weights = comparison / f"{trained_twin(model)}-seed{seed}" / "last" / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(
            f"--start-from {comparison}: no {weights.relative_to(comparison)}, from which {model} would start; first "
            f"train {trained_twin(model)} with seed {seed} there"
        )
    return ["--checkpoint", str(weights)]


def train_and_test(task_type: type[CommandTask], flags: list[str], run: Path, test_split: str) -> dict[str, Any]:
    """Train in the folder of a run, unless that is done, and return the figures of its last epoch's weights."""
    tested = run / "test.json"
    if not tested.exists():
        run_task(task_type, [*flags, "--resume"])
        if task_type is ClassificationTask:
            dataset = task_type.build_parser().parse(flags, smoke={}).dataset
            test = ["--model", str(run / "last"), "--dataset", dataset, "--validation-split", test_split]
            validate.main([*test, "--json", str(tested)])
        else:
            last = (run / "metrics.jsonl").read_text().splitlines()[-1]
            write_text(tested, json.dumps({"results": [json.loads(last)]}, indent=2) + "\n")
    (result,) = json.loads(tested.read_text())["results"]
    return {key: result[key] for key in (*METRICS[task_type], "images") if result[key] is not None}


def networks_and_steps(
    task_type: type[CommandTask], flags: list[str], models: Sequence[str], accelerator: Accelerator
) -> tuple[list[nn.Module], list[Callable[[], None]]]:
    """Build what each run trains, with random weights, and its training step for the first batch of its data."""
    networks, steps = [], []
    for model in models:
        args = task_type.build_parser().parse([*flags, "--model", model, "--no-pretrained"], smoke={})
        task = task_type(args, accelerator)
        task.load_data(args.dataset)
        network = task.build_model().to(accelerator.device).train()
        batch = next(task.training_batches(network).epoch(0))
        networks.append(network)
        steps.append(training_step(network, batch, torch.float32, task.loss))
    return networks, steps


def summarize(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """Return mean and sample standard deviation over the seeds of one model."""
    summary: dict[str, Any] = {"seeds": len(rows), "images": rows[0]["images"]}
    for metric in metrics:
        values = [row[metric] for row in rows if metric in row]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            summary |= {f"{metric}_mean": statistics.mean(values), f"{metric}_std": deviation}
    return summary


def as_table(table: Sequence[dict[str, Any]], metrics: dict[str, str]) -> str:
    """Format the summaries as Markdown."""
    shown = {key: name for key, name in metrics.items() if f"{key}_mean" in table[0]}
    titles = ["model", "parameters"]
    for name in shown.values():
        titles += [f"{name}, mean", "std"]
    titles += ["seeds", "time of a training step"]
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + " ---: |" * (len(titles) - 1)]
    for row in table:
        cells = [f"`{row['model']}`", f"{row['parameters']:,}"]
        for key in shown:
            deviation = row[f"{key}_std"]
            cells += [f"{row[f'{key}_mean']:.2f} %", "" if deviation is None else f"{deviation:.2f}"]
        cells += [str(row["seeds"]), f"{row['step_time']:.1f} x"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
