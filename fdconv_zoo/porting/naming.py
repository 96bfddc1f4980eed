"""From the names that other libraries have for a model's parameters to timm's.

Each family's file in ``fdconv_zoo/backbones`` holds the rules, :class:`fdconv_zoo.index.family.Naming`.
"""

import re
from collections.abc import Collection

from torch import Tensor

from fdconv_zoo.index.family import Naming, Rules


def find_naming(namings: Collection[Naming], names: Collection[str]) -> Naming | None:
    """The first naming whose mark is among the names."""
    return next((naming for naming in namings if any(re.match(naming.mark, name) for name in names)), None)


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
