"""Measure the costs of models and their plain twins: parameters, multiply-adds, time and memory.

Every FDConv model is timed interleaved with its plain twin, in one process. Before that, two checks: with the twin's
weights, the model computes the twin's function; with random modulators, in the way it is timed, it computes the same
logits and gradients as plain operations in float32. Figures are for one batch, times are medians, ratios are to the
twin.

Multiply-adds are those of convolutions, matrix products and attention for one image. FFTs and element-wise work are
not counted, and so neither is the assembly of FDConv's kernels.

    fdconv-zoo benchmark --models resnet18_fdconv resnet50_fdconv --batch-size 4
    fdconv-zoo benchmark --table --peers --csv costs.csv --picture costs.png
    fdconv-zoo benchmark --table --device cuda --dtype bfloat16 --compile
    fdconv-zoo benchmark --batch-size 1 4 16 --image-size 224 448 --breakdown
    fdconv-zoo benchmark --count-only --image-size 800x1344
    fdconv-zoo benchmark --count-launches --batch-size 2 16 --image-size 224
"""

import argparse
import copy
import gc
import importlib.util
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import timm
import torch
from timm.utils import ParseKwargs
from torch import nn

from fdconv_zoo import FDConv2d, keep_kernels, ops, set_path
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.errors import ConfigError, MismatchError, TrainingError
from fdconv_zoo.profiling import (
    check_same_function,
    create_with_twin,
    profile,
    randomize_constants,
    randomize_modulators,
)
from fdconv_zoo.profiling.launch_table import count_rows, launch_header, launch_line
from fdconv_zoo.profiling.layout import set_memory_format
from fdconv_zoo.profiling.peers import PEERS, replace_layers
from fdconv_zoo.profiling.processor import cpu_name
from fdconv_zoo.profiling.report import COLUMNS, Column, add_increments, as_csv, ratios_to, table_header, table_line
from fdconv_zoo.store.files import write_text
from fdconv_zoo.store.names import suggest_models


class Setting(NamedTuple):
    """Settings of one block of the table."""

    batch_size: int
    image_size: tuple[int, int] | None  # (height, width); None: the model's own
    training: bool  # measure training steps and memory too


