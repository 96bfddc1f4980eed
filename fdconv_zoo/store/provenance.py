"""The origin of weights, stored in the metadata of their file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fdconv_zoo.version import __version__


def write_provenance(path: Path, **known: str | None) -> None:
    """Write metadata into a weights file.

    Args:
        path: a safetensors file.
        **known: metadata such as ``model``, ``status``, ``source`` and ``license``; None is left out.
    """
    texts = {key: value for key, value in known.items() if value is not None}
    save_file(load_file(path), path, {"format": "pt", **texts, "fdconv_zoo": __version__})


def read_provenance(path: Path) -> Mapping[str, str]:
    """Read the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}
