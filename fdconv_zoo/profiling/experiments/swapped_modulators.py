"""Runs a network with the modulators of another image, to show how much it relies on those of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fdconv_zoo.layers import FrequencyBandModulation
from fdconv_zoo.layers.ksm import KernelSpatialModulation
from fdconv_zoo.profiling.experiments.output import markdown

SWAPS = {
    "its own": {},
    "kernels of another image": {"kernels": True},
    "band factors of another image": {"bands": True},
    "both of another image": {"kernels": True, "bands": True},
}


@contextmanager
def swapped_modulators(model: nn.Module, *, kernels: bool = False, bands: bool = False) -> Iterator[None]:
    """Give each image the modulators of the image before it, in its batch or at the end of the batch before.

    The first image of all gets those of the last one in its batch. If all images got the same modulators anyway,
    nothing would change.

    Args:
        model: With FDConv layers. It is as before after the context.
        kernels: Swap what KSM predicts: the kernels.
        bands: Swap what FBM predicts: the factor of each band at each pixel, resized if the sizes differ.
    """
    handles = []
    for module in model.modules():
        if kernels and isinstance(module, KernelSpatialModulation):
            handles.append(module.register_forward_pre_hook(_Pooled()))
        elif bands and isinstance(module, FrequencyBandModulation):
            handles.append(module.attention.register_forward_hook(_Maps()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Previous:
    """Shifts a batch by one image, across batches."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def shift(self, batch: Tensor) -> Tensor:
        last = batch[-1:] if self._last is None else self._last
        self._last = batch[-1:]
        if last.shape[2:] != batch.shape[2:]:
            last = F.interpolate(last, batch.shape[2:], mode="bilinear")
        return torch.cat([last, batch[:-1]])


class _Pooled(_Previous):
    """Replaces the pooled features, from which KSM predicts."""

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.shift(inputs[0]), *inputs[1:]


class _Maps(_Previous):
    """Replaces the logits of FBM."""

    def __call__(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        return self.shift(output)


def swaps_table(runs: dict[str, dict[str, float]], metric: str) -> str:
    """Format the metric of each run, in percent, for each of `SWAPS`."""
    return markdown(
        [f"{metric} with modulators", *SWAPS],
        [[f"`{run}`", *(f"{found[swap]:.2f}" for swap in SWAPS)] for run, found in runs.items()],
    )
