"""Twins of `resnet10s_fdconv` for comparisons: plain, with parts of FDConv, and with other dynamic convolutions.

Importing this module registers them with timm.
"""

from collections.abc import Callable
from typing import Any

import timm
from timm.models import load_pretrained, register_model
from torch import nn

from fdconv_zoo import FDConv2d
from fdconv_zoo.profiling.peers import DCD, CondConv, KernelWarehouse, ODConv, replace_layers

MODEL = "resnet10s_fdconv"
PLAIN = "resnet10s_plain"
_OTHER_WEIGHTS = ("resnet10s_condconv", "resnet10s_kernelwarehouse")
TWINS = (PLAIN, "resnet10s_fdw", "resnet10s_fdw_ksm", "resnet10s_dcd", "resnet10s_odconv", *_OTHER_WEIGHTS)


def trained_twin(name: str) -> str:
    """Return the twin whose trained weights `name` can load: the plain one where possible, otherwise its own."""
    return name if name in _OTHER_WEIGHTS else PLAIN


def build_twin(
    name: str,
    pretrained: bool,
    kwargs: dict[str, Any],
    *,
    change: Callable[[nn.Module], None] | None = None,
    **own: Any,
) -> nn.Module:
    """Build a twin.

    Args:
        name: Its own name.
        pretrained: Load the weights that the configuration names.
        kwargs: Arguments of `MODEL`.
        change: Changes the model in place before weights are loaded.
        **own: Arguments that the twin sets itself.
    """
    kwargs = kwargs | own  # the configuration of a run repeats them
    cfg = (kwargs.pop("pretrained_cfg", None) or {}) | (kwargs.pop("pretrained_cfg_overlay", None) or {})
    kwargs["pretrained_cfg_overlay"] = {**cfg, "architecture": name}
    model = timm.create_model(MODEL, **kwargs)
    if change is not None:
        change(model)
    if pretrained:  # from a run's folder; there are no published weights
        load_pretrained(model, model.pretrained_cfg, model.num_classes, model.pretrained_cfg["input_size"][0])
    return model


def _use(peer: type[nn.Module]) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        replaced = [name for name, layer in timm.create_model(MODEL).named_modules() if isinstance(layer, FDConv2d)]
        replace_layers(model, replaced, peer)

    return change


@register_model
def resnet10s_plain(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The plain twin."""
    return build_twin(PLAIN, pretrained, kwargs, fdconv_layers=())


@register_model
def resnet10s_fdw(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With FDW alone: plain kernels, learned as their Fourier coefficients."""
    return build_twin("resnet10s_fdw", pretrained, kwargs, ksm_global=False, ksm_local=False, fbm=False)


@register_model
def resnet10s_fdw_ksm(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With FDW and KSM: FDConv without FBM."""
    return build_twin("resnet10s_fdw_ksm", pretrained, kwargs, fbm=False)


@register_model
def resnet10s_condconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With timm's CondConv, 8 experts."""
    return build_twin("resnet10s_condconv", pretrained, kwargs, change=_use(CondConv), fdconv_layers=())


@register_model
def resnet10s_odconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With ODConv, 4 kernels."""
    return build_twin("resnet10s_odconv", pretrained, kwargs, change=_use(ODConv), fdconv_layers=())


@register_model
def resnet10s_dcd(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With DCD."""
    return build_twin("resnet10s_dcd", pretrained, kwargs, change=_use(DCD), fdconv_layers=())


@register_model
def resnet10s_kernelwarehouse(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With KernelWarehouse, as many parameters in its kernels as the plain twin."""
    return build_twin("resnet10s_kernelwarehouse", pretrained, kwargs, change=_use(KernelWarehouse), fdconv_layers=())
