"""FDW's planes and the gates of KSM's local branch, made for some images of a batch at a time, and their gradients.

A plane lays a kernel out as R = O*a rows by C = I*b columns; its half spectrum is R x H, H = C//2 + 1. b is the number
of images that are worked on.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fdconv_zoo.ops.scratch import scratch


class MixedPlanes:
    """The inverse DFT of ``D * attention[group]`` for one image after another.

    Args:
        spectrum: D, (R, H, 2).
        group_index: (R, H), any integer type.
        attention: (B, n), or (1, n) for all images.
        cols: C.
    """

    def __init__(self, spectrum: Tensor, group_index: Tensor, attention: Tensor, cols: int) -> None:
        self.spectrum = torch.view_as_complex(spectrum)
        self.cols = cols
        # Complex, so that nothing is promoted on the way.
        self.attention = attention.to(self.spectrum.dtype)
        self.index = group_index
        if group_index.dtype != torch.int64:
            self.index = scratch("index", group_index.shape, torch.int64, group_index.device).copy_(group_index)
        self.is_shared = len(attention) == 1
        self._shared: Tensor | None = None
        self._grad_spectrum: Tensor | None = None

    def make(self, images: slice) -> Tensor:
        """(b, R, C), or (1, R, C) where all images share their plane."""
        if not self.is_shared:
            return self._inverse_transform(self._weights(images))
        if self._shared is None:
            self._shared = self._inverse_transform(self._weights(slice(0, 1)))
        return self._shared

    def add_gradient(self, grad: Tensor, images: slice) -> None:
        """Take in the gradient of what :meth:`make` returned, (b, R, C)."""
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
        """Of spectrum and attention, once all images are in."""
        return torch.view_as_real(self._grad_spectrum.mul_(self._adjoint_scale())), self._grad_attention

    def _weights(self, images: slice) -> Tensor:
        """The weight of each coefficient, (b, R, H)."""
        attention = self.attention[images]
        shape = (len(attention), *self.index.shape)
        # Rows of the index with a table each, so that the rows are shared out to the cores.
        attention = attention.unsqueeze(1).expand(-1, shape[1], -1)
        return torch.gather(attention, 2, self.index.expand(shape), out=self._scratch("plane", shape))

    def _inverse_transform(self, weights: Tensor) -> Tensor:
        # irfft2 in its two passes, for the reasons of `mix_spectrum`, and because it can go through memory in order.
        columns = _transform_rows(torch.fft.ifft, weights.mul_(self.spectrum))
        return torch.fft.irfft(columns, n=self.cols, dim=2)

    def _adjoint_scale(self) -> Tensor:
        """(H,): what the adjoint of irfft2 is as a multiple of rfft2, doubled where a coefficient counts twice."""
        scale = self.attention.real.new_full((self.index.shape[1],), 2 / (self.index.shape[0] * self.cols))
        scale[0] /= 2
        if self.cols % 2 == 0:
            scale[-1] /= 2
        return scale

    def _scratch(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return scratch(name, shape, self.spectrum.dtype, self.spectrum.device)


class LocalGates:
    """``sigmoid(logit)`` of KSM's local branch, half its factor, in the order of the planes.

    Args:
        taps: (G, R/G, b*T), the 1-D convolution.
        windows: (B, G, I, T), what it is applied to.
        width: b.
    """

    def __init__(self, taps: Tensor, windows: Tensor, width: int) -> None:
        self.taps, self.windows, self.width = taps, _plane_windows(windows, width), width
        self._grad_taps: Tensor | None = None

    def make(self, images: slice) -> Tensor:
        """(b, R, C)."""
        windows = self.windows[images]
        batch, groups, _, cols = windows.shape
        taps = self.taps.expand(batch, -1, -1, -1).flatten(0, 1) if batch > 1 else self.taps
        shape = (batch * groups, taps.shape[1], cols)
        # Once a plane is transformed, its scratch buffer is free.
        out = scratch("plane", shape, taps.dtype, taps.device)
        return torch.bmm(taps, windows.flatten(0, 1), out=out).sigmoid_().view(batch, -1, cols)

    def add_gradient(self, grad: Tensor, images: slice) -> None:
        """Take in the gradient of the logits, (b, R, C)."""
        windows = self.windows[images]
        grad = grad.view(*windows.shape[:2], -1, grad.shape[-1])  # (b, G, R/G, C)
        if self._grad_taps is None:
            self._grad_taps, self._grad_windows = torch.zeros_like(self.taps), torch.empty_like(self.windows)
        for image_grad, image_windows in zip(grad, windows, strict=True):
            self._grad_taps.baddbmm_(image_grad, image_windows.transpose(1, 2))
        self._grad_windows[images] = self.taps.transpose(1, 2) @ grad

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of taps and windows, once all images are in."""
        grad_windows = self._grad_windows.unflatten(3, (-1, self.width)).unflatten(2, (self.width, -1))
        return self._grad_taps, grad_windows.diagonal(dim1=2, dim2=5).sum(4).transpose(2, 3).contiguous()


def _plane_windows(windows: Tensor, width: int) -> Tensor:
    """Arrange windows (B, G, I, T) so that the taps' product with them comes in the order of the planes.

    Returns:
        (B, G, b*T, I*b), block-diagonal in b = ``width``: b times the arithmetic, but nothing is rearranged after it.
    """
    windows = windows.transpose(2, 3)
    if width == 1:
        return windows.contiguous()
    batch, groups, num_taps, in_channels = windows.shape
    blocks = windows.new_zeros(batch, groups, width, num_taps, in_channels, width)
    blocks.diagonal(dim1=2, dim2=5).copy_(windows.unsqueeze(4))
    return blocks.view(batch, groups, width * num_taps, in_channels * width)


def _transform_rows(transform: Callable[..., Tensor], planes: Tensor) -> Tensor:
    """A transform over R of (b, R, H), in place for a single plane.

    torch leaves R innermost in memory, which the passes after it read badly. A single plane is brought back in order,
    fast where it is transposed as a whole; of several small ones that would cost more than it gains.
    """
    if len(planes) > 1:
        return transform(planes, dim=1)
    planes[0] = transform(planes[0], dim=0)
    return planes
