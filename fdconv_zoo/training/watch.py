"""Measures updates by part of each layer: norms of gradients, weights and movement, and statistics of modulators."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from fdconv_zoo.layers import FourierDisjointWeight
from fdconv_zoo.layers.modulator_statistics import ModulatorObserver
from fdconv_zoo.layers.modulators import name_layers
from fdconv_zoo.layers.parameter_parts import Part, name_parts

FIGURES = ("gradient", "update", "distance", "variation", "saturated")  # keys of the result of `totals`


class Watch:
    """Measures the first update and every N-th one, without changing them.

    Movement is the change of the weights in an update. Weights and movement of a spectrum are measured on the spatial
    kernel that it represents, so that they are comparable with those of plain kernels. Only its gradients are those of
    the Fourier coefficients.

    Args:
        model: The unwrapped model that is trained. Frozen parameters are not measured.
        every: N; 0: no update is measured.
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        self._model, self._every = model, every
        self._row: dict[str, Any] = {}
        self._parameters: dict[Part, list[nn.Parameter]] = defaultdict(list)
        self._spectra: dict[Part, FourierDisjointWeight] = {}
        if not every:
            return
        parts = name_parts(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._parameters[parts[name]].append(parameter)
        for module, layer in name_layers(model).items():
            if isinstance(module, FourierDisjointWeight):
                self._spectra[Part(layer, "spectrum")] = module

    def is_due(self, update: int) -> bool:
        """Return whether an update, counted from 1, is measured."""
        return bool(self._every) and (update == 1 or update % self._every == 0)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Measure the modulators in the block, which runs the forward pass and computes the loss."""
        with ModulatorObserver(self._model) as observer:
            yield
        self._row["modulators"] = observer.statistics()

    @contextmanager
    def update(self, scale: float = 1.0) -> Iterator[None]:
        """Measure gradients before the block, which clips them and updates the weights, and the movement after it.

        Args:
            scale: Factor by which the gradients are multiplied, against underflow in float16.
        """
        with torch.no_grad():
            gradients = [self._norm([p.grad for p in ps if p.grad is not None]) for ps in self._parameters.values()]
            before = {part: [tensor.clone() for tensor in self._weights(part)] for part in self._parameters}
        yield
        norms = []
        with torch.no_grad():
            for part, gradient in zip(self._parameters, gradients, strict=True):
                moved = [after - old for after, old in zip(self._weights(part), before[part], strict=True)]
                norms += [gradient / scale, self._norm(before[part]), self._norm(moved)]
        figures = torch.stack(norms).view(-1, 3).tolist()  # waits for the device once
        self._row["parts"] = list(zip(self._parameters, figures, strict=True))

    def row(self, update: int, lr: float) -> dict[str, Any]:
        """Return the row of `learning.jsonl` for the measured update. Infinite and NaN values are replaced by None."""
        names = ("gradient", "weight", "update")
        parts = [part._asdict() | dict(zip(names, figures, strict=True)) for part, figures in self._row["parts"]]
        modulators = [asdict(row) for row in self._row["modulators"]]
        rows = {"parts": parts, "modulators": modulators}
        return {"update": update, "lr": lr} | {key: [_rounded(row) for row in found] for key, found in rows.items()}

    def _weights(self, part: Part) -> list[Tensor]:
        if part in self._spectra:
            fdw = self._spectra[part]
            return [type(fdw).forward(fdw)]  # not a call, which would trigger the model's hooks
        return [parameter.detach() for parameter in self._parameters[part]]

    def _norm(self, tensors: list[Tensor]) -> Tensor:
        if not tensors:  # a part without gradients
            return torch.zeros((), device=next(self._model.parameters()).device)
        return get_total_norm(tensors).float()


def gradient_scale(accelerator: Accelerator) -> float:
    """Return the factor by which gradients are multiplied: 1 unless training uses float16."""
    return 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()


def totals(row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Sum up a row of `learning.jsonl` over the layers.

    Returns:
        For each of `FIGURES`, the values by part or modulator, where they are known: ``"gradient"``, the norm over all
        layers; ``"update"``, the norm of the movement divided by that of the weights, if these are not all zero;
        ``"distance"`` and ``"variation"``, the root mean square over the layers; and ``"saturated"``, the mean share
        over the layers.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in FIGURES}
    for part, rows in _grouped(row["parts"], "part").items():
        sums = {key: _root_of_squares(rows, key) for key in ("gradient", "weight", "update")}
        if sums["gradient"] is not None:
            found["gradient"][part] = sums["gradient"]
        if sums["weight"] and sums["update"] is not None:
            found["update"][part] = sums["update"] / sums["weight"]
    for modulator, rows in _grouped(row["modulators"], "modulator").items():
        for name in ("distance", "variation"):
            if (root := _root_of_squares(rows, name)) is not None:
                found[name][modulator] = root / len(rows) ** 0.5
        shares = [entry["saturated"] for entry in rows]
        found["saturated"][modulator] = sum(shares) / len(shares)
    return found


def _grouped(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[Mapping[str, Any]]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return groups


def _root_of_squares(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows]
    return None if None in values else math.hypot(*values)


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _round(value) if isinstance(value, float) else value for key, value in row.items()}


def _round(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
