"""Dynamic convolution without storing kernels: they are assembled image by image, and again in the backward pass.

The assembled kernels of a batch take B times the memory of the weights, and autograd would also store the intermediate
results of their assembly. But they depend only on small tensors: the spectrum, which all images share, and a few
vectors per image. If the batch is processed image by image (or a few images at a time, if kernels are small),
intermediate results stay in the processor's cache, and only the small tensors are saved for the backward pass.

Kernels are (b, O, I, h, w) here: b of the B images, and h by w taps.
"""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from fdconv_zoo.ops.convolution import Geometry, convolve, convolve_as_groups_backward
from fdconv_zoo.ops.operators import (
    Convolution,
    KernelShape,
    KernelTensors,
    empty_output,
    memory_format,
    register_convolution,
)
from fdconv_zoo.ops.scratch import elements_at_once, scratch


class Assembler(Protocol):
    """Assembles the kernels of a few images of a batch at a time, and accumulates their gradients."""

    def make(self, images: slice) -> Tensor:
        """Assemble the kernels (b, O, I, h, w); the next call overwrites them."""

    def add_gradient(self, images: slice, kernels: Tensor, grad: Tensor) -> None:
        """Add the gradient of the kernels that the last :meth:`make` returned, in their shape and dtype."""

    def gradients(self) -> KernelTensors:
        """Return the gradients of all tensors that are not None, after those of all images have been added."""


def register(path: str, assembler: Callable[[KernelTensors, KernelShape, Geometry], Assembler]) -> Convolution:
    """Register the operator of a path that assembles kernels image by image.

    Args:
        path: name of the path.
        assembler: makes an :class:`Assembler` from the kernels' tensors, their shape and the convolution's geometry.

    Returns:
        The function of this path, see :func:`register_convolution`.
    """

    def forward(x: Tensor, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry) -> Tensor:
        assemble = assembler(tensors, kernel_shape, geometry)
        y = None
        for images in _chunks(x, kernel_shape):
            y_chunk = convolve(x[images], assemble.make(images).to(x.dtype), geometry)
            if len(y_chunk) == len(x):
                return y_chunk.contiguous(memory_format=memory_format(x))
            if y is None:
                y = empty_output(x, kernel_shape, geometry)
            y[images] = y_chunk
        return y

    def backward(
        grad: Tensor, needs_x: bool, x: Tensor, tensors: KernelTensors, kernel_shape: KernelShape, geometry: Geometry
    ) -> tuple[Tensor | None, KernelTensors]:
        assemble = assembler(tensors, kernel_shape, geometry)
        grad_x = torch.empty_like(x) if needs_x else None
        for images in _chunks(x, kernel_shape):
            kernels = assemble.make(images)
            grad_x_chunk, grad_kernels = _convolve_backward(
                grad[images], x[images], kernels.to(x.dtype), geometry, needs_x
            )
            if needs_x:
                grad_x[images] = grad_x_chunk
            assemble.add_gradient(images, kernels, grad_kernels.to(kernels.dtype))
        return grad_x, assemble.gradients()

    return register_convolution(path, forward, backward)


def _chunks(x: Tensor, kernel_shape: KernelShape) -> Iterator[slice]:
    """The images to process at once: one, or as many as have kernels that fit into the cache."""
    step = max(elements_at_once(x.device.type) // math.prod(kernel_shape), 1)
    return (slice(start, min(start + step, len(x))) for start in range(0, len(x), step))


def _convolve_backward(
    grad: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry, needs_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Compute the gradients of :func:`convolve` with respect to x, if needed, and kernels."""
    if len(x) > 1 and geometry.is_pointwise:
        grad, matrices = grad.flatten(2), kernels.flatten(2)
        grad_kernels = scratch("gradient of kernels", kernels.shape, kernels.dtype, kernels.device)
        torch.bmm(grad, x.flatten(2).transpose(1, 2), out=grad_kernels.flatten(2))
        return torch.bmm(matrices.transpose(1, 2), grad).view(x.shape) if needs_x else None, grad_kernels
    return convolve_as_groups_backward(grad, x, kernels, geometry, needs_x)
