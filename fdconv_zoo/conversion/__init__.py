"""Plain layers to FDConv layers and back, in any torch model."""

from fdconv_zoo.conversion.replace import LAYER_OPTIONS, replace_layers

__all__ = ["LAYER_OPTIONS", "replace_layers"]
