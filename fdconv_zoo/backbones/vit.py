"""Vision Transformers with FDConv in their blocks' MLPs: ViT (also with DeiT's weights) and DINOv3."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import LayerNorm
from timm.models import eva, generate_default_cfgs, vision_transformer
from torch import nn

from fdconv_zoo.backbones.arguments import split_arguments
from fdconv_zoo.backbones.build import StateDict, build_model, converted_cfgs, replace_in_blocks
from fdconv_zoo.backbones.checked import CheckedFeatureGetter, CheckedInput
from fdconv_zoo.backbones.register import register_entrypoint
from fdconv_zoo.index.facts import Dataset, Licence
from fdconv_zoo.index.family import Family, Naming, Porting, register_family
from fdconv_zoo.layers import FDLinear
from fdconv_zoo.layers.replace import swap_layers

__all__ = ["EvaFDConv", "VisionTransformerFDConv"]

_BLOCK = r"encoder\.layers\.encoder_layer_(\d+)\."
_TORCHVISION = Naming(  # torchvision/models/vision_transformer.py, including the names of MLPs before version 0.12
    "torchvision",
    _BLOCK,
    (
        (r"class_token$", "cls_token"),
        (r"conv_proj\.", "patch_embed.proj."),
        (r"encoder\.pos_embedding$", "pos_embed"),
        (_BLOCK + r"ln_", r"blocks.\1.norm"),
        (_BLOCK + r"self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
        (_BLOCK + r"self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
        (_BLOCK + r"mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
        (_BLOCK + r"mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
        (r"encoder\.ln\.", "norm."),
        (r"heads\.head\.", "head."),
    ),
)
_OPENMMLAB = Naming(  # mmpretrain/models/backbones/vision_transformer.py, mmpretrain/models/heads
    "OpenMMLab",
    r"layers\.0\.ln1\.",
    (
        (r"patch_embed\.projection\.", "patch_embed.proj."),
        (r"layers\.(\d+)\.ln", r"blocks.\1.norm"),
        (r"layers\.(\d+)\.attn\.", r"blocks.\1.attn."),
        (r"layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
        (r"layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
        (r"ln1\.", "norm."),
        (r"head\.layers\.head\.", "head."),
    ),
)
VIT = register_family(
    Family(
        title="Vision Transformer",
        tag="vit",
        architectures=r"vit_\w+_patch\d+_\d",
        order=3,
        citation=r"""
@inproceedings{dosovitskiy2021vit,
  title     = {An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale},
  author    = {Dosovitskiy, Alexey and Beyer, Lucas and Kolesnikov, Alexander and Weissenborn, Dirk and
               Zhai, Xiaohua and Unterthiner, Thomas and Dehghani, Mostafa and Minderer, Matthias and
               Heigold, Georg and Gelly, Sylvain and Uszkoreit, Jakob and Houlsby, Neil},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2021}
}
""",
        layers="the two linear layers of each MLP",
        layer_choices=("mlp.fc1", "mlp.fc2"),
        dynamic_layers=("mlp.fc1", "mlp.fc2"),
        has_bands=False,
        porting=Porting(
            timm_modules=("vision_transformer", "deit"),
            namings=(_OPENMMLAB, _TORCHVISION, Naming("timm or Facebook (DeiT)", r"blocks\.0\.norm1\.")),
            classifier="head",
        ),
    )
)
DINOV3 = register_family(
    replace(
        VIT,
        title="DINOv3",
        tag="dinov3",
        architectures=r"vit_\w+_dinov3",
        order=4,
        citation=r"""
