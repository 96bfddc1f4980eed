"""Find the modulators in a model, and the layers that FDConv's parts belong to."""

from torch import nn

from fdconv_zoo.layers.dynamic_kernel import DynamicKernel
from fdconv_zoo.layers.fbm import BandModulatedConv2d, FrequencyBandModulation
from fdconv_zoo.layers.fdw import FourierDisjointWeight
from fdconv_zoo.layers.ksm import KernelSpatialModulation

Modulator = KernelSpatialModulation | FrequencyBandModulation
Head = nn.Linear | nn.Conv1d | nn.Conv2d
Part = FourierDisjointWeight | Modulator


def find_modulators(model: nn.Module) -> list[Modulator]:
    """Find every KSM and FBM in the model, in the order of ``model.modules()``."""
    return [m for m in model.modules() if isinstance(m, Modulator)]


def find_heads(modulator: Modulator) -> list[Head]:
    """Find the layers of a KSM or an FBM that predict logits: those that start at zero."""
    if isinstance(modulator, FrequencyBandModulation):
        return [modulator.attention]
    heads: list[Head | None] = []
    if (branch := modulator.global_branch) is not None:
        heads += [branch.channel, branch.filter, branch.spatial, branch.kernel]
    if modulator.local_branch is not None:
        heads.append(modulator.local_branch.conv)
    return [head for head in heads if head is not None]


def name_layers(model: nn.Module) -> dict[nn.Module, str]:
    """Name the layer that each FDW, KSM and FBM belongs to, in the order of ``model.modules()``.

    Returns:
        By part, the name of the FDConv layer that contains it, as in ``model.named_modules()``; for a part outside an
        FDConv layer, its own name.
    """
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, DynamicKernel | BandModulatedConv2d):
            names.update({part: name for part in module.children() if isinstance(part, Part)})
        elif isinstance(module, Part):
            names.setdefault(module, name)
    return names
