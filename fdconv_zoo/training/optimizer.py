"""The optimizer, with learning rates of their own for Fourier coefficients and modulators."""

import argparse

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from fdconv_zoo.layers import FourierDisjointWeight
from fdconv_zoo.training.tuning import find_modulators


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> Optimizer:
    """timm's optimizer of the flags of `add_optimization_flags`.

    Adam's steps have one size for every number. What that does to FDConv, two of its flags make up for:

    `--spectrum-lr`: a step of a spectrum's numbers moves the kernel less than one of the kernel's own numbers would, by
    a factor of 4.2 in square layers of 3x3, and 1.4 in those of 1x1.

    `--modulator-lr`: a modulator's logit is a sum over many features which no norm follows, so a few steps that would
    suit a convolution carry it to where its sigmoid is flat, and it stays there, the same for all images and pixels.
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


def learning_rate(optimizer: Optimizer) -> float:
    """The rate of this update, before the factors of layers, spectra and modulators."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)
