"""FDConv's layers: the three parts of the paper (FDW, KSM, FBM) and the two layers that join them."""

from fdconv_zoo.layers.band_modulation import BandModulatedConv2d, FrequencyBandModulation
from fdconv_zoo.layers.disjoint_weight import FourierDisjointWeight
from fdconv_zoo.layers.fdconv import FDConv2d, FDLinear
from fdconv_zoo.layers.kernel_modulation import KernelSpatialModulation
from fdconv_zoo.layers.path import set_path

__all__ = [
    "BandModulatedConv2d",
    "FDConv2d",
    "FDLinear",
    "FourierDisjointWeight",
    "FrequencyBandModulation",
    "KernelSpatialModulation",
    "set_path",
]
