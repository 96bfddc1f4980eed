"""The optimizer, with a learning rate of their own for Fourier coefficients."""

import argparse

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from fdconv_zoo.layers import FourierDisjointWeight


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> Optimizer:
    """timm's optimizer of the flags of `add_optimization_flags`.

    Adam's steps have one size for every number. A step of a spectrum's moves the kernel less than one of the kernel's
    own numbers would: by a factor of 4.2 in square layers of 3x3, and 1.4 in those of 1x1. `--spectrum-lr` makes up for
    it.
    """
    optimizer = create_optimizer_v2(
        model, args.opt, lr=args.lr, weight_decay=args.weight_decay, layer_decay=args.layer_decay
    )
    if args.spectrum_lr != 1:
        spectra = {id(module.spectrum) for module in model.modules() if isinstance(module, FourierDisjointWeight)}
        scale_learning_rate(optimizer, spectra, args.spectrum_lr)
    return optimizer


def scale_learning_rate(optimizer: Optimizer, chosen: set[int], factor: float) -> None:
    """Put the chosen parameters into groups whose learning rate is a multiple, as timm's schedulers understand it.

    Args:
        optimizer: Changed in place.
        chosen: `id` of each parameter.
        factor: On top of what a layer's own learning rate is.
    """
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            scale = factor * group.get("lr_scale", 1.0)
            optimizer.add_param_group({**group, "params": moved, "lr_scale": scale})  # the scheduler multiplies
