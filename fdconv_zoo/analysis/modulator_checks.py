"""Checks of modulators: whether they have moved, depend on the image, and are saturated."""

import math
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from fdconv_zoo.analysis.findings import Finding, Severity
from fdconv_zoo.layers.fbm import FrequencyBandModulation
from fdconv_zoo.layers.modulator_statistics import ModulatorStatistics
from fdconv_zoo.layers.modulators import name_layers
from fdconv_zoo.layers.parameter_parts import name_parts

KSM = ("kernel", "channel", "filter", "spatial", "local")
MODULATORS = (*KSM, "band")
_NEVER_MOVED = 1e-4  # distance from 1: less than the rounding of bfloat16, 4e-3, and of float16, 5e-4
_HARDLY_MOVED = 1e-3
_CONSTANT = 0.01  # share of the distance from neutral that depends on the image
_FEW_IMAGES = 8  # so few may be similar by chance
_SATURATED, _MOSTLY_SATURATED = 0.1, 0.5  # shares

_SLOWER = (
    "Train with a smaller --modulator-lr, such as 0.1 or auto. Saturated values hardly recover: start from earlier "
    "weights, or set the heads of these layers to zero."
)
_FASTER = "Train longer, or with a larger --modulator-lr."
_REACHED = (
    "Train longer. If they stay at 1, see that these parameters are given to the optimizer and require gradients, that "
    "--modulator-lr is not 0, and with --watch that they have a gradient."
)


def check_modulators(model: nn.Module, statistics: Sequence[ModulatorStatistics], source: str = "") -> list[Finding]:
    """Check the modulators of a trained model.

    Args:
        model: A model with FDConv layers.
        statistics: From `modulator_statistics`; without them, only weights that are exactly zero are found.
        source: Where the statistics are from, in words; added to the message of an "ok" finding.
    """
    finite = [row for row in statistics if _is_finite(row)]
    zero = _zero_heads(model)
    idle = {*zero, *(_key(row) for row in finite if row.distance < _NEVER_MOVED)}
    moving = [row for row in finite if _key(row) not in idle]
    saturated = [row for row in moving if row.saturated > _SATURATED]
    mostly = {_key(row) for row in saturated if row.saturated > _MOSTLY_SATURATED}
    hardly = [row for row in moving if row.distance < _HARDLY_MOVED]
    constant = [
        row
        for row in moving
        if row.images > 1 and row not in hardly and _key(row) not in mostly and _depends(row) < _CONSTANT
    ]
    findings = [*_never_moved(model, idle, {_key(row): row.distance for row in finite})]
    if broken := [row for row in statistics if not _is_finite(row)]:
        findings.append(
            Finding(
                "modulators",
                "fault",
                f"{_kinds(broken)}: infinite or NaN for these images",
                _layers(broken),
                remedy="The features overflow: look for images with broken values; train with a lower learning rate.",
            )
        )
    for severity, rows in (
        ("fault", [row for row in saturated if _key(row) in mostly]),
        ("warning", [row for row in saturated if _key(row) not in mostly]),
    ):
        if rows:
            worst = max(row.saturated for row in rows)
            limit = _MOSTLY_SATURATED if severity == "fault" else _SATURATED
            message = f"{_kinds(rows)}: up to {100 * worst:.0f} % of the values are saturated and hardly learn any more"
            findings.append(Finding("modulators", severity, message, _layers(rows), worst, limit, _SLOWER))
    if constant:
        few = min(row.images for row in constant) < _FEW_IMAGES
        worst = min(map(_depends, constant))
        message = f"{_kinds(constant)}: the same for all images, apart from {100 * worst:.2g} % of the distance from 1"
        remedy = (
            f"Give {_FEW_IMAGES} different images or more, to be sure."
            if few
            else "The heads' biases have grown, and their weights have not. Look at KSM's BatchNorm in this list, and "
            "at the weight decay; train with --modulator-lr auto, and on more varied images."
        )
        severity: Severity = "warning" if few else "fault"
        findings.append(Finding("modulators", severity, message, _layers(constant), worst, _CONSTANT, remedy))
    if hardly:
        least = min(row.distance for row in hardly)
        message = f"{_kinds(hardly)}: hardly moved from 1, by {least:.1e}"
        findings.append(Finding("modulators", "warning", message, _layers(hardly), least, _HARDLY_MOVED, _FASTER))
    if findings:
        return findings
    if not statistics:
        remedy = "Give images of the kind that the model was trained on, or --sample 16."
        return [Finding("modulators", "note", "all have moved; images show what they do", remedy=remedy)]
    return [Finding("modulators", "ok", _summary(finite) + source)]


