"""Records of the model families, for the index, the cards and the conversion of other projects' weights.

A family's file in ``fdconv_zoo/backbones`` registers its record when it is imported; no other file names a family.
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
    """The names one library has for a family's parameters.

    The rules rename the start of a name, so that what a layer holds (``weight``, ``bias``, or the parameters of the
    paper authors' FDConv layer) keeps its own. A parameter that no rule matches keeps its name.

    Attributes:
        library: whose names they are.
        mark: pattern of a name that only this library has; the first naming of a family with a match is taken.
        renames: pattern of a name's start, and what timm has in its place; the first that matches counts. See
            :func:`fdconv_zoo.porting.naming.rename` for what a replacement may hold.
        left: pattern of names that timm has no place for, and why the model is the same without them.
        unfolds_by_channel: patches are merged in the order of ``nn.Unfold``, channels outermost.
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
        namings: the names that libraries have for them.
        classifier: timm's name of the last layer.
        implied_arguments: the model's arguments that follow from the weights (under timm's names).
        difference: how a backbone with this configuration of OpenMMLab's differs from timm's model, so that weights
            which fit would compute something else; None if it does not.
    """

    timm_modules: tuple[str, ...]
    namings: tuple[Naming, ...]
    classifier: str
    implied_arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]] = _no_arguments
    difference: Callable[[Mapping[str, Any]], str | None] = _no_difference


@dataclass(frozen=True)
class Family:
    """A family of models, or a branch of one with a paper of its own.

    Attributes:
        title: its name in sentences.
        tag: its name among a card's tags.
        architectures: pattern of how the names of its architectures begin.
        order: its place in tables.
        citation: its paper, in BibTeX.
        layers: which of its layers are FDConv, in words.
        layer_choices: the names of a block's layers that can be FDConv: what ``fdconv_layers`` may hold.
        dynamic_layers: those that are, by default.
        has_bands: some of them have kernels larger than 1x1, where frequency band modulation has a place.
        porting: how other projects' weights are converted.
        arguments: its models' own arguments besides those of timm and of FDConv's layers, each with what it does.
        short_name: a second name of its tiny model.
        datasets: that only its weights were trained on, by the part of a tag that names them.
        licences: that only its weights have, by the identifier that timm gives them.
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
    """Make a family known, with its datasets and licences, and return it."""
    _FAMILIES.append(family)
    TRAINED_ON.update(family.datasets)
    LICENCES.update(family.licences)
    return family


def all_families() -> list[Family]:
    """The registered families, in the order of tables."""
    return sorted(_FAMILIES, key=lambda family: family.order)


def find_family(architecture: str) -> Family:
    """The family of one of our architectures.

    Raises:
        KeyError: it belongs to none.
    """
    for family in _FAMILIES:
        if re.match(family.architectures, architecture):
            return family
    raise KeyError(f"{architecture}: no registered family has architectures of that name")
