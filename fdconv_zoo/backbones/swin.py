"""Swin Transformer with FDConv in its blocks' MLPs."""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import nn

from fdconv_zoo.backbones.arguments import split_arguments
from fdconv_zoo.backbones.build import build_model, converted_cfgs, replace_in_blocks
from fdconv_zoo.backbones.checked import CheckedInput
from fdconv_zoo.backbones.register import register_entrypoint
from fdconv_zoo.index.family import Family, Naming, Porting, register_family

__all__ = ["SwinTransformerFDConv"]

_OUTPUT_NORMS = (r"norm[0-2]\.", "normalise what a dense head reads from earlier stages; timm returns it as it is")
_BUFFERS = (r".*(relative_position_index|attn_mask)$", "follows from the window size")
_BLOCK = r"layers.\1.blocks.\2."
# From swin.py in mmseg/models/backbones, swin_transformer.py in mmpretrain/models/backbones and torchvision/models, and
# mmcv/cnn/bricks/transformer.py; Microsoft's names as in timm's filter.
_NAMINGS = (
    Naming(
        "OpenMMLab",
        r"patch_embed\.projection\.",
        (
            (r"patch_embed\.projection\.", "patch_embed.proj."),
            (r"stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.", _BLOCK + "attn."),
            (r"stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.0\.0\.", _BLOCK + "mlp.fc1."),
            (r"stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.1\.", _BLOCK + "mlp.fc2."),
            (r"stages\.(\d+)\.blocks\.(\d+)\.", _BLOCK),
            (r"stages\.(\d+)\.downsample\.", "layers.{next}.downsample."),
            (r"norm3\.", "norm."),
        ),
        (_OUTPUT_NORMS, _BUFFERS),
        unfolds_by_channel=True,
    ),
    Naming(
        "torchvision",
        r"features\.0\.0\.",
        (
            (r"features\.0\.0\.", "patch_embed.proj."),
            (r"features\.0\.2\.", "patch_embed.norm."),
            (r"features\.(\d+)\.(\d+)\.mlp\.0\.", "layers.{half}.blocks.{block}.mlp.fc1."),
            (r"features\.(\d+)\.(\d+)\.mlp\.3\.", "layers.{half}.blocks.{block}.mlp.fc2."),
            (r"features\.(\d+)\.(\d+)\.", "layers.{half}.blocks.{block}."),
            (r"features\.(\d+)\.(?=norm|reduction)", "layers.{half}.downsample."),
            (r"head\.", "head.fc."),
        ),
        (_BUFFERS,),
    ),
    Naming(
        "Microsoft",
        r"layers\.0\.downsample\.",
        (
            (r"layers\.(\d+)\.downsample\.", "layers.{next}.downsample."),
            (r"norm3\.", "norm."),  # in their detectors
            (r"head\.", "head.fc."),
        ),
        (_OUTPUT_NORMS, _BUFFERS),
    ),
    Naming("timm", r"layers\.1\.downsample\.", left=(_BUFFERS,)),
)
SWIN = register_family(
    Family(
        title="Swin Transformer",
        tag="swin",
        architectures="swin",
        order=2,
        citation=r"""
@inproceedings{liu2021swin,
  title     = {Swin Transformer: Hierarchical Vision Transformer using Shifted Windows},
  author    = {Liu, Ze and Lin, Yutong and Cao, Yue and Hu, Han and Wei, Yixuan and Zhang, Zheng and
               Lin, Stephen and Guo, Baining},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2021}
}
""",
        layers="the two linear layers of each MLP",
        layer_choices=("mlp.fc1", "mlp.fc2"),
        dynamic_layers=("mlp.fc1", "mlp.fc2"),
        has_bands=False,
        porting=Porting(timm_modules=("swin_transformer",), namings=_NAMINGS, classifier="head.fc"),
        short_name="swin_fdconv",
    )
)


class SwinTransformerFDConv(CheckedInput, SwinTransformer):
    """timm's Swin Transformer with the two linear layers of each block's MLP as FDConv, as in the paper.

    Attention stays plain, because it is computed on windows, not on images. FBM is not used: the MLPs have linear
    layers, whose kernels have a single tap.

    Args:
        **kwargs: arguments of timm's ``SwinTransformer``, and the keyword-only options of :class:`fdconv_zoo.FDLinear`
            (``num_kernels``, ``ksm_local``, ...).
        fdconv_layers: which of a block's ``mlp.fc1`` and ``mlp.fc2`` become FDConv; empty for the plain model.
    """

    def __init__(self, *, fdconv_layers: Sequence[str] = SWIN.dynamic_layers, **kwargs: Any) -> None:
        layer_options, kwargs = split_arguments(type(self), SWIN, fdconv_layers, kwargs)
        super().__init__(**kwargs)
        replace_in_blocks(self, r"layers\.\d+\.blocks\.\d+", fdconv_layers, **layer_options)


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


@register_entrypoint
def swin_tiny_patch4_window7_224_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-T with FDConv."""
    args = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
    return _build("swin_tiny_patch4_window7_224_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def swin_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-T with FDConv, under its short name."""
    args = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
    return _build("swin_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def swin_small_patch4_window7_224_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-S with FDConv."""
    args = dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
    return _build("swin_small_patch4_window7_224_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def swin_base_patch4_window7_224_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-B with FDConv."""
    args = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
    return _build("swin_base_patch4_window7_224_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def swin_large_patch4_window7_224_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-L with FDConv."""
    args = dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))
    return _build("swin_large_patch4_window7_224_fdconv", pretrained, **dict(args, **kwargs))
