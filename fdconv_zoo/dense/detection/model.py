"""Detection and instance segmentation: torchvision's R-CNNs on any timm backbone."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from fdconv_zoo.dense.backbone import Backbone
from fdconv_zoo.dense.model import DenseModel
from fdconv_zoo.errors import ConfigError

HEADS = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}
ASPECT_RATIOS = (0.5, 1.0, 2.0)


class PyramidBackbone(nn.Module):
    """A feature pyramid over a backbone's four maps, and a fifth map at twice the last stride.

    Args:
        body: Backbone with four maps.
        channels: Channels of each output map.
    """

    def __init__(self, body: Backbone, channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.channels, channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute maps (B, C, H / stride, W / stride) of images (B, 3, H, W), keyed as torchvision's heads expect."""
        return self.fpn({str(level): features for level, features in enumerate(self.body(images))})


class _PreciseBoxCoder(BoxCoder):
    """Decodes boxes in float32: under autocast, torchvision's coder rounds them, in bfloat16 to up to 4 pixels."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        return super().decode_single(rel_codes.float(), boxes)


class Detector(
    DenseModel,
    library_name="fdconv-zoo",
    pipeline_tag="object-detection",
    tags=["object-detection", "fdconv"],
    model_card_template=Path(__file__).with_name("card_template.md").read_text(encoding="utf-8"),
):
    """A network for object detection, and with ``mask_rcnn`` for instance segmentation.

    Given targets it returns losses in training mode; in eval mode it returns detections. Save and load it, also on the
    Hub::

        from fdconv_zoo.dense import Detector

        Detector("resnet50_fdconv", ["cat", "dog"], pretrained=True).save_pretrained("folder")
        model = Detector.from_pretrained("folder")  # or a repository on the Hub

    Args:
        backbone: Model name registered with timm, optionally with the tag of its weights.
        class_names: Names of the K classes, without the background. The first is label 1.
        head: ``faster_rcnn`` or ``mask_rcnn``.
        backbone_args: Arguments of ``timm.create_model``, such as ``drop_path_rate``, or ``fbm`` of FDConv.
        head_args: Arguments of torchvision's ``FasterRCNN`` or ``MaskRCNN``, such as ``rpn_pre_nms_top_n_train``.
        fpn_channels: Channels of the feature pyramid. The width of the heads is proportional; 256 is torchvision's
            own.
        min_size: Shorter side, in pixels, to which images are resized. Of several, training draws one at random, and
            evaluation uses the last.
        max_size: Maximum of the longer side in pixels.
        anchor_sizes: Sides of the anchors in pixels, one for each of the five levels. Default: 8 times the stride of
            the level, which is 32 to 512 if the first stride is 4.
        mean, std: Mean and standard deviation of each channel, by which the model normalizes images with values in
            0..1. Default: those of the backbone.
        pretrained: Start from the backbone's published weights, or from a weights file: its path. Not part of
            `config`.

    Attributes:
        config: The arguments to build the model again.
        class_names: As above.
        network: The torchvision model.

    Raises:
        ConfigError: a name is unknown, arguments do not fit, or the weights could not be loaded.
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
        _check_head_args(HEADS[head], head_args or {})
        body = Backbone(backbone, arguments=backbone_args, pretrained=pretrained)
        strides = (*body.strides, 2 * body.strides[-1])
        anchor_sizes = list(anchor_sizes or (8 * stride for stride in strides))
        if len(anchor_sizes) != len(strides):
            raise ConfigError(f"anchor_sizes {anchor_sizes}: expected {len(strides)} sizes, one per level")
        defaults = resolve_model_data_config(body.model)
        self.class_names = list(class_names)
        self.config = {
            "backbone": backbone,
            "class_names": self.class_names,
            "head": head,
            "backbone_args": dict(backbone_args or {}),
            "head_args": dict(head_args or {}),
            "fpn_channels": fpn_channels,
            "min_size": min_size,
            "max_size": max_size,
            "anchor_sizes": anchor_sizes,
            "mean": list(mean or defaults["mean"]),
            "std": list(std or defaults["std"]),
        }
        anchors = AnchorGenerator([(size,) for size in anchor_sizes], [ASPECT_RATIOS] * len(anchor_sizes))
        self.network = HEADS[head](
            PyramidBackbone(body, fpn_channels),
            **_heads(head, fpn_channels, 1 + len(class_names)),
            min_size=min_size,
            max_size=max_size,
            image_mean=self.config["mean"],
            image_std=self.config["std"],
            rpn_anchor_generator=anchors,
            **self.config["head_args"],
        )
        for stage in (self.network.rpn, self.network.roi_heads):
            stage.box_coder = _PreciseBoxCoder(stage.box_coder.weights)

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
        return self.network(images, targets)


def _heads(head: str, channels: int, num_classes: int) -> dict[str, nn.Module]:
    """Build torchvision's heads, which it only provides for 256 channels, keyed by argument name."""
    size, width = 7, 4 * channels  # side of the pooled region of a box, and its number of features
    heads = {
        "box_head": TwoMLPHead(channels * size**2, width),
        "box_predictor": FastRCNNPredictor(width, num_classes),
    }
    if head == "mask_rcnn":
        heads["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, dilation=1)
        heads["mask_predictor"] = MaskRCNNPredictor(channels, channels, num_classes)
    return heads


def _check_head_args(network: type[FasterRCNN], head_args: Mapping[str, Any]) -> None:
    """Raise ConfigError for unknown names, which torchvision would ignore."""
    known = [name for name in inspect.signature(network).parameters if name.startswith(("rpn_", "box_", "bbox_"))]
    known = [name for name in known if not name.endswith(("_generator", "_head", "_pool", "_predictor"))]  # modules
    for name in head_args.keys() - known:
        near = difflib.get_close_matches(name, known, n=3) or known
        raise ConfigError(f"head_args {name}: no such argument of torchvision; did you mean {', '.join(near)}?")