def _never_moved(
    model: nn.Module, idle: set[tuple[str, str]], distances: dict[tuple[str, str], float]
) -> list[Finding]:
    findings = []
    for kinds, severity, remedy in _idle_kinds(model, idle):
        layers = tuple(dict.fromkeys(layer for layer, kind in sorted(idle) if kind in kinds))
        worst = min(distances.get(key, 0.0) for key in idle if key[1] in kinds)
        message = f"{', '.join(kinds)}: never moved from 1, where they do nothing"
        findings.append(Finding("modulators", severity, message, layers, worst, _NEVER_MOVED, remedy))
    return findings


def _idle_kinds(model: nn.Module, idle: set[tuple[str, str]]) -> Iterable[tuple[list[str], Severity, str]]:
    kinds = {kind for _, kind in idle}
    if of_kernels := [kind for kind in KSM if kind in kinds]:
        yield of_kernels, "fault", _REACHED
    if "band" in kinds:
        with_bands = {layer for part, layer in name_layers(model).items() if isinstance(part, FrequencyBandModulation)}
        if with_bands <= {layer for layer, kind in idle if kind == "band"}:
            yield ["band"], "fault", _REACHED
        else:
            yield (
                ["band"],
                "warning",
                "If the inputs of these layers have a single pixel, they have no frequencies to modulate: train on "
                f"larger images. Otherwise: {_REACHED[0].lower()}{_REACHED[1:]}",
            )


def _zero_heads(model: nn.Module) -> set[tuple[str, str]]:
    """Layers and modulators whose heads are exactly zero, as at initialization."""
    parts = name_parts(model)
    moved: dict[tuple[str, str], bool] = {}
    for name, parameter in model.named_parameters():
        key = tuple(parts[name])
        if key[1] in MODULATORS:
            moved[key] = moved.get(key, False) or bool(parameter.detach().any())
    return {key for key, is_moved in moved.items() if not is_moved}


def _depends(row: ModulatorStatistics) -> float:
    """The share of a modulator's distance from neutral that depends on the image, or on the position in the image."""
    return math.hypot(row.variation, row.within or 0.0) / row.distance


def _is_finite(row: ModulatorStatistics) -> bool:
    return all(value is not None and math.isfinite(value) for value in (row.distance, row.variation, row.saturated))


def _key(row: ModulatorStatistics) -> tuple[str, str]:
    return row.layer, row.modulator


def _layers(rows: Iterable[ModulatorStatistics]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.layer for row in rows))


def _kinds(rows: Iterable[ModulatorStatistics]) -> str:
    kinds = {row.modulator for row in rows}
    return ", ".join(kind for kind in MODULATORS if kind in kinds)


def _summary(rows: Sequence[ModulatorStatistics]) -> str:
    def extent(value: Callable[[ModulatorStatistics], float]) -> str:
        values = [value(row) for row in rows]
        return f"{min(values):.2g} to {max(values):.2g}"

    saturated = max(row.saturated for row in rows)
    return (
        f"{extent(lambda row: row.distance)} from 1, and {extent(_depends)} of that depends on the image; at most "
        f"{100 * saturated:.0f} % saturated"
    )
