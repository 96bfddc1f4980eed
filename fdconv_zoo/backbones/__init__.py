"""The model families: timm's classes with some layers replaced by FDConv. Importing them registers the entrypoints."""

from fdconv_zoo.backbones import convnext, resnet, swin, vit

__all__ = ["convnext", "resnet", "swin", "vit"]
