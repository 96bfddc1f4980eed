"""A model and the plain one it is compared with."""

from typing import Any

import timm
from torch import nn

from fdconv_zoo.layers.replace import LAYER_OPTIONS


def create_with_twin(name: str, **kwargs: Any) -> dict[str, nn.Module]:
    """Build a timm model and the plain model it is compared with, both with random weights.

    The twin of ``X_fdconv`` is timm's ``X``, or, where timm has no such model, ours with ``fdconv_layers=()``. The
    options of FDConv layers among ``kwargs`` do not reach plain models.

    Returns:
        The models by name, the twin first; a model that is plain itself is its own twin and stands alone.
    """
    own = LAYER_OPTIONS | {"fdconv_layers"}
    plain_kwargs = {key: value for key, value in kwargs.items() if key not in own}
    if "_fdconv" not in name:
        return {name: timm.create_model(name, **plain_kwargs)}
    model = timm.create_model(name, **kwargs)
    plain_kwargs["num_classes"] = model.num_classes  # a tag of the model's own may have set it
    architecture = name.partition(".")[0]
    twin_name = architecture.replace("_fdconv", "")
    if timm.is_model(twin_name):
        return {twin_name: timm.create_model(twin_name, **plain_kwargs), name: model}
    return {f"{architecture} (plain)": timm.create_model(architecture, **plain_kwargs, fdconv_layers=()), name: model}
