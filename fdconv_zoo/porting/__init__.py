"""Conversion of other projects' weights files into folders that timm loads."""

from fdconv_zoo.porting.convert import convert_checkpoint
from fdconv_zoo.porting.report import Conversion

__all__ = ["Conversion", "convert_checkpoint"]
