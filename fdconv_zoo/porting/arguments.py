"""The arguments of a model that can be derived from its weights file."""

from typing import Any

from fdconv_zoo.porting.source import Source


def implied_arguments(source: Source) -> dict[str, Any]:
    """Return the arguments, other than ``num_classes``, that build a model for these weights."""
    arguments = source.family.porting.implied_arguments(source.tensors)
    if any(name.endswith(".dft_weight") for name in source.tensors):
        arguments |= _of_the_authors_layers(source)
    return arguments


def _of_the_authors_layers(source: Source) -> dict[str, Any]:
    names = source.tensors
    arguments: dict[str, Any] = {"stored_groups": True}
    kernels = {len(names[name]) for name in names if name.endswith(".KSM_Global.kernel_fc.bias")} or {1}
    if kernels != {64}:
        arguments["num_kernels"] = max(kernels)
    if not any(".KSM_Local." in name for name in names):
        arguments["ksm_local"] = False
    if any(".FBM." in name for name in names):
        arguments["band_mask"] = "reference"  # what these weights were trained with
    else:
        arguments["fbm"] = False
    return arguments
