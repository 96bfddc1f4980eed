"""Training and evaluation mode of a model's modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and restore its mode after the block, also after an exception."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:  # one by one: train() may be overridden and have other effects
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
