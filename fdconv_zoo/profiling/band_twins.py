"""Twins of `resnet10s_fdconv` with other forms of FBM, or with FDConv in some stages only, for comparisons.

Importing this module registers them with timm.
"""

import re
from collections.abc import Sequence
from typing import Any

from timm.models import register_model
from torch import nn

from fdconv_zoo import to_plain
from fdconv_zoo.layers import FDConv2d
from fdconv_zoo.profiling.cheap_bands import HalfResolutionBands, PooledBands, remove_bands, replace_bands
from fdconv_zoo.profiling.twins import build_twin

BAND_TWINS = ("resnet10s_fbm_pooled", "resnet10s_fbm_half", "resnet10s_fbm_soft", "resnet10s_stages")
_STAGES = (1, 2, 3, 4)


@register_model
def resnet10s_fbm_pooled(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With the bands of a pooling pyramid."""
    name = "resnet10s_fbm_pooled"
    return build_twin(name, pretrained, kwargs, change=lambda model: replace_bands(model, PooledBands))


@register_model
def resnet10s_fbm_half(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With bands computed at half the resolution."""
    name = "resnet10s_fbm_half"
    return build_twin(name, pretrained, kwargs, change=lambda model: replace_bands(model, HalfResolutionBands))


@register_model
def resnet10s_fbm_soft(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """With the soft masks of ``band_mask="learned"``, but fixed edges."""

    def freeze(model: nn.Module) -> None:
        for layer in model.modules():
            if isinstance(layer, FDConv2d) and layer.fbm is not None:
                layer.fbm.edge_logits.requires_grad_(False)

    return build_twin("resnet10s_fbm_soft", pretrained, kwargs, change=freeze, band_mask="learned")


@register_model
def resnet10s_stages(
    pretrained: bool = False,
    *,
    fdconv_stages: Sequence[int] = _STAGES,
    fbm_stages: Sequence[int] = _STAGES,
    **kwargs: Any,
) -> nn.Module:
    """With FDConv in some of the four stages only.

    Args:
        pretrained: Load the weights that the configuration names.
        fdconv_stages: The stages whose layers are FDConv, from 1 to 4.
        fbm_stages: The stages whose FDConv layers have FBM, from 1 to 4.
        **kwargs: Arguments of `resnet10s_fdconv`.

    Raises:
        ValueError: a stage does not exist.
    """
    for argument, stages in (("fdconv_stages", fdconv_stages), ("fbm_stages", fbm_stages)):
        if not isinstance(stages, Sequence) or not set(stages) <= set(_STAGES):
            raise ValueError(f"{argument} is {stages!r}: give a tuple of stages from {_STAGES}, such as (3, 4).")

    def restrict(model: nn.Module) -> None:
        for name, child in list(model.named_children()):
            stage = re.fullmatch(r"layer(\d)", name)
            if stage is None:
                continue
            if int(stage[1]) not in fdconv_stages:
                to_plain(child)
            elif int(stage[1]) not in fbm_stages:
                remove_bands(child)

    return build_twin("resnet10s_stages", pretrained, kwargs, change=restrict)
