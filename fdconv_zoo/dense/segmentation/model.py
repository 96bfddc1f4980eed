"""Semantic segmentation: any of timm's backbones under any of the decoders, behind one class."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from huggingface_hub import ModelCard
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from fdconv_zoo.dense.backbone import Backbone
from fdconv_zoo.dense.saved_model import SavedModel
from fdconv_zoo.dense.segmentation.classes import IGNORE, OUTSIDE
from fdconv_zoo.dense.segmentation.per_pixel import DECODERS as PER_PIXEL
from fdconv_zoo.dense.segmentation.per_pixel import PerPixelNetwork
from fdconv_zoo.errors import ConfigError

DECODERS = (*PER_PIXEL, "mask2former")


class Segmenter(
    nn.Module,
    SavedModel,
    library_name="fdconv-zoo",
    pipeline_tag="image-segmentation",
    tags=["semantic-segmentation", "fdconv"],
    model_card_template=Path(__file__).with_name("card_template.md").read_text(encoding="utf-8"),
):
    """A network that gives every pixel a class.

    With masks it returns its losses, without them scores. It saves, loads and uploads itself::

        Segmenter("resnet50_fdconv", ["background", "cat"], pretrained=True).save_pretrained("folder")
        model = Segmenter.from_pretrained("folder")  # or a repository on the Hub

    Args:
        backbone: Any name registered with timm, also with the tag of its weights.
        class_names: K names, in the order of the class numbers.
        decoder: One of `DECODERS`: those of segmentation_models_pytorch, and ``mask2former`` of transformers.
        backbone_args: For ``timm.create_model``, such as ``drop_path_rate``, or ``fbm`` of FDConv.
        decoder_args: Of the library's class, such as ``decoder_channels``, or ``num_queries`` of ``mask2former``.
        mean, std: Of the channels of images in 0..1, by which they are normalized before; by default the backbone's.
        ce_weight, dice_weight: Of the losses; ``mask2former`` has its own, among `decoder_args`.
        pretrained: Start from the backbone's published weights, or from those of a file: a path. Not part of `config`.

    Attributes:
        config: The arguments that build the model again.
        class_names, mean, std: As above.

    Raises:
        ConfigError: unknown names, arguments that do not fit, or weights that cannot be had.
    """

    def __init__(
        self,
        backbone: str,
        class_names: Sequence[str],
        decoder: str = "upernet",
        *,
        backbone_args: Mapping[str, Any] | None = None,
        decoder_args: Mapping[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        ce_weight: float = 1.0,
        dice_weight: float = 0.0,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        if not 2 <= len(class_names) <= OUTSIDE:
            raise ConfigError(f"{len(class_names)} classes: segmentation takes 2 to {OUTSIDE}")
        arguments = {"backbone_args": dict(backbone_args or {}), "decoder_args": dict(decoder_args or {})}
        weights = {"ce_weight": ce_weight, "dice_weight": dice_weight}
        if decoder in PER_PIXEL:
            self.network = PerPixelNetwork(
                decoder, backbone, len(class_names), pretrained=pretrained, **arguments, **weights
            )
        elif decoder == "mask2former":
            if weights != {"ce_weight": 1.0, "dice_weight": 0.0}:
                raise ConfigError("mask2former: its losses have their weights among decoder_args")
            from fdconv_zoo.dense.segmentation.mask2former import Mask2Former  # transformers takes seconds to import

            self.network = Mask2Former(backbone, len(class_names), pretrained=pretrained, **arguments)
        else:
            raise ConfigError(f"decoder {decoder}: no such decoder; there are {', '.join(DECODERS)}")
        own = resolve_model_data_config(self.backbone.model)
        self.class_names = list(class_names)
        self.mean, self.std = list(mean or own["mean"]), list(std or own["std"])
        self.config = {
            "backbone": backbone,
            "class_names": self.class_names,
            "decoder": decoder,
            **arguments,
            "mean": self.mean,
            "std": self.std,
            **weights,
        }

    @property
    def backbone(self) -> Backbone:
        """The part that makes the feature maps; timm's model is its ``model``."""
        return next(module for module in self.modules() if isinstance(module, Backbone))

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Losses where there are masks, else scores.

        Args:
            images: (B, 3, H, W), normalized; any H and W.
            masks: (B, H, W), class numbers, or 255 where a pixel is ignored.

        Returns:
            Losses by name, weighted: their sum is to be minimized. Or scores (B, K, H, W): logits, and of
            ``mask2former`` sums over its queries; the largest is the predicted class.
        """
        height, width = images.shape[-2:]
        right, bottom = (self._padded(size) - size for size in (width, height))
        if right or bottom:
            images = F.pad(images, (0, right, 0, bottom))
        if masks is None:
            return self.network.scores(images)[..., :height, :width]
        return self.network.losses(images, F.pad(masks, (0, right, 0, bottom), value=IGNORE))

    def probabilities(self, scores: Tensor) -> Tensor:
        """What can be averaged over several views of an image (B, K, H, W), from scores."""
        return self.network.probabilities(scores)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Which layer a parameter is in, for timm's layer decay: those of the backbone in order, then all others."""
        prefix = self._backbone_prefix()
        layers = {prefix + name: layer for name, layer in self.backbone.layers(coarse).items()}
        return lambda name: layers.get(name, math.inf)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that do not decay: those of the backbone's authors, and embeddings."""
        prefix = self._backbone_prefix()
        embeddings = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, nn.Embedding)}
        return {prefix + name for name in self.backbone.no_weight_decay()} | embeddings

    def generate_model_card(self, **kwargs: Any) -> ModelCard:
        """The card; `kwargs` can be ``repo_id``, ``dataset``, ``metrics`` (name to value) and ``table`` (Markdown)."""
        return super().generate_model_card(**{"model": self.config, **kwargs})

    def _padded(self, size: int) -> int:
        return max(-(-size // self.network.stride) * self.network.stride, self.network.least)

    def _backbone_prefix(self) -> str:
        return next(f"{name}." for name, module in self.named_modules() if module is self.backbone)
