"""Measure what models cost beside their plain twins: parameters, multiply-adds, time and memory.

Every FDConv model is measured with its plain twin, by turns in one process, after a check that with the same weights
both compute the same function. Figures are for one batch, times are medians, ratios are to the twin.

Multiply-adds are those of convolutions, matrix products and attention for one image. FFTs and element-wise work are
not counted, which leaves out how FDConv assembles its kernels.

    python scripts/benchmark.py --models resnet18_fdconv resnet50_fdconv --batch-size 4
    python scripts/benchmark.py --device cuda --dtype bfloat16 --compile --batch-size 64 --csv costs.csv
"""

import argparse
import csv
import gc
import io
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.utils import ParseKwargs

import fdconv_zoo  # noqa: F401 - registers the models
from fdconv_zoo.profiling import Profile, TwinMismatchError, check_same_function, create_with_twin, profile
from fdconv_zoo.training.errors import ConfigError, TrainingError
from fdconv_zoo.training.files import write_text
from fdconv_zoo.training.names import suggest_models


class Column(NamedTuple):
    """How the table shows a figure of `Profile`: the heading names the unit."""

    heading: str
    unit: float
    digits: int


COLUMNS = {
    "parameters": Column("params/M", 1e6, 3),
    "multiply_adds": Column("GMACs", 1e9, 3),
    "forward_seconds": Column("forward/ms", 1e-3, 1),
    "train_seconds": Column("train/ms", 1e-3, 1),
    "saved_bytes": Column("saved/MB", 1e6, 1),
    "peak_bytes": Column("peak/MB", 1e6, 1),
}
NOTES = (
    "GMACs: 1e9 multiply-adds of convolutions, matrix products and attention for one image; FFTs and element-wise "
    "work, and so the assembly of FDConv's kernels, are not counted.",
    "forward, train: median time of a batch in inference, and of a training step (forward, backward, SGD).",
    "saved: what a training step keeps for backward, without parameters and buffers; peak: most GPU memory allocated "
    "during the step, parameters included; 1 MB = 1e6 bytes.",
    "x: the ratio to the plain twin, the line before.",
)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet50_fdconv"], metavar="NAME", help="timm names")
    parser.add_argument("--model-kwargs", nargs="*", action=ParseKwargs, default={}, metavar="KEY=VALUE")
    parser.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="images (default: 8)")
    parser.add_argument(
        "--image-size",
        type=_positive,
        metavar="N",
        help="pixels (default: the model's own; one of a fixed size needs --model-kwargs img_size=N too)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of autocast; float32: none"
    )
    parser.add_argument("--channels-last", action="store_true", help="weights and images in channels_last layout")
    parser.add_argument("--compile", action="store_true", help="measure time and memory under torch.compile")
    parser.add_argument("--repeats", type=_positive, default=10, metavar="N", help="of each time (default: 10)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="of the CPU (default: torch's own choice)")
    parser.add_argument("--skip-train", action="store_true", help="no training steps, and so no memory")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script; `argv` is the command line without the program."""
    args = build_parser().parse_args(argv)
    check_names(args.models)
    device = choose_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    conditions = describe_conditions(args, device)
    for key, value in conditions.items():
        print(f"{key.replace('_', ' ')}: {value}")
    name_width = max(map(len, args.models)) + len(" (plain)")
    columns = measured_columns(args, device)
    print("\n" + table_header(columns, name_width), flush=True)

    rows, out_of_memory = [], []
    for name in args.models:
        try:
            measured = list(measure(name, args, device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            out_of_memory.append(name)
            print(f"{name:<{name_width}}  out of memory", flush=True)
        else:
            for row in measured:
                print(table_line(row, columns, name_width), flush=True)
            rows += measured
        gc.collect()  # the models' reference cycles would hold memory that the next ones need
        if device.type == "cuda":
            torch.cuda.empty_cache()

    print("\n" + "\n".join(NOTES))
    if args.csv:
        write_text(args.csv, as_csv([{**conditions, **row} for row in rows]))
    if out_of_memory:
        raise TrainingError(f"out of memory: {', '.join(out_of_memory)}; try a smaller --batch-size or --image-size")


def check_names(names: Sequence[str]) -> None:
    """Refuse what timm does not know, before anything is measured.

    Raises:
        ConfigError: names the model, and near ones.
    """
    for name in names:
        if not timm.is_model(name):
            raise ConfigError(f"--models {name}: no such model; {suggest_models(name.partition('.')[0])}")


def measure(name: str, args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Measure a model and its twin; one row each, the twin's first.

    Raises:
        ConfigError: the model does not take the arguments.
        TwinMismatchError: the model is not the function of its twin.
    """
    try:
        models = create_with_twin(name, **args.model_kwargs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be built: {error}") from error
    channels, height, width = models[name].pretrained_cfg["input_size"]
    channels = args.model_kwargs.get("in_chans", channels)
    if args.image_size:
        height = width = args.image_size
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    x = torch.randn(args.batch_size, channels, height, width, device=device).to(memory_format=layout)
    for model in models.values():
        model.to(device, memory_format=layout)

    twin_name, *others = models
    for other in others:
        try:
            check_same_function(models[other], models[twin_name], x[:2])
        except TwinMismatchError as error:
            raise TwinMismatchError(f"{other}: {error}") from error
    profiles = profile(
        models,
        x,
        dtype=getattr(torch, args.dtype),
        compiled=args.compile,
        training=not args.skip_train,
        repeats=args.repeats,
    )
    for key, costs in profiles.items():
        ratios = ratios_to(profiles[twin_name], costs)
        yield {"model": key, "twin": twin_name, "image_size": f"{height}x{width}", **asdict(costs), **ratios}


def ratios_to(twin: Profile, costs: Profile) -> dict[str, float | None]:
    """`costs` as multiples of the twin's, as `<figure>_ratio`; None where one is not measured."""
    own, reference = asdict(costs), asdict(twin)
    return {f"{key}_ratio": own[key] / reference[key] if reference[key] else None for key in COLUMNS}


def describe_conditions(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All that a figure depends on besides the model, so that it can be quoted."""
    precision = args.dtype
    if device.type == "cuda" and precision == "float32" and torch.backends.cudnn.allow_tf32:
        precision = "float32 (convolutions in TF32)"
    return {
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {cpu_name()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "dtype": precision,
        "mode": "compiled" if args.compile else "eager",
        "layout": "channels_last" if args.channels_last else "contiguous",
        "batch_size": args.batch_size,
        "repeats": args.repeats,
        "model_kwargs": " ".join(f"{key}={value}" for key, value in args.model_kwargs.items()) or "none",
    }


def cpu_name() -> str:
    """The processor's name; Python itself knows it on few systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def choose_device(name: str | None) -> torch.device:
    """The device to measure on.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; leave the flag out to measure on the CPU")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on either device: the CPU's allocator has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def measured_columns(args: argparse.Namespace, device: torch.device) -> dict[str, Column]:
    """The columns of the table that will hold figures."""
    left_out = set()
    if device.type != "cuda":
        left_out = {"peak_bytes"}
    if args.skip_train:
        left_out = {"train_seconds", "saved_bytes", "peak_bytes"}
    return {key: column for key, column in COLUMNS.items() if key not in left_out}


def table_header(columns: Mapping[str, Column], name_width: int) -> str:
    """The table's first line."""
    return f"{'model':<{name_width}}  {'image':>9}" + "".join(f"  {c.heading:>10}  {'x':>5}" for c in columns.values())


def table_line(row: Mapping[str, Any], columns: Mapping[str, Column], name_width: int) -> str:
    """A model's line."""
    return f"{row['model']:<{name_width}}  {row['image_size']:>9}" + "".join(
        f"  {row[key] / column.unit:>10.{column.digits}f}  {row[key + '_ratio']:>5.2f}"
        for key, column in columns.items()
    )


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows, conditions included, as CSV; empty where every model ran out of memory."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


if __name__ == "__main__":
    try:
        main()
    except (TrainingError, TwinMismatchError) as error:
        sys.exit(f"error: {error}")
