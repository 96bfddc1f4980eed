"""Detection with several scales and mirrored images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import batched_nms

from fdconv_zoo.dense.detection.model import Detector

Objects = dict[str, Tensor]


def predict(
    model: Detector, images: list[Tensor], *, scales: Sequence[float] = (1.0,), flip: bool = False
) -> list[Objects]:
    """Detect objects in several views of each image, and merge them.

    The objects of all views are merged by the model's own non-maximum suppression: of overlapping objects of a class,
    the one with the highest score is kept, with its box and mask. No more objects are returned than by the model.

    Args:
        model: The detector, in eval mode.
        images: Images (3, H, W) with values in 0..1.
        scales: Factors of the model's own input size.
        flip: Also detect in the horizontally mirrored images.

    Returns:
        For each image, the objects as the model returns them, best first.
    """
    if list(scales) == [1.0] and not flip:
        return model(images)
    views: list[list[Objects]] = []
    for scale in scales:
        with _scaled(model.network, scale):
            views.append(model(images))
            if flip:
                mirrored = model([image.flip(-1) for image in images])
                views.append([_mirror(*pair) for pair in zip(mirrored, images, strict=True)])
    return [_join(model, of_image) for of_image in zip(*views, strict=True)]


@contextmanager
def _scaled(network: nn.Module, scale: float) -> Iterator[None]:
    """Make a torchvision detector resize images to a multiple of its own input size."""
    own: GeneralizedRCNNTransform = network.transform
    sides = tuple(max(round(scale * side), 1) for side in own.min_size)
    network.transform = GeneralizedRCNNTransform(
        sides, max(round(scale * own.max_size), 1), own.image_mean, own.image_std, size_divisible=own.size_divisible
    )
    network.transform.train(own.training)
    try:
        yield
    finally:
        network.transform = own


def _mirror(objects: Objects, image: Tensor) -> Objects:
    width = image.shape[-1]
    x1, y1, x2, y2 = objects["boxes"].unbind(1)
    mirrored = {**objects, "boxes": torch.stack([width - x2, y1, width - x1, y2], dim=1)}
    if "masks" in objects:
        mirrored["masks"] = objects["masks"].flip(-1)
    return mirrored


def _join(model: Detector, views: Sequence[Objects]) -> Objects:
    """Merge the objects of one image from all its views."""
    joined = {key: torch.cat([objects[key] for objects in views]) for key in views[0] if key != "masks"}
    # torchvision stores both numbers in the module that postprocesses: the second stage, or the whole network.
    stage = getattr(model.network, "roi_heads", model.network)
    kept = batched_nms(joined["boxes"].float(), joined["scores"].float(), joined["labels"], stage.nms_thresh)
    kept = kept[: stage.detections_per_img]
    result = {key: value[kept] for key, value in joined.items()}
    if "masks" in views[0]:  # one by one: a tensor of the masks of all views would take much memory
        owners = [(view, place) for view, objects in enumerate(views) for place in range(len(objects["labels"]))]
        masks = [views[view]["masks"][place] for view, place in (owners[index] for index in kept.tolist())]
        result["masks"] = torch.stack(masks) if masks else views[0]["masks"][:0]
    return result
