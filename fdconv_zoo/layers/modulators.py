"""The modulators in a model."""

from torch import nn

from fdconv_zoo.layers.fbm import FrequencyBandModulation
from fdconv_zoo.layers.ksm import KernelSpatialModulation

Modulator = KernelSpatialModulation | FrequencyBandModulation
Head = nn.Linear | nn.Conv1d | nn.Conv2d


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
