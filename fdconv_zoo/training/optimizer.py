"""The optimizer, with separate learning rates for Fourier coefficients and modulators, and its schedule."""

import argparse

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from fdconv_zoo.layers import FourierDisjointWeight
from fdconv_zoo.layers.modulators import find_modulators


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> Optimizer:
    """Build timm's optimizer from the flags of `add_optimization_flags`.

    Adam moves every number by steps of the same size. Two flags make up for what that does to FDConv:

    `--spectrum-lr`: a step of a spectrum's numbers moves the kernel less than the same step of the kernel's own numbers
    would: 4.2 times less in square 3x3 layers, 1.4 times in square 1x1 layers.

    `--modulator-lr`: a modulator's logit is a sum over many features, and no norm follows it. A few steps of a size
    that suits a convolution carry it to where its sigmoid is flat, and it stays there, the same for all images and
    pixels.
    """
    optimizer = create_optimizer_v2(
        model, args.opt, lr=args.lr, weight_decay=args.weight_decay, layer_decay=args.layer_decay
    )
    spectra = [module.spectrum for module in model.modules() if isinstance(module, FourierDisjointWeight)]
    modulators = [parameter for module in find_modulators(model) for parameter in module.parameters()]
    for parameters, factor in ((spectra, args.spectrum_lr), (modulators, args.modulator_lr)):
        if factor != 1:
            scale_learning_rate(optimizer, {id(parameter) for parameter in parameters}, factor)
    return optimizer


def scale_learning_rate(optimizer: Optimizer, chosen: set[int], factor: float) -> None:
    """Move the chosen parameters into groups with a multiple of the learning rate, as timm's schedulers understand it.

    Args:
        optimizer: Changed in place.
        chosen: `id` of each parameter.
        factor: Multiplies the parameter's present learning rate, layer decay included.
    """
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            scale = factor * group.get("lr_scale", 1.0)
            optimizer.add_param_group({**group, "params": moved, "lr_scale": scale})  # the scheduler multiplies


def learning_rate(optimizer: Optimizer) -> float:
    """The rate of this update, before the factors of layers, spectra and modulators."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)


def build_scheduler(args: argparse.Namespace, optimizer: Optimizer, updates_per_epoch: int) -> Scheduler:
    """Build the learning rate as a function of the number of updates: the scheduler has no state to save."""
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
