"""ConvNeXt with FDConv in its blocks' MLPs and FBM in front of its depthwise convolutions."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from timm.models import generate_default_cfgs
from timm.models.convnext import ConvNeXt, ConvNeXtBlock, checkpoint_filter_fn
from torch import Tensor, nn

from fdconv_zoo.backbones.arguments import split_arguments
from fdconv_zoo.backbones.build import build_model, converted_cfgs, replace_in_blocks
from fdconv_zoo.backbones.checked import CheckedInput
from fdconv_zoo.backbones.register import register_entrypoint
from fdconv_zoo.index.family import Family, Naming, Porting, register_family
from fdconv_zoo.layers import BandModulatedConv2d, FDConv2d, FDLinear

__all__ = ["ConvNeXtFDConv"]

_OUTPUT_NORMS = (r"norm[0-2]\.", "normalise what a dense head reads from earlier stages; timm returns it as it is")
# From convnext.py in mmpretrain/models/backbones and in torchvision/models; Facebook's names as in timm's filter.
_NAMINGS = (
    Naming(
        "OpenMMLab",
        r"stages\.0\.0\.depthwise_conv\.",
        (
            (r"downsample_layers\.0\.", "stem."),
            (r"downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
            (r"stages\.(\d+)\.(\d+)\.depthwise_conv\.", r"stages.\1.blocks.\2.conv_dw."),
            (r"stages\.(\d+)\.(\d+)\.pointwise_conv(\d)\.", r"stages.\1.blocks.\2.mlp.fc\3."),
            (r"stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"norm3\.", "head.norm."),
        ),
        (_OUTPUT_NORMS,),
    ),
    Naming(
        "Facebook",
        r"stages\.0\.0\.dwconv\.",
        (
            (r"downsample_layers\.0\.", "stem."),
            (r"downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
            (r"stages\.(\d+)\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
            (r"stages\.(\d+)\.(\d+)\.pwconv(\d)\.", r"stages.\1.blocks.\2.mlp.fc\3."),
            (r"stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"norm3?\.", "head.norm."),
            (r"head\.", "head.fc."),
        ),
        (_OUTPUT_NORMS,),
    ),
    Naming(
        "torchvision",
        r"features\.0\.0\.",
        (
            (r"features\.0\.", "stem."),
            (r"features\.(\d+)\.(\d+)\.block\.0\.", "stages.{half}.blocks.{block}.conv_dw."),
            (r"features\.(\d+)\.(\d+)\.block\.2\.", "stages.{half}.blocks.{block}.norm."),
            (r"features\.(\d+)\.(\d+)\.block\.3\.", "stages.{half}.blocks.{block}.mlp.fc1."),
            (r"features\.(\d+)\.(\d+)\.block\.5\.", "stages.{half}.blocks.{block}.mlp.fc2."),
            (r"features\.(\d+)\.(\d+)\.layer_scale$", "stages.{half}.blocks.{block}.gamma"),
            (r"features\.(\d+)\.(\d+)\.", "stages.{half}.downsample.{block}."),
            (r"classifier\.0\.", "head.norm."),
            (r"classifier\.2\.", "head.fc."),
        ),
    ),
    Naming("timm", r"stages\.0\.blocks\.0\.conv_dw\."),
)
CONVNEXT = register_family(
    Family(
        title="ConvNeXt",
        tag="convnext",
        architectures="convnext",
        order=1,
        citation=r"""
