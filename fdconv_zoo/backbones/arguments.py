"""The arguments of our models: their descriptions, and checks of the arguments that a model is given."""

import difflib
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fdconv_zoo.index.family import Family
from fdconv_zoo.layers import FDConv2d, FDLinear
from fdconv_zoo.layers.replace import LAYER_OPTIONS

# The options of FDConv layers, in the order of documentation.
OPTIONS = {
    "num_kernels": "Number of kernels of each layer's Fourier Disjoint Weight.",
    "temperature": "Divides the logits of the channel, filter and spatial modulators.",
    "kernel_temperature": "Divides the logits of the kernel modulator.",
    "ksm_global": "Use the global branch of Kernel Spatial Modulation.",
    "ksm_local": "Use the local branch of Kernel Spatial Modulation.",
    "fbm": "Use Frequency Band Modulation; None: in layers with 3x3 kernels.",
    "band_edges": "Frequencies that divide the bands, in cycles per sample, in descending order.",
    "band_mask": '"exact", "learned" for edges that are parameters and start at band_edges, or "reference" for weights '
    "trained with the code of the paper's authors.",
    "stored_groups": "Keep the groups of Fourier coefficients in the state dict, for those authors' checkpoints.",
}
_BANDS = LAYER_OPTIONS - inspect.signature(FDLinear).parameters.keys()


def split_arguments(
    model_cls: type[nn.Module], family: Family, fdconv_layers: Sequence[str], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check a model's arguments, and split them into the options of its FDConv layers and those of timm's class.

    Args:
        model_cls: the model's class.
        family: the record of the model's family.
        fdconv_layers: which of a block's layers become FDConv.
        kwargs: the other arguments.

    Returns:
        The options of the FDConv layers, and the arguments of timm's class.

    Raises:
        TypeError: an unknown argument (the message names the nearest one), or an option of frequency bands for a family
            without them, where only ``fbm=False`` is allowed. Also if ``fdconv_layers`` is a string.
        ValueError: ``fdconv_layers`` names a layer that the family does not have.
    """
    if isinstance(fdconv_layers, str):
        raise TypeError(f"fdconv_layers is {fdconv_layers!r}: give a tuple of names, such as ({fdconv_layers!r},).")
    for name in fdconv_layers:
        if name not in family.layer_choices:
            choices = ", ".join(family.layer_choices)
            raise ValueError(f"fdconv_layers names {name!r}: the layers to choose from are {choices}.")
    options = {name: value for name, value in kwargs.items() if name in LAYER_OPTIONS}
    others = {name: value for name, value in kwargs.items() if name not in LAYER_OPTIONS}
    if not family.has_bands:
        fbm = options.pop("fbm", None)
        if wrong := sorted((options.keys() & _BANDS) | ({"fbm"} if fbm else set())):
            raise TypeError(
                f"{model_cls.__name__} does not take {', '.join(wrong)}: its FDConv layers are linear layers, and "
                "frequency band modulation needs a convolution."
            )
    known = _parameters(model_cls) | LAYER_OPTIONS
    for name in others:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"{model_cls.__name__} got an unexpected keyword argument {name!r}{hint}")
    return options, others


def describe_arguments(family: Family) -> str:
    """Describe the arguments of a family's models, as the section "Args" of a docstring."""
    choices = ", ".join(map(repr, family.layer_choices))
    layers = f"Which layers of each block become FDConv, of {choices}; () for the plain model."
    defaults = {name: parameter.default for name, parameter in inspect.signature(FDConv2d).parameters.items()}
    texts = {
        "pretrained": "Load the weights of the tag in the model's name, or of the default tag.",
        "fdconv_layers": f"{layers} Default: {family.dynamic_layers}.",
        **{
            name: f"{text} Default: {defaults[name]!r}."
            for name, text in OPTIONS.items()
            if family.has_bands or name not in _BANDS
        },
        **family.arguments,
        "**kwargs": "Arguments of timm's model: num_classes, in_chans, features_only, drop_path_rate, ...",
    }
    lines = [textwrap.fill(f"{name}: {text}", 100, subsequent_indent="    ") for name, text in texts.items()]
    return "Args:\n" + textwrap.indent("\n".join(lines), "    ")


def _parameters(model_cls: type[nn.Module]) -> set[str]:
    """The named arguments of a class and of its base classes before ``nn.Module``."""
    named = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    return {
        name
        for cls in model_cls.__mro__[: model_cls.__mro__.index(nn.Module)]
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind in named
    }
