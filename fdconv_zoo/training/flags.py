"""The flags of optimization, which all training scripts share, and what is built from them alone."""

import argparse

from timm.optim import list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from fdconv_zoo.errors import ConfigError


def add_optimization_flags(parser: argparse.ArgumentParser) -> None:
    """Add the group; a script that wants other defaults calls `parser.set_defaults` after it."""
    optim = parser.add_argument_group("optimization")
    optim.add_argument("--epochs", type=int, default=20)
    optim.add_argument("--batch-size", type=int, default=64, help="images a batch and process")
    optim.add_argument("--grad-accum", type=int, default=1, help="batches accumulated for an update")
    optim.add_argument("--updates-per-epoch", type=int, metavar="N", help="a shorter epoch, or that of a stream")
    optim.add_argument("--opt", default="adamw", help="any optimizer of timm")
    optim.add_argument("--lr", type=float, default=3e-4, help="at the end of the warm-up")
    optim.add_argument("--spectrum-lr", type=float, default=1.0, metavar="FACTOR", help="--lr of Fourier coefficients")
    optim.add_argument("--modulator-lr", type=float, default=1.0, metavar="FACTOR", help="--lr of KSM and FBM")
    optim.add_argument("--weight-decay", type=float, default=0.05, help="not for norms and biases")
    optim.add_argument("--layer-decay", type=float, help="learning rate factor from each layer to the one before it")
    optim.add_argument("--sched", choices=("cosine", "tanh", "poly", "multistep"), default="cosine")
    optim.add_argument("--power", type=float, default=1.0, help="of the poly schedule")
    optim.add_argument("--milestones", type=float, nargs="+", default=[8, 11], help="epochs of multistep: a tenth each")
    optim.add_argument("--warmup-epochs", type=float, default=1)
    optim.add_argument("--warmup-lr", type=float, default=1e-6)
    optim.add_argument("--min-lr", type=float, default=1e-6)
    optim.add_argument("--clip-grad", type=float, default=1.0, help="norm of the gradient at most; 0 is off")
    optim.add_argument("--ema-decay", type=float, default=0.0, help="average weights, and evaluate those; 0 is off")
    optim.add_argument("--mixed-precision", choices=("no", "fp16", "bf16"), help="by default what accelerate is told")
    optim.add_argument("--seed", type=int, default=0)
    optim.add_argument("--checkpoint-every", type=int, default=0, metavar="N", help="updates; 0: every epoch only")
    optim.add_argument("--log-every", type=int, default=10, metavar="N", help="updates")


def check_optimization(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for what can be known to be wrong from these flags alone."""
    for name in ("epochs", "batch_size", "grad_accum", "log_every", "updates_per_epoch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    for name in ("spectrum_lr", "modulator_lr"):
        if getattr(args, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 0")
    if args.opt not in list_optimizers():
        raise ConfigError(f"--opt {args.opt}: timm has {', '.join(list_optimizers())}")


def build_scheduler(args: argparse.Namespace, optimizer: Optimizer, updates_per_epoch: int) -> Scheduler:
    """The learning rate as a function of the update's number: the scheduler has no state to save."""
    scheduler, _ = create_scheduler_v2(
        optimizer,
        args.sched,
        num_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        warmup_lr=args.warmup_lr,
        min_lr=args.min_lr,
        decay_milestones=args.milestones,
        decay_rate=args.power if args.sched == "poly" else 0.1,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return scheduler
