"""Plans a conversion: which layers change, and what they cost."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fdconv_zoo.conversion.costs import count_multiply_adds, count_parameters
from fdconv_zoo.conversion.run import Calls, Example, observe_plain_layers
from fdconv_zoo.conversion.select import Rules, SkippedLayer, group_by_reason, select_layers
from fdconv_zoo.conversion.table import align
from fdconv_zoo.layers import set_path
from fdconv_zoo.layers.replace import bare_twin, make_dynamic

GROWN = 4  # the plan warns about layers that grow by more than this factor


@dataclass(frozen=True)
class PlannedLayer:
    """A layer to convert. Costs are pairs: before (plain) and after (FDConv).

    Attributes:
        names: All names of the layer in the model.
        kind: ``"FDConv2d"`` or ``"FDLinear"``.
        kernel_shape: (O, I/groups, a, b).
        parameters: Number of parameters; those shared with an earlier layer of the plan are only counted there.
        multiply_adds: Multiply-adds for one image, with torch's own operations (see
            :func:`fdconv_zoo.conversion.costs.count_multiply_adds`); None without an example.
    """

    names: tuple[str, ...]
    kind: str
    kernel_shape: tuple[int, int, int, int]
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int] | None


@dataclass(frozen=True)
class ConversionPlan:
    """Preview of :func:`fdconv_zoo.convert_model`; ``print`` shows it as a table.

    Attributes:
        layers: The layers to convert.
        skipped: The other convolutions and linear layers, with the reasons.
        parameters: Number of parameters of the whole model, before and after.
    """

    layers: tuple[PlannedLayer, ...]
    skipped: tuple[SkippedLayer, ...]
    parameters: tuple[int, int]

    def __str__(self) -> str:
        header = ["layer", "becomes", "kernel", "parameters", "after"]
        totals = [_sums(layer.parameters for layer in self.layers)]
        if counted := self.layers[0].multiply_adds is not None:
            header += ["multiply-adds", "after"]
            totals.append(_sums(layer.multiply_adds for layer in self.layers if layer.multiply_adds is not None))
        rows = [
            [
                " = ".join(layer.names) or "(the model)",
                layer.kind,
                "x".join(map(str, layer.kernel_shape)),
                *_columns(layer.parameters, layer.multiply_adds or ()),
            ]
            for layer in self.layers
        ]
        rows += [
            [f"these {len(self.layers)} layers", "", "", *_columns(*totals)],
            ["whole model", "", "", *_columns(self.parameters), *["", ""] * counted],
        ]
        lines = align(header, rows, left=3)
        if grown := [layer.parameters for layer in self.layers if layer.parameters[1] > GROWN * layer.parameters[0]]:
            before, after = _sums(grown)
            lines += [
                "",
                f"Layers that become more than {GROWN} times as large, as depthwise layers do: {len(grown)}, "
                f"from {before:,} to {after:,} parameters. To keep them plain, use `exclude`.",
            ]
        if self.skipped:
            lines += ["", f"{len(self.skipped)} convolutions and linear layers are skipped:"]
            lines += group_by_reason(self.skipped)
        return "\n".join(lines)


def plan_conversion(
    model: nn.Module,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    types: type[nn.Module] | Sequence[type[nn.Module]] = (nn.Conv2d, nn.Linear),
    min_channels: int = 17,
    select: Callable[[str, nn.Module], bool] | None = None,
    example: Example | None = None,
    **options: Any,
) -> ConversionPlan:
    """Plan what :func:`fdconv_zoo.convert_model` would do with the same arguments, without changing the model.

    Raises:
        TypeError, ValueError, RuntimeError: as in :func:`fdconv_zoo.convert_model`.
    """
    rules = Rules(include, exclude, types, min_channels, select)
    calls = None if example is None else observe_plain_layers(model, example)[0]
    return make_plan(model, rules, calls, options)


def make_plan(model: nn.Module, rules: Rules, calls: Calls | None, options: dict[str, Any]) -> ConversionPlan:
    """Make a plan from the calls that the example made, see :func:`plan_conversion`."""
    chosen, skipped = select_layers(model, rules, calls, options)
    counted: set[Tensor | None] = set()
    known_costs: dict[tuple[str, torch.Size], tuple[int, int]] = {}
    layers = []
    for layer, names in chosen.items():
        # Counts are exact, and need no memory on the meta device.
        with torch.device("meta"):
            plain = bare_twin(layer, layer.weight.dtype)
            dynamic = make_dynamic({plain: names[0]}, **options)[plain]
        before = [parameter.numel() for parameter in layer.parameters() if parameter not in counted]
        after = count_parameters(dynamic)
        after -= dynamic.fdw.spectrum.numel() if layer.weight in counted else 0
        after -= dynamic.bias.numel() if dynamic.bias is not None and layer.bias in counted else 0
        counted.update(layer.parameters())
        costs = None
        if calls is not None:
            for shape in calls.shapes[layer]:
                if (str(plain), shape) not in known_costs:
                    known_costs[str(plain), shape] = _multiply_adds(plain, shape), _multiply_adds(dynamic, shape)
            costs = _sums(known_costs[str(plain), shape] for shape in calls.shapes[layer])
            costs = (costs[0] // calls.batch, costs[1] // calls.batch)
        layers.append(
            PlannedLayer(tuple(names), type(dynamic).__name__, dynamic.fdw.kernel_shape, (sum(before), after), costs)
        )
    total = sum(parameter.numel() for parameter in model.parameters() if not is_lazy(parameter))
    change = sum(layer.parameters[1] - layer.parameters[0] for layer in layers)
    return ConversionPlan(tuple(layers), skipped, (total, total + change))


def _multiply_adds(layer: nn.Module, shape: torch.Size) -> int:
    """Count the multiply-adds of a layer on the meta device for inputs of this shape."""
    set_path(layer, "plain")
    return count_multiply_adds(layer, torch.empty(shape, device="meta", dtype=next(layer.parameters()).dtype))[0]


def _sums(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    before, after = zip(*pairs, strict=True)
    return sum(before), sum(after)


def _columns(*pairs: tuple[int, ...]) -> list[str]:
    return [f"{number:,}" for pair in pairs for number in pair]
