"""Other projects' weights files, converted into folders that timm loads."""

from fdconv_zoo.porting.convert import convert_checkpoint
from fdconv_zoo.porting.report import Conversion

__all__ = ["Conversion", "convert_checkpoint"]
