"""Dense prediction: segmentation and detection on any timm backbone, with or without FDConv.

`Segmenter` and `Detector` are imported on first access, because each needs libraries of the `dense` extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdconv_zoo.dense.detection.model import Detector
    from fdconv_zoo.dense.segmentation.model import Segmenter

_LAZY = {"Detector": "detection.model", "Segmenter": "segmentation.model"}

__all__ = ["Detector", "Segmenter"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
