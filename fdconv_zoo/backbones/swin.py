"""Swin Transformer with FDConv in its blocks' MLPs."""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import nn

from fdconv_zoo.backbones.build import build_model, converted_cfgs, replace_in_blocks, split_layer_options

__all__ = ["SwinTransformerFDConv"]


class SwinTransformerFDConv(SwinTransformer):
    """timm's Swin Transformer with the two linear layers of each block's MLP as FDConv, as in the paper.

    Attention stays plain: it sees windows, not images. The MLPs have no kernel taps, so FBM has no place in them.

    Args:
        **kwargs: of timm's ``SwinTransformer``, and the keyword-only options of :class:`fdconv_zoo.FDLinear`
            (``num_kernels``, ``ksm_local``, ...).
        fdconv_layers: which of a block's ``mlp.fc1`` and ``mlp.fc2`` become FDConv; empty for the plain twin.
    """

    def __init__(self, *, fdconv_layers: Sequence[str] = ("mlp.fc1", "mlp.fc2"), **kwargs: Any) -> None:
        layer_options, kwargs = split_layer_options(kwargs)
        super().__init__(**kwargs)
        replace_in_blocks(self, r"layers\.\d+\.blocks\.\d+", fdconv_layers, ("mlp.fc1", "mlp.fc2"), **layer_options)


def _build(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    feature_cfg = dict(out_indices=kwargs.pop("out_indices", (0, 1, 2, 3)), flatten_sequential=True)
    return build_model(
        SwinTransformerFDConv, variant, pretrained, timm_filter=checkpoint_filter_fn, feature_cfg=feature_cfg, **kwargs
    )


_TINY = "swin_tiny_patch4_window7_224"
_TINY_TAGS = "ms_in1k ms_in22k_ft_in1k ms_in22k"

default_cfgs = generate_default_cfgs(
    {
        **converted_cfgs(_TINY, _TINY_TAGS),
        **converted_cfgs(_TINY, _TINY_TAGS, name="swin_fdconv"),
        **converted_cfgs("swin_small_patch4_window7_224", "ms_in22k_ft_in1k ms_in1k ms_in22k"),
        **converted_cfgs("swin_base_patch4_window7_224", "ms_in22k_ft_in1k ms_in1k ms_in22k"),
        **converted_cfgs("swin_large_patch4_window7_224", "ms_in22k_ft_in1k ms_in22k"),
    }
)


@register_model
def swin_tiny_patch4_window7_224_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-T with FDConv."""
    args = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
    return _build("swin_tiny_patch4_window7_224_fdconv", pretrained, **dict(args, **kwargs))


@register_model
def swin_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-T with FDConv, under its short name."""
    args = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
    return _build("swin_fdconv", pretrained, **dict(args, **kwargs))


@register_model
def swin_small_patch4_window7_224_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-S with FDConv."""
    args = dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
    return _build("swin_small_patch4_window7_224_fdconv", pretrained, **dict(args, **kwargs))


@register_model
def swin_base_patch4_window7_224_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-B with FDConv."""
    args = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
    return _build("swin_base_patch4_window7_224_fdconv", pretrained, **dict(args, **kwargs))


@register_model
def swin_large_patch4_window7_224_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-L with FDConv."""
    args = dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))
    return _build("swin_large_patch4_window7_224_fdconv", pretrained, **dict(args, **kwargs))
