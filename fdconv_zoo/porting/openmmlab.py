"""Reads the backbone's configuration, which OpenMMLab's trainers store with the weights as Python text.

It contains what cannot be derived from the weights: strides, temperatures, activations. The text is parsed, never run.
"""

import ast
from collections.abc import Mapping
from typing import Any

from fdconv_zoo.errors import WeightsError

# Options of the authors' layer, each with the only value that our layer supports, which is its default.
_FIXED = {
    "att_multi": 2.0,
    "param_ratio": 1,
    "param_reduction": 1.0,
    "ksm_only_kernel_att": False,
    "ksm_local_act": "sigmoid",
    "ksm_global_act": "sigmoid",
    "spatial_freq_decompose": False,
    "linear_mode": False,
}
_FIXED_OF_BANDS = {"lowfreq_att": False, "act": "sigmoid", "spatial_group": 1, "spatial_kernel": 3}


def backbone_config(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the ``backbone`` of the configuration in a file's ``meta``; None if none can be parsed."""
    text = meta.get("config") or meta.get("cfg")  # the names in mmcv and in mmengine
    if not isinstance(text, str):
        return None
    try:
        statements = ast.parse(text).body
        for statement in statements:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "model":
                backbone = _value(statement.value).get("backbone")
                return backbone if isinstance(backbone, dict) else None
    except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError):
        pass
    return None


def layer_options(config: Mapping[str, Any], path: object) -> dict[str, Any]:
    """Return the arguments of our model that correspond to a backbone's configuration, without defaults.

    Args:
        config: configuration of the backbone.
        path: path of the weights file, for the message.

    Raises:
        WeightsError: the backbone computes something that our models do not support.
    """
    layer = config.get("conv_cfg")
    if not isinstance(layer, dict) or layer.get("type") != "FDConv":
        return {}
    bands = layer.get("fbm_cfg") if isinstance(layer.get("fbm_cfg"), dict) else {}
    for options, fixed in ((layer, _FIXED), (bands, _FIXED_OF_BANDS)):
        for name, value in fixed.items():
            if options.get(name, value) != value:
                raise WeightsError(
                    f"{path} was trained with {name}={options[name]!r}; our layer supports only {name}={value!r}."
                )
    kernel_temperature = layer.get("kernel_temp", 1.0)
    temperature = kernel_temperature if layer.get("temp") is None else layer["temp"]
    options = {
        "temperature": (temperature, 1.0),
        "kernel_temperature": (kernel_temperature, 1.0),
        "band_edges": ([0.5 / k for k in bands.get("k_list", (2, 4, 8))], [0.25, 0.125, 0.0625]),
    }
    return {name: value for name, (value, default) in options.items() if value != default}


def dilations_note(config: Mapping[str, Any]) -> str | None:
    """Return a note for a backbone whose strides differ from timm's defaults; None for others."""
    strides = tuple(config.get("strides", ()))
    if len(strides) != 4 or strides == (1, 2, 2, 2):
        return None
    output_stride = 4 * strides[0] * strides[1] * strides[2] * strides[3]
    return (
        f"it was trained with strides {strides} and dilations {tuple(config.get('dilations', ()))}: the features are "
        f"the same only with output_stride={output_stride}"
    )


def _value(node: ast.expr) -> Any:
    """A literal, or ``dict(...)`` of literals; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(element) for element in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
