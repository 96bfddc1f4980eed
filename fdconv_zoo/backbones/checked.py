"""Models that say what is wrong with their input, in the words of FDConv's layers."""

from typing import Any

import torch
from timm.models import FeatureListNet
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from fdconv_zoo.layers.inputs import check_input


class CheckedInput(nn.Module):
    """A base class before timm's: where the model fails on a wrong input, the error says what is wrong with it.

    The input is looked at only after a failure, and outside ``forward``: tracing, scripting, compiling and exporting
    see timm's model alone, and a model that runs on an unusual input keeps doing so.

    Raises:
        ValueError: the input is not a batch, has other channels than the first convolution, or is empty.
        TypeError: the input is not of a floating type.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model as every ``nn.Module`` is called."""
        if torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        try:
            return super().__call__(*args, **kwargs)
        except Exception as error:
            _explain(self, args[0] if args else kwargs.get("x"), error)
            raise


class CheckedFeatureList(CheckedInput, FeatureListNet):
    """timm's feature maps from a model's own modules."""


class CheckedFeatureGetter(CheckedInput, FeatureGetterNet):
    """timm's feature maps from ``forward_intermediates``."""


def _explain(model: nn.Module, x: Any, error: Exception) -> None:
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if stem is None or not isinstance(x, Tensor):
        return
    try:
        check_input(x, stem.in_channels, channel_dim=1, ndims=(4,), layout="(B, C, H, W)")
    except (TypeError, ValueError) as reason:
        raise reason from error
