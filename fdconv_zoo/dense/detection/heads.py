"""torchvision's detectors on a feature pyramid over any backbone."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from fdconv_zoo.dense.backbone import Backbone
from fdconv_zoo.errors import ConfigError

TWO_STAGES = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}
ONE_STAGE = {"retinanet": RetinaNet, "fcos": FCOS}
HEADS = {**TWO_STAGES, **ONE_STAGE}
ASPECT_RATIOS = (0.5, 1.0, 2.0)

_ANCHOR_FACTORS = {"faster_rcnn": 8, "mask_rcnn": 8, "retinanet": 4, "fcos": 1}  # of a level's stride
_SIZES_PER_OCTAVE = 3  # of RetinaNet's anchors
_GROUPS = 32  # of the norms in FCOS
# Arguments of torchvision that are modules, or that `Detector` sets.
_RESERVED = {
    *("backbone", "num_classes", "min_size", "max_size", "image_mean", "image_std", "kwargs", "head"),
    *("anchor_generator", "proposal_matcher", "rpn_anchor_generator", "rpn_head", "mask_roi_pool", "mask_head"),
    *("mask_predictor", "box_roi_pool", "box_head", "box_predictor"),
}


class PyramidBackbone(nn.Module):
    """A feature pyramid of five levels.

    Args:
        body: Backbone with four maps.
        channels: Channels of each output map.
        one_stage: Use the last three maps, and two more at twice and four times the last stride, computed by
            convolutions. Otherwise use all four, and a fifth at twice the last stride, subsampled from the fourth.
    """

    def __init__(self, body: Backbone, channels: int, *, one_stage: bool = False) -> None:
        super().__init__()
        self.body = body
        self.first = 1 if one_stage else 0
        last = body.strides[-1]
        self.strides = (*body.strides[self.first :], 2 * last, *((4 * last,) if one_stage else ()))
        extra = LastLevelP6P7(channels, channels) if one_stage else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(body.channels[self.first :], channels, extra)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute maps (B, C, H / stride, W / stride) of images (B, 3, H, W), keyed as torchvision's heads expect."""
        return self.fpn({str(level): features for level, features in enumerate(self.body(images)[self.first :])})


def build_network(
    head: str,
    body: Backbone,
    num_classes: int,
    *,
    channels: int,
    anchor_sizes: Sequence[float] | None,
    head_args: Mapping[str, Any],
    **transform: Any,
) -> tuple[nn.Module, list[float]]:
    """Build a detector of torchvision.

    Args:
        head: One of `HEADS`.
        body: Backbone with four maps.
        num_classes: Number of classes, without the background.
        channels: Channels of the feature pyramid.
        anchor_sizes: Sides of the anchors in pixels, one for each of the five levels.
        head_args: Arguments of torchvision's class.
        **transform: The arguments ``min_size``, ``max_size``, ``image_mean`` and ``image_std`` of the same class.

    Returns:
        The detector, and its anchor sizes.

    Raises:
        ConfigError: an argument is unknown, or is not supported by the head.
    """
    _check_head_args(HEADS[head], head_args)
    backbone = PyramidBackbone(body, channels, one_stage=head in ONE_STAGE)
    if anchor_sizes and head == "fcos":
        raise ConfigError("anchor_sizes: fcos has no anchors; leave them out")
    if head == "fcos" and (channels % _GROUPS or channels == _GROUPS):  # a map of one pixel needs two per group
        raise ConfigError(f"fpn_channels {channels}: fcos needs 64, 96 or another multiple of {_GROUPS}, its groups")
    sizes = list(anchor_sizes or (_ANCHOR_FACTORS[head] * stride for stride in backbone.strides))
    if len(sizes) != len(backbone.strides):
        raise ConfigError(f"anchor_sizes {sizes}: expected {len(backbone.strides)} sizes, one per level")
    build = _one_stage if head in ONE_STAGE else _two_stages
    return build(head, backbone, num_classes, sizes, {**head_args, **transform}), sizes


def _two_stages(
    head: str, backbone: PyramidBackbone, num_classes: int, sizes: list[float], arguments: dict[str, Any]
) -> nn.Module:
    """Build an R-CNN with heads as wide as the pyramid requires; torchvision's own are for 256 channels only."""
    channels = backbone.out_channels
    side, width = 7, 4 * channels  # of the pooled region of a box, and its number of features
    heads = {
        "box_head": TwoMLPHead(channels * side**2, width),
        "box_predictor": FastRCNNPredictor(width, 1 + num_classes),
    }
    if head == "mask_rcnn":
        heads["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, dilation=1)
        heads["mask_predictor"] = MaskRCNNPredictor(channels, channels, 1 + num_classes)
    anchors = AnchorGenerator([(size,) for size in sizes], [ASPECT_RATIOS] * len(sizes))
    network = TWO_STAGES[head](backbone, **heads, rpn_anchor_generator=anchors, **arguments)
    for stage in (network.rpn, network.roi_heads):
        stage.box_coder = _PreciseBoxCoder(stage.box_coder.weights)
    return network


def _one_stage(
    head: str, backbone: PyramidBackbone, num_classes: int, sizes: list[float], arguments: dict[str, Any]
) -> nn.Module:
    if head == "fcos":
        octaves, ratios, head_type = 1, (1.0,), _PreciseFCOSHead
        generator_sizes = [(size,) for size in sizes]
    else:
        octaves, ratios, head_type = _SIZES_PER_OCTAVE, ASPECT_RATIOS, _PreciseRetinaNetHead
        generator_sizes = [tuple(int(size * 2 ** (step / octaves)) for step in range(octaves)) for size in sizes]
    return ONE_STAGE[head](
        backbone,
        num_classes,
        head=head_type(backbone.out_channels, octaves * len(ratios), num_classes),
        anchor_generator=AnchorGenerator(generator_sizes, [ratios] * len(sizes)),
        **arguments,
    )


class _PreciseBoxCoder(BoxCoder):
    """Decodes boxes in float32: under autocast, torchvision's coder rounds them, in bfloat16 to up to 4 pixels."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        return super().decode_single(rel_codes.float(), boxes)


class _Precise:
    """Mixin of heads that return float32, so that boxes are decoded and losses summed in it under autocast."""

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: value.float() for name, value in super().forward(x).items()}


class _PreciseRetinaNetHead(_Precise, RetinaNetHead):
    pass


class _PreciseFCOSHead(_Precise, FCOSHead):
    pass


def _check_head_args(network: Callable, head_args: Mapping[str, Any]) -> None:
    """Raise ConfigError for unknown names, which torchvision would ignore."""
    known = [name for name in inspect.signature(network).parameters if name not in _RESERVED]
    for name in head_args.keys() - set(known):
        near = difflib.get_close_matches(name, known, n=3) or known
        raise ConfigError(f"head_args {name}: no such argument of torchvision; did you mean {', '.join(near)}?")
