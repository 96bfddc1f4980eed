"""Builds a model and the plain model that it is compared with."""

from typing import Any

import timm
from torch import nn

from fdconv_zoo.layers.replace import LAYER_OPTIONS


def create_with_twin(name: str, **kwargs: Any) -> dict[str, nn.Module]:
    """Build a timm model and the plain model that it is compared with, both with random weights.

    The twin of ``X_fdconv`` is timm's ``X``; if timm has no such model, it is ``X_fdconv`` with ``fdconv_layers=()``.
    Options of FDConv layers in ``kwargs`` are not passed to plain models.

    Returns:
        The models by name, the twin first. For a plain model, this is the only entry.
    """
    own = LAYER_OPTIONS | {"fdconv_layers"}
    plain_kwargs = {key: value for key, value in kwargs.items() if key not in own}
    if "_fdconv" not in name:
        return {name: timm.create_model(name, **plain_kwargs)}
    model = timm.create_model(name, **kwargs)
    plain_kwargs["num_classes"] = model.num_classes  # the tag of the model may have set it
    architecture = name.partition(".")[0]
    twin_name = architecture.replace("_fdconv", "")
    if timm.is_model(twin_name):
        return {twin_name: timm.create_model(twin_name, **plain_kwargs), name: model}
    return {f"{architecture} (plain)": timm.create_model(architecture, **plain_kwargs, fdconv_layers=()), name: model}
