"""Mask2Former from transformers on timm backbones: each query predicts a class and a mask."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BackboneOutput

from fdconv_zoo.dense.backbone import Backbone
from fdconv_zoo.dense.segmentation.classes import IGNORE
from fdconv_zoo.errors import ConfigError

_STRIDES = (4, 8, 16, 32)
_RESERVED = ("backbone_config", "feature_strides", "ignore_value", "output_auxiliary_logits", "use_auxiliary_loss")


class Mask2Former(nn.Module):
    """Mask2Former for semantic segmentation.

    Args:
        backbone: Model name registered with timm.
        num_classes: Number of classes K.
        backbone_args: Arguments of ``timm.create_model``.
        decoder_args: Arguments of transformers' ``Mask2FormerConfig``, such as ``num_queries``, or ``dice_weight`` of
            its loss.
        pretrained: As in :class:`Backbone`.

    Attributes:
        size_multiple: Height and width of the images must be multiples of it.
        min_side: Smallest height and width of the images.

    Raises:
        ConfigError: the model cannot be built with this backbone or these arguments.
    """

    size_multiple = min_side = 32

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        backbone_args: Mapping[str, Any],
        decoder_args: Mapping[str, Any],
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        inherited = inspect.signature(PreTrainedConfig.__init__).parameters
        parameters = inspect.signature(Mask2FormerConfig.__init__).parameters
        choices = [name for name in parameters if name not in (*inherited, *_RESERVED)]
        if unknown := sorted(decoder_args.keys() - set(choices)):
            raise ConfigError(f"decoder_args {', '.join(unknown)}: mask2former accepts {', '.join(choices)}")
        try:
            config = _Config(
                backbone_config=_BackboneConfig(backbone, dict(backbone_args), pretrained),
                num_labels=num_classes,
                **decoder_args,
            )
            self.model = Mask2FormerForUniversalSegmentation(config)
        except (AssertionError, RuntimeError, StrictDataclassError, TypeError, ValueError) as error:
            raise ConfigError(f"mask2former cannot be built with {dict(decoder_args)}: {error}") from error

    def losses(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Compute the weighted losses, by name, of images (B, 3, H, W) with masks (B, H, W).

        Each loss is summed over all layers of the decoder. As in Mask2Former's own training, an ignored pixel belongs
        to no class. An image without labelled pixels does not contribute.
        """
        outputs = self.model(images, output_auxiliary_logits=True)
        layers = [dict(outputs), *outputs.auxiliary_logits]
        used = (masks != IGNORE).flatten(1).any(1)
        chosen = used if used.any() else ~used  # always compute the loss: it synchronizes the processes
        keys = ("masks_queries_logits", "class_queries_logits")
        last, *others = [{key: layer[key][chosen].float() for key in keys} for layer in layers]
        classes = [mask[mask != IGNORE].unique() for mask in masks[chosen]]
        class_masks = [
            (mask == present[:, None, None]).float() for mask, present in zip(masks[chosen], classes, strict=True)
        ]
        with torch.autocast(images.device.type, enabled=False):
            losses = self.model.get_loss_dict(
                **last, mask_labels=class_masks, class_labels=classes, auxiliary_predictions=others
            )
        return {
            name: used.any() * sum(value for key, value in losses.items() if key.startswith(f"loss_{name}"))
            for name in ("cross_entropy", "mask", "dice")
        }

    def scores(self, images: Tensor) -> Tensor:
        """Compute scores (B, K, H, W): the sum of the queries' masks, weighted by their class probabilities."""
        outputs = self.model(images)
        masks = F.interpolate(outputs.masks_queries_logits, images.shape[-2:], mode="bilinear").sigmoid()
        classes = outputs.class_queries_logits.softmax(-1)[..., :-1]  # the last is "no object"
        return torch.einsum("bqk,bqhw->bkhw", classes, masks)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return the scores (B, K, H, W) unchanged: they are averaged instead of class probabilities."""
        return scores


# transformers builds a backbone from its configuration alone. Its own configuration of timm models does not store
# arguments of the model; this one does.


class _BackboneConfig(PreTrainedConfig):
    model_type = "fdconv_zoo"

    def __init__(
        self,
        name: str = "",
        arguments: dict[str, Any] | None = None,
        pretrained: bool | str | Path = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name, self.arguments, self.pretrained = name, arguments or {}, pretrained


class _Backbone(PreTrainedModel):
    config_class = _BackboneConfig

    def __init__(self, config: _BackboneConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.name, _STRIDES, arguments=config.arguments, pretrained=config.pretrained)
        self.channels = self.backbone.channels
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the weights as timm initialized them."""

    def forward(self, images: Tensor) -> BackboneOutput:
        return BackboneOutput(feature_maps=tuple(self.backbone(images)))


class _Config(Mask2FormerConfig):
    backbones_supported = (_BackboneConfig.model_type,)


AutoConfig.register(_BackboneConfig.model_type, _BackboneConfig)
AutoBackbone.register(_BackboneConfig, _Backbone)
