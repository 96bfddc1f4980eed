"""FDConv's performance-critical operations as functions: dynamic convolution and frequency band modulation."""

from fdconv_zoo.ops.bands_plain import low_pass_basis, modulate_bands_softly, modulate_bands_stretched, weigh_bands
from fdconv_zoo.ops.convolution import POINTWISE, Geometry, convolve
from fdconv_zoo.ops.dispatch import (
    Path,
    choose_path,
    dynamic_convolution,
    modulate,
    modulate_bands,
    neighbors,
    pool,
    predict_modulators,
    star_relu,
)
from fdconv_zoo.ops.kernels_plain import (
    DisjointWeights,
    KernelModulators,
    LocalFactors,
    assemble_kernels,
    local_factors,
    mix_spectrum,
)

__all__ = [
    "POINTWISE",
    "DisjointWeights",
    "Geometry",
    "KernelModulators",
    "LocalFactors",
    "Path",
    "assemble_kernels",
    "choose_path",
    "convolve",
    "dynamic_convolution",
    "local_factors",
    "low_pass_basis",
    "mix_spectrum",
    "modulate",
    "modulate_bands",
    "modulate_bands_softly",
    "modulate_bands_stretched",
    "neighbors",
    "pool",
    "predict_modulators",
    "star_relu",
    "weigh_bands",
]
