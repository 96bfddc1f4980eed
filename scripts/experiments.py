"""Run the paper's experiments that need no training; docs/experiments.md describes them, and those that do.

    python scripts/experiments.py fbm --output runs/experiments
    python scripts/experiments.py swin --output runs/experiments
    python scripts/experiments.py kernels runs/compare/resnet10s_fdconv-seed0 runs/compare/resnet10s_odconv-seed0 \\
        --output runs/experiments
    python scripts/experiments.py swap runs/compare/resnet10s_fdconv-seed0 --output runs/experiments

fbm: what the forms of Frequency Band Modulation cost in a ResNet: its exact form on each path, FFTs as in the authors'
layer, and cheaper approximations. swin: FDConv in the linear layers of Swin's blocks, theoretical cost against
measured time. kernels: mean absolute cosine similarity of the kernels of each layer, of trained runs. swap: the metric
of trained runs on their validation images, if each image gets the kernels and band factors of another. Each writes a
table, JSON and (fbm, swin) a picture.
"""

import calm_threads  # noqa: F401, I001  before torch

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from torch import nn

import fdconv_zoo.profiling.band_twins
import fdconv_zoo.profiling.twins  # noqa: F401  registers the twins
from fdconv_zoo.analysis.observe import find_dynamic_layers
from fdconv_zoo.cli.compare import METRICS
from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.cli.predict import load_dense_model
from fdconv_zoo.cli.ranges import check_ranges
from fdconv_zoo.cli.task import CommandTask
from fdconv_zoo.cli.trained_on import read_run
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import timm_name
from fdconv_zoo.profiling.experiments.forms_of_fbm import measure_forms
from fdconv_zoo.profiling.experiments.kernel_similarity import mean_similarities, similarity_table
from fdconv_zoo.profiling.experiments.output import (
    draw_forms,
    draw_swin,
    forms_table,
    markdown,
    swin_table,
    write_results,
)
from fdconv_zoo.profiling.experiments.swapped_modulators import SWAPS, swapped_modulators, swaps_table
from fdconv_zoo.profiling.experiments.swin_stress import measure_swin
from fdconv_zoo.store.build import build_model

_UNUSED = {"pictures": 0, "pretrained": False, "checkpoint": None}  # flags of a run that evaluation does not need


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of this script's flags."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="experiment", required=True)
    fbm = commands.add_parser("fbm", help="what the forms of FBM cost")
    fbm.add_argument("--model", default="resnet50_fdconv", metavar="NAME", help="a ResNet with FDConv")
    count_help = "image to count multiply-adds for"
    fbm.add_argument("--count-size", nargs=2, type=int, default=[800, 1280], metavar=("H", "W"), help=count_help)
    fbm.add_argument("--image-size", type=int, default=224, metavar="N", help="side of the images to time")
    fbm.add_argument("--batch-size", type=int, default=1, metavar="N", help="images to time at once")
    swin = commands.add_parser("swin", help="FDConv in the linear layers of Swin's blocks")
    swin.add_argument("--model", default="swin_fdconv", metavar="NAME", help="a Swin Transformer with FDConv")
    swin.add_argument("--image-size", nargs="+", type=int, default=[224, 448], metavar="N", help="sides of the images")
    swin.add_argument("--batch-size", nargs="+", type=int, default=[1, 4, 16], metavar="N", help="images at once")
    for command in (fbm, swin):
        command.add_argument("--repeats", type=int, default=10, metavar="N", help="timings of each step")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        command.add_argument("--device", choices=("cpu", "cuda"), default=device, help=f"here: {device}")
    kernels = commands.add_parser("kernels", help="similarity of the kernels of trained layers")
    kernels.add_argument("runs", nargs="+", metavar="RUN", help="output folders of runs")
    swap = commands.add_parser("swap", help="the modulators of another image, in trained runs")
    swap.add_argument("runs", nargs="+", metavar="RUN", help="output folders of runs of one task")
    for command in (fbm, swin, kernels, swap):
        command.add_argument("--output", type=Path, required=True, metavar="DIR", help="for the results")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script. `argv` defaults to `sys.argv[1:]`."""
    args = build_parser().parse_args(argv)
    check_ranges(args)
    if args.experiment == "kernels":
        found = {run: _similarities(run) for run in args.runs}
        table = markdown(["layer", *(f"`{Path(run).name}`" for run in args.runs)], similarity_table(found))
        results, figure = found, None
    elif args.experiment == "swap":
        task_types = {run: _task_type(run) for run in args.runs}
        if len(set(task_types.values())) > 1:
            raise ConfigError("the runs are of several tasks: give those of one at a time")
        (metric, name), *_ = METRICS[task_types[args.runs[0]]].items()
        results = {run: _swap(run, task_type, metric) for run, task_type in task_types.items()}
        table, figure = swaps_table({Path(run).name: found for run, found in results.items()}, f"{name} %"), None
    elif args.experiment == "fbm":
        results = measure_forms(
            args.model,
            count_size=tuple(args.count_size),
            image_size=args.image_size,
            batch_size=args.batch_size,
            repeats=args.repeats,
            device=torch.device(args.device),
        )
        table, figure = forms_table(results), draw_forms(results)
    else:
        results = measure_swin(
            args.model,
            batch_sizes=args.batch_size,
            image_sizes=args.image_size,
            repeats=args.repeats,
            device=torch.device(args.device),
        )
        table, figure = swin_table(results), draw_swin(results)
    write_results(args.output, args.experiment, table, results, figure)
    print(table)


def _load(run: str) -> nn.Module:
    """The weights of a run's last epoch, or, of another folder, those in it."""
    last = Path(run) / "last"
    name = timm_name(str(last) if last.is_dir() else run)
    model = load_dense_model(name)
    return build_model(name)[0] if model is None else model


def _task_type(run: str) -> type[CommandTask]:
    flags = read_run(run)
    for task_type in METRICS:
        if flags and flags.keys() >= vars(task_type.build_parser().parse_args([])).keys():
            return task_type
    raise ConfigError(f"{run}: not the output folder of a run")


def _swap(run: str, task_type: type[CommandTask], metric: str) -> dict[str, float]:
    """The metric on the run's validation images, for each of `SWAPS`."""
    model = _load(run)
    if not find_dynamic_layers(model):
        raise ConfigError(f"{run}: no FDConv layers")
    with TemporaryDirectory() as folder:
        accelerator = Accelerator()
        task = task_type(argparse.Namespace(**{**read_run(run), "output": folder, **_UNUSED}), accelerator)
        task.load_data(task.args.dataset)
        task.build_model()  # a classifier's preprocessing is found with it
        task.validation = accelerator.prepare(task.validation_loader(model))
        model = model.to(accelerator.device).eval()
        found = {}
        for swap, parts in SWAPS.items():
            with swapped_modulators(model, **parts):
                found[swap] = task.evaluate(model)[metric]
    return found


def _similarities(run: str) -> dict[str, float]:
    found = mean_similarities(_load(run))
    if not found:
        raise ConfigError(f"{run}: no layer mixes kernels; give runs of FDConv, ODConv or CondConv")
    return found


if __name__ == "__main__":
    run_command(main)
