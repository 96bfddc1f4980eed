"""Detection and instance segmentation: torchvision's detectors on any timm backbone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.data import resolve_model_data_config
from torch import Tensor

from fdconv_zoo.dense.backbone import Backbone
from fdconv_zoo.dense.detection.heads import HEADS, ONE_STAGE, build_network
from fdconv_zoo.dense.model import DenseModel
from fdconv_zoo.errors import ConfigError


class Detector(
    DenseModel,
    library_name="fdconv-zoo",
    pipeline_tag="object-detection",
    tags=["object-detection", "fdconv"],
    model_card_template=Path(__file__).with_name("card_template.md").read_text(encoding="utf-8"),
):
    """A network for object detection, and with ``mask_rcnn`` for instance segmentation.

    It returns losses in training mode, where it needs targets, and detections in eval mode. It can be saved to folders
    and the Hub, and loaded from them::

        from fdconv_zoo.dense import Detector

        Detector("resnet50_fdconv", ["cat", "dog"], pretrained=True).save_pretrained("folder")
        model = Detector.from_pretrained("folder")  # or a repository on the Hub

    Args:
        backbone: Model name registered with timm, optionally with the tag of its weights.
        class_names: Names of the K classes, without the background. The first is label 1.
        head: ``faster_rcnn``, ``mask_rcnn``, ``retinanet`` or ``fcos``.
        backbone_args: Arguments of ``timm.create_model``, such as ``drop_path_rate``, or ``fbm`` of FDConv.
        head_args: Arguments of torchvision's ``FasterRCNN``, ``MaskRCNN``, ``RetinaNet`` or ``FCOS``, such as
            ``rpn_pre_nms_top_n_train``.
        fpn_channels: Channels of the feature pyramid, to which the width of the heads is proportional. torchvision uses
            256.
        min_size: Shorter side, in pixels, to which images are resized. Of several, training draws one at random, and
            evaluation uses the last.
        max_size: Maximum of the longer side in pixels.
        anchor_sizes: Sides of the anchors in pixels, one for each of the five levels. Default: 8 times the stride of
            the level, or 4 times for ``retinanet``, whose strides are twice as large. These are 32 to 512 if the first
            map of the backbone has stride 4. ``fcos`` has no anchors.
        mean, std: Mean and standard deviation of each channel, by which the model normalizes images with values in
            0..1. Default: those of the backbone.
        pretrained: True: start from the backbone's published weights. A path: start from this weights file. Not part of
            `config`.

    Attributes:
        config: The arguments that rebuild the model.
        class_names: As above.
        network: The torchvision model.

    Raises:
        ConfigError: a name is unknown, arguments are not supported, or the weights could not be loaded.
    """

    def __init__(
        self,
        backbone: str,
        class_names: Sequence[str],
        head: str = "faster_rcnn",
        *,
        backbone_args: Mapping[str, Any] | None = None,
        head_args: Mapping[str, Any] | None = None,
        fpn_channels: int = 256,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        anchor_sizes: Sequence[float] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ConfigError(f"head {head}: no such head; choose one of {', '.join(HEADS)}")
        if not class_names:
            raise ConfigError("no classes: detection needs at least one besides the background")
        body = Backbone(backbone, arguments=backbone_args, pretrained=pretrained)
        defaults = resolve_model_data_config(body.model)
        self.class_names = list(class_names)
        mean, std = list(mean or defaults["mean"]), list(std or defaults["std"])
        self.network, sizes = build_network(
            head,
            body,
            len(class_names),
            channels=fpn_channels,
            anchor_sizes=anchor_sizes,
            head_args=head_args or {},
            min_size=min_size,
            max_size=max_size,
            image_mean=mean,
            image_std=std,
        )
        self.config = {
            "backbone": backbone,
            "class_names": self.class_names,
            "head": head,
            "backbone_args": dict(backbone_args or {}),
            "head_args": dict(head_args or {}),
            "fpn_channels": fpn_channels,
            "min_size": min_size,
            "max_size": max_size,
            "anchor_sizes": None if head == "fcos" else sizes,
            "mean": mean,
            "std": std,
        }

    @property
    def has_masks(self) -> bool:
        """Whether the model predicts masks."""
        return self.config["head"] == "mask_rcnn"

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute the losses in training mode, and detections in eval mode.

        Args:
            images: Images (3, H, W) with values in 0..1; sizes may differ.
            targets: Required in training. For each image, ``boxes`` (N, 4), left, top, right and bottom in pixels,
                ``labels`` (N,) in 1..K, and for ``mask_rcnn`` ``masks`` (N, H, W). N may be 0.

        Returns:
            The losses by name; minimize their sum. Or for each image, ``boxes`` (N, 4), ``labels`` and ``scores``
            (N,), best first, and for ``mask_rcnn`` ``masks`` (N, 1, H, W) with values in 0..1.
        """
        if self.config["head"] not in ONE_STAGE:
            return self.network(images, targets)
        # Label 0 of one-stage detectors is the first class, not the background.
        if targets is not None:
            targets = [{**target, "labels": target["labels"] - 1} for target in targets]
        found = self.network(images, targets)
        if self.training:
            return found
        return [{**objects, "labels": objects["labels"] + 1} for objects in found]
