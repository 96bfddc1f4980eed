"""Contents of a weights file for a family's model: weights under timm's names, and what is not used and why."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fdconv_zoo.errors import WeightsError, first_of
from fdconv_zoo.index.family import Family
from fdconv_zoo.porting.naming import find_naming, order_merged_patch, rename
from fdconv_zoo.store import Checkpoint, check_finite

_THEIRS = re.compile(r"(.*\.)(dft_weight$|KSM_Global\.|KSM_Local\.|FBM\.)")


@dataclass
class Source:
    """The contents of a weights file, under timm's names.

    Attributes:
        family: the family that the weights belong to.
        library: the library whose names the parameters had.
        is_fdconv: whether the weights have FDConv layers, the paper authors' or ours.
        tensors: the weights in float32, under timm's names. Parameters inside FDConv layers keep their names.
        mapped: number of tensors used, by part of the file.
        left: number of tensors not used, by part of the file and reason.
    """

    family: Family
    library: str
    is_fdconv: bool
    tensors: dict[str, Tensor]
    mapped: Counter[str] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def num_classes(self) -> int:
        """Number of rows of the classifier; 0 without a classifier."""
        weight = self.tensors.get(f"{self.family.porting.classifier}.weight")
        return 0 if weight is None else len(weight)


def understand(checkpoint: Checkpoint, family: Family) -> Source:
    """Find out which library's names a file has, and rename the weights that belong to the model.

    Raises:
        WeightsError: the names are unknown, two tensors get the same name, weights are NaN or infinite, or layers have
            modulators but no spectrum.
    """
    parts: Counter[tuple[str, str]] = Counter()
    weights = _take_backbone(checkpoint.tensors, parts)
    naming = find_naming(family.porting.namings, weights)
    if naming is None:
        known = ", ".join(naming.library for naming in family.porting.namings)
        raise WeightsError(
            f"{checkpoint.path} has none of the known names of a {family.title}'s parameters ({known}). Its first are "
            f"{first_of(checkpoint.tensors)}. Is --model of the right family?"
        )
    library = "the paper's authors" if any(map(_THEIRS.match, weights)) else naming.library
    source = Source(family, library, any(map(_is_fdconv, weights)), {}, left=parts)
    origins: dict[str, str] = {}
    for name, (original, tensor) in weights.items():
        reason = next((reason for pattern, reason in naming.left if re.match(pattern, name)), None)
        if reason:
            source.left[_group(original), reason] += 1
            continue
        ours = rename(name, naming.renames)
        if ours in origins:
            raise WeightsError(f"{checkpoint.path} has two tensors for {ours}: {origins[ours]} and {original}.")
        if naming.unfolds_by_channel and re.search(r"\.downsample\.(norm|reduction)\.", ours):
            tensor = order_merged_patch(tensor)
        origins[ours] = original
        source.tensors[ours] = tensor.float() if tensor.is_floating_point() else tensor
        source.mapped[_group(original)] += 1
    check_finite(checkpoint.path, {origins[name]: tensor for name, tensor in source.tensors.items()})
    _check_kernels(source.tensors, origins, checkpoint)
    return source


def _take_backbone(tensors: Mapping[str, Tensor], left: Counter[tuple[str, str]]) -> dict[str, tuple[str, Tensor]]:
    """Backbone and classifier by name without prefix, each with its full name; all others are counted in ``left``."""
    if not any(name.startswith("backbone.") for name in tensors):
        return {name: (name, tensor) for name, tensor in tensors.items()}
    taken = {}
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            taken[name.removeprefix("backbone.")] = name, tensor
        elif name.startswith(("head.fc.", "head.layers.head.")):  # of mmpretrain's classifiers
            taken[name] = name, tensor
        elif name.startswith("ema_"):
            left["ema_*", "a moving average kept beside the weights"] += 1
        else:
            left[_group(name), "not of the backbone"] += 1
    return taken


def _is_fdconv(name: str) -> bool:
    return bool(_THEIRS.match(name)) or ".fdw." in name or ".fbm." in name


def _check_kernels(tensors: Mapping[str, Tensor], origins: Mapping[str, str], checkpoint: Checkpoint) -> None:
    for name in tensors:
        theirs = _THEIRS.match(name)
        if theirs and f"{theirs[1]}weight" in tensors:
            raise WeightsError(
                f"{checkpoint.path} keeps {origins[theirs[1] + 'weight']} as a spatial kernel beside its modulators "
                "(the authors' convert_param=False): only layers with a dft_weight can be converted."
            )


def _group(name: str) -> str:
    """The part of a file that a tensor belongs to, such as ``backbone.layer1`` or ``neck``."""
    words = name.split(".")
    return ".".join(words[: 2 if words[0] == "backbone" else 1])
