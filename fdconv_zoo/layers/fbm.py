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

# The paper cuts at a quarter, an eighth and a sixteenth of the sampling rate, and lets pass what lies strictly below.
# In the authors' code rounding admits the sinusoids at exactly an eighth and a sixteenth (not at a quarter): the
# default keeps to the code, which checkpoints were trained with.
BAND_EDGES = (1 / 4, 1 / 8 + 1e-8, 1 / 16 + 1e-8)

# The authors compute their masks for feature maps of this size and stretch them to all others.
_REFERENCE_MASK_SIZE = 64


class FrequencyBandModulation(TracedForScript):
    """Weigh the frequency bands of a feature map, at every pixel with weights of its own.

    Band m is multiplied with ``A_m = 2 * sigmoid(conv3x3(x))``; the lowest band passes unchanged. A fresh module
    returns its input, bit for bit.

    Args:
        channels: C.
        band_edges: falling cutoff frequencies in cycles per sample, each in (0, 0.5]; M edges make M + 1 bands. A
            low-pass keeps ``max(|u|, |v|)`` strictly below its edge.
        band_mask: ``"exact"``: the bands as defined, at every feature size. ``"reference"``: the paper authors'
            masks, made at 64x64 and stretched, for checkpoints trained with their code. ``"learned"``: soft masks whose
            edges are parameters and start at ``band_edges``; the bands still sum up to the input. The last two are
            computed by torch's operations, whatever the path.

    Raises:
        ValueError: edges that do not fall or leave the range, or an unknown ``band_mask``.
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
            raise ValueError(f"band_edges is {edges}: give frequencies that fall, at most 0.5 and above 0.")
        if band_mask not in get_args(BandMask):
            raise ValueError(f"band_mask is {band_mask!r}: it must be one of {get_args(BandMask)}.")
        if band_mask == "learned" and edges[0] >= 0.5:
            raise ValueError(f'band_edges is {edges}: with band_mask="learned", edges start below 0.5.')
        self.band_edges = edges
        self.band_mask = band_mask
        self.path: Path | None = None
        self.attention = nn.Conv2d(channels, len(edges), 3, padding=1, device=device, dtype=dtype)
        # The share of each edge in the one above it, as a logit, so that edges fall and stay in (0, 0.5).
        self.edge_logits: Tensor | None = None
        if band_mask == "learned":
            self.edge_logits = nn.Parameter(torch.empty(len(edges), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make every band's weight 1, and put learned edges back to where they start."""
        for parameter in (self.attention.weight, self.attention.bias):
            if parameter is not None:
                nn.init.zeros_(parameter)
        if self.edge_logits is not None:
            shares = [low / high for high, low in zip((0.5, *self.band_edges), self.band_edges, strict=False)]
            with torch.no_grad():
                self.edge_logits.copy_(torch.tensor([math.log(share / (1 - share)) for share in shares]))

    def edges(self) -> tuple[float, ...]:
        """The edges as they are now, falling, in cycles per sample: ``band_edges``, or what they were trained to be."""
        if self.edge_logits is None:
            return self.band_edges
        return tuple(_learned_edges(self.edge_logits.detach().double()).tolist())

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape and dtype."""
        logits = self.attention(x)
        # A low-pass sums over whole rows and columns: in half precision that rounds away the fine differences
        # between bands, so it runs in float32 whatever autocast says.
        with no_autocast(x.device.type):
            dtype = transform_dtype(x)
            (weights,) = modulate([logits], [1.0], [1], dtype, self.path)
            return self.weigh(x, weights)

    def weigh(self, x: Tensor, weights: Tensor) -> Tensor:
        """The sum of the bands of x (B, C, H, W) by weights (B, M, H, W), highest band first, in float32 or wider."""
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
    """(M,): each edge is a share of the one above it, the first of 0.5."""
    return 0.5 * F.logsigmoid(logits).cumsum(0).exp()  # ONNX has no product of this kind


class BandModulatedConv2d(nn.Conv2d, TracedForScript):
    """A plain convolution with Frequency Band Modulation on its input; a fresh one is the plain convolution.

    It reads plain checkpoints: where they have nothing for ``fbm``, that becomes neutral.

    Args:
        *args, **kwargs: as in ``nn.Conv2d``.
        band_edges, band_mask: of :class:`FrequencyBandModulation`.
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
        """A layer of the same function as ``conv``, with its parameters.

        Args:
            conv: the plain layer; it is not changed.
            **options: ``band_edges`` and ``band_mask``.

        Raises:
            TypeError: ``conv`` is no ``nn.Conv2d``, or a subclass that computes in a way of its own.
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
            device = state_dict[prefix + "weight"].device  # the layer itself may have no memory yet
            neutral = copy.deepcopy(self.fbm).to_empty(device=device)
            neutral.reset_parameters()
            state_dict.update({f"{prefix}fbm.{key}": value for key, value in neutral.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)
