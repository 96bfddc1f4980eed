"""FDW's planes and the gates of KSM's local branch, computed for a few images at a time, and their gradients.

A plane lays out a kernel (O, I, height, width) as R = O*height rows by C = I*width columns. Its half spectrum is (R, H)
with H = C//2 + 1. b of the B images of a batch are processed at a time.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fdconv_zoo.ops.scratch import scratch


class MixedPlanes:
    """Computes planes, the inverse DFT of ``D * attention[group]``, for a few images at a time.

    Args:
        spectrum: D, (R, H, 2).
        group_index: (R, H), any integer dtype.
        attention: (B, n), or (1, n) for all images.
        cols: the number of columns C.
    """

    def __init__(self, spectrum: Tensor, group_index: Tensor, attention: Tensor, cols: int) -> None:
        self.spectrum = torch.view_as_complex(spectrum)
        self.cols = cols
        # Complex, so that no operation promotes it.
        self.attention = attention.to(self.spectrum.dtype)
        self.index = group_index
        if group_index.dtype != torch.int64:
            self.index = scratch("index", group_index.shape, torch.int64, group_index.device).copy_(group_index)
        self.is_shared = len(attention) == 1
        self._shared: Tensor | None = None
        self._grad_spectrum: Tensor | None = None

    def make(self, images: slice) -> Tensor:
        """Compute the planes (b, R, C), or (1, R, C) if all images share one plane."""
        if not self.is_shared:
            return self._inverse_transform(self._weights(images))
        if self._shared is None:
            self._shared = self._inverse_transform(self._weights(slice(0, 1)))
        return self._shared

    def add_gradient(self, grad: Tensor, images: slice) -> None:
        """Add the gradient of the planes of some images, (b, R, C)."""
        if self.is_shared:
            grad, images = grad.sum(0, keepdim=True), slice(0, 1)
        grad = _transform_rows(torch.fft.fft, torch.fft.rfft(grad, dim=2))
        if self._grad_spectrum is None:
            self._grad_spectrum = torch.zeros_like(self.spectrum)
            self._grad_attention = self.attention.real.new_zeros(self.attention.shape)
            conjugate = self._scratch("conjugate", self.spectrum.shape)
            self._conjugate = torch.mul(self.spectrum, self._adjoint_scale(), out=conjugate).conj_physical_()
        for image_grad, weights in zip(grad, self._weights(images), strict=True):
            self._grad_spectrum.addcmul_(image_grad, weights)
        # Each row sums its coefficients by group; a single sum over the plane would run on one core.
        grad = grad.mul_(self._conjugate).real
        sums = grad.new_zeros(*grad.shape[:2], self.attention.shape[1])
        self._grad_attention[images] += sums.scatter_add_(2, self.index.expand(grad.shape), grad).sum(1)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Return the gradients of spectrum and attention, after those of all images have been added."""
        return torch.view_as_real(self._grad_spectrum.mul_(self._adjoint_scale())), self._grad_attention

    def _weights(self, images: slice) -> Tensor:
        """The weight of each coefficient, (b, R, H)."""
        attention = self.attention[images]
        shape = (len(attention), *self.index.shape)
        # Each row of the index has a table of its own, so that the rows are distributed over the cores.
        attention = attention.unsqueeze(1).expand(-1, shape[1], -1)
        return torch.gather(attention, 2, self.index.expand(shape), out=self._scratch("plane", shape))

    def _inverse_transform(self, weights: Tensor) -> Tensor:
        # irfft2 as its two passes, for the reasons given in `mix_spectrum`, and to access memory in order.
        columns = _transform_rows(torch.fft.ifft, weights.mul_(self.spectrum))
        return torch.fft.irfft(columns, n=self.cols, dim=2)

    def _adjoint_scale(self) -> Tensor:
        """Factors (H,) that turn rfft2 into the adjoint of irfft2: doubled for coefficients that count twice."""
        scale = self.attention.real.new_full((self.index.shape[1],), 2 / (self.index.shape[0] * self.cols))
        scale[0] /= 2
        if self.cols % 2 == 0:
            scale[-1] /= 2
        return scale

    def _scratch(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return scratch(name, shape, self.spectrum.dtype, self.spectrum.device)


class LocalGates:
    """Computes gates, ``sigmoid(logit)`` of KSM's local branch (half its factor), in the layout of the planes.

    Args:
        taps: (G, R/G, width*T), the weight of the 1-D convolution.
        windows: (B, G, I, T), its input: the T channels around each channel.
        width: number of columns of the kernel.
    """

    def __init__(self, taps: Tensor, windows: Tensor, width: int) -> None:
        self.taps, self.windows, self.width = taps, _plane_windows(windows, width), width
        self._grad_taps: Tensor | None = None

    def make(self, images: slice) -> Tensor:
        """Compute the gates (b, R, C)."""
        windows = self.windows[images]
        batch, groups, _, cols = windows.shape
        taps = self.taps.expand(batch, -1, -1, -1).flatten(0, 1) if batch > 1 else self.taps
        shape = (batch * groups, taps.shape[1], cols)
        # Once a plane is transformed, its scratch buffer is free.
        out = scratch("plane", shape, taps.dtype, taps.device)
        return torch.bmm(taps, windows.flatten(0, 1), out=out).sigmoid_().view(batch, -1, cols)

    def add_gradient(self, grad: Tensor, images: slice) -> None:
        """Add the gradient of the logits of some images, (b, R, C)."""
        windows = self.windows[images]
        grad = grad.view(*windows.shape[:2], -1, grad.shape[-1])  # (b, G, R/G, C)
        if self._grad_taps is None:
            self._grad_taps, self._grad_windows = torch.zeros_like(self.taps), torch.empty_like(self.windows)
        for image_grad, image_windows in zip(grad, windows, strict=True):
            self._grad_taps.baddbmm_(image_grad, image_windows.transpose(1, 2))
        self._grad_windows[images] = self.taps.transpose(1, 2) @ grad

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Return the gradients of taps and windows, after those of all images have been added."""
        grad_windows = self._grad_windows.unflatten(3, (-1, self.width)).unflatten(2, (self.width, -1))
        return self._grad_taps, grad_windows.diagonal(dim1=2, dim2=5).sum(4).transpose(2, 3).contiguous()


def _plane_windows(windows: Tensor, width: int) -> Tensor:
    """Arrange windows (B, G, I, T) so that their product with the taps has the layout of the planes.

    Returns:
        (B, G, width*T, I*width), block-diagonal over ``width``. The product takes ``width`` times the arithmetic, but
        the result need not be rearranged.
    """
    windows = windows.transpose(2, 3)
    if width == 1:
        return windows.contiguous()
    batch, groups, num_taps, in_channels = windows.shape
    blocks = windows.new_zeros(batch, groups, width, num_taps, in_channels, width)
    blocks.diagonal(dim1=2, dim2=5).copy_(windows.unsqueeze(4))
    return blocks.view(batch, groups, width * num_taps, in_channels * width)


def _transform_rows(transform: Callable[..., Tensor], planes: Tensor) -> Tensor:
    """Transform (b, R, H) over R, in place for a single plane.

    The result of torch's transform has R innermost in memory, which slows down the following passes. A single plane is
    copied back in order, which is fast as one transposition. For several small planes, this would cost more than it
    saves.
    """
    if len(planes) > 1:
        return transform(planes, dim=1)
    planes[0] = transform(planes[0], dim=0)
    return planes
