"""The model families: timm's own classes with some layers made dynamic. Importing them registers the entrypoints."""

from fdconv_zoo.backbones import convnext, resnet, swin, vit

__all__ = ["convnext", "resnet", "swin", "vit"]
