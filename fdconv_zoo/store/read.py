"""Reads weights files, safetensors or written by ``torch.save``, without running any code they contain."""

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

# Keys of the weights, in timm's order: a moving average before the weights it was computed from.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_LONGEST_HEADER = 100_000_000  # bytes: the limit of the safetensors format
_PREFIXES = ("module.", "_orig_mod.")  # added by DistributedDataParallel and torch.compile


class _Placeholder:
    """Replaces objects that are not weights: accepts all arguments and does nothing."""

    def __new__(cls, *args: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


# Trainers save arguments (timm), logs as NumPy arrays (mmengine) and scores (mmcv) along with the weights. These names
# are allowed in a pickle, but are loaded as placeholders, including getattr, which pickled methods need.
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
    """Content of a weights file.

    Attributes:
        path: the file.
        tensors: the weights, by their names in the file.
        meta: the ``meta`` entry of an OpenMMLab file: versions, classes, the configuration as text. Empty for others.
        other_entries: names of the other entries, such as ``optimizer``.
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: Mapping[str, Any]
    other_entries: tuple[str, ...]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a weights file to the CPU. The format, safetensors or ``torch.save``, is recognised from the content.

    Raises:
        WeightsError: the file is missing or damaged, contains no weights, or would run code.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    # A safetensors file begins with the length of its header, whose bytes may equal the start of a zip or a pickle.
    is_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER
    if not is_safetensors and (start[:2] == b"PK" or start[:1] == b"\x80"):
        return _read_torch(path)
    if is_safetensors or path.suffix == ".safetensors" or start[8:9] == b"{":
        return Checkpoint(path, _read_safetensors(path), {}, ())
    if not start:
        raise WeightsError(f"{path} is empty: get the file again.")
    hint = "a pointer to a file in Git LFS, not the file" if start.startswith(b"version https://git-lfs") else ""
    hint = hint or ("a web page" if b"<" in start[:16] else "neither safetensors nor written by torch.save")
    raise WeightsError(f"{path} is not a weights file but {hint}: get the file itself.")


def _explain_unreadable(path: Path, error: Exception) -> str:
    """Explain an error of safetensors or ``torch.load``, and what to do."""
    if isinstance(error, SafetensorError):
        return f"{path} is damaged: {_describe_damage(path) or error}. Get the file again."
    if isinstance(error, pickle.UnpicklingError):
        reason = str(error).replace("\n", " ")
        name = reason.partition("GLOBAL ")[2].split(" ")[0] or reason.partition("Unsupported class ")[2].split(" ")[0]
        if name or "weights_only" in reason.lower() or "Weights only" in reason:
            what = f"asks to run {name}, which is code" if name else "holds more than weights"
            return (
                f"{path} is refused: it {what}. Nothing was run. Get the weights as safetensors from their publisher; "
                "do not load this file by other means unless you trust its author."
            )
    return f"{path} is damaged, or not a weights file ({type(error).__name__}: {error}). Get the file again."


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise WeightsError(_explain_unreadable(path, error)) from error


def _describe_damage(path: Path) -> str | None:
    """Compare a safetensors file's size with the expected size, which the library's own messages do not mention."""
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
            return "its header is not valid safetensors"
    expected = 8 + length + ends[longest]
    if expected > size:
        return f"it has {size:,} bytes, but {longest} ends at byte {expected:,}"
    return None


def _read_torch(path: Path) -> Checkpoint:
    try:
        with torch.serialization.safe_globals(_NOT_WEIGHTS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles can raise anything
        raise WeightsError(_explain_unreadable(path, error)) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not weights by name.")
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
