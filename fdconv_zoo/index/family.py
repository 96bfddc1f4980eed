"""Records of the model families, for the index, the cards and the conversion of other projects' weights.

A family's file in ``fdconv_zoo/backbones`` registers its record on import; no other file names a family.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fdconv_zoo.index.facts import LICENCES, TRAINED_ON, Dataset, Licence

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Naming:
    """The names that a library uses for a family's parameters.

    The rules only rename the start of a name, up to the layer. The names of parameters within a layer (``weight``,
    ``bias``, or those of the paper authors' FDConv layer) do not change. If no rule matches, the name is kept.

    Attributes:
        library: the library that uses the names.
        mark: pattern of a name that only this library has; the first naming of a family that matches is used.
        renames: pairs of a pattern for the start of a name and timm's replacement; the first match is used. See
            :func:`fdconv_zoo.porting.naming.rename` for the placeholders of a replacement.
        left: pairs of a pattern for names that timm's model does not have, and the reason why it does not need them.
        unfolds_by_channel: whether patches are merged in the order of ``nn.Unfold``, with channels outermost.
    """

    library: str
    mark: str
    renames: Rules = ()
    left: Rules = ()
    unfolds_by_channel: bool = False


def _no_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {}


def _no_difference(config: Mapping[str, Any]) -> None:
    return None


@dataclass(frozen=True)
class Porting:
    """How other projects' weights of a family are converted.

    Attributes:
        timm_modules: modules of timm whose plain models have the family's parameters.
        namings: the names that libraries use for the parameters.
        classifier: timm's name of the last layer.
        implied_arguments: returns the model's arguments that can be derived from the weights (under timm's names).
        difference: returns how a backbone with an OpenMMLab configuration differs from timm's model, if its weights fit
            timm's model but compute something else; None if it does not differ.
    """

    timm_modules: tuple[str, ...]
    namings: tuple[Naming, ...]
    classifier: str
    implied_arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]] = _no_arguments
    difference: Callable[[Mapping[str, Any]], str | None] = _no_difference


@dataclass(frozen=True)
class Family:
    """A family of models, or a variant of one with its own paper.

    Attributes:
        title: name of the family in sentences.
        tag: name of the family among a card's tags.
        architectures: pattern for the start of the names of its architectures.
        order: position in tables.
        citation: the family's paper, in BibTeX.
        layers: which layers are FDConv, in words.
        layer_choices: the names of a block's layers that can be FDConv, the possible values of ``fdconv_layers``.
        dynamic_layers: the layers that are FDConv by default.
        has_bands: whether some of the layers have kernels larger than 1x1, so that FBM applies.
        porting: how other projects' weights are converted.
        arguments: arguments of the family's models, other than those of timm and of FDConv layers, with descriptions.
        short_name: second name of the family's tiny model.
        datasets: datasets that only the family's weights were trained on, by the part of a tag that names them.
        licences: licences that only the family's weights have, by timm's identifier.
    """

    title: str
    tag: str
    architectures: str
    order: int
    citation: str
    layers: str
    layer_choices: tuple[str, ...]
    dynamic_layers: tuple[str, ...]
    has_bands: bool
    porting: Porting
    arguments: Mapping[str, str] = field(default_factory=dict)
    short_name: str | None = None
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    licences: Mapping[str, Licence] = field(default_factory=dict)


_FAMILIES: list[Family] = []


def register_family(family: Family) -> Family:
    """Register a family with its datasets and licences, and return it."""
    _FAMILIES.append(family)
    TRAINED_ON.update(family.datasets)
    LICENCES.update(family.licences)
    return family


def all_families() -> list[Family]:
    """Return the registered families, in the order of tables."""
    return sorted(_FAMILIES, key=lambda family: family.order)


def find_family(architecture: str) -> Family:
    """Return the family of one of our architectures.

    Raises:
        KeyError: the architecture belongs to no registered family.
    """
    for family in _FAMILIES:
        if re.match(family.architectures, architecture):
            return family
    raise KeyError(f"{architecture}: no registered family has architectures of that name")