NOTES = (
    "GMACs: 1e9 multiply-adds of convolutions, matrix products and attention for one image; FFTs and element-wise "
    "work, and so the assembly of FDConv's kernels, are not counted. w/o LP: also without FBM's low-passes, matrix "
    "products in place of FFTs.",
    "forward, train: median time of a batch in inference, and of a training step (forward, backward, SGD).",
    "saved: memory kept for backward in a training step, without parameters and buffers; peak: peak GPU memory of the "
    "step, including parameters; 1 MB = 1e6 bytes.",
    "x: ratio to the plain twin, the first line of the block.",
)
LAUNCH_NOTES = (
    "forward, backward: operations that would be launches on a GPU, without the optimizer's; views, allocations and "
    "metadata are free, and each launch of a Triton kernel counts.",
    "GB: 1e9 bytes that they read and write, each tensor of an operation once.",
    "x: ratio to the plain twin, the first line of the block. Most launched:",
)
# Variants of a model, each with one more part than the one before; the full model adds FBM.
BREAKDOWN = {
    "FDW, one kernel for all": dict(ksm_global=False, ksm_local=False, fbm=False),
    "+ KSM global": dict(num_kernels=1, ksm_local=False, fbm=False),
    "+ FDW for each image": dict(ksm_local=False, fbm=False),
    "+ KSM local": dict(fbm=False),
}
BREAKDOWN_NOTE = (
    "+ ms: time added to the line before; x: as a multiple of the twin's time. FDW, one kernel for all: one transform "
    "per batch. + KSM global: its modulators on a single FDW kernel, and a convolution with a separate kernel per "
    "image. + FDW for each image: mixing and transforming n kernels. The full model adds FBM."
)
# Settings of the performance table in docs/performance.md, by device.
TABLE = {
    "cpu": (Setting(1, (224, 224), False), Setting(1, (512, 512), False), Setting(4, (224, 224), True)),
    "cuda": (Setting(1, (800, 1344), False), Setting(16, (224, 224), True), Setting(2, (800, 1344), True)),
}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = CommandParser(
        prog="fdconv-zoo benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", default=["resnet50_fdconv"], metavar="NAME", help="timm names")
    parser.add_argument("--model-kwargs", nargs="*", action=ParseKwargs, default={}, metavar="KEY=VALUE")
    parser.add_argument("--batch-size", nargs="+", type=_positive, metavar="N", help="images per batch (default: 8)")
    parser.add_argument(
        "--image-size",
        nargs="+",
        type=_image_size,
        metavar="N|HxW",
        help="pixels (default: the model's own; models with a fixed size also need --model-kwargs img_size=N)",
    )
    parser.add_argument("--table", action="store_true", help="use the settings of docs/performance.md instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if available")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="autocast dtype; float32: no autocast",
    )
    parser.add_argument("--channels-last", action="store_true", help="weights and images in channels_last layout")
    parser.add_argument("--compile", action="store_true", help="measure time and memory under torch.compile")
    parser.add_argument("--cuda-graphs", action="store_true", help="time steps that are replayed from CUDA graphs")
    parser.add_argument(
        "--path", choices=get_args(ops.Path), help="path of FDConv layers (default: each layer chooses)"
    )
    parser.add_argument(
        "--keep-kernels", action="store_true", help="keep assembled kernels for backward, on the path triton"
    )
    parser.add_argument("--repeats", type=_positive, default=10, metavar="N", help="timings per step (default: 10)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: torch's setting)")
    parser.add_argument("--skip-train", action="store_true", help="measure no training steps and no memory")
    parser.add_argument("--count-only", action="store_true", help="count parameters and multiply-adds only")
    parser.add_argument(
        "--count-launches", action="store_true", help="count launches on a GPU, and the bytes they move, without one"
    )
    parser.add_argument("--breakdown", action="store_true", help="also measure FDConv models part by part")
    parser.add_argument("--peers", action="store_true", help="also measure the twin with other dynamic convolutions")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the ratios as a PNG; needs matplotlib")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. `argv` defaults to `sys.argv[1:]`."""
    args = build_parser().parse_args(argv)
    check_arguments(args)
    if args.count_launches:
        print_launches(args)
        return
    device = choose_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)

    conditions = describe_conditions(args, device)
    for key, value in conditions.items():
        print(f"{key.replace('_', ' ')}: {value}")
    columns = measured_columns(args, device)
    name_width = widest_name(args)
    print("\n" + table_header(columns, name_width), flush=True)

    rows, out_of_memory = [], []
    for setting, name in product(choose_settings(args, device), args.models):
        torch.manual_seed(0)  # blocks are reproducible on their own
        try:
            measured = list(measure(name, setting, args, device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            out_of_memory.append(f"{name} at batch {setting.batch_size}")
            print(f"{name:<{name_width}}  {setting.batch_size:>5}  out of memory", flush=True)
        else:
            for row in measured:
                print(table_line(row, columns, name_width), flush=True)
            rows += measured
        gc.collect()  # the models' reference cycles would hold memory that the next ones need
        if device.type == "cuda":
            torch.cuda.empty_cache()

    print("\n" + "\n".join((*NOTES, BREAKDOWN_NOTE) if args.breakdown else NOTES))
    if args.csv:
        write_text(args.csv, as_csv([{**conditions, **row} for row in rows]))
    if args.picture:
        from fdconv_zoo.profiling.picture import draw_ratios

        draw_ratios(rows, args.picture)
    if out_of_memory:
        raise TrainingError(f"out of memory: {', '.join(out_of_memory)}; try a smaller --batch-size or --image-size")


def check_arguments(args: argparse.Namespace) -> None:
    """Check the flags before anything is measured.

    Raises:
        ConfigError: a flag is invalid or conflicts with another, or a model is unknown.
    """
    if args.table and (args.batch_size or args.image_size):
        raise ConfigError("--table sets the sizes: remove --batch-size and --image-size")
    if args.picture and args.count_only:
        raise ConfigError("--picture shows times and memory: remove --count-only")
    if args.cuda_graphs and choose_device(args.device).type != "cuda":
        raise ConfigError("--cuda-graphs needs a CUDA device, and the measurement would run on the CPU")
    if args.count_launches and (args.compile or args.count_only or args.picture):
        raise ConfigError("--count-launches measures nothing else: remove --compile, --count-only and --picture")
    if args.picture and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--picture needs matplotlib: pip install matplotlib")
    for name in args.models:
        if not timm.is_model(name):
            raise ConfigError(f"--models {name}: no such model; {suggest_models(name.partition('.')[0])}")


def print_launches(args: argparse.Namespace) -> None:
    """Count the launches of models on a GPU, and print the table; `--csv` also writes it."""
    name_width = widest_name(args)
    print(launch_header(name_width), flush=True)
    rows = []
    for setting, name in product(choose_settings(args, torch.device("cuda")), args.models):
        with torch.device("meta"):
            chain, peers = create_models(name, args)
            models = chain | peers
            x = torch.empty(setting.batch_size, *input_size(models[name], setting, args))
        layout = torch.channels_last if args.channels_last else torch.contiguous_format
        for model in models.values():
            set_memory_format(model, layout)
            set_path(model, args.path)
            keep_kernels(model, args.keep_kernels)
        x = x.contiguous(memory_format=layout)
        for row in count_rows(models, x, dtype=getattr(torch, args.dtype), training=setting.training):
            print(launch_line(row, name_width), flush=True)
            rows.append(row)
    print("\n" + "\n".join(LAUNCH_NOTES))
    for row in rows:
        print(f"{row['model']}, batch {row['batch_size']}: {row['most_launched']}")
    if args.csv:
        write_text(
            args.csv,
            as_csv(
                [{"dtype": args.dtype, "path": args.path, **row, "keep_kernels": args.keep_kernels} for row in rows]
            ),
        )


def input_size(model: nn.Module, setting: Setting, args: argparse.Namespace) -> tuple[int, int, int]:
    """Return (C, H, W) of the images that a model is measured on."""
    channels, *image_size = model.pretrained_cfg["input_size"]
    return args.model_kwargs.get("in_chans", channels), *(setting.image_size or image_size)


def choose_settings(args: argparse.Namespace, device: torch.device) -> list[Setting]:
    """Return the settings to measure, one per block of the table."""
    settings = [
        Setting(batch_size, image_size, training=True)
        for batch_size, image_size in product(args.batch_size or [8], args.image_size or [None])
    ]
    if args.table:
        settings = TABLE[device.type]
    return [setting._replace(training=setting.training and not args.skip_train) for setting in settings]


def measure(name: str, setting: Setting, args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Measure a model, its twin, and the requested variants and peers; yield one row each, the twin's first.

    Raises:
        ConfigError: the model does not accept the arguments, or the peers cannot replace its layers.
        MismatchError: a model computes wrong results.
    """
    chain, peers = create_models(name, args)
    models = chain | peers
    channels, height, width = input_size(models[name], setting, args)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    # Give each image its own mean colour: the pooled features of pure noise, and so the kernels, would hardly differ.
    x = torch.randn(setting.batch_size, channels, height, width) + torch.randn(setting.batch_size, channels, 1, 1)
    x = x.to(device, memory_format=layout)
    for model in models.values():
        set_memory_format(model.to(device), layout)
        set_path(model, args.path)
        keep_kernels(model, args.keep_kernels)

    twin_name, *others = chain
    for other in others:
        try:
            check_same_function(models[other], models[twin_name], x[:2])
        except MismatchError as error:
            raise MismatchError(f"{other}: {error}") from error
        randomize_modulators(models[other])
    for model in peers.values():
        randomize_constants(model)

    profiles = profile(
        models,
        x,
        dtype=getattr(torch, args.dtype),
        compiled=args.compile,
        cuda_graphs=args.cuda_graphs,
        timed=not args.count_only,
        training=setting.training,
        repeats=args.repeats,
    )
    figures = {key: asdict(costs) for key, costs in profiles.items()}
    add_increments(figures, list(chain) if args.breakdown else [])
    for key, costs in figures.items():
        conditions = {"twin": twin_name, "batch_size": setting.batch_size, "image_size": f"{height}x{width}"}
        yield {"model": key, **conditions, **costs, **ratios_to(figures[twin_name], costs)}


def create_models(name: str, args: argparse.Namespace) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Build the models that are measured together, with random weights.

    Returns:
        Two dictionaries by name: the plain twin, the variants for ``--breakdown`` and the model, each with one more
        part than the one before; and the peers.

    Raises:
        ConfigError: the model does not accept the arguments, or the peers cannot replace its layers.
    """
    try:
        chain, peers = create_with_twin(name, **args.model_kwargs), {}
        model = chain.pop(name)
        twin = next(iter(chain.values()), None)
        if args.breakdown and twin is not None:
            for part, switches in BREAKDOWN.items():
                chain[f"{name}: {part}"] = timm.create_model(name, **{**args.model_kwargs, **switches})
        if args.peers and twin is not None:
            replaced = [key for key, layer in model.named_modules() if isinstance(layer, FDConv2d)]
            if not replaced:
                raise ValueError("--peers replace FDConv2d layers, and it has none")
            for peer, layer_class in PEERS.items():
                peers[peer] = copy.deepcopy(twin)
                replace_layers(peers[peer], replaced, layer_class)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be built: {error}") from error
    return {**chain, name: model}, peers


def describe_conditions(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Describe everything besides the model that the figures depend on."""
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
        "mode": ("compiled" if args.compile else "eager") + (", CUDA graphs" if args.cuda_graphs else ""),
        "layout": "channels_last" if args.channels_last else "contiguous",
        "path": (args.path or "each layer chooses") + (", kernels kept" if args.keep_kernels else ""),
        "repeats": args.repeats,
        "model_kwargs": " ".join(f"{key}={value}" for key, value in args.model_kwargs.items()) or "none",
    }


def choose_device(name: str | None) -> torch.device:
    """Return the device to measure on.

    Raises:
        ConfigError: CUDA is requested, but not available.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device; remove the flag to measure on the CPU")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU or the CPU ran out of memory. The CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def widest_name(args: argparse.Namespace) -> int:
    """Return the length of the longest name in the table."""
    names = [f"{name} (plain)" for name in args.models]
    if args.breakdown:
        names += [f"{name}: {part}" for name in args.models for part in BREAKDOWN]
    if args.peers:
        names += PEERS
    return max(map(len, names))


def measured_columns(args: argparse.Namespace, device: torch.device) -> dict[str, Column]:
    """Return the columns of the table that these flags measure."""
    omitted = set()
    if device.type != "cuda":
        omitted |= {"peak_bytes"}
    if not args.breakdown:
        omitted |= {"forward_added_seconds", "train_added_seconds"}
    if args.skip_train or args.count_only:
        omitted |= {"train_seconds", "train_added_seconds", "saved_bytes", "peak_bytes"}
    if args.count_only:
        omitted |= {"forward_seconds", "forward_added_seconds"}
    return {key: column for key, column in COLUMNS.items() if key not in omitted}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _image_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return _positive(height), _positive(width or height)
