"""MobileNetV2 with FDConv and with other dynamic convolutions, for comparisons on photographs.

They start from ImageNet weights of the plain network and compute the same function; `scripts/make_imagenet_weights.py`
writes these weights. Importing this module registers the models with timm.
"""

import re
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models import load_pretrained, register_model
from torch import Tensor, nn

from fdconv_zoo import convert_model
from fdconv_zoo.profiling.peers import DCD, ODConv, replace_layers

MODEL = "mobilenetv2_100"
MOBILE_TWINS = ("plain_mobilenetv2", "fdconv_mobilenetv2", "odconv_mobilenetv2", "dcd_mobilenetv2")
# The pointwise layers of the last four stages, with 97 % of the parameters of the pointwise layers in blocks. The
# depthwise layers stay plain: as FDConv, their 64,000 parameters would become 1.5 million.
LAYERS = r"blocks\.[3-6]\.\d+\.conv_pwl?"


def _build(
    name: str,
    pretrained: bool,
    kwargs: dict[str, Any],
    replace: Callable[[nn.Module, list[str]], Any] = lambda model, layers: None,
) -> nn.Module:
    cfg = (kwargs.pop("pretrained_cfg", None) or {}) | (kwargs.pop("pretrained_cfg_overlay", None) or {})
    kwargs["pretrained_cfg_overlay"] = {**cfg, "architecture": name}
    model = timm.create_model(MODEL, **kwargs)
    if isinstance(model.classifier, nn.Linear):
        # As in torchvision. timm's range, 1 / sqrt(classes), is meant for many classes: with two it is 0.7, and
        # fine-tuning starts from a loss of more than 2.
        nn.init.normal_(model.classifier.weight, std=0.01)
    model.conv_stem.register_forward_pre_hook(_channels_last)
    replace(model, [layer for layer, _ in model.named_modules() if re.fullmatch(LAYERS, layer)])
    if pretrained:  # from a file or a run's folder
        load_pretrained(model, model.pretrained_cfg, model.num_classes, model.pretrained_cfg["input_size"][0])
    return model


def _channels_last(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Convert images (B, C, H, W) to the layout in which a training step with depthwise layers is faster on a CPU."""
    return (inputs[0].contiguous(memory_format=torch.channels_last),)


@register_model
def plain_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The plain twin: timm's mobilenetv2_100."""
    return _build("plain_mobilenetv2", pretrained, kwargs)


@register_model
def fdconv_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With FDConv."""
    return _build("fdconv_mobilenetv2", pretrained, kwargs, lambda model, layers: convert_model(model, include=layers))


@register_model
def odconv_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With ODConv, 4 kernels."""
    return _build("odconv_mobilenetv2", pretrained, kwargs, lambda model, layers: replace_layers(model, layers, ODConv))


@register_model
def dcd_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With DCD."""
    return _build("dcd_mobilenetv2", pretrained, kwargs, lambda model, layers: replace_layers(model, layers, DCD))
