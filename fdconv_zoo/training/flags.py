"""Optimization flags, shared by all tasks."""

import argparse
from typing import Literal

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from timm.optim import list_optimizers

from fdconv_zoo.errors import ConfigError

TRACKERS = tuple(LOGGER_TYPE_TO_CLASS)


def parse_factor(text: str) -> float | Literal["auto"]:
    """Read a factor of the learning rate.

    Raises:
        argparse.ArgumentTypeError: it is neither a number nor "auto".
    """
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is neither a number nor auto") from None


def add_optimization_flags(parser: argparse.ArgumentParser) -> None:
    """Add the group of optimization flags. To change defaults, call `parser.set_defaults` afterwards."""
    optim = parser.add_argument_group("optimization")
    optim.add_argument("--epochs", type=int, default=20, help="number of epochs")
    optim.add_argument("--batch-size", type=int, default=64, help="images per batch and process")
    optim.add_argument("--grad-accum", type=int, default=1, help="batches per update")
    optim.add_argument("--updates-per-epoch", type=int, help="shorten an epoch; required for a stream")
    optim.add_argument("--opt", default="adamw", help="any optimizer of timm")
    optim.add_argument("--lr", type=float, default=3e-4, help="learning rate after the warm-up")
    factor = {"type": parse_factor, "default": "auto", "metavar": "X|auto"}
    optim.add_argument(
        "--spectrum-lr", help="factor of --lr for Fourier coefficients; auto: by layer; paper: 1", **factor
    )
    optim.add_argument("--modulator-lr", help="factor of --lr for KSM and FBM; auto: by layer; paper: 1", **factor)
    optim.add_argument("--weight-decay", type=float, default=0.05, help="not applied to norms and biases")
    optim.add_argument("--layer-decay", type=float, help="factor of --lr from each layer to the one before it")
    optim.add_argument(
        "--sched", choices=("cosine", "tanh", "poly", "multistep"), default="cosine", help="learning rate schedule"
    )
    optim.add_argument("--power", type=float, default=1.0, help="exponent of the poly schedule")
    optim.add_argument(
        "--milestones", type=float, nargs="+", default=[8, 11], help="epochs after which multistep divides --lr by 10"
    )
    optim.add_argument("--warmup-epochs", type=float, default=1, help="epochs of warm-up")
    optim.add_argument("--warmup-lr", type=float, default=1e-6, help="learning rate at the start of the warm-up")
    optim.add_argument("--min-lr", type=float, default=1e-6, help="learning rate at the end of the schedule")
    optim.add_argument("--clip-grad", type=float, default=1.0, help="largest norm of the gradient; 0: no clipping")
    optim.add_argument(
        "--ema-decay", type=float, default=0.0, help="average the weights, and evaluate the average; 0: off"
    )
    optim.add_argument("--mixed-precision", choices=("no", "fp16", "bf16"), help="default: accelerate's configuration")
    boolean = argparse.BooleanOptionalAction
    optim.add_argument("--compile", action=boolean, default=False, help="compile the model for training")
    optim.add_argument(
        "--cuda-graphs",
        action=boolean,
        default=False,
        help="also replay its launches from CUDA graphs, for images of one size; the first steps take long",
    )
    optim.add_argument(
        "--keep-kernels",
        action=boolean,
        default=False,
        help="keep FDConv's assembled kernels for backward, for speed at the cost of memory; on GPUs, with Triton",
    )
    optim.add_argument("--patience", type=int, help="stop after N epochs without a better one; default: never")
    optim.add_argument(
        "--eval-first", action=boolean, default=False, help="evaluate before training, as the epoch of number 0"
    )
    optim.add_argument("--seed", type=int, default=0, help="of weights, order, augmentation and dropout")
    optim.add_argument("--checkpoint-every", type=int, default=0, help="updates between checkpoints; 0: once per epoch")
    optim.add_argument("--log-every", type=int, default=10, help="updates between log lines")
    optim.add_argument(
        "--watch",
        type=int,
        default=0,
        metavar="N",
        help="measure gradients, movement and modulators of each layer at every N-th update; 0: off",
    )
    optim.add_argument(
        "--log-with",
        nargs="+",
        choices=TRACKERS,
        metavar="NAME",
        default=["tensorboard"],
        help="trackers of accelerate, such as wandb or mlflow, which read their settings from environment variables",
    )


def check_optimization(args: argparse.Namespace) -> None:
    """Raise `ConfigError` if these flags are invalid, or cannot be combined."""
    if args.cuda_graphs and args.grad_accum > 1:
        # Gradients are stored in the graph's memory, which the next batch overwrites.
        raise ConfigError(f"--cuda-graphs with --grad-accum {args.grad_accum}: use one of them")
    if args.watch and (args.compile or args.cuda_graphs):
        raise ConfigError(
            f"--watch {args.watch} with --{'compile' if args.compile else 'cuda-graphs'}: a compiled model does not "
            "show its modulators; use one of them"
        )
    if args.opt not in list_optimizers():
        raise ConfigError(f"--opt {args.opt}: timm has {', '.join(list_optimizers())}")
    if missing := [name for name in args.log_with if name not in map(str, get_available_trackers())]:
        package = missing[0].replace("_", "-")  # its name on PyPI
        raise ConfigError(f"--log-with {missing[0]}: it is not installed; pip install {package}")
