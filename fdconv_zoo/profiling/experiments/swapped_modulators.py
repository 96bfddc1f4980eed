"""How much a trained network relies on modulators that depend on the image: it gets those of another image."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

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
    """Give each image of a batch the modulators of the image before it in the batch, and the first those of the last.

    If all images got the same modulators, nothing would change. A batch of one image is not changed.

    Args:
        model: With FDConv layers. It is as before after the context.
        kernels: Swap what KSM predicts: the kernels.
        bands: Swap what FBM predicts: the factor of each band at each pixel.
    """
    handles = []
    for module in model.modules():
        if kernels and isinstance(module, KernelSpatialModulation):
            handles.append(module.register_forward_pre_hook(_swap_input))
        elif bands and isinstance(module, FrequencyBandModulation):
            handles.append(module.attention.register_forward_hook(_swap_output))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _swap_input(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return inputs[0].roll(1, 0), *inputs[1:]


def _swap_output(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    return output.roll(1, 0)


def swaps_table(runs: dict[str, dict[str, float]], metric: str) -> str:
    """Lay out the metric of each run, in percent, for each of `SWAPS`."""
    return markdown(
        [f"{metric} with modulators", *SWAPS],
        [[f"`{run}`", *(f"{found[swap]:.2f}" for swap in SWAPS)] for run, found in runs.items()],
    )
