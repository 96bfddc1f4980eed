"""LoRA on FDConv's kernels (https://arxiv.org/abs/2106.09685): a low-rank update of the kernel behind the spectrum.

LoRA adds ``alpha / rank * B @ A`` to a frozen weight. FDW lays a kernel out as a plane of R rows and C columns, and the
DFT is separable: the spectrum of ``B @ A`` is ``fft(B) @ rfft(A)``, two small transforms and a product.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fdconv_zoo.layers.fdw import FourierDisjointWeight


class LowRankUpdate(nn.Module):
    """Parametrization of FDW's spectrum: adds the spectrum of a low-rank update of the plane, which starts at zero.

    Args:
        fdw: the module whose spectrum is updated.
        rank: r.
        alpha: the update is multiplied by ``alpha / rank``.
    """

    def __init__(self, fdw: FourierDisjointWeight, rank: int, alpha: float) -> None:
        super().__init__()
        out_channels, in_channels, height, width = fdw.kernel_shape
        factory: dict[str, Any] = {"device": fdw.spectrum.device, "dtype": fdw.spectrum.dtype}
        self.scale = alpha / rank / fdw.scale
        self.down = nn.Parameter(torch.empty(rank, in_channels * width, **factory))  # A (r, C)
        self.up = nn.Parameter(torch.zeros(out_channels * height, rank, **factory))  # B (R, r)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, spectrum: Tensor) -> Tensor:
        """(R, C//2 + 1, 2) to the same shape."""
        dtype = torch.promote_types(self.up.dtype, torch.float32)  # no FFT in half precision
        update = torch.fft.fft(self.up.to(dtype), dim=0) @ torch.fft.rfft(self.down.to(dtype), dim=1)
        return spectrum + (self.scale * torch.view_as_real(update)).to(spectrum.dtype)


def add_lora(model: nn.Module, rank: int = 8, alpha: float = 8.0) -> list[nn.Parameter]:
    """Freeze the spectra of a model's FDConv layers and add a low-rank update to each, in place.

    The model computes the same as before. Load pretrained weights first: the names of the spectra in the state dict
    change until :func:`merge_lora` is called.

    Args:
        model: a model with FDConv layers.
        rank: rank of the updates.
        alpha: an update is multiplied by ``alpha / rank``.

    Returns:
        The new parameters, for the optimizer.

    Raises:
        ValueError: the model has no FDConv layers, or some have LoRA already; or the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}: it must be at least 1.")
    layers = [module for module in model.modules() if isinstance(module, FourierDisjointWeight)]
    if not layers:
        raise ValueError(f"This {type(model).__name__} has no FDConv layers: convert_model makes some.")
    if any(parametrize.is_parametrized(fdw, "spectrum") for fdw in layers):
        raise ValueError("The spectra are parametrized already: call merge_lora first.")
    parameters: list[nn.Parameter] = []
    for fdw in layers:
        fdw.spectrum.requires_grad_(False)
        update = LowRankUpdate(fdw, rank, alpha)
        parametrize.register_parametrization(fdw, "spectrum", update)
        parameters += update.parameters()
    return parameters


def merge_lora(model: nn.Module) -> None:
    """Add the updates of :func:`add_lora` to the spectra, in place; the model computes the same as before."""
    for module in model.modules():
        if isinstance(module, FourierDisjointWeight) and parametrize.is_parametrized(module, "spectrum"):
            parametrize.remove_parametrizations(module, "spectrum", leave_parametrized=True)
