"""Counts the launches of a model on a GPU, and the bytes that they move, without a GPU.

The model runs on fake CUDA tensors, which have a shape, a dtype and a device, but no memory: any size takes seconds.
Every operation of torch that computes is one launch, or several, see ``_SEVERAL``. For operators of this package, the
operations that they call are counted, and every launch of a Triton kernel. Views, allocations and metadata are free.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._library.triton import set_wrap_triton_enabled
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fdconv_zoo.ops import triton_support
from fdconv_zoo.profiling.backward import run_backward
from fdconv_zoo.profiling.triton_launches import observed_launches

NAMESPACE = "fdconv_zoo"
DEVICE = "cuda"

# Operations that compute nothing, besides views and those that return no tensor.
_FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"),
    *("detach", "lift_fresh", "_unsafe_view"),
}
# Operations that overwrite a tensor without reading it.
_OVERWRITE = {"copy_", "fill_", "zero_"}
# Operations that are several launches on a GPU: a memset or a copy beside the kernel, sums in two steps, or one
# launch for each result. A transform is one, its normalization another; from complex to real, torch copies the input.
_SEVERAL: dict[str, Callable[..., int]] = {
    "convolution_backward": lambda *args: sum(args[-1]),
    "constant_pad_nd": lambda x, padding, *_: 2 if any(padding) else 1,
    "select_backward": lambda *_: 2,
    "slice_backward": lambda *_: 2,
    "unfold_backward": lambda *_: 2,
    "scatter_add": lambda *_: 2,
    "native_layer_norm_backward": lambda *_: 2,
    "max_pool2d_with_indices_backward": lambda *_: 2,
    "_fft_c2c": lambda x, dim, normalization, forward: 1 + (normalization != 0),
    "_fft_r2c": lambda x, dim, normalization, onesided: 1 + (normalization != 0),
    "_fft_c2r": lambda x, dim, normalization, size: 2 + (normalization != 0),
}


@dataclass
class Launches:
    """The number of launches, and the bytes that they move.

    Attributes:
        count: launches by name of the operation or kernel.
        bytes: bytes read and written, by the same names; each tensor of an operation counts once.
    """

    count: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Number of launches."""
        return sum(self.count.values())

    @property
    def total_bytes(self) -> int:
        """Bytes read and written."""
        return sum(self.bytes.values())

    def add(self, name: str, count: int, num_bytes: int) -> None:
        """Count an operation."""
        self.count[name] += count
        self.bytes[name] += num_bytes


def count_launches(
    model: nn.Module, x: Tensor, *, dtype: torch.dtype = torch.float32, training: bool = True
) -> tuple[Launches, Launches]:
    """Count the launches of a forward pass and of a backward pass, without the optimizer's.

    Args:
        model: the model, which is not changed. On the meta device, large models take no memory.
        x: input of the model, on the meta device; only its shape, strides and dtype matter.
        dtype: autocast dtype; float32 disables autocast.
        training: False counts a forward pass in inference, and no backward pass.

    Returns:
        The launches of the forward pass and those of the backward pass.
    """
    forward, backward = LaunchCounter(), LaunchCounter()
    model = copy.deepcopy(model).train(training)
    with FakeTensorMode():
        place_on_fake_device(model)
        x = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE)
        with torch.set_grad_enabled(training), forward.counting(), _autocast(dtype):
            y = model(x)
        if training:
            with backward.counting():
                run_backward(y, torch.empty_like(y))
    return forward.launches, backward.launches


def place_on_fake_device(model: nn.Module) -> None:
    """Replace parameters and buffers by fake CUDA tensors, in place. Call this under ``FakeTensorMode``."""
    made: dict[Tensor, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if tensor not in made:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[tensor]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: fake(tensor) for name, tensor in tensors.items() if tensor is not None})


class LaunchCounter(TorchDispatchMode):
    """Counts operations, also those within the operators of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = Launches()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within the block. Triton kernels are chosen as if there were a GPU, but not executed."""
        with (
            patch.object(triton_support, "_driver_problem", lambda: None),
            patch.object(torch.cuda, "current_device", lambda: 0),
            observed_launches(self._count_kernel, execute=False),
            self,
        ):
            yield

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute an operation and count it."""
        kwargs = kwargs or {}
        if func.namespace == NAMESPACE:
            with self, set_wrap_triton_enabled(False):
                return OPDEFS[f"{NAMESPACE}::{func._opname}"]._init_fn(*args, **kwargs)
        if func.namespace != "aten":  # queries of a tensor's metadata
            return func(*args, **kwargs)
        if func._can_decompose():  # composite operations within operators have not been decomposed yet
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if not _is_free(func, result):
            several = _SEVERAL.get(func._opname)
            self.launches.add(func._opname, several(*args) if several else 1, _moved(func, args, kwargs, result))
        return result

    def _count_kernel(self, name: str, tensors: list[Tensor]) -> None:
        self.launches.add(name, 1, sum(map(_num_bytes, tensors)))


@contextmanager
def _autocast(dtype: torch.dtype) -> Iterator[None]:
    """Autocast for CUDA, which ``torch.autocast`` does not support on machines without a GPU."""
    if dtype == torch.float32:
        yield
        return
    before = torch.get_autocast_dtype(DEVICE)
    torch.set_autocast_dtype(DEVICE, dtype)
    torch.set_autocast_enabled(DEVICE, True)
    try:
        yield
    finally:
        torch.set_autocast_enabled(DEVICE, False)
        torch.set_autocast_dtype(DEVICE, before)
        torch.clear_autocast_cache()


def _is_free(func: OpOverload, result: Any) -> bool:
    computes = any(tensor.device.type == DEVICE and tensor.numel() for tensor in _tensors(result))
    return func._opname in _FREE or func.is_view or not computes


def _moved(func: OpOverload, args: tuple, kwargs: Mapping[str, Any], result: Any) -> int:
    """Bytes that an operation reads and writes."""
    arguments = {argument.name: argument for argument in func._schema.arguments}
    given = dict(zip(arguments, args, strict=False)) | dict(kwargs)
    read = [value for name, value in given.items() if not _is_overwritten(func, arguments[name])]
    return sum(map(_num_bytes, {id(tensor): tensor for tensor in _tensors(read)}.values())) + sum(
        map(_num_bytes, _tensors(result))
    )


def _is_overwritten(func: OpOverload, argument: torch.Argument) -> bool:
    written = argument.alias_info is not None and argument.alias_info.is_write
    return written and (argument.is_out or func._opname in _OVERWRITE)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _num_bytes(tensor: Tensor) -> int:
    """Bytes of the memory behind a tensor; expanded dimensions are read once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
    return math.prod(sizes) * tensor.element_size()
