"""Twins of `resnet10s_fdconv` for comparisons: plain, with parts of FDConv, and with other dynamic convolutions.

Importing this module registers them with timm.
"""

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


def _build(
    name: str, pretrained: bool, kwargs: dict[str, Any], *, peer: type[nn.Module] | None = None, **own: Any
) -> nn.Module:
    kwargs = kwargs | own  # the configuration of a run repeats them
    cfg = (kwargs.pop("pretrained_cfg", None) or {}) | (kwargs.pop("pretrained_cfg_overlay", None) or {})
    kwargs["pretrained_cfg_overlay"] = {**cfg, "architecture": name}
    model = timm.create_model(MODEL, **kwargs)
    if peer is not None:
        replaced = [name for name, layer in timm.create_model(MODEL).named_modules() if isinstance(layer, FDConv2d)]
        replace_layers(model, replaced, peer)
    if pretrained:  # from a run's folder; there are no published weights
        load_pretrained(model, model.pretrained_cfg, model.num_classes, model.pretrained_cfg["input_size"][0])
    return model


@register_model
def resnet10s_plain(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The plain twin."""
    return _build(PLAIN, pretrained, kwargs, fdconv_layers=())


@register_model
def resnet10s_fdw(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With FDW alone: plain kernels, learned as their Fourier coefficients."""
    return _build("resnet10s_fdw", pretrained, kwargs, ksm_global=False, ksm_local=False, fbm=False)


@register_model
def resnet10s_fdw_ksm(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With FDW and KSM: FDConv without FBM."""
    return _build("resnet10s_fdw_ksm", pretrained, kwargs, fbm=False)


@register_model
def resnet10s_condconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With timm's CondConv, 8 experts."""
    return _build("resnet10s_condconv", pretrained, kwargs, peer=CondConv, fdconv_layers=())


@register_model
def resnet10s_odconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With ODConv, 4 kernels."""
    return _build("resnet10s_odconv", pretrained, kwargs, peer=ODConv, fdconv_layers=())


@register_model
def resnet10s_dcd(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With DCD."""
    return _build("resnet10s_dcd", pretrained, kwargs, peer=DCD, fdconv_layers=())


@register_model
def resnet10s_kernelwarehouse(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With KernelWarehouse, as many parameters in its kernels as the plain twin."""
    return _build("resnet10s_kernelwarehouse", pretrained, kwargs, peer=KernelWarehouse, fdconv_layers=())
