"""The optimizer, with separate learning rates for Fourier coefficients and modulators, and its schedule."""

import argparse
from functools import partial

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from fdconv_zoo.layers import param_groups


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> Optimizer:
    """Build timm's optimizer from the flags of `add_optimization_flags`, for timm's schedulers.

    `--spectrum-lr` and `--modulator-lr` are explained in `fdconv_zoo.param_groups`.
    """
    group = partial(
        param_groups,
        weight_decay=args.weight_decay,
        optimizer=args.opt,
        layer_decay=args.layer_decay,
        spectrum_lr=args.spectrum_lr,
        modulator_lr=args.modulator_lr,
    )
    return create_optimizer_v2(model, args.opt, lr=args.lr, param_group_fn=group)


def learning_rate(optimizer: Optimizer) -> float:
    """Return the learning rate of this update, before the factors of layers, spectra and modulators."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)


def build_scheduler(args: argparse.Namespace, optimizer: Optimizer, updates_per_epoch: int) -> Scheduler:
    """Build the learning rate schedule, a function of the number of updates: it has no state to save."""
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
