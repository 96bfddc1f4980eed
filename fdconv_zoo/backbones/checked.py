"""Models that explain what is wrong with their input, with the messages of FDConv's layers."""

from typing import Any

import torch
from timm.models import FeatureListNet
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from fdconv_zoo.layers.inputs import check_input


class CheckedInput(nn.Module):
    """Base class to put before timm's class: if the model fails on a wrong input, the error explains what is wrong.

    The input is only checked after a failure, and outside ``forward``. So tracing, scripting, compiling and exporting
    see only timm's model, and a model that accepts an unusual input still does.

    Raises:
        ValueError: the input is not a batch, is empty, or has another number of channels than the first convolution.
        TypeError: the input is not of a floating type.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model like any ``nn.Module``."""
        if torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        try:
            return super().__call__(*args, **kwargs)
        except Exception as error:
            _explain(self, args[0] if args else kwargs.get("x"), error)
            raise


class CheckedFeatureList(CheckedInput, FeatureListNet):
    """timm's model that returns the feature maps of its own modules."""


class CheckedFeatureGetter(CheckedInput, FeatureGetterNet):
    """timm's model that returns the feature maps of ``forward_intermediates``."""


def _explain(model: nn.Module, x: Any, error: Exception) -> None:
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if stem is None or not isinstance(x, Tensor):
        return
    try:
        check_input(x, stem.in_channels, channel_dim=1, ndims=(4,), layout="(B, C, H, W)")
    except (TypeError, ValueError) as reason:
        raise reason from error
