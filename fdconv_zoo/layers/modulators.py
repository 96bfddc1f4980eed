"""The modulators in a model."""

from torch import nn

from fdconv_zoo.layers.fbm import FrequencyBandModulation
from fdconv_zoo.layers.ksm import KernelSpatialModulation


def find_modulators(model: nn.Module) -> list[nn.Module]:
    """Find every KSM and FBM in the model, in the order of ``model.modules()``."""
    return [m for m in model.modules() if isinstance(m, KernelSpatialModulation | FrequencyBandModulation)]


def find_heads(modulator: nn.Module) -> list[nn.Module]:
    """Find the layers of a KSM or an FBM that predict logits: those that start at zero."""
    if isinstance(modulator, FrequencyBandModulation):
        return [modulator.attention]
    heads = []
    if (branch := modulator.global_branch) is not None:
        heads += [branch.channel, branch.filter, branch.spatial, branch.kernel]
    if modulator.local_branch is not None:
        heads.append(modulator.local_branch.conv)
    return [head for head in heads if head is not None]
