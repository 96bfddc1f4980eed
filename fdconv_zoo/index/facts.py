"""Facts about datasets and licences for model cards; families register those that only their weights have."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    """A dataset that models are trained or measured on.

    Attributes:
        title: Name of the dataset in results, before a comma and the split.
        hub_id: Hub id of the dataset; None if it is not public.
        task: The Hub's name of the task that is measured on it.
        remark: What to know before using a model that was trained on it.
    """

    title: str
    hub_id: str | None
    task: str = "image-classification"
    remark: str = "Photographs from the web, with their bias: not for decisions about people."


@dataclass(frozen=True)
class Licence:
    """A licence of weights.

    Attributes:
        title: Name of the licence, as used in a sentence.
        link: Link to its text, for a licence whose identifier the Hub does not know.
    """

    title: str
    link: str | None = None


TRAINED_ON = {  # by a part of the weights' tag, or of a recipe's dataset
    "in1k": Dataset("ImageNet-1k", "imagenet-1k"),
    "in12k": Dataset("ImageNet-12k", "imagenet-12k"),
    "in21k": Dataset("ImageNet-21k", "imagenet-21k"),
    "in22k": Dataset("ImageNet-22k", "imagenet-22k"),
    "fashion_mnist": Dataset(
        "Fashion-MNIST",
        "zalando-datasets/fashion_mnist",
        remark="Single pieces of clothing, grayscale, on black: not for photographs.",
    ),
}
_DENSE = (
    Dataset("COCO", "detection-datasets/coco", "object-detection"),
    Dataset("ADE20K", "zhoubolei/scene_parse_150", "image-segmentation"),
)

LICENCES = {  # by identifier
    "apache-2.0": Licence("Apache-2.0"),
    "bsd-3-clause": Licence("BSD-3-Clause"),
    "cc-by-nc-4.0": Licence("CC-BY-NC-4.0"),
    "mit": Licence("the MIT licence"),
}


def find_training_data(text: str) -> list[Dataset]:
    """Return the datasets that a tag such as ``fb_in22k_ft_in1k`` names, in the order of the tag."""
    return [TRAINED_ON[part] for part in re.findall(rf"(?<![a-z\d])({'|'.join(TRAINED_ON)})(?![a-z\d])", text)]


def find_measured_data(title: str) -> Dataset:
    """Return the dataset of a result; for an unknown title, a dataset with this title."""
    known = (dataset for dataset in (*TRAINED_ON.values(), *_DENSE) if title.startswith(dataset.title))
    return next(known, Dataset(title, title.lower()))


def find_licence(identifier: str) -> Licence:
    """Return the licence of an identifier; for an unknown identifier, a licence with this title."""
    return LICENCES.get(identifier, Licence(identifier))
