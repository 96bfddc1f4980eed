"""KSM's modulators from the tensors of its modules, with torch's operations, where Triton kernels cannot be used."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.ops.modulation import modulate_plain, neighbors_plain, star_relu_plain

NUM_GLOBAL = 13  # tensors of the global branch
HEADS = (5, 7, 9, 11)  # among them, the weights of the heads


def linear_flops(pooled: torch.Size, tensors: Sequence[torch.Size | None], heads: Sequence[int]) -> int:
    """Count the flops of KSM's linear layers as torch does: ``reduce`` (the first tensor) and ``heads``, by index."""
    weights = [tensors[at] for at in (0, *heads) if tensors[at] is not None]
    return 2 * pooled[0] * sum(rows * cols for rows, cols in weights)


def batch_statistics_plain(hidden: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean, variance and ``1 / sqrt(variance + eps)`` (h,) of hidden units (B, h)."""
    variance, mean = torch.var_mean(hidden, 0, correction=0)
    return mean, variance, (variance + eps).rsqrt()


def predict_plain(
    pooled: Tensor,
    tensors: Sequence[Tensor | None],
    normalized: Tensor | None,
    numbers: Sequence[float],
    sizes: Sequence[int],
) -> list[Tensor]:
    """Predict the modulators of :func:`fdconv_zoo.ops.predict_modulators` from normalized hidden units.

    Args:
        pooled, tensors, numbers, sizes: see :func:`fdconv_zoo.ops.predict_modulators`.
        normalized: (B, h); None without a global branch.

    Returns:
        The modulators that are not None.
    """
    kernel_temperature, temperature, _, layer_eps, _ = numbers
    width, groups, *kernel_size = sizes
    results = []
    if normalized is not None:
        _, weight, bias, scale, offset, *heads = tensors[:NUM_GLOBAL]
        hidden = star_relu_plain(normalized * weight + bias, scale, offset)
        pairs = zip(heads[::2], heads[1::2], strict=True)
        logits = [None if weight is None else F.linear(hidden, weight, bias) for weight, bias in pairs]
        temperatures = [kernel_temperature, *[temperature] * 3]
        counts = [1 if logits[0] is None else logits[0].shape[1], 1, 1, 1]
        wanted = [index for index, logit in enumerate(logits) if logit is not None]
        results = modulate_plain(
            [logits[index] for index in wanted],
            [temperatures[index] for index in wanted],
            [counts[index] for index in wanted],
            pooled.dtype,
        )
        if logits[3] is not None:
            results[-1] = results[-1].unflatten(1, kernel_size)
    if width:
        features = F.layer_norm(pooled, pooled.shape[1:], *tensors[NUM_GLOBAL:], layer_eps)
        results.append(neighbors_plain(features, width).unflatten(1, (groups, -1)))
    return results
