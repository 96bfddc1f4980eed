"""Dense prediction: segmentation and detection on any backbone of timm, FDConv or not.

`Segmenter` and `Detector` are imported when they are first asked for: each needs libraries of the `dense` extra.
"""

from importlib import import_module
from typing import Any

_LATER = {"Detector": "detection.model", "Segmenter": "segmentation.model"}

__all__ = ["Detector", "Segmenter"]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
