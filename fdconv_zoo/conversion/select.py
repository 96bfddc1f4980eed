"""Selects the layers of a model to convert, with reasons for skipping the others."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fdconv_zoo.conversion.obstacles import (
    classifier_layers,
    obstacle_in_calls,
    obstacle_in_layer,
    obstacles_in_parents,
    obstacles_in_ties,
)
from fdconv_zoo.conversion.run import Calls
from fdconv_zoo.layers import FDConv2d
from fdconv_zoo.layers.plain import PlainLayer
from fdconv_zoo.layers.replace import DYNAMIC_KINDS, LAYER_OPTIONS, PLAIN_KINDS, find_layers, find_plain_layers


@dataclass(frozen=True)
class SkippedLayer:
    """A convolution or linear layer that is not converted.

    Attributes:
        name: The first of its names in the model.
        reason: Why it is skipped.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Rules:
    """The user's choice of layers; see :func:`fdconv_zoo.convert_model`.

    Raises:
        TypeError: ``types`` has a type other than ``nn.Conv2d`` and ``nn.Linear``.
    """

    include: str | Iterable[str] | None = None
    exclude: str | Iterable[str] = ()
    types: type[nn.Module] | Sequence[type[nn.Module]] = PLAIN_KINDS
    min_channels: int = 17
    select: Callable[[str, nn.Module], bool] | None = None

    def __post_init__(self) -> None:
        for field in ("include", "exclude"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, (value,) if isinstance(value, str) else tuple(value))
        for kind in self.kinds:
            if kind not in PLAIN_KINDS:
                raise TypeError(f"types has {kind}, but only nn.Conv2d and nn.Linear have an FDConv counterpart.")

    @property
    def kinds(self) -> tuple[type[nn.Module], ...]:
        """``types`` as a tuple."""
        return (self.types,) if isinstance(self.types, type) else tuple(self.types)

    def objection(self, layer: nn.Module, names: Sequence[str]) -> str | None:
        """Return why these rules exclude a layer; None if they do not.

        Raises:
            RuntimeError: ``select`` raises an error.
        """
        if not isinstance(layer, self.kinds):
            return f"not in types={_names(self.kinds)}"
        if self.include is not None and not _match(names, self.include):
            return f"not in include={self.include}"
        if _match(names, self.exclude):
            return f"in exclude={self.exclude}"
        try:
            if self.select is not None and not self.select(names[0], layer):
                return "rejected by select"
        except Exception as error:
            raise RuntimeError(f"select fails for {names[0]!r}: {type(error).__name__} ({error}).") from error
        return None

    def names_exactly(self, names: Sequence[str]) -> bool:
        """Whether ``include`` has one of these names literally, without wildcards."""
        return self.include is not None and not set(names).isdisjoint(self.include)

    def names(self, names: Sequence[str]) -> bool:
        """Whether a pattern of ``include`` other than ``"*"`` matches one of these names."""
        return self.include is not None and _match(names, [pattern for pattern in self.include if pattern != "*"])

    def __str__(self) -> str:
        text = f"types={_names(self.kinds)}, min_channels={self.min_channels}"
        text += "" if self.include is None else f", include={self.include}"
        text += f", exclude={self.exclude}" if self.exclude else ""
        return text if self.select is None else f"{text}, select={self.select}"


