"""Networks with a score for each pixel and class: the decoders of segmentation_models_pytorch on timm's backbones."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from torch import Tensor, nn

from fdconv_zoo.dense.backbone import Backbone
from fdconv_zoo.dense.segmentation.losses import cross_entropy, dice
from fdconv_zoo.errors import ConfigError

# All of the library's but DPT, which takes apart plain vision transformers.
DECODERS = tuple(sorted(set(smp.MODEL_ARCHITECTURES_MAPPING) - {"dpt"}))
_NOT_ARGUMENTS = ("encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "kwargs")


class PerPixelNetwork(nn.Module):
    """A decoder of segmentation_models_pytorch, with cross-entropy and Dice.

    Args:
        decoder: One of `DECODERS`.
        backbone: A name registered with timm.
        num_classes: K.
        backbone_args: For ``timm.create_model``.
        decoder_args: Of the library's class, such as ``decoder_channels``.
        pretrained: As of :class:`Backbone`.
        ce_weight, dice_weight: What the losses are multiplied with; 0 leaves one out.

    Attributes:
        stride: What height and width must be multiples of.
        least: What they must be at least.

    Raises:
        ConfigError: the backbone or arguments do not fit.
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
        ce_weight: float = 1.0,
        dice_weight: float = 0.0,
    ) -> None:
        super().__init__()
        weighted = {"cross_entropy": (cross_entropy, ce_weight), "dice": (dice, dice_weight)}
        self._losses = {name: (loss, weight) for name, (loss, weight) in weighted.items() if weight}
        if not self._losses:
            raise ConfigError("ce_weight and dice_weight are both 0: nothing would be trained")

        takes = inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[decoder]).parameters
        choices = [name for name in takes if name not in _NOT_ARGUMENTS]
        if unknown := sorted(decoder_args.keys() - set(choices)):
            raise ConfigError(f"decoder_args {', '.join(unknown)}: {decoder} takes {', '.join(choices)}")

        def build_encoder(depth: int, output_stride: int) -> _Encoder:
            return _Encoder(
                backbone, depth, output_stride=output_stride, arguments=backbone_args, pretrained=pretrained
            )

        with _registered(build_encoder) as name:
            try:
                self.model = smp.create_model(decoder, name, None, classes=num_classes, **decoder_args)
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                raise ConfigError(f"decoder {decoder} cannot be built with {dict(decoder_args)}: {error}") from error
        self.stride = self.model.encoder.output_stride
        self.least = self.stride * (8 if decoder == "pan" else 1)  # which halves its last map three times

    def losses(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Weighted losses, by name, of images (B, 3, H, W) with masks (B, H, W).

        Raises:
            ConfigError: a single image, where the decoder normalizes what it pools over the batch.
        """
        try:
            logits = self.scores(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError("this decoder trains with two images a batch or more: --batch-size") from error
        return {name: weight * loss(logits, masks) for name, (loss, weight) in self._losses.items()}

    def scores(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W)."""
        logits = self.model(images)
        if logits.shape[-2:] != images.shape[-2:]:  # with some depths of some decoders
            logits = F.interpolate(logits, images.shape[-2:], mode="bilinear")
        return logits

    def probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities (B, K, H, W) of the classes."""
        return scores.softmax(1)


class _Encoder(nn.Module):
    """A backbone with what the library's decoders ask of an encoder."""

    def __init__(self, name: str, depth: int, output_stride: int, **kwargs: Any) -> None:
        super().__init__()
        strides = [2**level for level in range(1, depth + 1)]
        self.backbone = Backbone(name, strides, output_stride=output_stride, **kwargs)
        self._has_half = self.backbone.strides[0] == 2
        self.out_channels = [3, *(() if self._has_half else (0,)), *self.backbone.channels]
        self.output_stride = min(output_stride, 2**depth)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The images, then maps of half the size, a quarter, and so on; an empty one where there is none of half."""
        maps = self.backbone(images)
        if not self._has_half:
            batch, _, height, width = images.shape
            maps = [images.new_empty(batch, 0, height // 2, width // 2), *maps]
        return [images, *maps]

    def set_in_channels(self, in_channels: int, pretrained: bool) -> None:
        """Images have three channels."""

    def make_dilated(self, output_stride: int) -> None:
        """The backbone was built so."""


@contextmanager
def _registered(build: Callable[[int, int], _Encoder]) -> Iterator[str]:
    """Make an encoder known to the library under a name, as long as it takes to build a model."""
    name = "fdconv_zoo"
    smp.encoders.encoders[name] = {"encoder": build, "params": {}, "pretrained_settings": {}}
    try:
        yield name
    finally:
        del smp.encoders.encoders[name]
