"""Computes how similar the kernels are that a layer mixes, for FDConv and other dynamic convolutions."""

from collections.abc import Mapping

import numpy as np
from torch import nn

from fdconv_zoo.analysis.kernels import Array, disjoint_similarity, kernel_similarity, mean_similarity
from fdconv_zoo.layers import FDConv2d, FDLinear
from fdconv_zoo.profiling.peers import CondConv, DYConv, ODConv


def similarity(layer: nn.Module) -> Array | None:
    """Compute the cosine similarity of each pair of the kernels that a layer mixes.

    Returns:
        (n, n); None for layers other than FDConv, ODConv, DY-Conv and CondConv, and if there is only one kernel. DCD
        and KernelWarehouse do not mix whole kernels.
    """
    if isinstance(layer, FDConv2d | FDLinear):
        found = disjoint_similarity(layer)
    elif isinstance(layer, ODConv | DYConv):
        found = kernel_similarity(layer.kernels.weight)
    elif isinstance(layer, CondConv):
        found = kernel_similarity(layer.conv.weight)
    else:
        return None
    return found if len(found) > 1 else None


def mean_similarities(model: nn.Module) -> dict[str, float]:
    """Compute each layer's mean absolute cosine similarity over the pairs of its kernels, by the layer's name.

    The paper finds more than 0.88 for ODConv, and 0 for FDConv by construction.
    """
    found = {name: similarity(layer) for name, layer in model.named_modules()}
    return {name: mean_similarity(matrix) for name, matrix in found.items() if matrix is not None}


def similarity_table(models: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Lay out the similarities of several models, as `mean_similarities` returns them: a row for each layer."""
    layers = list(dict.fromkeys(layer for found in models.values() for layer in found))
    rows = [
        [layer, *(f"{found[layer]:.3f}" if layer in found else "" for found in models.values())] for layer in layers
    ]
    means = [f"{np.mean(list(found.values())):.3f}" if found else "" for found in models.values()]
    return [*rows, ["mean", *means]]