def select_layers(
    model: nn.Module, rules: Rules, calls: Calls | None, options: Mapping[str, Any]
) -> tuple[dict[PlainLayer, list[str]], tuple[SkippedLayer, ...]]:
    """Choose the layers to convert.

    Args:
        model: not changed.
        rules: the user's choice.
        calls: the calls observed on an example; None without an example.
        options: options of the FDConv layers.

    Returns:
        The layers with all their names, and the skipped convolutions and linear layers.

    Raises:
        TypeError: FDConv layers do not have an option; the message names it.
        ValueError: ``include`` names a layer (without wildcards) that does not exist or cannot be converted, or
            nothing is left to convert.
    """
    if unknown := sorted(options.keys() - LAYER_OPTIONS):
        raise TypeError(
            f"FDConv layers have no option {', '.join(unknown)}; the options are {', '.join(sorted(LAYER_OPTIONS))}."
        )
    num_kernels = options.get("num_kernels", inspect.signature(FDConv2d).parameters["num_kernels"].default)
    layers = find_plain_layers(model)
    _check_names(model, rules, layers)
    chosen: dict[PlainLayer, list[str]] = {}
    reasons: dict[PlainLayer, str] = {}

    def skip(layer: PlainLayer, reason: str) -> None:
        names = layers[layer]
        if rules.names_exactly(names):
            raise ValueError(f"{names[0]!r} cannot become an FDConv layer: {reason}.")
        chosen.pop(layer, None)
        reasons[layer] = reason

    in_parents, classifier = obstacles_in_parents(model), classifier_layers(model)
    for layer, names in layers.items():
        if unwanted := rules.objection(layer, names):
            reasons[layer] = unwanted
            continue
        reason = obstacle_in_layer(layer, rules.min_channels, num_kernels) or in_parents.get(layer)
        if calls is not None:
            reason = reason or obstacle_in_calls(layer, calls.shapes.get(layer))
        reason = reason or _objection_unless_named(layer, names, rules, calls, classifier)
        if reason:
            skip(layer, reason)
        else:
            chosen[layer] = names
    name_of = {module: name for name, module in model.named_modules()}
    for layer, reason in obstacles_in_ties(model, chosen, name_of).items():
        skip(layer, reason)

    skipped = tuple(SkippedLayer(names[0], reasons[layer]) for layer, names in layers.items() if layer in reasons)
    if not chosen:
        text = "\n".join(group_by_reason(skipped)) or "It has no plain nn.Conv2d or nn.Linear layers."
        raise ValueError(f"Nothing in this {type(model).__name__} can be converted with {rules}.\n{text}")
    return chosen, skipped


def _objection_unless_named(
    layer: nn.Module, names: list[str], rules: Rules, calls: Calls | None, classifier: set[nn.Module]
) -> str | None:
    """Return why a layer should only be converted if the user names it; None if there is no objection."""
    is_linear = isinstance(layer, nn.Linear)
    if is_linear and calls is None and rules.include is None and rules.select is None:
        return "its input may be (B, C): pass an example to show that it is not, or name it in include"
    if rules.names(names):
        return None
    if layer in classifier:
        return "part of the classifier: name it in include to convert it"
    if is_linear and calls is not None and any(shape[0] != calls.batch for shape in calls.shapes[layer]):
        return (
            "its batch size is not the number of images (windows?), and each item would get its own kernel: name it in "
            "include to convert it"
        )
    return None


def group_by_reason(skipped: Sequence[SkippedLayer], limit: int = 4) -> list[str]:
    """Format one line per reason, with the names of the first layers."""
    groups: dict[str, list[str]] = {}
    for layer in skipped:
        groups.setdefault(layer.reason, []).append(layer.name)
    return [
        f"{len(names):5d}  {reason}: {', '.join(names[:limit])}{', ...' if len(names) > limit else ''}"
        for reason, names in groups.items()
    ]


def _check_names(model: nn.Module, rules: Rules, layers: dict[PlainLayer, list[str]]) -> None:
    """Check that names without wildcards are names of layers; otherwise, a typo would go unnoticed."""
    known = {name for names in layers.values() for name in names}
    known |= {name for names in find_layers(model, DYNAMIC_KINDS).values() for name in names}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in rules.include or ():
        if name in known or any(wildcard in name for wildcard in "*?["):
            continue
        if name in modules:
            found = f"is a {type(modules[name]).__name__}: name its layers, for example '{name}.*'"
        else:
            found = "is not a module of this model"
        raise ValueError(f"include has {name!r}, which {found}.")


def _match(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _names(types: Iterable[type[nn.Module]]) -> str:
    return "(" + ", ".join(f"nn.{kind.__name__}" for kind in types) + ")"
