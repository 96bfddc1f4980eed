"""One entry for the paths a dynamic convolution can take; the choice between them is made here and nowhere else."""

from typing import Literal

from torch import Tensor

from fdconv_zoo.ops.convolution import Geometry, convolve
from fdconv_zoo.ops.image_by_image import convolve_image_by_image
from fdconv_zoo.ops.kernel_assembly import KernelParts, assemble_kernels

Path = Literal["plain", "keep", "rebuild"]


def choose_path(parts: KernelParts) -> Path:
    """The path taken where none is forced.

    ``"rebuild"``, the fastest on a CPU and the leanest everywhere; but a kernel that all images share is assembled
    once and convolved as the plain layer's.
    """
    is_static = all(part is None for part in (parts.windows, parts.channel, parts.filter)) and len(parts.attention) == 1
    return "plain" if is_static else "rebuild"


def dynamic_convolution(x: Tensor, parts: KernelParts, geometry: Geometry, path: Path | None = None) -> Tensor:
    """Assemble the kernel of every image and convolve it.

    Args:
        x: (B, G*I, H, W).
        parts: of the kernels, see :class:`KernelParts`.
        geometry: of the convolution.
        path: ``"plain"``: torch's own operations on the whole batch, every step kept for backward; ``"rebuild"``:
            image by image, kernels rebuilt in backward; ``"keep"``: the same, but what is costly to rebuild is kept.
            None: :func:`choose_path`.

    Returns:
        (B, O, H', W').
    """
    path = path or choose_path(parts)
    if path == "plain":
        return convolve(x, assemble_kernels(parts).to(x.dtype), geometry)
    return convolve_image_by_image(x, parts, geometry, keep=path == "keep")
