"""Stops a run whose loss or weights are no longer numbers, before they reach a checkpoint."""

import math
from pathlib import Path

import torch
from torch import nn

from fdconv_zoo.errors import NonFiniteError


def check_finite(loss: float, model: nn.Module | None = None, *, update: int, checkpoint: Path | None) -> None:
    """Check a loss, or a sum of losses, and the weights of `model` if given (which waits for the device).

    Args:
        loss: The loss.
        model: Its weights and running statistics are checked too.
        update: Updates done so far, for the message.
        checkpoint: The newest checkpoint, for the message.

    Raises:
        NonFiniteError: one of them is infinite or NaN.
    """
    if not math.isfinite(loss):
        what = "loss"
    elif model is not None and not _all_finite(model):
        what = "weights"
    else:
        return
    kept = f"The last good checkpoint is kept: {checkpoint}." if checkpoint else "No checkpoint had been written yet."
    raise NonFiniteError(
        f"the {what} became infinite or NaN by update {update}. {kept} Try a lower --lr, a longer --warmup-epochs, "
        "--clip-grad 1.0, or --mixed-precision bf16 in place of fp16, in a new --output"
    )


def _all_finite(model: nn.Module) -> bool:
    return bool(torch.stack([value.isfinite().all() for value in model.state_dict().values()]).all())