@inproceedings{liu2022convnext,
  title     = {A ConvNet for the 2020s},
  author    = {Liu, Zhuang and Mao, Hanzi and Wu, Chao-Yuan and Feichtenhofer, Christoph and
               Darrell, Trevor and Xie, Saining},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022}
}
""",
        layers="the two pointwise layers of each block, with frequency band modulation before the depthwise one",
        layer_choices=("conv_dw", "mlp.fc1", "mlp.fc2"),
        dynamic_layers=("mlp.fc1", "mlp.fc2"),
        has_bands=True,
        porting=Porting(timm_modules=("convnext",), namings=_NAMINGS, classifier="head.fc"),
        arguments={"fbm": "Use Frequency Band Modulation before the depthwise convolutions. Default: True."},
        short_name="convnext_fdconv",
    )
)


class ConvNeXtFDConv(CheckedInput, ConvNeXt):
    """timm's ConvNeXt with the two pointwise layers of each block's MLP as FDConv and FBM before its depthwise layer.

    The paper does not say where the frequency bands are modulated in ConvNeXt. We modulate the input of the depthwise
    convolution, because it is the only layer of a block that uses more than one position.

    Args:
        **kwargs: arguments of timm's ``ConvNeXt``, and the keyword-only options of :class:`fdconv_zoo.FDConv2d`
            (``num_kernels``, ``ksm_local``, ...); ``fbm=False`` leaves the depthwise convolutions without FBM.
        fdconv_layers: which of a block's ``conv_dw``, ``mlp.fc1`` and ``mlp.fc2`` become FDConv.
    """

    def __init__(self, *, fdconv_layers: Sequence[str] = CONVNEXT.dynamic_layers, **kwargs: Any) -> None:
        layer_options, kwargs = split_arguments(type(self), CONVNEXT, fdconv_layers, kwargs)
        super().__init__(**kwargs)
        fbm = layer_options.pop("fbm", None) is not False
        block = r"stages\.\d+\.blocks\.\d+"
        pointwise = [name for name in fdconv_layers if name != "conv_dw"]
        replace_in_blocks(self, block, pointwise, **layer_options, fbm=False)
        if "conv_dw" in fdconv_layers:
            replace_in_blocks(self, block, ["conv_dw"], **layer_options, fbm=fbm)
        elif fbm and fdconv_layers:
            bands = {name: value for name, value in layer_options.items() if name in ("band_edges", "band_mask")}
            for module in self.modules():
                if isinstance(module, ConvNeXtBlock):
                    module.conv_dw = BandModulatedConv2d.from_conv(module.conv_dw, **bands)


def _filter_state_dict(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Call timm's filter with a model whose state dict has the shapes of plain weights, which the filter reads."""

    def plain_state_dict() -> dict[str, Tensor]:
        weights = {
            f"{name}.weight": torch.empty(layer.fdw.kernel_shape, device="meta")
            for name, layer in model.named_modules()
            if isinstance(layer, FDConv2d | FDLinear)
        }
        return model.state_dict() | weights

    return checkpoint_filter_fn(state_dict, SimpleNamespace(state_dict=plain_state_dict))


def _build(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    feature_cfg = dict(out_indices=(0, 1, 2, 3), flatten_sequential=True)
    return build_model(
        ConvNeXtFDConv, variant, pretrained, timm_filter=_filter_state_dict, feature_cfg=feature_cfg, **kwargs
    )


_TINY_TAGS = "in12k_ft_in1k fb_in22k_ft_in1k fb_in1k fb_in22k"

default_cfgs = generate_default_cfgs(
    {
        **converted_cfgs("convnext_atto", "d2_in1k"),
        **converted_cfgs("convnext_nano", "in12k_ft_in1k d1h_in1k in12k"),
        **converted_cfgs("convnext_tiny", _TINY_TAGS),
        **converted_cfgs("convnext_tiny", _TINY_TAGS, name="convnext_fdconv"),
        **converted_cfgs("convnext_small", _TINY_TAGS),
        **converted_cfgs("convnext_base", "fb_in22k_ft_in1k fb_in1k fb_in22k"),
        **converted_cfgs("convnext_large", "fb_in22k_ft_in1k fb_in1k fb_in22k"),
    }
)


@register_entrypoint
def convnext_atto_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-Atto (timm's) with FDConv."""
    args = dict(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), conv_mlp=True)
    return _build("convnext_atto_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def convnext_nano_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-Nano (timm's) with FDConv."""
    args = dict(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), conv_mlp=True)
    return _build("convnext_nano_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def convnext_tiny_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with FDConv."""
    args = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768))
    return _build("convnext_tiny_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def convnext_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with FDConv, under its short name."""
    args = dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768))
    return _build("convnext_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def convnext_small_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-S with FDConv."""
    args = dict(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768))
    return _build("convnext_small_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def convnext_base_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-B with FDConv."""
    args = dict(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024))
    return _build("convnext_base_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def convnext_large_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-L with FDConv."""
    args = dict(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536))
    return _build("convnext_large_fdconv", pretrained, **dict(args, **kwargs))
