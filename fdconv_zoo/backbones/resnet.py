"""ResNet, ResNeXt and Wide ResNet with FDConv in their residual blocks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.models import generate_default_cfgs
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from fdconv_zoo.backbones.arguments import split_arguments
from fdconv_zoo.backbones.build import build_model, converted_cfgs, replace_in_blocks
from fdconv_zoo.backbones.checked import CheckedInput
from fdconv_zoo.backbones.register import register_entrypoint
from fdconv_zoo.index.facts import Dataset
from fdconv_zoo.index.family import Family, Naming, Porting, register_family

__all__ = ["ResNetFDConv"]


def _implied_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments for a deep stem, for pooled downsampling, and for the layers that are the paper authors' FDConv."""
    arguments: dict[str, Any] = {}
    if "conv1.0.weight" in tensors:
        arguments |= {"stem_type": "deep", "stem_width": len(tensors["conv1.0.weight"])}
    if any(re.match(r"layer\d\.0\.downsample\.1\.weight$", key) and tensors[key].ndim == 4 for key in tensors):
        arguments["avg_down"] = True
    blocks = {match[1] for name in tensors if (match := re.match(r"layer\d+\.\d+\.(conv\d)\.", name))}
    dynamic = {match[1] for name in tensors if (match := re.match(r"layer\d+\.\d+\.(conv\d)\.dft_weight$", name))}
    stem = {"stem"} if any(re.match(r"conv1\.\d\.dft_weight$", name) for name in tensors) else set()
    if stem or (dynamic and dynamic != blocks):
        arguments["fdconv_layers"] = sorted(dynamic | stem)
    return arguments


def _difference(config: Mapping[str, Any]) -> str | None:
    if config.get("style", "pytorch") == "caffe" and config.get("depth", 50) >= 50:
        return (
            "it is of a ResNet of style='caffe', whose blocks have their stride in the first convolution. timm's have "
            "it in the second: the weights would fit but compute something else."
        )
    return None


RESNET = register_family(
    Family(
        title="ResNet",
        tag="resnet",
        architectures="resnet",
        order=0,
        citation=r"""
@inproceedings{he2016resnet,
  title     = {Deep Residual Learning for Image Recognition},
  author    = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2016}
}
""",
        layers="all convolutions of the residual blocks, not the stem and the downsample path",
        layer_choices=("conv1", "conv2", "conv3", "downsample", "stem"),
        dynamic_layers=("conv1", "conv2", "conv3"),
        has_bands=True,
        # From mmseg/models/backbones/resnet.py, FDConv_detection/mmdet_custom/resnet.py of Linwei-Chen/FDConv, and
        # torchvision.
        porting=Porting(
            timm_modules=("resnet",),
            namings=(
                Naming("OpenMMLab, deep stem", r"stem\.0\.", ((r"stem\.7\.", "bn1."), (r"stem\.", "conv1."))),
                Naming("timm, torchvision or OpenMMLab", r"layer1\.0\.conv1\."),
            ),
            classifier="fc",
            implied_arguments=_implied_arguments,
            difference=_difference,
        ),
        arguments={
            "stem_pool": "Keep the stem's max-pooling; without it every stage has twice the resolution, for small "
            "images. Default: True (resnet10s_fdconv: False)."
        },
        datasets={"ig1b": Dataset("Instagram images with hashtags (IG-1B)", None)},
    )
)
register_family(
    replace(
        RESNET,
        title="ResNeXt",
        tag="resnext",
        architectures="resnext",
        citation=r"""
@inproceedings{xie2017resnext,
  title     = {Aggregated Residual Transformations for Deep Neural Networks},
  author    = {Xie, Saining and Girshick, Ross and Doll{\'a}r, Piotr and Tu, Zhuowen and He, Kaiming},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2017}
}
""",
    )
)
register_family(
    replace(
        RESNET,
        title="Wide ResNet",
        tag="wide-resnet",
        architectures="wide_resnet",
        citation=r"""
@inproceedings{zagoruyko2016wide,
  title     = {Wide Residual Networks},
  author    = {Zagoruyko, Sergey and Komodakis, Nikos},
  booktitle = {Proceedings of the British Machine Vision Conference (BMVC)},
  year      = {2016}
}
""",
    )
)


class ResNetFDConv(CheckedInput, ResNet):
    """timm's ResNet with the convolutions of its blocks as FDConv, but not the stem and the downsample path.

    Convolutions with any stride become FDConv. A layer with 16 or fewer input or output channels stays plain.

    Args:
        block, layers, **kwargs: arguments of timm's ``ResNet``, and the keyword-only options of
            :class:`fdconv_zoo.FDConv2d` (``num_kernels``, ``ksm_local``, ``fbm``, ...).
        fdconv_layers: which of a block's ``conv1``, ``conv2``, ``conv3`` and ``downsample`` become FDConv. ``stem``
            stands for the second and third convolution of a deep stem, as in the authors' models. Empty for the plain
            model.
        stem_pool: keep the stem's max-pooling; without it, every stage has twice the resolution, for small images.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, ...],
        *,
        fdconv_layers: Sequence[str] = RESNET.dynamic_layers,
        stem_pool: bool = True,
        **kwargs: Any,
    ) -> None:
        layer_options, kwargs = split_arguments(type(self), RESNET, fdconv_layers, kwargs)
        super().__init__(block, layers, **kwargs)  # type: ignore[arg-type]  # timm: an instance, by its hint
        if not stem_pool:
            self.register_module("maxpool", nn.Identity())
            stages: list[dict[str, Any]] = self.feature_info[1:]
            for stage in stages:
                stage["reduction"] //= 2
        replace_in_blocks(self, r"layer\d+\.\d+", fdconv_layers, **layer_options)
        if "stem" in fdconv_layers:
            replace_in_blocks(self, "conv1", ("3", "6"), **layer_options)


_SHIPPED = Path(__file__).resolve().parents[1] / "pretrained"  # weights that come with the package
_GARMENTS: tuple[str, ...] = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
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


@register_entrypoint
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


@register_entrypoint
def resnet18_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with FDConv."""
    args = dict(block=BasicBlock, layers=(2, 2, 2, 2))
    return _build("resnet18_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def resnet34_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with FDConv."""
    args = dict(block=BasicBlock, layers=(3, 4, 6, 3))
    return _build("resnet34_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def resnet50_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with FDConv, the paper's main model."""
    args = dict(block=Bottleneck, layers=(3, 4, 6, 3))
    return _build("resnet50_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def resnet101_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101 with FDConv."""
    args = dict(block=Bottleneck, layers=(3, 4, 23, 3))
    return _build("resnet101_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def resnet152_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-152 with FDConv."""
    args = dict(block=Bottleneck, layers=(3, 8, 36, 3))
    return _build("resnet152_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def resnext50_32x4d_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeXt-50 32x4d with FDConv; its 3x3 convolutions have 32 groups."""
    args = dict(block=Bottleneck, layers=(3, 4, 6, 3), cardinality=32, base_width=4)
    return _build("resnext50_32x4d_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def wide_resnet50_2_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Wide ResNet-50-2 with FDConv: twice the channels within each block."""
    args = dict(block=Bottleneck, layers=(3, 4, 6, 3), base_width=128)
    return _build("wide_resnet50_2_fdconv", pretrained, **dict(args, **kwargs))
