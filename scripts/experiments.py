"""Run the paper's experiments that need no training; docs/experiments.md describes them, and those that do.

    python scripts/experiments.py fbm --output runs/experiments
    python scripts/experiments.py swin --output runs/experiments
    python scripts/experiments.py kernels runs/compare/resnet10s_fdconv-seed0 runs/compare/resnet10s_odconv-seed0 \\
        --output runs/experiments

fbm: costs of the forms of Frequency Band Modulation in a ResNet: the exact form on each path, FFTs as in the authors'
layer, and cheaper approximations. swin: FDConv in the linear layers of Swin's blocks, theoretical cost against measured
time. kernels: mean absolute cosine similarity of the kernels in each layer of trained models. Each writes a table, JSON
and (fbm, swin) a picture.
"""

import calm_threads  # noqa: F401, I001  before torch

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import fdconv_zoo.profiling.band_twins
import fdconv_zoo.profiling.twins  # noqa: F401  registers the twins
from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.predict import load_dense_model
from fdconv_zoo.cli.ranges import check_ranges
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
from fdconv_zoo.profiling.experiments.swin_stress import measure_swin
from fdconv_zoo.store.build import build_model


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of this script's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    for command in (fbm, swin, kernels):
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


def _similarities(run: str) -> dict[str, float]:
    last = Path(run) / "last"
    name = timm_name(str(last) if last.is_dir() else run)
    model = load_dense_model(name)
    found = mean_similarities(build_model(name)[0] if model is None else model)
    if not found:
        raise ConfigError(f"{run}: no layer mixes kernels; give runs of FDConv, ODConv or CondConv")
    return found


if __name__ == "__main__":
    run_command(main)
