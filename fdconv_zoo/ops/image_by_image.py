"""Dynamic convolution without keeping kernels: assemble one image's, use it, forget it; rebuild it in backward.

The assembled kernels of a batch are B times the weights, and autograd would keep each step of their making. They are
a function of small things: the spectrum, which all images share, and a few vectors an image. Going through the batch
image by image (small kernels: some images at a time) keeps every intermediate in the processor's cache, and only the
small things for backward.

Everything happens on FDW's planes, O*a rows by I*b columns. With S the mixed plane, s = sigmoid(local logit), and the
column and row factors m = spatial * channel and f = filter, the kernel is

    K = m * f * K0,    K0 = 2 * S * s

and, with P = K * dL/dK, the gradients are dL/dlogit = P * (1 - s), dL/dm = (column sums of P) / m, dL/df = (row sums
of P) / f. The gradient of the spectrum is the adjoint DFT of dL/dS.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fdconv_zoo.ops.convolution import Geometry, POINTWISE, convolve, convolve_backward, extract_patches, fold_patches
from fdconv_zoo.ops.kernel_assembly import KernelParts
from fdconv_zoo.ops.scratch import scratch

# Kernel elements that are assembled together: what a processor's cache holds with a few intermediates; on a GPU what
# fills it. A kernel above this is assembled alone.
_ELEMENTS_AT_ONCE = {"cpu": 2**18, "default": 2**26}


class _Layout(NamedTuple):
    """All that is not a tensor."""

    kernel_shape: tuple[int, int, int, int]
    geometry: Geometry
    keep: bool

    @property
    def plane(self) -> tuple[int, int]:
        out_channels, in_channels, height, width = self.kernel_shape
        return out_channels * height, in_channels * width

    def split(self, planes: Tensor) -> Tensor:
        """(B, O*a, I*b) to (B, G, O/G, a, I*b), where the factors broadcast."""
        return planes.view(planes.shape[0], self.geometry.groups, -1, self.kernel_shape[2], planes.shape[-1])

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """(H', W') for x (B, G*I, H, W)."""
        return self.geometry.output_size(x.shape[2:], self.kernel_shape[2:])

    def to_pointwise(self, planes: Tensor) -> Tensor:
        """(B, O*a, I*b) to kernels (B, O, a*I*b, 1, 1) of patches."""
        return planes.reshape(len(planes), self.kernel_shape[0], -1, 1, 1)

    def to_kernels(self, planes: Tensor) -> Tensor:
        """(B, O*a, I*b) to (B, O, I, a, b)."""
        out_channels, in_channels, height, width = self.kernel_shape
        return planes.view(-1, out_channels, height, in_channels, width).transpose(2, 3)


def convolve_image_by_image(x: Tensor, parts: KernelParts, geometry: Geometry, *, keep: bool = False) -> Tensor:
    """``convolve(x, assemble_kernels(parts), geometry)``, faster and with less memory.

    Args:
        x: (B, G*I, H, W); the kernels are applied in its dtype.
        parts: of the kernels of x's B images.
        geometry: of the convolution.
        keep: keep the mixed planes and local factors for backward, twice the kernels' memory, to save their rebuilding.

    Returns:
        (B, O, H', W'), in x's memory format. Differentiable once.
    """
    columns = None  # the factors of a plane's columns, (B, G, a, I*b)
    if parts.channel is not None:
        columns = parts.channel.unflatten(1, (parts.groups, 1, -1, 1))
        if parts.spatial is not None:
            columns = columns * parts.spatial[:, None, :, None, :]
        columns = columns.expand(-1, -1, parts.kernel_shape[2], -1, parts.kernel_shape[3]).flatten(3)
    layout = _Layout(parts.kernel_shape, geometry, keep)
    return _ImageByImage.apply(
        x, parts.spectrum, parts.attention, parts.taps, parts.windows, columns, parts.filter, parts.group_index, layout
    )


class _ImageByImage(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        spectrum: Tensor,
        attention: Tensor,
        taps: Tensor | None,
        windows: Tensor | None,
        columns: Tensor | None,
        rows: Tensor | None,
        group_index: Tensor,
        layout: _Layout,
    ) -> Tensor:
        planes = _Planes(spectrum, attention, taps, windows, group_index, layout)
        y = _empty_output(x, layout) if len(x) > 1 else None
        kept = []
        for images in _chunks(x, layout):
            mixed, gates = planes.mix(images), planes.gate(images)
            if layout.keep:
                kept += [mixed, gates]
            kernels = planes.join(mixed, gates)
            images_y = _forward_product(x[images], kernels, _at(columns, images), _at(rows, images), layout)
            if y is None:
                y = images_y
            else:
                y[images] = images_y
        ctx.save_for_backward(x, spectrum, attention, taps, windows, columns, rows, group_index, *kept)
        ctx.layout = layout
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, spectrum, attention, taps, windows, columns, rows, group_index, *kept = ctx.saved_tensors
        layout = ctx.layout
        planes = _Planes(spectrum, attention, taps, windows, group_index, layout)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_columns, grad_rows = (None if t is None else torch.empty_like(t) for t in (columns, rows))
        for images in _chunks(x, layout):
            mixed, gates = (kept.pop(0), kept.pop(0)) if kept else (planes.mix(images), planes.gate(images))
            kernels = planes.join(mixed, gates)
            images_grad_x, grad_kernels, product = _backward_product(
                grad[images], x[images], kernels, _at(columns, images), _at(rows, images), layout, grad_x is not None
            )
            if grad_x is not None:
                grad_x[images] = images_grad_x
            if columns is not None:
                grad_columns[images] = _safe_divide(layout.split(product).sum(2), columns[images])
            if rows is not None:
                sums = layout.split(product).sum((3, 4)).flatten(1)
                grad_rows[images] = _safe_divide(sums, rows[images])
            if gates is not None:
                planes.add_gate_gradient(product.addcmul_(product, gates, value=-1), images)
                grad_kernels.mul_(gates)
            planes.add_mix_gradient(grad_kernels, images)
        return grad_x, *planes.gradients(), grad_columns, grad_rows, None, None


class _Planes:
    """FDW's planes and the gates of KSM's local branch, some images at a time, and their gradients.

    b: the images that are worked on; R x C: the plane; H = C//2 + 1.
    """

    def __init__(
        self,
        spectrum: Tensor,
        attention: Tensor,
        taps: Tensor | None,
        windows: Tensor | None,
        group_index: Tensor,
        layout: _Layout,
    ) -> None:
        self.layout = layout
        self.spectrum = torch.view_as_complex(spectrum)
        index = group_index.flatten()
        self.index = self._scratch("index", index.shape, torch.int64).copy_(index)
        # The 2 of the local factor 2 * sigmoid. Complex numbers, so that nothing is promoted on the way.
        self.gain = 1 if taps is None else 2
        self.table = (attention * self.gain).to(self.spectrum.dtype)
        self.is_shared = len(attention) == 1
        self.shared: Tensor | None = None
        self.windows = windows
        self.taps = None
        if taps is not None:
            self.taps = taps.view(1, layout.geometry.groups, -1, layout.kernel_shape[3] * taps.shape[-1])
        self.in_place = not layout.keep and windows is not None and len(attention) == len(windows)
        self.grad_spectrum = self.grad_table = self.grad_taps = self.grad_windows = None

    def mix(self, images: slice) -> Tensor:
        """(b, R, C), or (1, R, C) where all images share their plane."""
        if self.is_shared:
            if self.shared is None:
                self.shared = self._inverse_transform(self._weights(slice(0, 1)))
            return self.shared
        return self._inverse_transform(self._weights(images))

    def gate(self, images: slice) -> Tensor | None:
        """``sigmoid(local logit)``, (b, R, C)."""
        if self.taps is None:
            return None
        blocks = self._window_blocks(images).flatten(0, 1)
        taps = self.taps.expand(len(blocks) // self.taps.shape[1], -1, -1, -1).flatten(0, 1)
        shape = (len(blocks), taps.shape[1], blocks.shape[2])
        logits = None if self.layout.keep else self._scratch("gates", shape, taps.dtype)
        return torch.sigmoid_(torch.bmm(taps, blocks, out=logits)).view(-1, *self.layout.plane)

    def join(self, mixed: Tensor, gates: Tensor | None) -> Tensor:
        """K0, (b, R, C)."""
        if gates is None:
            return mixed
        return mixed.mul_(gates) if self.in_place else mixed * gates

    def _weights(self, images: slice) -> Tensor:
        """The weight of each coefficient, (b, R, H)."""
        table = self.table[images]
        index = self.index.expand(len(table), -1)
        weights = torch.gather(table, 1, index, out=self._scratch("spectrum", index.shape, table.dtype))
        return weights.view(-1, *self.spectrum.shape)

    def _inverse_transform(self, weights: Tensor) -> Tensor:
        columns = torch.fft.ifft(weights.mul_(self.spectrum), dim=1)
        return torch.fft.irfft(_row_major(columns, out=weights), n=self.layout.plane[1], dim=2)

    def _window_blocks(self, images: slice) -> Tensor:
        """(b, G, b'*T, I*b'): the 1-D convolution of all b' columns of taps as one product.

        Block-diagonal: b' times the arithmetic, but the logits come in the order of the planes.
        """
        windows = self.windows[images]
        width = self.layout.kernel_shape[3]
        identity = torch.eye(width, dtype=windows.dtype, device=windows.device).view(width, 1, 1, width)
        blocks = windows.transpose(2, 3)[:, :, None, :, :, None] * identity  # (b, G, b', T, I, b')
        return blocks.flatten(4).flatten(2, 3)

    def add_gate_gradient(self, grad: Tensor, images: slice) -> None:
        """Of the logits, (b, R, C)."""
        blocks = self._window_blocks(images)
        grad = grad.view(len(blocks), self.taps.shape[1], -1, grad.shape[-1])
        if self.grad_taps is None:
            self.grad_taps, self.grad_windows = torch.zeros_like(self.taps), torch.empty_like(self.windows)
        self.grad_taps += (grad @ blocks.transpose(-2, -1)).sum(0)
        width = self.layout.kernel_shape[3]
        grad_blocks = (self.taps.transpose(-2, -1) @ grad).unflatten(3, (-1, width)).unflatten(2, (width, -1))
        self.grad_windows[images] = grad_blocks.diagonal(dim1=2, dim2=5).sum(-1).transpose(2, 3)

    def add_mix_gradient(self, grad: Tensor, images: slice) -> None:
        """Of the mixed planes, (b, R, C); accumulates what `gradients` completes."""
        if self.is_shared:
            grad, images = grad.sum(0, keepdim=True), slice(0, 1)
        grad = torch.fft.fft(torch.fft.rfft(grad, dim=2), dim=1)
        grad = _row_major(grad, out=self._scratch("grad_spectrum", grad.shape, grad.dtype))
        if self.grad_spectrum is None:
            self.grad_spectrum, self.grad_table = torch.zeros_like(self.spectrum), torch.zeros_like(self.table).real
            self.conjugate = (self.spectrum * self._transform_scale()).conj().resolve_conj()
        weights = self._weights(images)
        for image_grad, image_weights in zip(grad, weights, strict=True):
            self.grad_spectrum.addcmul_(image_grad, image_weights)
        # Each row sums its coefficients by group; a single sum over the plane would run on one core.
        of_weights = grad.mul_(self.conjugate).real
        index = self.index.view(self.spectrum.shape).expand_as(grad)
        sums = of_weights.new_zeros(*grad.shape[:2], self.table.shape[1]).scatter_add_(2, index, of_weights)
        self.grad_table[images] += sums.sum(1)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Of spectrum, attention, taps and windows, in the shapes they came in."""
        grad_spectrum = torch.view_as_real(self.grad_spectrum * self._transform_scale())
        grad_taps = None if self.grad_taps is None else self.grad_taps.view(-1, 1, self.windows.shape[-1])
        return grad_spectrum, self.grad_table * self.gain, grad_taps, self.grad_windows

    def _scratch(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return scratch(name, shape, dtype, self.spectrum.device)

    def _transform_scale(self) -> Tensor:
        """What the adjoint of irfft2 is, as a multiple of rfft2: 1/(R*C), doubled where a coefficient counts twice."""
        rows, cols = self.layout.plane
        scale = self.spectrum.real.new_full((self.spectrum.shape[1],), 2 / (rows * cols))
        scale[0] /= 2
        if cols % 2 == 0:
            scale[-1] /= 2
        return scale


def _forward_product(
    x: Tensor, kernels: Tensor, columns: Tensor | None, rows: Tensor | None, layout: _Layout
) -> Tensor:
    """Scale the planes (b, R, C) to kernels and convolve x (b, G*I, H, W); (b, O, H', W')."""
    geometry = layout.geometry
    size = geometry.output_size(x.shape[2:], layout.kernel_shape[2:])
    on_features = _scales_features(layout, x)
    if not on_features:
        kernels = _scale(kernels, columns, rows, layout)
    if _uses_patches(layout, size):
        x, kernels, geometry = (
            extract_patches(x, layout.kernel_shape[2:], geometry),
            layout.to_pointwise(kernels),
            POINTWISE,
        )
    else:
        kernels = layout.to_kernels(kernels)
    if on_features and columns is not None:
        x = x * columns.reshape(len(x), -1, 1, 1).to(x.dtype)
    y = convolve(x, kernels.to(x.dtype), geometry)
    if on_features and rows is not None:
        y.mul_(rows[..., None, None].to(y.dtype))
    return y.view(*y.shape[:2], *size)


def _backward_product(
    grad: Tensor,
    x: Tensor,
    kernels: Tensor,
    columns: Tensor | None,
    rows: Tensor | None,
    layout: _Layout,
    needs_x: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of x and of the planes K0, and P = K * dL/dK, (b, R, C) both."""
    geometry = layout.geometry
    size, input_size, kernel_size = grad.shape[2:], x.shape[2:], layout.kernel_shape[2:]
    on_features, uses_patches = _scales_features(layout, x), _uses_patches(layout, size)
    if not on_features:
        kernels = _scale(kernels, columns, rows, layout)
    kernels = kernels.expand(len(x), -1, -1)
    if uses_patches:
        x, operand, geometry = extract_patches(x, kernel_size, geometry), layout.to_pointwise(kernels), POINTWISE
        grad = grad.reshape(*grad.shape[:2], *x.shape[2:])
    else:
        operand = layout.to_kernels(kernels)
    if on_features:
        if columns is not None:
            columns = columns.reshape(len(x), -1, 1, 1).to(x.dtype)
            x = x * columns
        if rows is not None:
            grad = grad * rows[..., None, None].to(grad.dtype)
    grad_x, grad_kernels = convolve_backward(grad, x, operand.to(x.dtype), geometry, needs_x)
    if uses_patches:
        grad_kernels = grad_kernels.to(kernels.dtype).view(kernels.shape)
    else:
        grad_kernels = grad_kernels.to(kernels.dtype).transpose(2, 3).reshape(kernels.shape)
    if needs_x:
        if on_features and columns is not None:
            grad_x.mul_(columns)
        if uses_patches:
            grad_x = fold_patches(grad_x, input_size, kernel_size, layout.geometry)
    product = scratch("product", grad_kernels.shape, grad_kernels.dtype, x.device)
    torch.mul(kernels, grad_kernels, out=product)
    return grad_x, grad_kernels if on_features else _scale(grad_kernels, columns, rows, layout), product


def _scale(planes: Tensor, columns: Tensor | None, rows: Tensor | None, layout: _Layout) -> Tensor:
    """Multiply planes (b, R, C) with the factors of their columns (b, G, a, C) and rows (b, O)."""
    planes = layout.split(planes)
    if columns is not None:
        planes = planes * columns.unsqueeze(2)
    if rows is not None:
        planes = planes * rows.view(len(rows), planes.shape[1], -1, 1, 1)
    return planes.reshape(-1, *layout.plane)


def _uses_patches(layout: _Layout, output_size: tuple[int, int]) -> bool:
    """Whether to convolve as a product of planes and patches.

    Where there are more output channels than positions, copying out the patches moves less than rearranging planes
    into kernels.
    """
    out_channels, _, *kernel_size = layout.kernel_shape
    is_pointwise = math.prod(kernel_size) == 1
    return layout.geometry.groups == 1 and not is_pointwise and out_channels > math.prod(output_size)


def _scales_features(layout: _Layout, x: Tensor) -> bool:
    """Whether column and row factors are cheaper to apply to an image's features than to its kernel."""
    return (
        layout.geometry.groups == 1
        and math.prod(layout.kernel_shape) > math.prod(x.shape[1:])
        and (math.prod(layout.kernel_shape[2:]) == 1 or _uses_patches(layout, layout.output_size(x)))
    )


def _chunks(x: Tensor, layout: _Layout) -> list[slice]:
    """The images that are worked on at once."""
    limit = _ELEMENTS_AT_ONCE.get(x.device.type, _ELEMENTS_AT_ONCE["default"])
    size = max(limit // (math.prod(layout.kernel_shape) + math.prod(x.shape[1:])), 1)
    return [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]


def _empty_output(x: Tensor, layout: _Layout) -> Tensor:
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
    shape = (len(x), layout.kernel_shape[0], *layout.output_size(x))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _row_major(planes: Tensor, out: Tensor) -> Tensor:
    """(b, R, H) in that order in memory; a transform over R leaves R innermost.

    torch transposes a single plane in cache-sized tiles; of several it reads one element at a time, which costs more
    than it gains.
    """
    return out[0].copy_(planes[0]).unsqueeze(0) if len(planes) == 1 else planes


def _at(factors: Tensor | None, images: slice) -> Tensor | None:
    return None if factors is None else factors[images]


def _safe_divide(sums: Tensor, factors: Tensor) -> Tensor:
    """sums / factors, and 0 where a factor has underflowed to 0 (there its own derivative is 0 as well)."""
    return torch.where(factors == 0, 0, sums / factors)
