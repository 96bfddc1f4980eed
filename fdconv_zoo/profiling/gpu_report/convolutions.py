"""Compares ways to convolve each image with its own kernel, for the 3x3 layers of ResNet-50."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fdconv_zoo.ops import Geometry, convolve, triton_support
from fdconv_zoo.ops.convolution import convolve_as_groups_backward, geometry_arguments
from fdconv_zoo.ops.image_convolution import convolve_images, convolve_images_backward
from fdconv_zoo.profiling.gpu_report.clock import interleave
from fdconv_zoo.profiling.gpu_report.section import Item, Recorder, Settings
from fdconv_zoo.profiling.graphs import capture

GEOMETRY = Geometry((3, 3), (1, 1), (1, 1))
UNFOLDING = {"kernel_size": GEOMETRY.kernel_size, "padding": GEOMETRY.padding}
# Sizes of the stages' feature maps, by their channels, for images of 224x224 and 800x1344.
CLASSIFICATION = {64: (56, 56), 128: (28, 28), 256: (14, 14), 512: (7, 7)}
DETECTION = {64: (200, 336), 128: (100, 168), 256: (50, 84), 512: (25, 42)}
SIZES = [
    *((batch, channels, size) for batch in (1, 2, 8, 16, 64) for channels, size in CLASSIFICATION.items()),
    *((batch, channels, size) for batch in (1, 2) for channels, size in DETECTION.items()),
]
SMALL_SIZES = [(2, 8, (6, 5))]


class Way(NamedTuple):
    """A way to convolve x (B, I, H, W) with kernels (B, O, I, 3, 3), and to compute the gradients of both."""

    forward: Callable[[Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _grouped(x: Tensor, kernels: Tensor) -> Tensor:
    return convolve(x, kernels, GEOMETRY)


def _grouped_backward(grad: Tensor, x: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    return convolve_as_groups_backward(grad, x, kernels, GEOMETRY, needs_x=True)


def _loop(x: Tensor, kernels: Tensor) -> Tensor:
    return torch.cat([F.conv2d(x[i : i + 1], kernels[i], None, *geometry_arguments(GEOMETRY)) for i in range(len(x))])


def _loop_backward(grad: Tensor, x: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    chunks = [_grouped_backward(grad[i : i + 1], x[i : i + 1], kernels[i : i + 1]) for i in range(len(x))]
    grads_x, grads_kernels = zip(*chunks, strict=True)
    return torch.cat(grads_x), torch.cat(grads_kernels)


def _patches(x: Tensor, kernels: Tensor) -> Tensor:
    return (kernels.flatten(2) @ F.unfold(x, **UNFOLDING)).unflatten(2, x.shape[2:])


def _patches_backward(grad: Tensor, x: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    grad, patches = grad.flatten(2), F.unfold(x, **UNFOLDING)
    grad_patches = kernels.flatten(2).transpose(1, 2) @ grad
    grad_kernels = (grad @ patches.transpose(1, 2)).view(kernels.shape)
    return F.fold(grad_patches, x.shape[2:], **UNFOLDING), grad_kernels


WAYS = {
    "grouped": Way(_grouped, _grouped_backward),
    "loop": Way(_loop, _loop_backward),
    "patches": Way(_patches, _patches_backward),
}


IMPLICIT = Way(
    partial(convolve_images, geometry=GEOMETRY, form="implicit"),
    partial(convolve_images_backward, geometry=GEOMETRY, needs_x=True, form="implicit"),
)


def items(settings: Settings) -> list[Item]:
    """Return one item for each dtype and memory format, the usual ones for training first."""
    sizes = SMALL_SIZES if settings.small else SIZES
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        for layout in (torch.channels_last, torch.contiguous_format):
            name = f"3x3, {str(dtype).removeprefix('torch.')}, {str(layout).removeprefix('torch.')}"
            run = partial(_compare, name, sizes, dtype, layout, torch.device(settings.device))
            found.append(Item(name, run))
    return found


def _compare(
    table: str,
    sizes: list[tuple[int, int, tuple[int, int]]],
    dtype: torch.dtype,
    layout: torch.memory_format,
    device: torch.device,
    recorder: Recorder,
) -> None:
    # On a GPU, steps run as CUDA graphs; otherwise, small sizes would measure the host.
    has_kernels = device.type == "cuda" and triton_support.problem("cuda") is None
    ways = WAYS | ({"implicit": IMPLICIT} if has_kernels else {})
    for batch, channels, size in sizes:
        x, grad = (torch.randn(batch, channels, *size, device=device, dtype=dtype) for _ in range(2))
        x, grad = x.to(memory_format=layout), grad.to(memory_format=layout)
        kernels = torch.randn(batch, channels, channels, 3, 3, device=device, dtype=dtype) / channels
        steps, expected = {}, None
        for name, way in ways.items():
            with recorder.attempt(f"{name}, {batch} x {channels} x {size}"):
                found = (way.forward(x, kernels), *way.backward(grad, x, kernels))
                expected = expected or found
                _check_equal(found, expected, dtype)
                for kind, step in (
                    ("forward", partial(way.forward, x, kernels)),
                    ("backward", partial(way.backward, grad, x, kernels)),
                ):
                    steps[f"{name}, {kind}"] = capture(step)[0] if device.type == "cuda" else step
        times = interleave(steps, device, 0)
        figures = {"batch": batch, "channels": channels, "size": f"{size[0]}x{size[1]}"}
        for kind in ("forward", "backward"):
            own = {name: times[f"{name}, {kind}"].device for name in ways if f"{name}, {kind}" in times}
            figures |= {f"{kind}: {name}/ms": value for name, value in own.items()}
            figures[f"{kind}: best"] = min(own, key=own.get, default="none")
        recorder.row(table, **figures)


def _check_equal(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Raise AssertionError unless both are equal up to rounding."""
    for one, other in zip(actual, expected, strict=True):
        error = ((one.float() - other.float()).norm() / other.float().norm()).item()
        assert error < (0.03 if dtype == torch.bfloat16 else 3e-3), f"deviates from the first way by {error:.1e}"
