"""Registers our entrypoints with timm, and adds the arguments to their docstrings."""

from collections.abc import Callable

from timm.models import register_model
from torch import nn

from fdconv_zoo.backbones.arguments import describe_arguments
from fdconv_zoo.index.family import find_family


def register_entrypoint(entrypoint: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Register an entrypoint with timm's ``register_model``, and add the arguments of its family to its docstring.

    The entrypoint's docstring must be a single line.
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
