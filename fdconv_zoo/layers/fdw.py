"""FDW: Fourier Disjoint Weight (FDConv, section 3.1, https://arxiv.org/abs/2503.18783)."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from fdconv_zoo.layers.sharding import hand_on
from fdconv_zoo.ops import DisjointWeights, mix_spectrum


class FourierDisjointWeight(nn.Module):
    """n kernels of disjoint frequencies, learned as the Fourier coefficients of one kernel.

    The kernel (O, I, a, b) is laid out as a plane of O*a rows and I*b columns; its real 2-D DFT is the parameter.
    Sorted by radius, the coefficients fall into ``num_kernels`` consecutive groups whose sizes differ by at most
    one; kernel j is the inverse DFT of group j alone. The number of parameters does not depend on ``num_kernels``.

    ``spectrum`` (O*a, I*b//2 + 1, 2) stores the DFT divided by ``scale`` = max(min(O, I)//2, 1), with real and
    imaginary parts in the last axis. Its values then have the magnitude of ordinary weights, for which learning rates
    and weight decays are made. The authors' code does the same.

    ``group_index`` (O*a, I*b//2 + 1) is the group of each coefficient. By default, it is derived from the shape and is
    not part of the state dict. A converted checkpoint of the authors has its own groups (see ``from_reference``):
    loading it replaces the groups, and they are saved if they differ from the derived ones. Loading a state dict
    without groups restores the derived ones.

    Args:
        out_channels: O.
        in_channels: I, the input channels of one group of the convolution.
        kernel_size: (a, b).
        num_kernels: n, from 1 to the number of coefficients.
        stored_groups: always make ``group_index`` a part of the state dict, so that every loader restores it,
            including loaders that only load what is in the model's own state dict.

    Raises:
        ValueError: ``num_kernels`` is out of range.
        TypeError: ``num_kernels`` is not an integer.
    """

    group_index: Tensor

    def __init__(
        self,
        out_channels: int,
        in_channels: int,
        kernel_size: tuple[int, int],
        num_kernels: int = 64,
        *,
        stored_groups: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kernel_shape = (out_channels, in_channels, *kernel_size)
        self._plane = (out_channels * kernel_size[0], in_channels * kernel_size[1])
        self.num_kernels = num_kernels
        self.stored_groups = stored_groups
        self.scale = max(min(out_channels, in_channels) // 2, 1)
        rows, cols = self._plane[0], self._plane[1] // 2 + 1
        if not isinstance(num_kernels, int) or isinstance(num_kernels, bool):
            raise TypeError(f"num_kernels is {num_kernels!r}: it must be an integer.")
        if not 1 <= num_kernels <= rows * cols:
            raise ValueError(
                f"num_kernels is {num_kernels}: it must lie between 1 and {rows * cols}, the number of Fourier "
                f"coefficients of a kernel of {out_channels}x{in_channels}x{kernel_size[0]}x{kernel_size[1]}."
            )
        self.spectrum = nn.Parameter(torch.empty(rows, cols, 2, device=device, dtype=dtype))
        self.register_buffer("group_index", self.derive_groups(device), persistent=stored_groups)
        self.reset_parameters()

    def init_non_persistent_buffers(self) -> None:
        """Derive ``group_index`` from the shape (timm's convention, for models that are built on the meta device)."""
        if not self.stored_groups:
            self.group_index = self.derive_groups(self.spectrum.device)

    def reset_parameters(self) -> None:
        """Initialize as ``nn.Conv2d`` does, uniformly in +-1/sqrt(fan_in), with the groups derived from the shape."""
        if not self.group_index.is_meta:
            self.group_index = self.derive_groups(self.group_index.device)
        _, in_channels, height, width = self.kernel_shape
        bound = (in_channels * height * width) ** -0.5
        kernel = torch.empty(self.kernel_shape, device=self.spectrum.device, dtype=self.spectrum.dtype)
        self.load_kernel(kernel.uniform_(-bound, bound))

    @torch.no_grad()
    def load_kernel(self, kernel: Tensor) -> None:
        """Load a plain kernel (O, I, a, b): with equal attention on all n kernels, ``forward`` returns it."""
        self.spectrum.copy_(self.to_spectrum(kernel))

    def to_spectrum(self, kernel: Tensor) -> Tensor:
        """Compute the ``spectrum`` (O*a, I*b//2 + 1, 2), in the parameter's dtype, of a plain kernel (O, I, a, b)."""
        # In double precision, so that the only error is the rounding of the result.
        plane = kernel.double().transpose(1, 2).reshape(self._plane)
        return torch.view_as_real(torch.fft.rfft2(plane)).div(self.scale).to(self.spectrum.dtype)

    @overload
    def forward(self, kernel_attention: Tensor | None = None, *, mix: Literal[True] = True) -> Tensor: ...

    @overload
    def forward(self, kernel_attention: Tensor | None = None, *, mix: Literal[False]) -> DisjointWeights: ...

    def forward(self, kernel_attention: Tensor | None = None, *, mix: bool = True) -> Tensor | DisjointWeights:
        """Mix the n kernels.

        Args:
            kernel_attention: (B, n), weights whose neutral value is 1/n; None: all neutral, B = 1.
            mix: False: return the spectrum, groups and attention, for operations that mix the kernels themselves.

        Returns:
            The mixed kernels (B, O, I, a, b), in float32 or wider; with ``mix=False``, their
            :class:`~fdconv_zoo.ops.DisjointWeights`.
        """
        spectrum: Tensor = self.spectrum
        # torch does not support FFTs in bfloat16, and in float16 only for sizes that are powers of two.
        spectrum = spectrum.float() if spectrum.dtype in (torch.bfloat16, torch.float16) else spectrum
        if kernel_attention is None:
            attention = spectrum.new_full((1, self.num_kernels), self.scale)
        else:
            attention = kernel_attention.to(spectrum.dtype) * (self.scale * self.num_kernels)
        groups = self.group_index.to("meta") if spectrum.is_meta else self.group_index
        spectrum = spectrum if mix else hand_on(self, spectrum)
        weights = DisjointWeights(spectrum, groups, attention, self.kernel_shape)
        return mix_spectrum(weights) if mix else weights

    def derive_groups(self, device: torch.device | str | None = None) -> Tensor:
        """Derive the ``group_index`` of the layer's shape, on a device."""
        if torch.empty(0).is_meta:  # under torch.device("meta"), to count a large model: sorting would take long
            return torch.empty(self.spectrum.shape[:2], dtype=group_dtype(self.num_kernels), device="meta")
        if torch.device(device or "cpu").type == "meta":  # parameters will be loaded, but files contain no groups
            device = None
        return torch.tensor(frequency_groups(*self._plane, self.num_kernels), device=device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FourierDisjointWeight":
        # `to_empty()` would leave uninitialized memory, which stays so if the loaded file does not contain the groups.
        groups, self._buffers["group_index"] = self.group_index, None
        super()._apply(fn, recurse)
        if groups.is_meta and not self.spectrum.is_meta:
            groups = self.derive_groups(self.spectrum.device)
        elif not groups.is_meta:
            moved = fn(groups)
            groups = moved if moved is groups or moved.is_meta else moved.copy_(groups)
        self.group_index = groups
        return self

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.stored_groups and self._has_own_groups():
            destination[prefix + "group_index"] = self.group_index

    def _has_own_groups(self) -> bool:
        if self.group_index.is_meta:
            return False
        groups = torch.from_numpy(frequency_groups(*self._plane, self.num_kernels))
        return not torch.equal(self.group_index.cpu(), groups.to(self.group_index.dtype))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        key = prefix + "group_index"
        groups = state_dict.get(key)
        problem = None if groups is None else self._find_problem(groups)
        if problem:
            error_msgs.append(f"{key} {problem}: it does not belong to this layer, or the file is damaged.")
        # torch's own loading only checks whether the key is present; the groups themselves are set afterwards.
        if groups is not None:
            state_dict[key] = self.group_index
            if not self.stored_groups:
                del state_dict[key]
        has_spectrum = prefix + "spectrum" in state_dict
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if groups is not None and not problem:
            self.group_index = groups.to(self.spectrum.device, group_dtype(self.num_kernels), copy=True)
        elif has_spectrum:
            self.group_index = self.derive_groups(self.spectrum.device)

    def _find_problem(self, groups: Tensor) -> str | None:
        """Why a tensor cannot be the groups of this layer's coefficients; None if it can."""
        expected = tuple(self.spectrum.shape[:2])
        if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
            return f"is of type {groups.dtype}, not of integers"
        if tuple(groups.shape) != expected:
            return f"has the shape {tuple(groups.shape)}, the layer's coefficients have {expected}"
        if not groups.is_meta and not 0 <= groups.min() <= groups.max() < self.num_kernels:
            return f"has groups from {groups.min()} to {groups.max()}, the layer has {self.num_kernels} kernels"
        return None

    def extra_repr(self) -> str:
        """Settings that ``print(module)`` shows."""
        return f"{self.kernel_shape}, num_kernels={self.num_kernels}"


@lru_cache(maxsize=64)
def frequency_groups(rows: int, cols: int, num_groups: int) -> np.ndarray:
    """Sort the real DFT's coefficients of a (rows, cols) plane by radius and cut them into equal groups.

    Many coefficients share a radius. The radii are compared as exact integers and ties keep row-major order, so the
    groups do not depend on the device or on library versions, and checkpoints stay valid.

    Returns:
        (rows, cols//2 + 1), the group of each coefficient: see :func:`cut_into_groups`. The array is cached and shared:
        do not write to it.
    """
    u = np.arange(rows)
    u = np.minimum(u, rows - u)
    v = np.arange(cols // 2 + 1)
    # (u/rows)^2 + (v/cols)^2, times (rows * cols)^2
    radius = (u[:, None] * cols) ** 2 + (v * rows) ** 2
    return cut_into_groups(np.argsort(radius, axis=None, kind="stable"), num_groups).reshape(radius.shape)


def cut_into_groups(order: np.ndarray, num_groups: int) -> np.ndarray:
    """Cut a sorted list of coefficients into consecutive groups whose sizes differ by at most one.

    Args:
        order: (N,), the coefficients' positions, sorted.
        num_groups: at most N.

    Returns:
        (N,), the group of each position, in the smallest integer type that holds it.
    """
    groups = np.empty(len(order), str(group_dtype(num_groups)).removeprefix("torch."))
    groups[order] = np.arange(len(order)) * num_groups // len(order)
    return groups


def group_dtype(num_groups: int) -> torch.dtype:
    """Return the smallest integer type that can hold the indices of this many groups."""
    return next(d for d in (torch.uint8, torch.int16, torch.int32) if num_groups - 1 <= torch.iinfo(d).max)
