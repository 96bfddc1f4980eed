"""ResNet, ResNeXt and Wide ResNet with FDConv in their residual blocks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from fdconv_zoo.backbones.build import build_model, converted_cfgs, replace_in_blocks, split_layer_options

__all__ = ["ResNetFDConv"]


class ResNetFDConv(ResNet):
    """timm's ResNet whose blocks' convolutions are FDConv: all strides, not the stem, not the downsample path.

    A layer with 16 or fewer input or output channels stays plain.

    Args:
        block, layers, **kwargs: of timm's ``ResNet``, and the keyword-only options of :class:`fdconv_zoo.FDConv2d`
            (``num_kernels``, ``ksm_local``, ``fbm``, ...).
        fdconv_layers: which of a block's ``conv1``, ``conv2``, ``conv3`` and ``downsample`` become FDConv, and whether
            the second and third convolution of a deep ``stem`` do, as in the authors' models; empty for the plain twin.
        stem_pool: keep the stem's max-pooling; without it every stage has twice the resolution, for small images.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, ...],
        *,
        fdconv_layers: Sequence[str] = ("conv1", "conv2", "conv3"),
        stem_pool: bool = True,
        **kwargs: Any,
    ) -> None:
        layer_options, kwargs = split_layer_options(kwargs)
        super().__init__(block, layers, **kwargs)
        if not stem_pool:
            self.maxpool = nn.Identity()
            for stage in self.feature_info[1:]:
                stage["reduction"] //= 2
        choices = ("conv1", "conv2", "conv3", "downsample", "stem")
        replace_in_blocks(self, r"layer\d+\.\d+", fdconv_layers, choices, **layer_options)
        if "stem" in fdconv_layers:
            replace_in_blocks(self, "conv1", ("3", "6"), ("3", "6"), **layer_options)


_SHIPPED = Path(__file__).resolve().parents[1] / "pretrained"  # weights that come with the package
_GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
_GARMENTS += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _build(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_model(ResNetFDConv, variant, pretrained, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        **converted_cfgs("resnet18", "a1_in1k fb_swsl_ig1b_ft_in1k tv_in1k"),
        **converted_cfgs("resnet34", "a1_in1k tv_in1k"),
        **converted_cfgs("resnet50", "a1_in1k fb_swsl_ig1b_ft_in1k tv_in1k tv2_in1k"),
        **converted_cfgs("resnet101", "a1h_in1k a1_in1k tv_in1k tv2_in1k"),
        **converted_cfgs("resnet152", "a1h_in1k a1_in1k tv_in1k tv2_in1k"),
        **converted_cfgs("resnext50_32x4d", "a1h_in1k a1_in1k fb_swsl_ig1b_ft_in1k tv_in1k tv2_in1k"),
        **converted_cfgs("wide_resnet50_2", "racm_in1k tv_in1k tv2_in1k"),
        "resnet10s_fdconv.fashion_mnist": {
            "file": str(_SHIPPED / "resnet10s_fdconv.fashion_mnist.safetensors"),
            "input_size": (3, 32, 32),
            "pool_size": (2, 2),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "first_conv": "conv1.0",
            "classifier": "fc",
            "num_classes": 10,
            "label_names": _GARMENTS,
            "license": "apache-2.0",
        },
    }
)


@register_model
def resnet10s_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small ResNet-10 for images of 32x32 to 64x64: one basic block a stage, no stem pooling."""
    args = dict(
        block=BasicBlock,
        layers=(1, 1, 1, 1),
        channels=(32, 48, 64, 96),
        stem_type="deep",
        stem_width=16,
        stem_pool=False,
    )
    return _build("resnet10s_fdconv", pretrained, **dict(args, **kwargs))


@register_model
def resnet18_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with FDConv."""
    args = dict(block=BasicBlock, layers=(2, 2, 2, 2))
    return _build("resnet18_fdconv", pretrained, **dict(args, **kwargs))


@register_model
def resnet34_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with FDConv."""
    args = dict(block=BasicBlock, layers=(3, 4, 6, 3))
    return _build("resnet34_fdconv", pretrained, **dict(args, **kwargs))


@register_model
def resnet50_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with FDConv, the paper's main model."""
    args = dict(block=Bottleneck, layers=(3, 4, 6, 3))
    return _build("resnet50_fdconv", pretrained, **dict(args, **kwargs))


@register_model
def resnet101_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101 with FDConv."""
    args = dict(block=Bottleneck, layers=(3, 4, 23, 3))
    return _build("resnet101_fdconv", pretrained, **dict(args, **kwargs))


@register_model
def resnet152_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-152 with FDConv."""
    args = dict(block=Bottleneck, layers=(3, 8, 36, 3))
    return _build("resnet152_fdconv", pretrained, **dict(args, **kwargs))


@register_model
def resnext50_32x4d_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeXt-50 32x4d with FDConv; its 3x3 convolutions have 32 groups."""
    args = dict(block=Bottleneck, layers=(3, 4, 6, 3), cardinality=32, base_width=4)
    return _build("resnext50_32x4d_fdconv", pretrained, **dict(args, **kwargs))


@register_model
def wide_resnet50_2_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Wide ResNet-50-2 with FDConv: twice the channels within each block."""
    args = dict(block=Bottleneck, layers=(3, 4, 6, 3), base_width=128)
    return _build("wide_resnet50_2_fdconv", pretrained, **dict(args, **kwargs))
