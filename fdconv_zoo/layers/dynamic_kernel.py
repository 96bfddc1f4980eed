"""Base class of FDConv2d and FDLinear: FDW, KSM, the bias, and loading of plain weights and of the authors' weights."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from fdconv_zoo.layers.fbm import FrequencyBandModulation
from fdconv_zoo.layers.fdw import FourierDisjointWeight
from fdconv_zoo.layers.ksm import KernelSpatialModulation
from fdconv_zoo.layers.precision import COMPUTED, compute_dtype, no_autocast, transform_dtype
from fdconv_zoo.layers.programs import TracedForScript
from fdconv_zoo.layers.reference import from_reference
from fdconv_zoo.ops import (
    DisjointWeights,
    Geometry,
    KernelModulators,
    Path,
    assemble_kernels,
    choose_path,
    dynamic_convolution,
)


class DynamicKernel(TracedForScript):
    """Base class of layers whose kernels are computed by FDW and KSM.

    Args:
        in_channels: number of input channels I, of all groups together.
        out_channels: number of output channels O.
        kernel_size: height and width (a, b).
        groups: number of groups of the convolution.
        bias: add a learned bias to each output channel.
        num_kernels, temperature, kernel_temperature, ksm_global, ksm_local, stored_groups: as in
            :class:`fdconv_zoo.FDConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        groups: int,
        bias: bool,
        *,
        num_kernels: int,
        temperature: float,
        kernel_temperature: float,
        ksm_global: bool,
        ksm_local: bool,
        stored_groups: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels) < 1:
            raise ValueError(f"The layer has {in_channels} input and {out_channels} output channels: at least 1 each.")
        if (dtype or torch.get_default_dtype()) not in COMPUTED:
            raise TypeError(f"dtype is {dtype}: FDConv layers take {', '.join(map(str, COMPUTED))}.")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.fdw = FourierDisjointWeight(
            out_channels, in_channels // groups, kernel_size, num_kernels, stored_groups=stored_groups, **factory
        )
        self.ksm = KernelSpatialModulation(
            in_channels,
            out_channels,
            kernel_size,
            num_kernels,
            groups=groups,
            temperature=temperature,
            kernel_temperature=kernel_temperature,
            global_branch=ksm_global,
            local_branch=ksm_local,
            **factory,
        )
        self.fbm: FrequencyBandModulation | None = None
        self.groups = groups
        self.path: Path | None = None
        self.keeps_kernels = False
        self.bias: Tensor | None = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        self._reset_bias()

    def assemble(self, pooled: Tensor) -> Tensor:
        """Assemble the kernels (B, O, I/groups, a, b) of images with pooled features (B, I); without KSM, B is 1."""
        weights, modulators = self.predict(pooled)
        return assemble_kernels(weights, modulators.to(weights.spectrum.dtype), self.groups)

    def predict(self, pooled: Tensor) -> tuple[DisjointWeights, KernelModulators]:
        """Return FDW's weights and KSM's modulators for pooled features (B, I), without assembling kernels."""
        modulators = self.ksm(pooled, assemble=False)
        return self.fdw(modulators.kernel, mix=False), modulators

    def convolve(
        self, x: Tensor, *, weights: DisjointWeights, modulators: KernelModulators, geometry: Geometry
    ) -> Tensor:
        """Convolve each image with its own kernel and add the bias: (B, I, H, W) to (B, O, H', W')."""
        x = x.to(compute_dtype(x))
        with no_autocast(x.device.type):
            y = dynamic_convolution(
                x,
                weights=weights,
                modulators=modulators,
                geometry=geometry,
                path=self.path,
                keeps_kernels=self.keeps_kernels,
            )
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    def extra_repr(self) -> str:
        """Settings that ``print(module)`` shows in addition to those of the plain layer."""
        branches = [name for name, branch in self.ksm.named_children() if branch is not None]
        ksm = "+".join(name.removesuffix("_branch") for name in branches) or None
        spectrum = self.fdw.spectrum
        path = choose_path(spectrum.device, transform_dtype(spectrum), self.path)
        text = f"num_kernels={self.fdw.num_kernels}, ksm={ksm}, path={path!r}"
        return f"{text}, keeps_kernels=True" if self.keeps_kernels else text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"  # one line: the parts' sizes follow from the settings

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                f"{type(self).__name__} has no weight: its kernels depend on the image. assemble(pooled) returns them, "
                "and fdconv_zoo.to_plain converts layers with neutral modulators to plain layers."
            )
        return super().__getattr__(name)

    def reset_parameters(self) -> None:
        """Initialize as the plain layer does, with neutral modulators."""
        self.fdw.reset_parameters()
        self._reset_modulators()
        self._reset_bias()

    def _reset_bias(self) -> None:
        if self.bias is not None:
            bound = math.prod(self.fdw.kernel_shape[1:]) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def load_plain(self, weight: Tensor, bias: Tensor | None) -> None:
        """Load a plain layer's parameters and make every modulator neutral, so that both compute the same function.

        Args:
            weight: in the shape of the plain layer's weight.
            bias: (O,), or None if the plain layer has none.
        """
        self._reset_modulators()
        self.fdw.load_kernel(weight.detach().view(self.fdw.kernel_shape))
        if self.bias is not None and bias is not None:
            with torch.no_grad():
                self.bias.copy_(bias)

    def _reset_modulators(self) -> None:
        self.ksm.reset_parameters()
        if self.fbm is not None:
            self.fbm.reset_parameters()

    def _neutral_modulators(self, device: torch.device) -> dict[str, Tensor]:
        """Make the modulators neutral and return their state dict; for a meta layer, that of a copy on a device."""
        parts = nn.ModuleDict({"ksm": self.ksm} if self.fbm is None else {"ksm": self.ksm, "fbm": self.fbm})
        if any(parameter.is_meta for parameter in parts.parameters()):
            parts = copy.deepcopy(parts).to_empty(device=device)
            for module in parts.modules():
                _reset(module)
        for part in parts.values():  # last: it zeroes what the submodules have initialized at random
            _reset(part)
        return parts.state_dict()

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Load FDConv's own weights, the authors' weights or plain weights, as part of any model."""
        ours = from_reference({key: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)})
        weight = ours.pop(prefix + "weight", None)
        if weight is not None and weight.is_complex():
            error_msgs.append(f"{prefix}weight is {weight.dtype}: kernels are real.")
        elif weight is not None:
            expected, found = self.fdw.kernel_shape, tuple(weight.shape)
            if found == expected or (*found, 1, 1) == expected:
                neutral = self._neutral_modulators(weight.device)
                ours = {prefix + key: value for key, value in neutral.items()} | ours
                ours[prefix + "fdw.spectrum"] = self.fdw.to_spectrum(weight.view(expected))
                if self.fdw.stored_groups:
                    ours.setdefault(prefix + "fdw.group_index", self.fdw.derive_groups())
            else:
                error_msgs.append(
                    f"size mismatch for {prefix}weight: the checkpoint's plain kernel is {found}, the FDConv layer "
                    f"expects {expected}."
                )
        head = ours.get(prefix + "ksm.global_branch.kernel.bias")
        mixed = self.fdw.num_kernels if head is None else len(head)
        if mixed != self.fdw.num_kernels:
            error_msgs.append(
                f"size mismatch for {prefix.rstrip('.') or 'the layer'}: the checkpoint mixes {mixed} kernels, the "
                f"layer {self.fdw.num_kernels}. Build the model with num_kernels={mixed}."
            )
        state_dict.update(ours)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()
