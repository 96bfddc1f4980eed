"""FBM: Frequency Band Modulation (FDConv, section 3.3, https://arxiv.org/abs/2503.18783)."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdconv_zoo.layers.plain import check_plain, conv_arguments, example_size
from fdconv_zoo.layers.precision import no_autocast, transform_dtype
from fdconv_zoo.layers.programs import TracedForScript, fx_leaf
from fdconv_zoo.ops import (
    Path,
    choose_path,
    modulate,
    modulate_bands,
    modulate_bands_softly,
    modulate_bands_stretched,
)

BandMask = Literal["exact", "reference", "learned"]

# The paper's cutoffs are 1/4, 1/8 and 1/16 of the sampling rate; a low-pass keeps the frequencies strictly below. In
# the authors' code, rounding also keeps the frequencies of exactly 1/8 and 1/16 (not 1/4). The default follows the
# code, since checkpoints were trained with it.
BAND_EDGES = (1 / 4, 1 / 8 + 1e-8, 1 / 16 + 1e-8)

# The authors compute their masks for feature maps of this size and resize them for all other sizes.
_REFERENCE_MASK_SIZE = 64


class FrequencyBandModulation(TracedForScript):
    """Scale the frequency bands of a feature map, with separate factors at each pixel.

    Band m is multiplied by ``A_m = 2 * sigmoid(conv3x3(x))``; the lowest band passes unchanged. A new module returns
    its input, bit for bit.

    Args:
        channels: C.
        band_edges: cutoff frequencies in cycles per sample, in descending order, each in (0, 0.5]; M edges make M + 1
            bands. A low-pass keeps ``max(|u|, |v|)`` strictly below its edge.
        band_mask: ``"exact"``: the bands as defined, at every feature size. ``"reference"``: the paper authors'
            masks, computed at 64x64 and resized, for checkpoints trained with their code. ``"learned"``: soft masks
            whose edges are parameters and start at ``band_edges``, which must be below 0.5; the bands still sum to the
            input. ``"reference"`` and ``"learned"`` use torch's operations on every path.

    Raises:
        ValueError: ``band_edges`` are not in descending order or out of range, or ``band_mask`` is unknown.
    """

    def __init__(
        self,
        channels: int,
        band_edges: Sequence[float] = BAND_EDGES,
        band_mask: BandMask = "exact",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        edges = tuple(band_edges)
        falls = all(high > low for high, low in zip((0.5 + 1e-9, *edges), (*edges, 0.0), strict=True))
        if not edges or not falls:
            raise ValueError(f"band_edges is {edges}: give frequencies in descending order, at most 0.5 and above 0.")
        if band_mask not in get_args(BandMask):
            raise ValueError(f"band_mask is {band_mask!r}: it must be one of {get_args(BandMask)}.")
        if band_mask == "learned" and edges[0] >= 0.5:
            raise ValueError(f'band_edges is {edges}: with band_mask="learned", edges start below 0.5.')
        self.band_edges = edges
        self.band_mask = band_mask
        self.path: Path | None = None
        self.attention = nn.Conv2d(channels, len(edges), 3, padding=1, device=device, dtype=dtype)
        # The ratio of each edge to the next higher one, as a logit: edges stay in descending order and in (0, 0.5).
        self.edge_logits: Tensor | None = None
        if band_mask == "learned":
            self.edge_logits = nn.Parameter(torch.empty(len(edges), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the factor of every band to 1, and learned edges to ``band_edges``."""
        for parameter in (self.attention.weight, self.attention.bias):
            if parameter is not None:
                nn.init.zeros_(parameter)
        if self.edge_logits is not None:
            shares = [low / high for high, low in zip((0.5, *self.band_edges), self.band_edges, strict=False)]
            with torch.no_grad():
                self.edge_logits.copy_(torch.tensor([math.log(share / (1 - share)) for share in shares]))

    def edges(self) -> tuple[float, ...]:
        """Return the current edges in cycles per sample, in descending order: ``band_edges``, or the learned edges."""
        if self.edge_logits is None:
            return self.band_edges
        return tuple(_learned_edges(self.edge_logits.detach().double()).tolist())

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape and dtype."""
        logits = self.attention(x)
        # A low-pass sums over whole rows and columns. In half precision, rounding would remove the small differences
        # between bands, so it runs in float32 or wider, also under autocast.
        with no_autocast(x.device.type):
            dtype = transform_dtype(x)
            (weights,) = modulate([logits], [1.0], [1], dtype, self.path)
            return self.weigh(x, weights)

    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sum the bands of x (B, C, H, W), scaled by weights (B, M, H, W) in float32 or wider, highest band first."""
        if self.band_mask == "exact":
            return modulate_bands(x, weights, self.band_edges, self.path)
        wide = x.to(weights.dtype)
        if self.edge_logits is not None:
            return modulate_bands_softly(wide, weights, _learned_edges(self.edge_logits.to(wide.dtype))).to(x.dtype)
        return modulate_bands_stretched(wide, weights, self.band_edges, _REFERENCE_MASK_SIZE).to(x.dtype)

    def example_input(self) -> Tensor:
        """(2, C, H, W) of zeros."""
        return self.attention.weight.new_zeros(2, self.attention.in_channels, 16, 16)

    def extra_repr(self) -> str:
        """Settings that ``print(module)`` shows."""
        edges = ", ".join(f"{edge:g}" for edge in self.band_edges)
        weight = self.attention.weight
        is_exact = self.band_mask == "exact"
        path = choose_path(weight.device, transform_dtype(weight), self.path) if is_exact else "plain"
        return f"band_edges=({edges}), band_mask={self.band_mask!r}, path={path!r}"


