"""What a model's modulators do with some images."""

from typing import Any

import torch
from torch import nn

from fdconv_zoo.layers.modes import evaluation_mode
from fdconv_zoo.layers.modulator_statistics import ModulatorObserver, ModulatorStatistics
from fdconv_zoo.layers.modulators import find_modulators


def modulator_statistics(model: nn.Module, *batches: Any) -> list[ModulatorStatistics]:
    """How far each modulator is from neutral, how it differs between the images, and what share of it is saturated.

    The model runs in evaluation mode and without gradients, and is left as it was. With autocast on, the statistics are
    those under autocast.

    Args:
        model: with FDConv layers.
        *batches: what ``model(batch)`` takes, on its device; several images in all, to see differences.

    Returns:
        One row for each modulator of each layer that has run. ``[dataclasses.asdict(row) for row in rows]`` is ready
        for JSON or a table.

    Raises:
        ValueError: the model has no FDConv layers.
    """
    if not find_modulators(model):
        raise ValueError(
            f"The {type(model).__name__} has no modulators: give a model with FDConv layers, such as "
            "timm.create_model('resnet50_fdconv') or what fdconv_zoo.convert_model returns."
        )
    # Eager: a compiled model does not know hooks that were added later.
    eager = torch.compiler.set_stance("force_eager")
    with evaluation_mode(model), torch.no_grad(), eager, ModulatorObserver(model) as observer:
        for batch in batches:
            model(batch)
    return observer.statistics()
