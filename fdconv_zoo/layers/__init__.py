"""FDConv's layers: the three parts of the paper (FDW, KSM, FBM) and the two layers that join them."""

from fdconv_zoo.layers.fbm import BandModulatedConv2d, FrequencyBandModulation
from fdconv_zoo.layers.fdconv import FDConv2d, FDLinear
from fdconv_zoo.layers.fdw import FourierDisjointWeight
from fdconv_zoo.layers.ksm import KernelSpatialModulation
from fdconv_zoo.layers.lora import add_lora, merge_lora
from fdconv_zoo.layers.optimizer_groups import param_groups
from fdconv_zoo.layers.path import keep_kernels, set_path
from fdconv_zoo.layers.programs import script_model

__all__ = [
    "BandModulatedConv2d",
    "FDConv2d",
    "FDLinear",
    "FourierDisjointWeight",
    "FrequencyBandModulation",
    "KernelSpatialModulation",
    "add_lora",
    "keep_kernels",
    "merge_lora",
    "param_groups",
    "script_model",
    "set_path",
]
