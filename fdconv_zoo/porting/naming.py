"""Renames parameters from other libraries' names to timm's.

The rules are in each family's file in ``fdconv_zoo/backbones``, see :class:`fdconv_zoo.index.family.Naming`.
"""

import re
from collections.abc import Collection

from torch import Tensor

from fdconv_zoo.index.family import Naming, Rules


def find_naming(namings: Collection[Naming], names: Collection[str]) -> Naming | None:
    """Return the first naming whose ``mark`` matches one of the names; None if there is none."""
    return next((naming for naming in namings if any(re.match(naming.mark, name) for name in names)), None)


def rename(name: str, rules: Rules) -> str:
    """Return timm's name of a parameter.

    A replacement may contain placeholders. ``{next}`` is the first group plus 1: some libraries downsample at the end
    of a stage, timm at the start of the next one. ``{half}`` is half of the first group, rounded down: torchvision
    counts patch embedding, stages and downsampling in one list, and timm's stage i is the downsampling 2*i and the
    blocks 2*i + 1. ``{block}`` is the second group.
    """
    for pattern, replacement in rules:
        if match := re.match(pattern, name):
            groups = [int(group) for group in match.groups()]
            first, second = (*groups, 0, 0)[:2]
            start = match.expand(replacement).format(next=first + 1, half=first // 2, block=second)
            return start + name[match.end() :]
    return name


def order_merged_patch(tensor: Tensor) -> Tensor:
    """Reorder the last axis, a 2x2 patch, from ``nn.Unfold``'s (C, row, column) to Swin's (column, row, C)."""
    patches = tensor.unflatten(-1, (-1, 2, 2))
    return patches.movedim((-3, -2, -1), (-1, -2, -3)).flatten(-3)
