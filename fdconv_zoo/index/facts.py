"""What model cards say of families of models, of datasets and of licences."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        tag: Its name among a card's tags.
        layers: Which of its layers are FDConv.
        citation: Key of its paper in `citations.bib`.
    """

    tag: str
    layers: str
    citation: str


@dataclass(frozen=True)
class Dataset:
    """A dataset that models are trained or measured on.

    Attributes:
        title: As results name it, before a comma and the split.
        hub_id: On the Hub; None where it is not public.
        task: The Hub's name of what is measured on it.
        remark: What to know before using a model trained on it.
    """

    title: str
    hub_id: str | None
    task: str = "image-classification"
    remark: str = "Photographs from the web, with their bias: not for decisions about people."


_CONVOLUTIONS = "all convolutions of the residual blocks, not the stem and the downsample path"
_FAMILIES = {  # by how an architecture's name begins
    "resnext": Family("resnext", _CONVOLUTIONS, "xie2017resnext"),
    "wide_resnet": Family("wide-resnet", _CONVOLUTIONS, "zagoruyko2016wide"),
    "resnet": Family("resnet", _CONVOLUTIONS, "he2016resnet"),
    "convnext": Family(
        "convnext",
        "the two pointwise layers of each block, with frequency band modulation before the depthwise one",
        "liu2022convnext",
    ),
    "swin": Family("swin", "the two linear layers of each MLP", "liu2021swin"),
}

_TRAINED_ON = {  # by a part of the weights' tag, or of a recipe's dataset
    "in1k": Dataset("ImageNet-1k", "imagenet-1k"),
    "in12k": Dataset("ImageNet-12k", "imagenet-12k"),
    "in22k": Dataset("ImageNet-22k", "imagenet-22k"),
    "ig1b": Dataset("Instagram images with hashtags (IG-1B)", None),
    "fashion_mnist": Dataset(
        "Fashion-MNIST",
        "zalando-datasets/fashion_mnist",
        remark="Single pieces of clothing, grayscale, on black: not for photographs.",
    ),
}
_MEASURED_ON = {
    dataset.title: dataset
    for dataset in (
        *_TRAINED_ON.values(),
        Dataset("COCO", "detection-datasets/coco", "object-detection"),
        Dataset("ADE20K", "zhoubolei/scene_parse_150", "image-segmentation"),
    )
}


def find_family(architecture: str) -> Family:
    """The family of one of our architectures.

    Raises:
        KeyError: it belongs to none; a new family needs its line here.
    """
    for beginning, family in _FAMILIES.items():
        if architecture.startswith(beginning):
            return family
    raise KeyError(f"{architecture}: no family of cards begins like it")


def find_training_data(text: str) -> list[Dataset]:
    """The datasets that a tag such as ``fb_in22k_ft_in1k`` names, in its order."""
    return [_TRAINED_ON[part] for part in re.findall(rf"(?<![a-z\d])({'|'.join(_TRAINED_ON)})(?![a-z\d])", text)]


def find_measured_data(title: str) -> Dataset:
    """The dataset of a result; one that is not known stands for itself."""
    return next(
        (dataset for known, dataset in _MEASURED_ON.items() if title.startswith(known)), Dataset(title, title.lower())
    )
