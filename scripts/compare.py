"""Train a recipe's model and its twins with other convolutions from several seeds, and compare them on a test split.

    python scripts/make_sample.py --full data/fashion_mnist
    python scripts/compare.py --config models/resnet10s_fdconv.fashion_mnist.yaml --output runs/compare --seeds 0 1 2 \\
        --models resnet10s_fdconv resnet10s_plain resnet10s_condconv resnet10s_odconv --dataset data/fashion_mnist

Each run ends after its last epoch: none is chosen by its results, and the test split is looked at once. Killed and
started again, it goes on with what is not done. At the end the models' training steps are timed by turns. The table is
printed, and written to `comparison.json`.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import train
import twins  # noqa: F401  registers the twins
import validate

from fdconv_zoo.costs import count_parameters
from fdconv_zoo.profiling.timing import time_by_turns, training_step
from fdconv_zoo.training.cli import run_script
from fdconv_zoo.training.files import write_text


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="entry of models/ with the recipe of all runs")
    parser.add_argument("--dataset", required=True, help="with a training, a validation and a test split")
    parser.add_argument("--test-split", default="test", metavar="NAME")
    parser.add_argument("--models", nargs="+", required=True, help="timm names, and those of twins.py")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder a run, and the table")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script; `argv` is the command line without the program and train.py's other flags."""
    args, recipe = build_parser().parse_known_args(argv)
    rows = []
    for seed in args.seeds:
        for model in args.models:
            run = args.output / f"{model}-seed{seed}"
            rows.append({"model": model, "seed": seed, **train_and_test(args, model, seed, run, recipe)})
    settings = train.build_parser().parse(["--config", args.config, "--output", str(args.output), *recipe], smoke={})
    times = step_times(args.models, settings.batch_size, settings.img_size)
    table = [summarize([row for row in rows if row["model"] == model], times[model]) for model in args.models]
    write_text(args.output / "comparison.json", json.dumps({"models": table, "runs": rows}, indent=2) + "\n")
    print(as_table(table))


def train_and_test(args: argparse.Namespace, model: str, seed: int, run: Path, recipe: list[str]) -> dict[str, Any]:
    """Train in the folder of a run, unless that is done, and evaluate its last epoch's weights on the test split."""
    tested = run / "test.json"
    if not tested.exists():
        flags = ["--config", args.config, "--dataset", args.dataset, "--model", model, "--seed", seed, "--output", run]
        train.main([*map(str, flags), "--resume", *recipe])
        flags = ["--model", run / "last", "--dataset", args.dataset, "--validation-split", args.test_split]
        validate.main([*map(str, flags), "--json", str(tested)])
    (result,) = json.loads(tested.read_text())["results"]
    return {key: result[key] for key in ("top1", "loss", "images")}


def step_times(models: Sequence[str], batch_size: int, img_size: int | None) -> dict[str, float]:
    """The time of each model's training step, as a multiple of the shortest: medians of ten, taken by turns."""
    networks = {name: timm.create_model(name).train() for name in models}
    size = img_size or networks[models[0]].pretrained_cfg["input_size"][-1]
    images = torch.randn(batch_size, 3, size, size)
    steps = [training_step(network, images, torch.float32) for network in networks.values()]
    medians = [median for median, _ in time_by_turns(steps, 10, images.device)]
    return {name: median / min(medians) for name, median in zip(models, medians, strict=True)}


def summarize(rows: Sequence[dict[str, Any]], step_time: float) -> dict[str, Any]:
    """Mean and standard deviation (of a sample) over the seeds of one model."""
    top1 = [row["top1"] for row in rows]
    return {
        "model": rows[0]["model"],
        "parameters": count_parameters(timm.create_model(rows[0]["model"])),
        "seeds": len(rows),
        "top1_mean": statistics.mean(top1),
        "top1_std": statistics.stdev(top1) if len(top1) > 1 else None,
        "images": rows[0]["images"],
        "step_time": step_time,
    }


def as_table(table: Sequence[dict[str, Any]]) -> str:
    """The summaries in Markdown."""
    lines = [
        "| model | parameters | top-1, mean | std | seeds | time of a training step |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in table:
        std = "" if row["top1_std"] is None else f"{row['top1_std']:.2f}"
        lines.append(
            f"| `{row['model']}` | {row['parameters']:,} | {row['top1_mean']:.2f} % | {std} | {row['seeds']} "
            f"| {row['step_time']:.1f} x |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
