"""Helpers of all families: replacing layers by FDConv, default configurations, and building models through timm."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
from timm.models import build_model_with_cfg, register_notrace_module, resolve_pretrained_cfg
from torch import Tensor, nn

from fdconv_zoo.backbones.checked import CheckedFeatureList
from fdconv_zoo.layers import FDConv2d, FDLinear, FrequencyBandModulation
from fdconv_zoo.layers.plain import PlainLayer
from fdconv_zoo.layers.replace import replace_layers
from fdconv_zoo.store.timm_loading import checked_download, guarded_file

StateDict = dict[str, Tensor]
Filter = Callable[[StateDict, Any], StateDict]  # adapts a state dict to a model

for _layer in (FDConv2d, FDLinear, FrequencyBandModulation):
    register_notrace_module(_layer)  # one node in the graphs from which timm extracts features


def replace_in_blocks(model: nn.Module, block: str, names: Sequence[str], **options: Any) -> None:
    """Replace the named layers of every block by FDConv; layers with 16 or fewer input or output channels stay plain.

    Args:
        model: changed in place.
        block: regular expression for the names of the blocks in the model.
        names: names of layers within a block, or of modules that contain them.
        **options: options of the FDConv layers.

    Raises:
        ValueError: an option that does not fit a layer.
    """

    def is_dynamic(name: str, layer: PlainLayer) -> bool:
        in_block = re.fullmatch(rf"{block}\.(.+)", name)
        is_named = in_block and any(f"{in_block[1]}.".startswith(f"{choice}.") for choice in names)
        width = layer.weight.shape[:2]
        return bool(is_named) and min(width[0], width[1] * getattr(layer, "groups", 1)) > 16

    replace_layers(model, is_dynamic, **options)


def converted_cfgs(plain: str, tags: str, name: str | None = None, prefix: str = "") -> dict[str, dict[str, Any]]:
    """Make default configurations that load the weights timm publishes for the plain model.

    Args:
        plain: timm's architecture, e.g. ``resnet50``.
        tags: tags of its weights, separated by spaces, the default first.
        name: name of our architecture. Default: the plain name with ``_fdconv``.
        prefix: prefix of each of our tags.

    Returns:
        The configurations under our names, e.g. ``resnet50_fdconv.a1_in1k``: the same weights, converted while loading.
    """
    cfgs = {}
    for tag in tags.split():
        published: Any = timm.get_pretrained_cfg(f"{plain}.{tag}", allow_unregistered=False)
        cfg = {key: value for key, value in published.to_dict().items() if key not in ("architecture", "tag")}
        # timm's custom loaders only support plain layers; FDConv layers convert a plain state dict themselves.
        cfgs[f"{name or plain + '_fdconv'}.{prefix}{tag}"] = cfg | {"custom_load": False}
    return cfgs


def unwrap_openmmlab(state_dict: StateDict) -> StateDict:
    """Extract the backbone (and classifier) from an OpenMMLab state dict; other state dicts are returned unchanged.

    Plain weights and the paper authors' parameter names are left to the FDConv layers, which convert them on loading.
    """
    backbone = {key.removeprefix("backbone."): v for key, v in state_dict.items() if key.startswith("backbone.")}
    if not backbone:
        return state_dict
    classifier = {key.removeprefix("head."): v for key, v in state_dict.items() if key.startswith("head.fc.")}
    return backbone | classifier


def build_model(
    model_cls: type[nn.Module],
    variant: str,
    pretrained: bool,
    timm_filter: Filter | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a model of our families with timm's ``build_model_with_cfg``.

    Args:
        model_cls: the family's class.
        variant: name of the architecture.
        pretrained: load the weights of its configuration.
        timm_filter: timm's function that adapts a state dict of the family before loading.
        **kwargs: arguments of the class and of ``build_model_with_cfg``.

    Raises:
        RuntimeError: pretrained weights could not be downloaded from the Hub; the message names the repository, the
            reason and what to do.
        TypeError: an argument that the class does not take.
    """
    filter_fn = partial(_filter_state_dict, timm_filter=timm_filter)
    kwargs["feature_cfg"] = {"feature_cls": CheckedFeatureList} | kwargs.get("feature_cfg", {})
    build = partial(build_model_with_cfg, model_cls, variant, pretrained, pretrained_filter_fn=filter_fn, **kwargs)
    if not pretrained:
        return build()
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    with checked_download(variant, cfg, kwargs.get("cache_dir")), guarded_file(cfg.file):
        return build()


def _filter_state_dict(state_dict: StateDict, model: nn.Module, timm_filter: Filter | None) -> StateDict:
    state_dict = unwrap_openmmlab(state_dict)
    return state_dict if timm_filter is None else timm_filter(state_dict, model)
