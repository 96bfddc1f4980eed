"""What all families share: building through timm, default configurations, and the arguments of FDConv layers."""

from collections.abc import Iterable
from typing import Any

import timm
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn

from fdconv_zoo.conversion import LAYER_OPTIONS


def split_layer_options(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a model's arguments into those of its FDConv layers and those of timm's class."""
    options = {name: value for name, value in kwargs.items() if name in LAYER_OPTIONS}
    return options, {name: value for name, value in kwargs.items() if name not in LAYER_OPTIONS}


def converted_cfgs(plain_names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Default configurations that start from weights timm publishes for the plain twins.

    Args:
        plain_names: timm's ``architecture.tag``, e.g. ``resnet50.a1_in1k``.

    Returns:
        The configurations under our names, e.g. ``resnet50_fdconv.a1_in1k``: the same weights, converted while loading.
    """
    cfgs = {}
    for name in plain_names:
        architecture, _, tag = name.partition(".")
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False).to_dict()
        cfgs[f"{architecture}_fdconv.{tag}"] = {k: v for k, v in cfg.items() if k not in ("architecture", "tag")}
    return cfgs


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Take the backbone (and classifier) out of an OpenMMLab checkpoint; others pass unchanged.

    FDConv layers themselves read plain weights and the paper authors' parameter names.
    """
    backbone = {key.removeprefix("backbone."): v for key, v in state_dict.items() if key.startswith("backbone.")}
    if not backbone:
        return state_dict
    classifier = {key.removeprefix("head."): v for key, v in state_dict.items() if key.startswith("head.fc.")}
    return backbone | classifier


def build_model(model_cls: type[nn.Module], variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """timm's ``build_model_with_cfg`` for our families.

    Raises:
        RuntimeError: pretrained weights can neither be downloaded nor found in the cache; names the repository.
    """
    try:
        return build_model_with_cfg(model_cls, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **kwargs)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
        raise RuntimeError(
            f"The pretrained weights of {variant} come from the Hugging Face repository {cfg.hf_hub_id!r}, which can "
            f"neither be reached nor found in the cache. Connect and try again; or get its weights file by other "
            f"means and pass pretrained_cfg_overlay=dict(file='path/to/model.safetensors'); or start from random "
            f"weights with pretrained=False. ({type(error).__name__}: {error})"
        ) from error
