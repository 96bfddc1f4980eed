"""Checks `config.json` and limits the size of the model that is built from it: the file may not be trustworthy."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fdconv_zoo.errors import WeightsError

_LARGEST = 10**6  # largest number in a configuration: of classes, channels, layers, pixels
_MOST_TENSORS = 20_000  # in a model; timm's largest models have a few thousand
_MOST_NUMBERS = 2 * 10**10  # in a model: 80 GB
_SPARE = 1_000  # tensors that a model may have in addition to its weights file, since plain weights are converted
_SPARE_NUMBERS = 10**7


def check_config(path: str | Path) -> None:
    """Check a model's ``config.json``.

    Raises:
        WeightsError: the file cannot be read or is not JSON, names an architecture that timm does not know, or has an
            invalid value; the message names the file and the key.
    """
    config = read_config(path)
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise WeightsError(f"{path} names no architecture: it is not the configuration of a timm model.")
    if not timm.is_model(architecture):
        raise WeightsError(
            f"{path} names the architecture {architecture!r}, which neither timm nor fdconv_zoo knows. The model "
            "belongs to another library, or to a newer version."
        )
    described = config.get("pretrained_cfg", config)
    parts = {"": config, "pretrained_cfg": described} if described is not config else {"": config}
    if not isinstance(described, dict):
        raise WeightsError(f"{path}: pretrained_cfg is {described!r:.40}, not keys and values. Get the file again.")
    for part, values in parts.items():
        for key, (is_valid, expected) in _KINDS.items():
            if values.get(key) is not None and not is_valid(values[key]):
                place = f"{part}.{key}" if part else key
                raise WeightsError(f"{path}: {place} is {values[key]!r:.40}, not {expected}. Get the file again.")


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a ``config.json`` of any kind of model.

    Raises:
        WeightsError: the file cannot be read or is not JSON, does not contain keys and values, or contains a number
            larger than any model needs.
    """
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}. Check that its folder is complete.") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON ({error}). Get the file again.") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} does not contain the arguments of a model; it belongs to another library.")
    for number in _numbers(config):
        if not abs(number) <= _LARGEST:  # also NaN
            raise WeightsError(f"{path} contains the number {number:,}, more than any model has. Get the file again.")
    return config


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


@contextmanager
def limited_by(weights: Path | None) -> Iterator[None]:
    """Stop building a model in the block if it gets much larger than its weights file, before the memory is full.

    Args:
        weights: The model's weights file, safetensors. If None or another kind of file, fixed limits are used.

    Raises:
        WeightsError: the model has far more parameters than the file, or than any model.
    """
    tensors, numbers = _MOST_TENSORS, _MOST_NUMBERS
    if weights is not None and (sizes := _sizes(weights)) is not None:
        tensors, numbers = 4 * len(sizes) + _SPARE, 4 * sum(sizes) + _SPARE_NUMBERS
    built = [0, 0]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            built[0] += 1
            built[1] += parameter.numel()
        if built[0] > tensors or built[1] > numbers:
            raise WeightsError(
                f"its configuration asks for a model of more than {tensors:,} tensors or {numbers:,} numbers, "
                f"far more than {weights or 'any model'} has. Get both files again, from a source you trust."
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _sizes(weights: Path) -> list[int] | None:
    """The number of elements of each tensor in a safetensors file; None for another kind of file."""
    try:
        with safe_open(weights, "pt") as file:
            return [math.prod(file.get_slice(key).get_shape()) for key in file.keys()]  # noqa: SIM118  not a dict
    except (SafetensorError, OSError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_count(side) and side > 0 for side in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _are_positive(value: Any) -> bool:
    return _are_numbers(value) and min(value) > 0


def _are_names(value: Any) -> bool:
    return isinstance(value, list | dict) and all(isinstance(name, str) for name in value)


def _is_part(value: Any) -> bool:
    return _is_number(value) and value > 0


_SIZE = (_is_size, "channels, height and width")
_PART = (_is_part, "a number above 0")
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_classes": (_is_count, "a number of classes"),
    "num_features": (_is_count, "a number of features"),
    "model_args": (lambda value: isinstance(value, dict), "keys and values"),
    "label_names": (_are_names, "names of classes"),
    "input_size": _SIZE,
    "test_input_size": _SIZE,
    "min_input_size": _SIZE,
    "mean": (_are_numbers, "a list of numbers"),
    "std": (_are_positive, "a list of numbers above 0"),
    "crop_pct": _PART,
    "test_crop_pct": _PART,
    "interpolation": (
        lambda value: value in ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming", "random"),
        "an interpolation that timm has",
    ),
    "crop_mode": (lambda value: value in ("center", "squash", "border"), "a way to crop that timm has"),
}
