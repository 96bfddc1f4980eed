"""Train a recipe's model and its twins with other convolutions from several seeds, and compare them.

    python scripts/make_sample.py --full data/fashion_mnist
    python scripts/compare.py --config models/resnet10s_fdconv.fashion_mnist.yaml --output runs/compare \\
        --models resnet10s_plain resnet10s_fdconv resnet10s_odconv resnet10s_condconv --dataset data/fashion_mnist
    python scripts/compare.py --config models/resnet10s_fdconv.fashion_mnist.segment_canvases.yaml \\
        --output runs/compare_segment --start-from runs/compare \\
        --models resnet10s_plain resnet10s_fdw resnet10s_fdw_ksm resnet10s_fdconv resnet10s_odconv

Each run ends after its last epoch: none is chosen by its results. Classifiers are then tested once on a split that
training does not see; for segmentation and detection the figures are those of the validation images. Killed and started
again, it goes on with what is not done. At the end the models' training steps are timed by turns. The table is printed,
and written to `comparison.json`.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import detect
import segment
import timm
import torch
import train
import validate
from accelerate import Accelerator
from torch import nn
from twins import trained_twin

from fdconv_zoo.cli.recipes import run_script
from fdconv_zoo.conversion.costs import count_parameters
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import read_entry
from fdconv_zoo.profiling.timing import time_interleaved, training_step
from fdconv_zoo.store.files import write_text

SCRIPTS = {"classification": train, "segmentation": segment, "detection": detect}
METRICS = {train: {"top1": "top-1"}, segment: {"miou": "mIoU"}, detect: {"box_ap": "box AP", "mask_ap": "mask AP"}}


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="entry of models/ with the recipe of all runs")
    parser.add_argument("--test-split", default="test", metavar="NAME", help="to test classifiers on")
    parser.add_argument("--models", nargs="+", required=True, help="timm names, and those of twins.py")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="DIR",
        help="--output of an earlier comparison: a model starts from the weights of the same seed there, of the plain "
        "twin where it reads those, else of its own",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder a run, and the table")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script; `argv` is the command line without the program and the training script's other flags."""
    args, recipe = build_parser().parse_known_args(argv)
    script = SCRIPTS[read_entry(args.config).task]
    flags = ["--config", args.config, *recipe]
    runs = [
        (model, seed, starting_weights(args.start_from, model, seed)) for seed in args.seeds for model in args.models
    ]
    rows = []
    for model, seed, weights in runs:
        run = args.output / f"{model}-seed{seed}"
        own = [*flags, "--model", model, "--seed", str(seed), "--output", str(run), *weights]
        rows.append({"model": model, "seed": seed, **train_and_test(script, own, run, args.test_split)})
    steps = networks_and_steps(script, [*flags, "--output", str(args.output)], args.models)
    medians = [median for median, _ in time_interleaved([step for _, step in steps], 10, torch.device("cpu"))]
    table = []
    for model, (network, _), median in zip(args.models, steps, medians, strict=True):
        own = [row for row in rows if row["model"] == model]
        costs = {"parameters": count_parameters(network), "step_time": median / min(medians)}
        table.append({"model": model, **costs, **summarize(own, METRICS[script])})
    write_text(args.output / "comparison.json", json.dumps({"models": table, "runs": rows}, indent=2) + "\n")
    print(as_table(table, METRICS[script]))


def starting_weights(comparison: Path | None, model: str, seed: int) -> list[str]:
    """The flags that make a run start from weights of an earlier comparison. Raises ConfigError for missing ones."""
    if comparison is None:
        return []
    weights = comparison / f"{trained_twin(model)}-seed{seed}" / "last" / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(
            f"--start-from {comparison}: no {weights.relative_to(comparison)}, from which {model} would start; train "
            f"{trained_twin(model)} with seed {seed} there first"
        )
    return ["--checkpoint", str(weights)]


def train_and_test(script: ModuleType, flags: list[str], run: Path, test_split: str) -> dict[str, Any]:
    """Train in the folder of a run, unless that is done, and give the figures of its last epoch's weights."""
    tested = run / "test.json"
    if not tested.exists():
        script.main([*flags, "--resume"])
        if script is train:
            dataset = train.build_parser().parse(flags, smoke={}).dataset
            test = ["--model", str(run / "last"), "--dataset", dataset, "--validation-split", test_split]
            validate.main([*test, "--json", str(tested)])
        else:
            last = (run / "metrics.jsonl").read_text().splitlines()[-1]
            write_text(tested, json.dumps({"results": [json.loads(last)]}, indent=2) + "\n")
    (result,) = json.loads(tested.read_text())["results"]
    return {key: result[key] for key in (*METRICS[script], "images") if result[key] is not None}


def networks_and_steps(
    script: ModuleType, flags: list[str], models: Sequence[str]
) -> list[tuple[nn.Module, Callable[[], None]]]:
    """What each run trains, with random weights, and its training step: of classifiers, for random images."""
    parser = script.build_parser()
    settings = [parser.parse([*flags, "--model", model, "--no-pretrained"], smoke={}) for model in models]
    if script is train:
        return [classifier_and_step(args) for args in settings]
    data, accelerator = script.load_data(settings[0], settings[0].dataset), Accelerator(cpu=True)
    pairs = []
    for args in settings:
        network = script.build_model(args, data).train()
        batch = next(script.training_batches(args, data, network, accelerator).epoch(0))
        pairs.append((network, training_step(network, batch, torch.float32, script.loss)))
    return pairs


def classifier_and_step(args: argparse.Namespace) -> tuple[nn.Module, Callable[[], None]]:
    """A classifier and its training step."""
    network = timm.create_model(args.model).train()
    size = args.img_size or network.pretrained_cfg["input_size"][-1]
    return network, training_step(network, torch.randn(args.batch_size, 3, size, size), torch.float32)


def summarize(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """Mean and standard deviation (of a sample) over the seeds of one model."""
    summary: dict[str, Any] = {"seeds": len(rows), "images": rows[0]["images"]}
    for metric in metrics:
        values = [row[metric] for row in rows if metric in row]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            summary |= {f"{metric}_mean": statistics.mean(values), f"{metric}_std": deviation}
    return summary


def as_table(table: Sequence[dict[str, Any]], metrics: dict[str, str]) -> str:
    """The summaries in Markdown."""
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


if __name__ == "__main__":
    run_script(main)
