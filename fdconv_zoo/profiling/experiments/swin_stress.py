"""Measures FDConv in the linear layers of Swin's blocks: theoretical cost against measured time."""

from collections.abc import Sequence
from typing import Any

import timm
import torch

from fdconv_zoo import set_path
from fdconv_zoo.profiling.experiments.forms_of_fbm import add_times, paths_on
from fdconv_zoo.profiling.experiments.work import count_work


def measure_swin(
    name: str,
    *,
    batch_sizes: Sequence[int],
    image_sizes: Sequence[int],
    repeats: int,
    device: torch.device,
    **arguments: Any,
) -> list[dict[str, Any]]:
    """Measure a Swin Transformer with FDConv beside its plain twin, at every batch and image size and on every path.

    Args:
        name: Name of the model, e.g. ``swin_fdconv``.
        batch_sizes, image_sizes: The sizes to measure; images are square.
        repeats: Number of timings.
        device: Device to time on.
        **arguments: Arguments of both networks.

    Returns:
        For each setting, a row for the plain twin and for FDConv on each path. Keys: ``batch_size``, ``image_size``,
        ``path`` (None for the plain twin), the multiply-adds of one image by kind (see `Work`), ``get_flops`` and
        ``total``, times as in `measure_forms`, and the multiples of the plain twin's figures, ``get_flops_ratio``,
        ``total_ratio``, ``forward_ratio`` and ``training_ratio``.
    """
    table = []
    for size in image_sizes:
        plain = timm.create_model(name, fdconv_layers=(), img_size=size, **arguments)
        model = timm.create_model(name, img_size=size, **arguments)
        counted = [count_work(network, (size, size)) for network in (plain, model)]
        paths = paths_on(device)
        # One network for all paths: copies would only take memory.
        plain, model = plain.to(device), model.to(device)
        networks = [plain, *(_OnPath(model, path) for path in paths)]
        for batch_size in batch_sizes:
            rows = [
                {"batch_size": batch_size, "image_size": size, "path": path, **work.as_row()}
                for path, work in zip((None, *paths), (counted[0], *[counted[1]] * len(paths)), strict=True)
            ]
            add_times(rows, networks, torch.randn(batch_size, 3, size, size, device=device), repeats)
            table += [row | _ratios(row, rows[0]) for row in rows]
    return table


def _ratios(row: dict[str, Any], plain: dict[str, Any]) -> dict[str, float]:
    keys = {"get_flops": "get_flops", "total": "total", "forward": "forward_seconds", "training": "training_seconds"}
    return {f"{name}_ratio": row[key] / plain[key] for name, key in keys.items()}


class _OnPath(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, path: Any) -> None:
        super().__init__()
        self.model, self.path = model, path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        set_path(self.model, self.path)
        return self.model(x)
