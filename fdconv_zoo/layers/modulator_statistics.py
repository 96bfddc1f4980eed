"""Statistics of modulators: how far they are from neutral, how they differ between images, and how many are saturated.

Modulators are ``1 + d`` with d between -1 and 1; a neutral one has d = 0. All statistics here are of d. The derivative
of ``2 * sigmoid`` is ``1 - d^2`` times its derivative at neutral.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fdconv_zoo.layers.fbm import FrequencyBandModulation
from fdconv_zoo.layers.ksm import KernelSpatialModulation
from fdconv_zoo.layers.modulators import name_layers
from fdconv_zoo.layers.precision import no_autocast, transform_dtype
from fdconv_zoo.ops import KernelModulators, LocalFactors, local_factors

_SATURATED = 0.9  # limit of d^2: a tenth of the gradient is left
_ELEMENTS = 2**24  # local factors in memory at once


@dataclass(frozen=True)
class ModulatorStatistics:
    """Statistics of a layer's modulator over some images. Its values lie between 0 and 2; 1 is neutral.

    Attributes:
        layer: name of the layer in the model.
        modulator: ``"kernel"``, ``"channel"``, ``"filter"``, ``"spatial"``, ``"local"`` or ``"band"``.
        images: number of images.
        distance: distance from neutral: root mean square of value - 1.
        variation: variation between images: root mean square of the difference of each value from its mean over the
            images. For ``"band"``, the values are the means of each band over the pixels of an image.
        within: variation within images, only for ``"band"``: root mean square of the difference of each pixel from the
            mean over its image. None for the others.
        saturated: share of saturated values, those below 0.051 or above 1.949. They learn slowly: the gradient through
            the sigmoid is less than a tenth of that at 1.
    """

    layer: str
    modulator: str
    images: int
    distance: float
    variation: float
    within: float | None
    saturated: float


class ModulatorObserver:
    """Context manager that records the modulators of a model in each forward pass, in training or evaluation mode.

    The values are those that the forward pass computes, on any path; its results do not change. Forward passes of a
    compiled model are not recorded.

    Args:
        model: a model with or without FDConv layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._moments: dict[tuple[str, str], _Moments] = {}

    def __enter__(self) -> "ModulatorObserver":
        for part, layer in name_layers(self._model).items():
            if isinstance(part, KernelSpatialModulation):
                self._handles.append(part.register_forward_hook(partial(self._observe_kernels, layer)))
            elif isinstance(part, FrequencyBandModulation):
                self._handles.append(part.attention.register_forward_hook(partial(self._observe_bands, layer)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def statistics(self) -> list[ModulatorStatistics]:
        """Return one row for each modulator of each layer that has run, over all images of its forward passes."""
        return [moments.row(*names) for names, moments in self._moments.items()]

    @torch.no_grad()
    def _observe_kernels(self, layer: str, ksm: KernelSpatialModulation, _: Any, found: KernelModulators) -> None:
        for modulator, values in found._asdict().items():
            if values is None:
                continue
            if modulator == "kernel":
                count = values.shape[1]
                self._add(layer, modulator, (values - values.new_ones(()) / count) * count)  # exactly 0 if neutral
            elif isinstance(values, LocalFactors):
                assert ksm.local_branch is not None  # local factors are its output
                for factors in _assemble(values, ksm.local_branch.kernel_size):
                    self._add(layer, modulator, factors - 1)
            else:
                self._add(layer, modulator, values - 1)

    @torch.no_grad()
    def _observe_bands(self, layer: str, _: nn.Module, __: Any, logits: Tensor) -> None:
        logits = logits.to(transform_dtype(logits))
        self._add(layer, "band", 2 * torch.sigmoid(logits) - 1, pixels=2)

    def _add(self, layer: str, modulator: str, deviation: Tensor, pixels: int = 0) -> None:
        """Add deviations (B, ...) from neutral; the last ``pixels`` axes are those of a feature map."""
        deviation = deviation.to(transform_dtype(deviation))
        deviation = deviation.flatten(-pixels) if pixels else deviation.flatten(1).unsqueeze(2)
        self._moments.setdefault((layer, modulator), _Moments(bool(pixels))).add(deviation)


def _assemble(local: LocalFactors, kernel_size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield the local factors of a few images at a time, (images, O, I/groups, a, b), computed as in the layer."""
    local = LocalFactors(*(tensor.to(transform_dtype(tensor)) for tensor in local))
    per_image = local.taps.shape[0] * local.windows.shape[2]
    with no_autocast(local.taps.device.type):
        for windows in local.windows.split(max(_ELEMENTS // per_image, 1)):
            yield local_factors(LocalFactors(local.taps, windows), kernel_size)


class _Moments:
    """Sums over images, which stay on the device until :meth:`row` is called."""

    def __init__(self, has_pixels: bool) -> None:
        self.has_pixels = has_pixels
        self.images = 0
        self.squares = self.saturated = self.between = self.within = self.center = torch.zeros(())

    def add(self, deviation: Tensor) -> None:
        """Add deviations (B, E, P): E values for each image, at P pixels."""
        count = len(deviation)
        square = deviation.square()
        means = deviation.mean(2)
        self.squares = self.squares + square.mean((1, 2)).sum()
        self.saturated = self.saturated + (square > _SATURATED).to(square.dtype).mean((1, 2)).sum()
        self.within = self.within + (deviation - means.unsqueeze(2)).square().mean((1, 2)).sum()
        # Update the sum of squares around the mean of all images: E[x^2] - E[x]^2 would lose digits.
        center = means.mean(0)
        shift = center - self.center
        share = count / (self.images + count)
        around_own = (means - center).square().mean(1).sum()
        self.between = self.between + around_own + shift.square().mean() * (self.images * share)
        self.center = self.center + shift * share
        self.images += count

    def row(self, layer: str, modulator: str) -> ModulatorStatistics:
        """Return the statistics of all deviations added so far."""
        sums = torch.stack([self.squares, self.between, self.within, self.saturated])
        square, between, within, saturated = (sums / self.images).tolist()
        return ModulatorStatistics(
            layer=layer,
            modulator=modulator,
            images=self.images,
            distance=square**0.5,
            variation=between**0.5,
            within=within**0.5 if self.has_pixels else None,
            saturated=saturated,
        )
