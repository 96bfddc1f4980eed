"""Measures what FBM costs: its exact form on each path, as FFTs, and as cheaper approximations."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

import timm
import torch
from torch import nn

from fdconv_zoo import ops, set_path
from fdconv_zoo.profiling.cheap_bands import HalfResolutionBands, PooledBands, remove_bands, replace_bands
from fdconv_zoo.profiling.experiments.work import count_work
from fdconv_zoo.profiling.timing import forward_step, time_interleaved, training_step

WITHOUT = "FDConv without FBM"
EXACT = "exact"


def _last_stages(model: nn.Module) -> None:
    for stage in (model.layer1, model.layer2):
        remove_bands(stage)


# Arguments of the model, and what else is changed.
FORMS: dict[str, tuple[dict[str, Any], Callable[[nn.Module], None] | None]] = {
    WITHOUT: (dict(fbm=False), None),
    EXACT: ({}, None),
    "FFTs, as in the authors' layer": (dict(band_mask="reference"), None),
    "learned edges": (dict(band_mask="learned"), None),
    "pooling pyramid": ({}, lambda model: replace_bands(model, PooledBands)),
    "half resolution": ({}, lambda model: replace_bands(model, HalfResolutionBands)),
    "two edges, 1/4 and 1/8": (dict(band_edges=(1 / 4, 1 / 8 + 1e-8)), None),
    "one edge, 1/4": (dict(band_edges=(1 / 4,)), None),
    "in stages 3 and 4 only": ({}, _last_stages),
}


def build_form(name: str, form: str) -> nn.Module:
    """Build a ResNet with one of `FORMS` of FBM, and random weights."""
    arguments, change = FORMS[form]
    model = timm.create_model(name, **arguments)
    if change is not None:
        change(model)
    return model


def paths_on(device: torch.device) -> list[ops.Path]:
    """The paths that differ on a device."""
    paths = [path for path in get_args(ops.Path) if path != "triton" or device.type == "cuda"]  # which would warn
    return [path for path in paths if ops.choose_path(device, torch.float32, path) == path]


def measure_forms(
    name: str,
    *,
    count_size: tuple[int, int],
    image_size: int,
    batch_size: int,
    repeats: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Measure every form of FBM in a ResNet, with interleaved timings in one process.

    Args:
        name: Name of the model, e.g. ``resnet50_fdconv``.
        count_size: Height and width of the image that multiply-adds are counted for.
        image_size, batch_size: Side length of the images, and size of the batch, that are timed.
        repeats: Number of timings.
        device: Device to time on.

    Returns:
        A row for the plain network and for each form; for the exact form, a row for each path. Keys: ``form``, ``path``
        (None if the layers choose it), the multiply-adds by kind, ``get_flops`` and ``total`` (see `Work`), and the
        median and the interquartile range of inference and of a training step, in seconds.
    """
    rows, models = [], []

    def add(model: nn.Module, form: str, path: ops.Path | None = None) -> None:
        rows.append({"form": form, "path": path, **count_work(model, count_size).as_row()})
        set_path(model, path)
        models.append(model.to(device))

    add(timm.create_model(name, fdconv_layers=()), "plain")
    for form in FORMS:
        for path in paths_on(device) if form == EXACT else [None]:
            add(build_form(name, form), form, path)
    x = torch.randn(batch_size, 3, image_size, image_size, device=device)
    add_times(rows, models, x, repeats)
    return rows


def add_times(rows: Sequence[dict[str, Any]], models: Sequence[nn.Module], x: torch.Tensor, repeats: int) -> None:
    """Time inference and training steps of models on a batch, interleaved, and add the figures to their rows."""
    for kind in ("forward", "training"):
        if kind == "forward":
            steps = [forward_step(model.eval(), x, torch.float32) for model in models]
        else:
            steps = [training_step(model.train(), x, torch.float32) for model in models]
        for row, (median, spread) in zip(rows, time_interleaved(steps, repeats, x.device), strict=True):
            row.update({f"{kind}_seconds": median, f"{kind}_iqr_seconds": spread})