@article{simeoni2025dinov3,
  title   = {DINOv3},
  author  = {Sim{\'e}oni, Oriane and Vo, Huy V. and Seitzer, Maximilian and Baldassarre, Federico and Oquab, Maxime and
             others},
  journal = {arXiv preprint arXiv:2508.10104},
  year    = {2025}
}
""",
        porting=Porting(timm_modules=("eva",), namings=(Naming("timm", r"blocks\.0\.norm1\."),), classifier="head"),
        datasets={"lvd1689m": Dataset("LVD-1689M", "lvd-1689m")},
        licences={
            "dinov3-license": Licence(
                "the DINOv3 License", "https://ai.meta.com/resources/models-and-libraries/dinov3-license"
            )
        },
    )
)


class VisionTransformerFDConv(CheckedInput, vision_transformer.VisionTransformer):
    """timm's Vision Transformer with the two linear layers of each block's MLP as FDConv; attention stays plain.

    A layer's weight depends on all tokens of an image, including the class token.

    Args:
        **kwargs: arguments of timm's ``VisionTransformer``, and the keyword-only options of
            :class:`fdconv_zoo.FDLinear` (``num_kernels``, ``ksm_local``, ...).
        fdconv_layers: which of a block's ``mlp.fc1`` and ``mlp.fc2`` become FDConv; empty for the plain model.
    """

    def __init__(self, *, fdconv_layers: Sequence[str] = VIT.dynamic_layers, **kwargs: Any) -> None:
        layer_options, kwargs = split_arguments(type(self), VIT, fdconv_layers, kwargs)
        super().__init__(**kwargs)
        replace_in_blocks(self, r"blocks\.\d+", fdconv_layers, **layer_options)

    @torch.jit.ignore()
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load plain weights from a NumPy file as published by Google; timm calls it for ``checkpoint_path=*.npz``."""
        plain = copy.deepcopy(self)
        layers = [layer for layer in plain.modules() if isinstance(layer, FDLinear)]
        swap_layers(plain, {layer: nn.Linear(layer.in_features, layer.out_features) for layer in layers})
        vision_transformer.VisionTransformer.load_pretrained(plain, checkpoint_path, prefix)
        self.load_state_dict(plain.state_dict())


class EvaFDConv(CheckedInput, eva.Eva):
    """timm's ``Eva``, the class of its DINOv3 models, with the linear layers of each MLP as FDConv.

    Args:
        **kwargs: arguments of timm's ``Eva``, and the keyword-only options of :class:`fdconv_zoo.FDLinear`.
        fdconv_layers: which of a block's ``mlp.fc1`` and ``mlp.fc2`` become FDConv; empty for the plain model.
    """

    def __init__(self, *, fdconv_layers: Sequence[str] = DINOV3.dynamic_layers, **kwargs: Any) -> None:
        layer_options, kwargs = split_arguments(type(self), DINOV3, fdconv_layers, kwargs)
        super().__init__(**kwargs)
        replace_in_blocks(self, r"blocks\.\d+", fdconv_layers, **layer_options)


def _build(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    model_cls: type[nn.Module] = VisionTransformerFDConv
    timm_filter: Callable[..., StateDict] = vision_transformer.checkpoint_filter_fn
    if "dinov3" in variant:
        model_cls, timm_filter = EvaFDConv, eva.checkpoint_filter_fn
    feature_cfg = dict(out_indices=kwargs.pop("out_indices", 3), feature_cls=CheckedFeatureGetter)
    return build_model(model_cls, variant, pretrained, timm_filter, feature_cfg=feature_cfg, **kwargs)


_HAS_DINOV3 = timm.is_model("vit_small_patch16_dinov3")  # not in timm before 1.0.20

default_cfgs = generate_default_cfgs(
    {
        **converted_cfgs("vit_tiny_patch16_224", "augreg_in21k_ft_in1k augreg_in21k"),
        **converted_cfgs("vit_small_patch16_224", "augreg_in21k_ft_in1k augreg_in1k augreg_in21k"),
        **converted_cfgs("vit_base_patch16_224", "augreg2_in21k_ft_in1k augreg_in21k_ft_in1k augreg_in1k augreg_in21k"),
        **{
            name: cfg
            for size in ("tiny", "small", "base")
            for name, cfg in converted_cfgs(
                f"deit_{size}_patch16_224", "fb_in1k", name=f"vit_{size}_patch16_224_fdconv", prefix="deit_"
            ).items()
        },
        **(converted_cfgs("vit_small_patch16_dinov3", "lvd1689m") if _HAS_DINOV3 else {}),
        **(converted_cfgs("vit_base_patch16_dinov3", "lvd1689m") if _HAS_DINOV3 else {}),
    }
)


@register_entrypoint
def vit_tiny_patch16_224_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-Ti/16 with FDConv."""
    args = dict(patch_size=16, embed_dim=192, depth=12, num_heads=3)
    return _build("vit_tiny_patch16_224_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def vit_small_patch16_224_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-S/16 with FDConv."""
    args = dict(patch_size=16, embed_dim=384, depth=12, num_heads=6)
    return _build("vit_small_patch16_224_fdconv", pretrained, **dict(args, **kwargs))


@register_entrypoint
def vit_base_patch16_224_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-B/16 with FDConv."""
    args = dict(patch_size=16, embed_dim=768, depth=12, num_heads=12)
    return _build("vit_base_patch16_224_fdconv", pretrained, **dict(args, **kwargs))


_DINOV3_ARGS = dict(
    patch_size=16,
    dynamic_img_size=True,
    depth=12,
    qkv_bias=False,
    init_values=1e-5,
    rope_type="dinov3",
    rope_temperature=100,
    rope_rotate_half=True,
    use_rot_pos_emb=True,
    use_abs_pos_emb=False,
    num_reg_tokens=4,
    use_fc_norm=False,
    norm_layer=partial(LayerNorm, eps=1e-5),
)

if _HAS_DINOV3:

    @register_entrypoint
    def vit_small_patch16_dinov3_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        """DINOv3's ViT-S/16 with FDConv."""
        args = dict(_DINOV3_ARGS, embed_dim=384, num_heads=6)
        return _build("vit_small_patch16_dinov3_fdconv", pretrained, **dict(args, **kwargs))

    @register_entrypoint
    def vit_base_patch16_dinov3_fdconv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        """DINOv3's ViT-B/16 with FDConv."""
        args = dict(_DINOV3_ARGS, embed_dim=768, num_heads=12)
        return _build("vit_base_patch16_dinov3_fdconv", pretrained, **dict(args, **kwargs))
