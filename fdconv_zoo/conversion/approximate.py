"""Approximates a trained FDConv model by a plain model, and measures the deviation."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fdconv_zoo.conversion.plain import is_neutral, make_plain, make_weight, neutral_kernel
from fdconv_zoo.conversion.run import find_floating, run
from fdconv_zoo.conversion.table import align
from fdconv_zoo.layers import BandModulatedConv2d, FDLinear
from fdconv_zoo.layers.replace import DYNAMIC_KINDS, DynamicLayer, find_layers, swap_layers

# Number of kernel elements that are assembled at a time; at least one kernel.
_CHUNK = 2**22


@dataclass(frozen=True)
class Deviation:
    """Deviation of a plain model from the FDConv model that it approximates; ``print`` shows it as a table.

    All figures are the root mean square of the difference over the images, divided by that of the FDConv model's value.

    Attributes:
        layers: By layer name, deviation of the layer's output for the input it has in the FDConv model. Layers that
            the images do not reach are left out.
        output: Deviation of the model's output.
    """

    layers: dict[str, float]
    output: float

    def __str__(self) -> str:
        rows = [[name or "(the model)", f"{value:.1e}"] for name, value in self.layers.items()]
        return "\n".join(align(["layer", "deviation"], [*rows, ["output of the model", f"{self.output:.1e}"]]))


def approximate_plain(model: nn.Module, images: Tensor | Iterable[Tensor]) -> tuple[nn.Module, Deviation]:
    """Replace FDConv layers by plain layers that approximate their average effect on the images, in place.

    A layer's constant kernel is the mean of the kernels it assembles for the images, times the factor
    ``<x, FBM(x)> / <x, x>`` that best approximates FBM on its inputs. The mean of the kernels minimises the squared
    distance to all of them; the kernel of the mean modulators would not, because modulators are correlated. Weights
    that were shared between layers are no longer shared.

    Args:
        model: changed in place. It runs in eval mode; its modes and statistics are kept.
        images: a batch, or several, typical of the model's input. All are kept in memory until the end.

    Returns:
        The model (the plain layer, if the model itself is an FDConv layer), and its deviation from the FDConv model
        on these images.

    Raises:
        TypeError: a batch is not a tensor.
        ValueError: there are no images, or they do not reach a layer whose modulators are not neutral.

    After an error the model is unchanged.
    """
    batches = [images] if isinstance(images, Tensor) else list(images)
    if not batches:
        raise ValueError("images is empty: give images to average the kernels over.")
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise TypeError(f"A batch is a {type(batch).__name__}: give tensors, for example (x for x, _ in loader).")
    layers: dict[DynamicLayer, list[str]] = find_layers(model, DYNAMIC_KINDS)

    means: dict[nn.Module, _Mean] = {}
    for batch in batches:
        run(model, batch, layers, lambda layer, x, _: means.setdefault(layer, _Mean(layer)).add(x))
    plain = {}
    for layer, names in layers.items():
        if layer not in means and not is_neutral(layer):
            raise ValueError(
                f"The images do not reach {names[0]!r}, whose modulators are not neutral: its kernels are unknown."
            )
        kernel = means[layer].kernel() if layer in means else neutral_kernel(layer)
        plain[layer] = make_plain(layer, make_weight(layer, kernel))

    dynamic = {new: old for old, new in plain.items()}
    errors, output_error = {layer: _Error() for layer in means}, _Error()
    for batch in batches:
        expected = run(model, batch, layers, lambda layer, x, y: errors[layer].add(plain[layer](x), y))
        try:
            actual = run(swap_layers(model, plain), batch)
        finally:
            swap_layers(model, dynamic)
        for a, b in zip(find_floating(actual), find_floating(expected), strict=True):
            output_error.add(a, b)
    by_layer = {names[0]: errors[layer].relative() for layer, names in layers.items() if layer in errors}
    return swap_layers(model, plain), Deviation(by_layer, output_error.relative())


class _Mean:
    """Running mean of a layer's kernels, and of the factor that approximates its FBM."""

    def __init__(self, layer: DynamicLayer) -> None:
        self.layer = layer
        self.count = 0
        self.total: Tensor | None = None  # (O, I/groups, a, b), float64
        self.energy = self.passed = 0.0  # <x, x> and <x, FBM(x)>

    def add(self, x: Tensor) -> None:
        """Add a batch of the layer's inputs."""
        layer = self.layer
        if not isinstance(layer, BandModulatedConv2d):
            tokens = x.flatten(1, -2) if isinstance(layer, FDLinear) else x.flatten(2).transpose(1, 2)
            pooled = tokens.mean(1, dtype=torch.promote_types(x.dtype, torch.float32))
            for chunk in pooled.split(max(_CHUNK // math.prod(layer.fdw.kernel_shape), 1)):
                # The mean of the chunk, not its sum: without KSM, all images share one kernel.
                kernels = layer.assemble(chunk).mean(0, dtype=torch.float64) * len(chunk)
                self.total = kernels if self.total is None else self.total + kernels
            self.count += len(pooled)
        if layer.fbm is not None:
            modulated = layer.fbm(x).double()
            x = x.double()
            self.energy += (x * x).sum().item()
            self.passed += (x * modulated).sum().item()

    def kernel(self) -> Tensor:
        """Return the constant kernel, (O, I/groups, a, b)."""
        kernel = neutral_kernel(self.layer) if self.total is None else self.total / self.count
        return kernel * (self.passed / self.energy) if self.energy else kernel


class _Error:
    """Running sums of squares of a difference and of the reference."""

    def __init__(self) -> None:
        self.difference = self.expected = 0.0

    def add(self, actual: Tensor, expected: Tensor) -> None:
        self.difference += (actual.double() - expected.double()).square().sum().item()
        self.expected += expected.double().square().sum().item()

    def relative(self) -> float:
        if self.difference == 0:
            return 0.0
        return math.sqrt(self.difference / self.expected) if self.expected else math.inf