def _learned_edges(logits: Tensor) -> Tensor:
    """(M,): each edge is a fraction of the next higher one; the first is a fraction of 0.5."""
    return 0.5 * F.logsigmoid(logits).cumsum(0).exp()  # ONNX does not support cumprod


class BandModulatedConv2d(nn.Conv2d, TracedForScript):
    """A plain convolution with Frequency Band Modulation on its input; a new one computes the plain convolution.

    Plain checkpoints can be loaded: ``fbm`` then becomes neutral.

    Args:
        *args, **kwargs: as in ``nn.Conv2d``.
        band_edges, band_mask: as in :class:`FrequencyBandModulation`.
    """

    def __init__(
        self,
        *args: Any,
        band_edges: Sequence[float] = BAND_EDGES,
        band_mask: BandMask = "exact",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        factory: dict[str, Any] = {"device": self.weight.device, "dtype": self.weight.dtype}
        self.fbm = FrequencyBandModulation(self.in_channels, band_edges, band_mask, **factory)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> "BandModulatedConv2d":
        """Make a layer that computes the same function as ``conv`` and shares its parameters.

        Args:
            conv: the plain layer; it is not changed.
            **options: ``band_edges`` and ``band_mask``.

        Raises:
            TypeError: ``conv`` is not an ``nn.Conv2d``, or is a subclass with its own ``forward``.
        """
        check_plain(conv, nn.Conv2d)
        layer = cls(**conv_arguments(conv), device="meta", **options)
        layer.to_empty(device=conv.weight.device).to(conv.weight.dtype)
        layer.fbm.reset_parameters()
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) to (B, O, H', W')."""
        return super().forward(self.fbm(x))

    def example_input(self) -> Tensor:
        """(2, I, H, W) of zeros, large enough for the kernel."""
        return self.weight.new_zeros(2, self.in_channels, *example_size(self.kernel_size, self.dilation))

    def extra_repr(self) -> str:
        """Settings that ``print(module)`` shows."""
        return f"{super().extra_repr()}, {self.fbm.extra_repr()}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        if prefix + "weight" in state_dict and prefix + "fbm.attention.weight" not in state_dict:
            device = state_dict[prefix + "weight"].device  # the layer itself may be on the meta device
            neutral = copy.deepcopy(self.fbm).to_empty(device=device)
            neutral.reset_parameters()
            state_dict.update({f"{prefix}fbm.{key}": value for key, value in neutral.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)
