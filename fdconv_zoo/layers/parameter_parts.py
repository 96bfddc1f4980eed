"""Which part of FDConv each parameter of a model belongs to."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from fdconv_zoo.layers.fbm import FrequencyBandModulation
from fdconv_zoo.layers.fdw import FourierDisjointWeight
from fdconv_zoo.layers.modulators import name_layers

# "plain" and "vector" (norms, biases): parameters outside FDConv. "spectrum": FDW's coefficients. "trunk": KSM's layers
# before the heads. All others: the heads of KSM, by what they predict, and FBM ("band").
PARTS = ("plain", "vector", "spectrum", "trunk", "kernel", "channel", "filter", "spatial", "local", "band")
_HEADS = {("global_branch", name): name for name in ("kernel", "channel", "filter", "spatial")}
_HEADS["local_branch", "conv"] = "local"


class Part(NamedTuple):
    """The part that a parameter belongs to.

    Attributes:
        layer: name of the FDConv layer, or of the module that has the parameter.
        part: one of ``PARTS``.
    """

    layer: str
    part: str


def name_parts(model: nn.Module) -> dict[str, Part]:
    """Return the part of every parameter, by the parameter's name in ``model.named_parameters()``."""
    of_fdconv: dict[nn.Parameter, Part] = {}
    for module, layer in name_layers(model).items():
        for parameter, part in _parts_within(module):
            of_fdconv.setdefault(parameter, Part(layer, part))
    return {
        name: of_fdconv.get(parameter, Part(name.rpartition(".")[0], "plain" if parameter.dim() > 1 else "vector"))
        for name, parameter in model.named_parameters()
    }


def _parts_within(module: nn.Module) -> Iterator[tuple[nn.Parameter, str]]:
    for name, parameter in module.named_parameters():
        if isinstance(module, FourierDisjointWeight):
            part = "spectrum"
        elif isinstance(module, FrequencyBandModulation):
            part = "band"
        else:
            branch, within = name.split(".")[:2]
            part = _HEADS.get((branch, within), "trunk")
        yield parameter, part
