"""The arguments of the model that a checkpoint was made with, as far as its weights tell."""

import re
from typing import Any

from fdconv_zoo.porting.source import Source


def implied_arguments(source: Source) -> dict[str, Any]:
    """The arguments, besides ``num_classes``, that build a model for these weights."""
    names = source.tensors
    arguments: dict[str, Any] = {}
    if source.family == "resnet":
        if "conv1.0.weight" in names:
            arguments |= {"stem_type": "deep", "stem_width": len(names["conv1.0.weight"])}
        if any(re.match(r"layer\d\.0\.downsample\.1\.weight$", key) and names[key].ndim == 4 for key in names):
            arguments["avg_down"] = True
    if any(name.endswith(".dft_weight") for name in names):
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
        arguments["band_mask"] = "reference"  # what the checkpoint was trained with
    else:
        arguments["fbm"] = False
    if source.family == "resnet":
        blocks = {match[1] for name in names if (match := re.match(r"layer\d+\.\d+\.(conv\d)\.", name))}
        dynamic = {match[1] for name in names if (match := re.match(r"layer\d+\.\d+\.(conv\d)\.dft_weight$", name))}
        stem = {"stem"} if any(re.match(r"conv1\.\d\.dft_weight$", name) for name in names) else set()
        if stem or dynamic != blocks:
            arguments["fdconv_layers"] = sorted(dynamic | stem)
    return arguments
