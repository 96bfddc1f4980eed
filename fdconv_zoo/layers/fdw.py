"""FDW: Fourier Disjoint Weight (FDConv, section 3.1, https://arxiv.org/abs/2503.18783)."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fdconv_zoo.ops import mix_spectrum


class FourierDisjointWeight(nn.Module):
    """n kernels of disjoint frequencies, learned as the Fourier coefficients of one kernel.

    The kernel (O, I, a, b) is laid out as a plane of O*a rows and I*b columns; its real 2-D DFT is the parameter.
    Sorted by radius, the coefficients fall into ``num_kernels`` consecutive groups whose sizes differ by at most
    one; kernel j is the inverse DFT of group j alone. More kernels cost no more parameters.

    ``spectrum`` (O*a, I*b//2 + 1, 2) stores the DFT divided by ``scale`` = max(min(O, I)//2, 1), real and imaginary
    parts in the last axis: the magnitude of ordinary weights, which is what an optimizer's step size and decay
    expect, and the authors' convention.

    ``group_index`` (O*a, I*b//2 + 1), the group of each coefficient, follows from the shape and is not part of the
    state dict; unless a converted checkpoint came with groups of its own (see ``from_reference``): then it is.

    Args:
        out_channels: O.
        in_channels: I, the input channels of one group of the convolution.
        kernel_size: (a, b).
        num_kernels: n, from 1 to the number of coefficients.

    Raises:
        ValueError: ``num_kernels`` is out of range.
    """

    group_index: Tensor

    def __init__(
        self,
        out_channels: int,
        in_channels: int,
        kernel_size: tuple[int, int],
        num_kernels: int = 64,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kernel_shape = (out_channels, in_channels, *kernel_size)
        self._plane = (out_channels * kernel_size[0], in_channels * kernel_size[1])
        self.num_kernels = num_kernels
        self.scale = max(min(out_channels, in_channels) // 2, 1)
        rows, cols = out_channels * kernel_size[0], in_channels * kernel_size[1] // 2 + 1
        if not 1 <= num_kernels <= rows * cols:
            raise ValueError(
                f"num_kernels is {num_kernels}: it must lie between 1 and {rows * cols}, the number of Fourier "
                f"coefficients of a kernel of {out_channels}x{in_channels}x{kernel_size[0]}x{kernel_size[1]}."
            )
        self.spectrum = nn.Parameter(torch.empty(rows, cols, 2, device=device, dtype=dtype))
        self.register_buffer("group_index", torch.empty(0), persistent=False)
        self.init_non_persistent_buffers()
        self._cache: tuple[tuple[int, ...], tuple[Tensor, ...], Tensor] | None = None
        self.reset_parameters()

    def init_non_persistent_buffers(self) -> None:
        """Build what is derived from the shape alone; needed again after ``to_empty()`` (timm's convention)."""
        if self.spectrum.is_meta:  # where large models are built to be counted: no time for sorting
            self.group_index = torch.empty(self.spectrum.shape[:2], dtype=torch.uint8, device="meta")
        else:
            self.group_index = frequency_groups(*self._plane, self.num_kernels).to(self.spectrum.device)
        self._has_own_groups = False

    def reset_parameters(self) -> None:
        """Start as ``nn.Conv2d`` does: uniform in +-1/sqrt(fan_in)."""
        _, in_channels, height, width = self.kernel_shape
        bound = (in_channels * height * width) ** -0.5
        kernel = torch.empty(self.kernel_shape, device=self.spectrum.device, dtype=self.spectrum.dtype)
        self.load_kernel(kernel.uniform_(-bound, bound))

    @torch.no_grad()
    def load_kernel(self, kernel: Tensor) -> None:
        """Take over a plain kernel (O, I, a, b): with equal attention on all n kernels, the layer returns it."""
        self.spectrum.copy_(self.to_spectrum(kernel))

    def to_spectrum(self, kernel: Tensor) -> Tensor:
        """The ``spectrum`` parameter, (O*a, I*b//2 + 1, 2), of a plain kernel (O, I, a, b)."""
        # In double precision, so that the round trip costs no more than the rounding of the result.
        plane = kernel.double().transpose(1, 2).reshape(self._plane)
        return torch.view_as_real(torch.fft.rfft2(plane)).div(self.scale).to(kernel.dtype)

    def forward(self, kernel_attention: Tensor | None = None) -> Tensor:
        """Mix the n kernels.

        Args:
            kernel_attention: (B, n), weights whose neutral value is 1/n; None: all neutral, B = 1.

        Returns:
            (B, O, I, a, b), in float32 or wider.
        """
        if kernel_attention is None and self._can_cache():
            return self._cached_kernel()
        return mix_spectrum(*self.parts(kernel_attention), self.kernel_shape)

    def parts(self, kernel_attention: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`forward` mixes: the spectrum in float32 or wider, its groups, the attention times its scale."""
        # No FFT exists in bfloat16, and in float16 only for powers of two.
        spectrum = self.spectrum.float() if self.spectrum.dtype in (torch.bfloat16, torch.float16) else self.spectrum
        if kernel_attention is None:
            attention = spectrum.new_full((1, self.num_kernels), self.scale)
        else:
            attention = kernel_attention.to(spectrum.dtype) * (self.scale * self.num_kernels)
        groups = self.group_index
        is_eager_inference = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if is_eager_inference and groups.device.type == "cpu" and not self._has_own_groups:
            groups = _gather_index(*self._plane, self.num_kernels)
        return spectrum, groups, attention

    def _can_cache(self) -> bool:
        is_inference = not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        return is_inference and not self.spectrum.is_inference()

    def _cached_kernel(self) -> Tensor:
        """What depends on the weights alone, made once until they change."""
        key = (self.spectrum.data_ptr(), self.spectrum._version, self.group_index.data_ptr())
        if self._cache is None or self._cache[0] != key:
            # The tensors are held, so that no other can come to lie where they are.
            held = (self.spectrum.detach(), self.group_index)
            self._cache = (key, held, mix_spectrum(*self.parts(), self.kernel_shape).contiguous())
        return self._cache[-1]

    def train(self, mode: bool = True) -> "FourierDisjointWeight":
        """As in ``nn.Module``; what inference has cached is forgotten."""
        self._cache = None
        return super().train(mode)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._has_own_groups:
            destination[prefix + "group_index"] = self.group_index

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        own_groups = state_dict.pop(prefix + "group_index", None)
        if own_groups is not None:
            self.group_index = own_groups.to(self.spectrum.device, copy=True)
            self._has_own_groups = True
        elif self._has_own_groups:
            self.init_non_persistent_buffers()
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.group_index.is_meta and not self.spectrum.is_meta:  # load_state_dict(..., assign=True)
            self.init_non_persistent_buffers()

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return f"{self.kernel_shape}, num_kernels={self.num_kernels}"


@lru_cache(maxsize=64)
def frequency_groups(rows: int, cols: int, num_groups: int) -> Tensor:
    """Sort the real DFT's coefficients of a (rows, cols) plane by radius and cut them into equal groups.

    Many coefficients share a radius. The radii are compared as exact integers and ties keep row-major order, so that
    the groups, and with them every checkpoint, are the same on every device and version.

    Returns:
        (rows, cols//2 + 1), the group of each coefficient: see :func:`cut_into_groups`. Shared between callers: do
        not write into it.
    """
    u = torch.arange(rows, device="cpu")
    u = torch.minimum(u, rows - u)
    v = torch.arange(cols // 2 + 1, device="cpu")
    # (u/rows)^2 + (v/cols)^2, times (rows * cols)^2
    radius = (u[:, None] * cols) ** 2 + (v * rows) ** 2
    return cut_into_groups(radius.flatten().sort(stable=True).indices, num_groups).view(radius.shape)


@lru_cache(maxsize=64)
def _gather_index(rows: int, cols: int, num_groups: int) -> Tensor:
    """:func:`frequency_groups` in the type that torch gathers with, which a CPU takes a while to convert to."""
    with torch.inference_mode(False):  # training may use it later
        return frequency_groups(rows, cols, num_groups).long()


def cut_into_groups(order: Tensor, num_groups: int) -> Tensor:
    """Cut a sorted list of coefficients into consecutive groups whose sizes differ by at most one.

    Args:
        order: (N,), the coefficients' positions, sorted.
        num_groups: at most N.

    Returns:
        (N,), the group of each position, in the smallest integer type that holds it.
    """
    rank_group = torch.arange(len(order), device=order.device) * num_groups // len(order)
    dtype = next(d for d in (torch.uint8, torch.int16, torch.int32) if num_groups - 1 <= torch.iinfo(d).max)
    return torch.empty_like(order).scatter_(0, order, rank_group).to(dtype)
