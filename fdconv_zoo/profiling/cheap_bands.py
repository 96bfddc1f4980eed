"""Cheap approximations of Frequency Band Modulation, for experiments on the benefit of its exact bands.

They have the same parameters as the exact form. Like it, they return their input bit for bit if all weights are 1.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fdconv_zoo.layers import FrequencyBandModulation
from fdconv_zoo.layers.fdconv import FDConv2d
from fdconv_zoo.ops import modulate_bands, weigh_bands


class PooledBands(FrequencyBandModulation):
    """Bands between the levels of a pooling pyramid, like those of a Laplacian pyramid.

    The low-pass at the edge 1/4 is the mean over 2x2 pixels, interpolated bilinearly; that at 1/8 is the mean over 4x4
    pixels, and so on. Other edges are rounded to one of these.
    """

    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weigh the bands of x (B, C, H, W) by weights (B, M, H, W)."""
        wide = x.to(weights.dtype)

        def low_pass(edge: float) -> Tensor:
            side = 2 ** max(round(0.5 / edge).bit_length() - 1, 1)
            return _enlarge(_pool(wide, side), x)

        return weigh_bands(wide, weights, map(low_pass, self.band_edges)).to(x.dtype)


class HalfResolutionBands(FrequencyBandModulation):
    """Exact bands, computed with the map and the weights at half their resolution; the highest band is the remainder.

    Half the resolution represents frequencies below 1/4 of the sampling rate, up to aliasing and attenuation by pooling
    and interpolation.
    """

    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weigh the bands of x (B, C, H, W) by weights (B, M, H, W)."""
        wide = x.to(weights.dtype)
        small, small_weights = _pool(wide, 2), _pool(weights, 2)
        edges = [min(2 * edge, 0.5) for edge in self.band_edges]
        lower = modulate_bands(small, small_weights, edges, self.path) - small_weights[:, :1] * small
        return (weights[:, :1] * wide + _enlarge(lower, x)).to(x.dtype)


def replace_bands(model: nn.Module, kind: type[FrequencyBandModulation]) -> None:
    """Replace FBM in all FDConv layers of a model, in place, by an approximation with the same parameters."""
    for layer in model.modules():
        if isinstance(layer, FDConv2d) and layer.fbm is not None:
            attention = layer.fbm.attention
            fbm = kind(attention.in_channels, layer.fbm.band_edges, device="meta", dtype=attention.weight.dtype)
            fbm.attention, fbm.path = attention, layer.fbm.path
            layer.fbm = fbm.train(layer.training)


def remove_bands(model: nn.Module) -> None:
    """Remove FBM from all FDConv layers of a model, in place."""
    for layer in model.modules():
        if isinstance(layer, FDConv2d):
            layer.fbm = None


def _pool(x: Tensor, side: int) -> Tensor:
    """Average over squares; those at the border may be smaller."""
    return F.avg_pool2d(x, side, ceil_mode=True, count_include_pad=False)


def _enlarge(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear")
