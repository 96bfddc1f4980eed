"""Detection and instance segmentation: torchvision's R-CNNs on any of timm's backbones."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
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
from fdconv_zoo.dense.saved_model import SavedModel
from fdconv_zoo.errors import ConfigError

HEADS = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}
ASPECT_RATIOS = (0.5, 1.0, 2.0)
_PREFIX = "network.backbone.body."  # of the backbone's parameters


class PyramidBackbone(nn.Module):
    """A backbone's last four maps, and a fifth at twice the last stride, with equal channels.

    Args:
        body: with four maps.
        channels: of each map that comes out.
    """

    def __init__(self, body: Backbone, channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.channels, channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) to maps (B, C, H / stride, W / stride), by the names that torchvision's heads expect."""
        return self.fpn({str(level): features for level, features in enumerate(self.body(images))})


class _PreciseBoxCoder(BoxCoder):
    """torchvision's, which under autocast would place boxes in half precision: in bfloat16 to the nearest 4 pixels."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        return super().decode_single(rel_codes.float(), boxes)


class Detector(
    nn.Module,
    SavedModel,
    library_name="fdconv-zoo",
    pipeline_tag="object-detection",
    tags=["object-detection", "fdconv"],
    model_card_template=Path(__file__).with_name("card_template.md").read_text(encoding="utf-8"),
):
    """A network that finds objects: their boxes and classes, and with ``mask_rcnn`` their masks.

    It saves, loads and uploads itself::

        Detector("resnet50_fdconv", ["cat", "dog"], pretrained=True).save_pretrained("folder")
        model = Detector.from_pretrained("folder")  # or a repository on the Hub

    Args:
        backbone: Any name registered with timm, also with the tag of its weights.
        class_names: K names without the background's: label 1 is the first.
        head: ``faster_rcnn`` or ``mask_rcnn``.
        backbone_args: For ``timm.create_model``, such as ``drop_path_rate``, or ``fbm`` of FDConv.
        head_args: Of torchvision's ``FasterRCNN`` or ``MaskRCNN``, such as ``rpn_pre_nms_top_n_train``.
        fpn_channels: Of the feature pyramid; the heads become as wide, and are torchvision's own at 256.
        min_size: The shorter side, in pixels, that images are scaled to; of several one is drawn in training, and
            the last is taken in evaluation.
        max_size: Limit of the longer side.
        anchor_sizes: Sides of the anchors in pixels, one for each of the five levels; by default 8 times the level's
            stride: 32 to 512 where the first stride is 4.
        mean, std: Of the channels of images in 0..1, by which they are normalized; by default the backbone's.
        pretrained: Start from the backbone's published weights, or from those of a file: a path. Not part of `config`.

    Attributes:
        config: The arguments that build the model again.
        class_names: As above.
        network: torchvision's.

    Raises:
        ConfigError: unknown names, arguments that do not fit, or weights that cannot be had.
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
            raise ConfigError(f"head {head}: no such head; there are {', '.join(HEADS)}")
        if not class_names:
            raise ConfigError("no classes: detection takes at least one, besides the background")
        _check_arguments(HEADS[head], head_args or {})
        body = Backbone(backbone, arguments=backbone_args, pretrained=pretrained)
        strides = (*body.strides, 2 * body.strides[-1])
        anchor_sizes = list(anchor_sizes or (8 * stride for stride in strides))
        if len(anchor_sizes) != len(strides):
            raise ConfigError(f"anchor_sizes {anchor_sizes}: one for each of {len(strides)} levels is needed")
        own = resolve_model_data_config(body.model)
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
            "mean": list(mean or own["mean"]),
            "std": list(std or own["std"]),
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
        for part in (self.network.rpn, self.network.roi_heads):
            part.box_coder = _PreciseBoxCoder(part.box_coder.weights)

    @property
    def backbone(self) -> Backbone:
        """What was made before: timm's model, without the pyramid."""
        return self.network.backbone.body

    @property
    def has_masks(self) -> bool:
        """Whether it finds masks, beside boxes."""
        return self.config["head"] == "mask_rcnn"

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            images: (3, H, W) each, values in 0..1, of any sizes.
            targets: In training, for each image ``boxes`` (N, 4), left, top, right and bottom in its pixels, ``labels``
                (N,) in 1..K, and for ``mask_rcnn`` ``masks`` (N, H, W); N may be 0.

        Returns:
            Losses by name: their sum is to be minimized. Or for each image ``boxes`` (N, 4), ``labels`` and ``scores``
            (N,), best first, and ``masks`` (N, 1, H, W) of values in 0..1.
        """
        return self.network(images, targets)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Which layer a parameter is in, for timm's layer decay: those of the backbone in order, then all others."""
        layers = {_PREFIX + name: layer for name, layer in self.backbone.layers(coarse).items()}
        return lambda name: layers.get(name, math.inf)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that do not decay: those of the backbone's authors."""
        return {_PREFIX + name for name in self.backbone.no_weight_decay()}

    def generate_model_card(self, **kwargs: Any) -> ModelCard:
        """The card; `kwargs` can be ``repo_id``, ``dataset``, ``metrics`` (name to value) and ``table`` (Markdown)."""
        return super().generate_model_card(**{"model": self.config, **kwargs})


def _heads(head: str, channels: int, num_classes: int) -> dict[str, nn.Module]:
    """torchvision's heads on a pyramid of `channels`, by the names of its arguments; it has them for 256 only."""
    size, width = 7, 4 * channels  # of what is cut out for a box, and of what is made of it
    heads = {
        "box_head": TwoMLPHead(channels * size**2, width),
        "box_predictor": FastRCNNPredictor(width, num_classes),
    }
    if head == "mask_rcnn":
        heads["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, dilation=1)
        heads["mask_predictor"] = MaskRCNNPredictor(channels, channels, num_classes)
    return heads


def _check_arguments(network: type[FasterRCNN], arguments: Mapping[str, Any]) -> None:
    """torchvision passes over names that it does not know."""
    known = [name for name in inspect.signature(network).parameters if name.startswith(("rpn_", "box_", "bbox_"))]
    known = [name for name in known if not name.endswith(("_generator", "_head", "_pool", "_predictor"))]  # modules
    for name in arguments.keys() - known:
        near = difflib.get_close_matches(name, known, n=3) or known
        raise ConfigError(f"head_args {name}: torchvision has no such number; did you mean {', '.join(near)}?")
