"""The plain twin of the small model, and its twins with other dynamic convolutions, as timm models to train.

Importing this registers `resnet10s_plain`, `resnet10s_condconv` and `resnet10s_odconv`: `resnet10s_fdconv` with plain
convolutions, or with another dynamic convolution, in the places of FDConv.
"""

from typing import Any

import timm
from peers import CondConv, ODConv, replace_layers
from timm.models import load_pretrained, register_model
from torch import nn

from fdconv_zoo import FDConv2d

MODEL = "resnet10s_fdconv"


def _build(name: str, peer: type[nn.Module] | None, pretrained: bool, **kwargs: Any) -> nn.Module:
    cfg = (kwargs.pop("pretrained_cfg", None) or {}) | (kwargs.pop("pretrained_cfg_overlay", None) or {})
    kwargs |= {"fdconv_layers": (), "pretrained_cfg_overlay": {**cfg, "architecture": name}}
    model = timm.create_model(MODEL, **kwargs)
    if peer is not None:
        replaced = [name for name, layer in timm.create_model(MODEL).named_modules() if isinstance(layer, FDConv2d)]
        replace_layers(model, replaced, peer)
    if pretrained:  # from the folder of a run; there are no published weights
        load_pretrained(model, model.pretrained_cfg, model.num_classes, model.pretrained_cfg["input_size"][0])
    return model


@register_model
def resnet10s_plain(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The plain twin."""
    return _build("resnet10s_plain", None, pretrained, **kwargs)


@register_model
def resnet10s_condconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With timm's CondConv, 8 experts."""
    return _build("resnet10s_condconv", CondConv, pretrained, **kwargs)


@register_model
def resnet10s_odconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With ODConv, 4 kernels."""
    return _build("resnet10s_odconv", ODConv, pretrained, **kwargs)
