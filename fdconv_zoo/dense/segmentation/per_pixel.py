"""Networks that score each pixel and class: the decoders of segmentation_models_pytorch on timm backbones."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from fdconv_zoo.dense.backbone import Backbone
from fdconv_zoo.dense.segmentation.losses import PixelLosses
from fdconv_zoo.errors import ConfigError

# All decoders of the library except DPT, which only supports plain vision transformers.
DECODERS = tuple(sorted(set(smp.MODEL_ARCHITECTURES_MAPPING) - {"dpt"}))
_RESERVED = ("encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "kwargs")


class PerPixelNetwork(nn.Module):
    """A decoder of segmentation_models_pytorch, with per-pixel losses.

    Args:
        decoder: One of `DECODERS`.
        backbone: Model name registered with timm.
        num_classes: Number of classes K.
        backbone_args: Arguments of ``timm.create_model``.
        decoder_args: Arguments of the decoder's class, such as ``decoder_channels``.
        pretrained: As in :class:`Backbone`.
        losses: Arguments of `PixelLosses`.
        auxiliary_weight: Weight of the losses of a second head in training: torchvision's fully convolutional one, on
            the second to last map of the backbone. The mmsegmentation configuration of UPerNet that FDConv's authors
            use has such a head with weight 0.4. With 0, there is no second head.

    Attributes:
        size_multiple: Height and width of the images must be multiples of it.
        min_side: Smallest height and width of the images.

    Raises:
        ConfigError: the model cannot be built with this backbone or these arguments.
    """

    def __init__(
        self,
        decoder: str,
        backbone: str,
        num_classes: int,
        *,
        backbone_args: Mapping[str, Any],
        decoder_args: Mapping[str, Any],
        pretrained: bool | str | Path = False,
        losses: Mapping[str, Any],
        auxiliary_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self._losses = PixelLosses(num_classes, **losses)
        parameters = inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[decoder]).parameters
        choices = [name for name in parameters if name not in _RESERVED]
        if unknown := sorted(decoder_args.keys() - set(choices)):
            raise ConfigError(f"decoder_args {', '.join(unknown)}: {decoder} accepts {', '.join(choices)}")

        def build_encoder(depth: int, output_stride: int) -> _Encoder:
            return _Encoder(
                backbone, depth, output_stride=output_stride, arguments=backbone_args, pretrained=pretrained
            )

        with _registered(build_encoder) as name:
            try:
                self.model = smp.create_model(decoder, name, None, classes=num_classes, **decoder_args)
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                raise ConfigError(f"decoder {decoder} cannot be built with {dict(decoder_args)}: {error}") from error
        self._auxiliary_weight = auxiliary_weight
        if auxiliary_weight:
            channels = self.model.encoder.backbone.channels
            if len(channels) < 2:
                raise ConfigError("auxiliary_weight: the decoder takes one map; leave it out, or raise encoder_depth")
            self.auxiliary_head = FCNHead(channels[-2], num_classes)
        self.size_multiple = self.model.encoder.output_stride
        self.min_side = self.size_multiple * (8 if decoder == "pan" else 1)  # PAN halves the last map three times

    def losses(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Compute the weighted losses, by name, of images (B, 3, H, W) with masks (B, H, W).

        Raises:
            ConfigError: there is only one image, and the decoder applies BatchNorm to globally pooled features.
        """
        maps = self.model.encoder(images)
        try:
            logits = self._decode(maps, images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                "this decoder needs at least two images per batch to train: raise --batch-size"
            ) from error
        losses = self._losses(logits, masks)
        if self._auxiliary_weight:
            found = self._losses(_resize(self.auxiliary_head(maps[-2]), images), masks)
            losses["auxiliary"] = self._auxiliary_weight * sum(found.values())
        return losses

    def scores(self, images: Tensor) -> Tensor:
        """Compute the logits (B, K, H, W)."""
        return self._decode(self.model.encoder(images), images)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Convert scores to class probabilities (B, K, H, W)."""
        return scores.softmax(1)

    def _decode(self, maps: list[Tensor], images: Tensor) -> Tensor:
        # For some depths of some decoders, the size differs.
        return _resize(self.model.segmentation_head(self.model.decoder(maps)), images)


def _resize(logits: Tensor, images: Tensor) -> Tensor:
    size = images.shape[-2:]
    return logits if logits.shape[-2:] == size else F.interpolate(logits, size, mode="bilinear")


class _Encoder(nn.Module):
    """A backbone with the interface that the library's decoders expect of an encoder."""

    def __init__(self, name: str, depth: int, output_stride: int, **kwargs: Any) -> None:
        super().__init__()
        strides = [2**level for level in range(1, depth + 1)]
        self.backbone = Backbone(name, strides, output_stride=output_stride, **kwargs)
        self._has_half = self.backbone.strides[0] == 2
        self.out_channels = [3, *(() if self._has_half else (0,)), *self.backbone.channels]
        self.output_stride = min(output_stride, 2**depth)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the images, then maps at strides 2, 4 and so on; without a map at stride 2, an empty one instead."""
        maps = self.backbone(images)
        if not self._has_half:
            batch, _, height, width = images.shape
            maps = [images.new_empty(batch, 0, height // 2, width // 2), *maps]
        return [images, *maps]

    def set_in_channels(self, in_channels: int, pretrained: bool) -> None:
        """Do nothing: images have three channels."""

    def make_dilated(self, output_stride: int) -> None:
        """Do nothing: the backbone was built with its output stride."""


@contextmanager
def _registered(build: Callable[[int, int], _Encoder]) -> Iterator[str]:
    """Register an encoder with the library temporarily, while a model is built, and yield its name."""
    name = "fdconv_zoo"
    smp.encoders.encoders[name] = {"encoder": build, "params": {}, "pretrained_settings": {}}
    try:
        yield name
    finally:
        del smp.encoders.encoders[name]
