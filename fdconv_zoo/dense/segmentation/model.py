"""Semantic segmentation: any decoder on any timm backbone, in one class."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from fdconv_zoo.dense.model import DenseModel
from fdconv_zoo.dense.segmentation.classes import IGNORE, INVALID
from fdconv_zoo.dense.segmentation.losses import PixelLosses
from fdconv_zoo.dense.segmentation.per_pixel import DECODERS as PER_PIXEL
from fdconv_zoo.dense.segmentation.per_pixel import PerPixelNetwork
from fdconv_zoo.errors import ConfigError

if TYPE_CHECKING:
    from fdconv_zoo.dense.segmentation.mask2former import Mask2Former

DECODERS = (*PER_PIXEL, "mask2former")


class Segmenter(
    DenseModel,
    library_name="fdconv-zoo",
    pipeline_tag="image-segmentation",
    tags=["semantic-segmentation", "fdconv"],
    model_card_template=Path(__file__).with_name("card_template.md").read_text(encoding="utf-8"),
):
    """A network for semantic segmentation, which assigns a class to every pixel.

    With masks it returns losses, otherwise scores. It can be saved to folders and the Hub, and loaded from them::

        from fdconv_zoo.dense import Segmenter

        Segmenter("resnet50_fdconv", ["background", "cat"], pretrained=True).save_pretrained("folder")
        model = Segmenter.from_pretrained("folder")  # or a repository on the Hub

    Args:
        backbone: Model name registered with timm, optionally with the tag of its weights.
        class_names: Names of the K classes, in the order of their indices.
        decoder: One of `DECODERS`: those of segmentation_models_pytorch, or ``mask2former`` from transformers.
        backbone_args: Arguments of ``timm.create_model``, such as ``drop_path_rate``, or ``fbm`` of FDConv.
        decoder_args: Arguments of the decoder's class, such as ``decoder_channels``, or ``num_queries`` of
            ``mask2former``.
        mean, std: Mean and standard deviation of each channel, to normalize images with values in 0..1 before they
            are passed to the model. Default: those of the backbone.
        ignore_index: Mask value of pixels without a label in the training data. Class indices skip this value, so
            it is needed to read and write such masks.
        ce_weight, dice_weight, focal_weight, lovasz_weight: Weights of the losses. For ``mask2former``, set them in
            `decoder_args` instead.
        class_weights: Weights of the K classes in the cross-entropy; not for ``mask2former``.
        hard_pixels: Share of the labelled pixels of a batch that count in the cross-entropy: those with the largest
            loss. Not for ``mask2former``.
        auxiliary_weight: Weight of the loss of an auxiliary head on the third stage of the backbone, which is used only
            in training. It is usually 0.4 for UPerNet. With 0, there is no such head. Not for ``mask2former``.
        pretrained: True: start from the backbone's published weights. A path: start from this weights file. Not part of
            `config`.

    Attributes:
        config: The arguments that rebuild the model.
        class_names, mean, std, ignore_index: As above.

    Raises:
        ConfigError: a name is unknown, arguments are not supported, or the weights could not be loaded.
    """

    network: "PerPixelNetwork | Mask2Former"

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
        ignore_index: int = IGNORE,
        ce_weight: float = 1.0,
        dice_weight: float = 0.0,
        focal_weight: float = 0.0,
        lovasz_weight: float = 0.0,
        class_weights: Sequence[float] | None = None,
        hard_pixels: float = 1.0,
        auxiliary_weight: float = 0.0,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        if not 2 <= len(class_names) <= INVALID:
            raise ConfigError(f"{len(class_names)} classes: segmentation supports 2 to {INVALID}")
        arguments = {"backbone_args": dict(backbone_args or {}), "decoder_args": dict(decoder_args or {})}
        losses = {
            "ce_weight": ce_weight,
            "dice_weight": dice_weight,
            "focal_weight": focal_weight,
            "lovasz_weight": lovasz_weight,
            "class_weights": None if class_weights is None else list(class_weights),
            "hard_pixels": hard_pixels,
        }
        if decoder in PER_PIXEL:
            self.network = PerPixelNetwork(
                decoder,
                backbone,
                len(class_names),
                pretrained=pretrained,
                **arguments,
                losses=losses,
                auxiliary_weight=auxiliary_weight,
            )
        elif decoder == "mask2former":
            defaults = inspect.signature(PixelLosses).parameters
            if any(value != defaults[name].default for name, value in losses.items()):
                raise ConfigError("mask2former: set the weights of its losses in decoder_args")
            if auxiliary_weight:
                raise ConfigError("mask2former: has losses after each of its layers; leave auxiliary_weight out")
            from fdconv_zoo.dense.segmentation.mask2former import Mask2Former  # transformers takes seconds to import

            self.network = Mask2Former(backbone, len(class_names), pretrained=pretrained, **arguments)
        else:
            raise ConfigError(f"decoder {decoder}: no such decoder; choose one of {', '.join(DECODERS)}")
        defaults = resolve_model_data_config(self.backbone.model)
        self.class_names = list(class_names)
        self.mean, self.std = list(mean or defaults["mean"]), list(std or defaults["std"])
        self.ignore_index = ignore_index
        self.config = {
            "backbone": backbone,
            "class_names": self.class_names,
            "decoder": decoder,
            **arguments,
            "mean": self.mean,
            "std": self.std,
            "ignore_index": ignore_index,
            **losses,
            "auxiliary_weight": auxiliary_weight,
        }

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Compute the losses if masks are given, otherwise the scores.

        Args:
            images: Normalized images (B, 3, H, W), with any H and W.
            masks: Class indices (B, H, W); 255 for ignored pixels.

        Returns:
            The weighted losses by name; minimize their sum. Or scores (B, K, H, W): logits, or for ``mask2former`` sums
            over its queries. The class with the largest score is predicted.
        """
        height, width = images.shape[-2:]
        right, bottom = (self._padded(side) - side for side in (width, height))
        if right or bottom:
            images = F.pad(images, (0, right, 0, bottom))
        if masks is None:
            return self.network.scores(images)[..., :height, :width]
        return self.network.losses(images, F.pad(masks, (0, right, 0, bottom), value=IGNORE))

    def probabilities(self, scores: Tensor) -> Tensor:
        """Convert scores to values that can be averaged over several views of an image, (B, K, H, W)."""
        return self.network.probabilities(scores)

    def mask_values(self, indices: np.ndarray) -> np.ndarray:
        """Convert class indices to the values of the masks that the model was trained on, both uint8 of any shape."""
        return indices + (indices >= self.ignore_index).astype(np.uint8)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters to exclude from weight decay: the backbone's, and embeddings."""
        embeddings = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, nn.Embedding)}
        return super().no_weight_decay() | embeddings

    def _padded(self, side: int) -> int:
        multiple = self.network.size_multiple
        return max(-(-side // multiple) * multiple, self.network.min_side)
