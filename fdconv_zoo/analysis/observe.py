"""Finds the FDConv layers of a model, and records their inputs and outputs."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fdconv_zoo.layers import FDConv2d, FDLinear, FrequencyBandModulation
from fdconv_zoo.layers.modes import evaluation_mode


def find_dynamic_layers(model: nn.Module) -> dict[str, FDConv2d | FDLinear]:
    """Find the layers whose kernels depend on the image, by name, in the order of ``model.named_modules()``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FDConv2d | FDLinear)}


def find_band_modulations(model: nn.Module) -> dict[str, FrequencyBandModulation]:
    """Find the Frequency Band Modulation (FBM) modules, by the name of the layer that each belongs to."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, FrequencyBandModulation)}
    return {re.sub(r"(^|\.)fbm$", "", name): module for name, module in found.items()}


@torch.no_grad()
def observe(model: nn.Module, images: Tensor, modules: Iterable[nn.Module]) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Run a model in evaluation mode and record the inputs and outputs of some of its modules.

    Args:
        model: a model; it is not changed, and its modules return to their modes.
        images: (B, C, H, W), preprocessed for the model; moved to its device.
        modules: modules of the model.

    Returns:
        The first input and the output of each module at its first call. Modules that were not called are left out.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.setdefault(module, (inputs[0], output))

    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        with evaluation_mode(model):
            parameter = next(model.parameters(), images)
            model(images.to(parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen
