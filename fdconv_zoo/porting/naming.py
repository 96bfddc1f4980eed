"""How each library names the parameters of a family, and what timm calls the same.

The rules rename the start of a name, so that what a layer holds (``weight``, ``bias``, or the parameters of the paper
authors' FDConv layer) keeps its own. A parameter that no rule matches keeps its name. Sources of the names:

- OpenMMLab: ``resnet.py`` and ``swin.py`` in ``mmseg/models/backbones``, ``convnext.py`` and ``swin_transformer.py`` in
  ``mmpretrain/models/backbones``, ``mmcv/cnn/bricks/transformer.py``.
- The paper's authors: ``FDConv_detection/mmdet_custom/{resnet,FDConv}.py`` of Linwei-Chen/FDConv.
- torchvision: ``torchvision/models/{resnet,swin_transformer,convnext}.py``.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Naming:
    """The names one library has for a family's parameters.

    Attributes:
        library: whose names they are.
        mark: pattern of a name that only this library has; the first naming of a family with a match is taken.
        renames: pattern of a name's start, and what timm has in its place; the first that matches counts.
        left: pattern of names that timm has no place for, and why the model is the same without them.
        unfolds_by_channel: patches are merged in the order of ``nn.Unfold``, channels outermost.
    """

    library: str
    mark: str
    renames: Rules = ()
    left: Rules = ()
    unfolds_by_channel: bool = False


_OUTPUT_NORMS = (r"norm[0-2]\.", "normalise what a dense head reads from earlier stages; timm returns it as it is")
_BUFFERS = (r".*(relative_position_index|attn_mask)$", "follows from the window size")
_SWIN_BLOCK = r"layers.\1.blocks.\2."

NAMINGS: Mapping[str, tuple[Naming, ...]] = {
    "resnet": (
        Naming("OpenMMLab, deep stem", r"stem\.0\.", ((r"stem\.7\.", "bn1."), (r"stem\.", "conv1."))),
        Naming("timm, torchvision or OpenMMLab", r"layer1\.0\.conv1\."),
    ),
    "swin": (
        Naming(
            "OpenMMLab",
            r"patch_embed\.projection\.",
            (
                (r"patch_embed\.projection\.", "patch_embed.proj."),
                (r"stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.", _SWIN_BLOCK + "attn."),
                (r"stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.0\.0\.", _SWIN_BLOCK + "mlp.fc1."),
                (r"stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.1\.", _SWIN_BLOCK + "mlp.fc2."),
                (r"stages\.(\d+)\.blocks\.(\d+)\.", _SWIN_BLOCK),
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
                (r"norm3\.", "norm."),  # of their detectors
                (r"head\.", "head.fc."),
            ),
            (_OUTPUT_NORMS, _BUFFERS),
        ),
        Naming("timm", r"layers\.1\.downsample\.", left=(_BUFFERS,)),
    ),
    "convnext": (
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
    ),
}


def find_naming(family: str, names: Collection[str]) -> Naming | None:
    """The first naming of the family whose mark is among the names."""
    return next((n for n in NAMINGS[family] if any(re.match(n.mark, name) for name in names)), None)


def rename(name: str, rules: Rules) -> str:
    """timm's name of a parameter.

    In a replacement ``{next}`` is the first group plus 1: some downsample at a stage's end, timm at the next one's
    start. ``{half}`` is half of it: torchvision counts patch embedding, stages and downsampling in one list, and
    timm's stage i is the downsampling 2*i and the blocks 2*i + 1. ``{block}`` is the second group.
    """
    for pattern, replacement in rules:
        if match := re.match(pattern, name):
            groups = [int(group) for group in match.groups()]
            first, second = (*groups, 0, 0)[:2]
            start = match.expand(replacement).format(next=first + 1, half=first // 2, block=second)
            return start + name[match.end() :]
    return name


def order_merged_patch(tensor: Tensor) -> Tensor:
    """Bring the last axis from ``nn.Unfold``'s order (C, row, column) of a 2x2 patch to Swin's (column, row, C)."""
    patches = tensor.unflatten(-1, (-1, 2, 2))
    return patches.movedim((-3, -2, -1), (-1, -2, -3)).flatten(-3)
