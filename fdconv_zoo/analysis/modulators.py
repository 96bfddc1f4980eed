"""Statistics of a model's modulators for some images."""

from typing import Any

import torch
from torch import nn

from fdconv_zoo.layers.modes import evaluation_mode
from fdconv_zoo.layers.modulator_statistics import ModulatorObserver, ModulatorStatistics
from fdconv_zoo.layers.modulators import find_modulators


def modulator_statistics(model: nn.Module, *batches: Any) -> list[ModulatorStatistics]:
    """Measure how far each modulator is from neutral, how much it differs between images, and how much is saturated.

    The model runs in evaluation mode and without gradients, and is not changed. Under autocast, the statistics are
    those of the forward pass under autocast.

    Args:
        model: a model with FDConv layers.
        *batches: inputs of ``model(batch)``, on the model's device. Pass several images to measure differences.

    Returns:
        One row for each modulator of each layer that has run. Use ``[dataclasses.asdict(row) for row in rows]`` for
        JSON or a table.

    Raises:
        ValueError: the model has no FDConv layers.
    """
    if not find_modulators(model):
        raise ValueError(
            f"The {type(model).__name__} has no modulators: give a model with FDConv layers, such as "
            "timm.create_model('resnet50_fdconv') or what fdconv_zoo.convert_model returns."
        )
    # Run eagerly: a compiled model ignores hooks that were added later.
    eager = torch.compiler.set_stance("force_eager")
    with evaluation_mode(model), torch.no_grad(), eager, ModulatorObserver(model) as observer:
        for batch in batches:
            model(batch)
    return observer.statistics()
