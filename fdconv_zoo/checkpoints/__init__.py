"""Checkpoints of other projects, converted into folders that timm loads."""

from fdconv_zoo.checkpoints.convert import convert_checkpoint
from fdconv_zoo.checkpoints.report import Conversion

__all__ = ["Conversion", "convert_checkpoint"]
