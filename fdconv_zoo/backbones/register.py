"""Registering our entrypoints with timm, with their arguments in their docstrings."""

from collections.abc import Callable

from timm.models import register_model
from torch import nn

from fdconv_zoo.backbones.arguments import describe_arguments
from fdconv_zoo.index.family import find_family


def register_entrypoint(entrypoint: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """timm's ``register_model``, for an entrypoint whose docstring is one line.

    The arguments that its family's models take are added to the docstring.
    """
    arguments = describe_arguments(find_family(entrypoint.__name__))
    entrypoint.__doc__ = f"{entrypoint.__doc__}\n\n{arguments}\n\n{_RAISES}"
    return register_model(entrypoint)


_RAISES = """\
Raises:
    TypeError: An argument that the model does not take; the message names the nearest one.
    ValueError: A value that does not fit the FDConv layers.
    RuntimeError: The pretrained weights could not be downloaded; the message says what to do.
"""
