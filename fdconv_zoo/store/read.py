"""Weights files of any library: safetensors, and what ``torch.save`` wrote, read without running anything in it."""

import json
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fdconv_zoo.errors import WeightsError, first_of

# What weights are filed under, in timm's order: a moving average before what it was made from.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of models saved from within DistributedDataParallel or torch.compile


class _Placeholder:
    """Stands where a checkpoint keeps an object that is not weights: takes everything, does and knows nothing."""

    def __new__(cls, *args: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


# Beside the weights trainers keep arguments (timm) and logs: buffers of NumPy arrays (mmengine), scores (mmcv). The
# names are allowed, what they name is not: each becomes a placeholder, even getattr, which pickled methods need.
_NOT_WEIGHTS = [
    (_Placeholder, name)
    for name in (
        "argparse.Namespace",
        "mmengine.logging.history_buffer.HistoryBuffer",
        "builtins.getattr",
        "numpy.ndarray",
        "numpy.dtype",
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    )
]


@dataclass(frozen=True)
class Checkpoint:
    """What a weights file holds.

    Attributes:
        path: the file.
        tensors: the weights, under their names in the file.
        meta: the ``meta`` of an OpenMMLab checkpoint: versions, classes, the configuration as text. Empty elsewhere.
        other_entries: what is filed beside the weights, such as ``optimizer``.
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: Mapping[str, Any]
    other_entries: tuple[str, ...]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a safetensors file, or one of ``torch.save``, to the CPU; which of them, its content decides.

    Raises:
        WeightsError: no such file, a damaged one, none that holds weights, or one that would run code.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _read_torch(path)
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return Checkpoint(path, _read_safetensors(path), {}, ())
    if not start:
        raise WeightsError(f"{path} is empty: get the file again.")
    hint = "a pointer to a file in Git LFS, not the file" if start.startswith(b"version https://git-lfs") else ""
    hint = hint or ("a web page" if b"<" in start[:16] else "neither safetensors nor of torch.save")
    raise WeightsError(f"{path} holds no weights, it is {hint}: get the file itself.")


def explain_unreadable(path: str | Path, error: Exception) -> str:
    """One sentence for what safetensors or ``torch.load`` said of a file: what is wrong, and what to do."""
    if isinstance(error, SafetensorError):
        return f"{path} is damaged: {_damage(Path(path)) or error}. Get the file again."
    if isinstance(error, pickle.UnpicklingError):
        reason = str(error).replace("\n", " ")
        name = reason.partition("GLOBAL ")[2].split(" ")[0] or reason.partition("Unsupported class ")[2].split(" ")[0]
        if name or "weights_only" in reason.lower() or "Weights only" in reason:
            what = f"{name}, which is code" if name else "more than weights"
            return (
                f"{path} is refused: it asks to run {what} and not weights. Nothing was run. Get the weights as "
                "safetensors from their publisher; do not load this file by other means unless you trust its maker."
            )
    return f"{path} is damaged, or no weights file ({type(error).__name__}: {error}). Get the file again."


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise WeightsError(explain_unreadable(path, error)) from error


def _damage(path: Path) -> str | None:
    """What safetensors' own messages leave out: how long the file is, and how long it should be."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
        if length is None or length > size - 8:
            announced = "no header" if length is None else f"a header of {length:,} bytes"
            return f"it has {size:,} bytes in all, and announces {announced}"
        try:
            header = json.loads(file.read(length))
            ends = {key: entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"}
            longest = max(ends, key=ends.__getitem__)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return "its header is not safetensors'"
    expected = 8 + length + ends[longest]
    if expected > size:
        return f"it has {size:,} bytes of the {expected:,} that {longest} ends with"
    return None


def _read_torch(path: Path) -> Checkpoint:
    try:
        with torch.serialization.safe_globals(_NOT_WEIGHTS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles fail in any way
        raise WeightsError(explain_unreadable(path, error)) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not weights by their names.")
    wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    weights = content[wrapper] if wrapper else content
    tensors = {_clean(key): value for key, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no weights; its entries are {first_of(map(str, content), 10) or 'none'}.")
    meta = content.get("meta") if wrapper and isinstance(content.get("meta"), Mapping) else {}
    others = (str(key) for key in content if key not in (wrapper, "meta")) if wrapper else ()
    return Checkpoint(path, tensors, meta, tuple(others))


def _clean(key: str) -> str:
    for prefix in _PREFIXES:
        key = str(key).removeprefix(prefix)
    return key
