"""The modulators in a model."""

from torch import nn

from fdconv_zoo.layers.fbm import FrequencyBandModulation
from fdconv_zoo.layers.ksm import KernelSpatialModulation


def find_modulators(model: nn.Module) -> list[nn.Module]:
    """Find every KSM and FBM in the model, in the order of ``model.modules()``."""
    return [m for m in model.modules() if isinstance(m, KernelSpatialModulation | FrequencyBandModulation)]
