"""The two hot operations, each behind one signature for all its paths."""

from collections.abc import Sequence

from torch import Tensor

from fdconv_zoo.ops.bands_plain import modulate_bands_plain
from fdconv_zoo.ops.bands_rebuild import modulate_bands_image_by_image
from fdconv_zoo.ops.convolution import Geometry, convolve
from fdconv_zoo.ops.kernels_plain import KernelParts, assemble_kernels
from fdconv_zoo.ops.kernels_rebuild import convolve_image_by_image
from fdconv_zoo.ops.path import Path, choose_path


def dynamic_convolution(x: Tensor, parts: KernelParts, geometry: Geometry, path: Path | None = None) -> Tensor:
    """Assemble the kernel of every image and convolve it.

    Args:
        x: (B, G*I, H, W).
        parts: of the kernels, see :class:`KernelParts`.
        geometry: of the convolution.
        path: see :func:`choose_path`.

    Returns:
        (B, O, H', W').
    """
    if choose_path(path) == "plain":
        return convolve(x, assemble_kernels(parts).to(x.dtype), geometry)
    return convolve_image_by_image(x, parts, geometry)


def modulate_bands(x: Tensor, attention: Tensor, band_edges: Sequence[float], path: Path | None = None) -> Tensor:
    """Frequency Band Modulation: ``sum_m A_m * band_m + rest`` (section 3.3), exact at every feature size.

    Where all weights are 1 this is x, bit for bit.

    Args:
        x: (B, C, H, W), of any floating type.
        attention: (B, M, H, W), the weight of each band at each pixel, highest band first; float32 or float64, which
            is what the bands are computed in.
        band_edges: M falling frequencies in cycles a sample; band m lies between edge m-1 (m > 0) and edge m.
        path: see :func:`choose_path`.

    Returns:
        (B, C, H, W), of x's type.
    """
    if choose_path(path) == "plain":
        return modulate_bands_plain(x.to(attention.dtype), attention, band_edges).to(x.dtype)
    return modulate_bands_image_by_image(x, attention, band_edges)
