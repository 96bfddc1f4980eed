"""Reads what a model was trained on, so that it is evaluated on images that it has not seen."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from fdconv_zoo.data.class_names import match_classes
from fdconv_zoo.data.splits import TRAIN_NAMES
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.build import stored_class_names
from fdconv_zoo.store.names import LOCAL
from fdconv_zoo.training.run_folder import CONFIG

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """The images to evaluate a model on.

    Attributes:
        options: Arguments of `load_image_data` or `load_segmentation_data`.
        run: The configuration of the run, if it used the same dataset; otherwise empty.
    """

    options: Mapping[str, Any]
    run: Mapping[str, Any]

    def check_unchanged(self, model: str, train_count: int | None, class_names: Sequence[str]) -> None:
        """Check that the held-out part of the dataset is still the one that the run did not train on.

        Args:
            model: Name of the model.
            train_count: Number of training images that the dataset has now; None if nothing was held out.
            class_names: Names of the classes that it has now.

        Raises:
            ConfigError: images or classes have been added or removed since the run.
        """
        if train_count is None or not self.run:
            return
        then = self.run.get("num_train_images")
        expected = min(train_count, self.run.get("limit") or train_count)
        fewer = self.run.get("skip_bad_images") and then is not None and then <= expected
        if (then != expected and not fewer) or list(self.run.get("class_names") or ()) != list(class_names):
            raise ConfigError(
                f"{model} held out a part of {self.run['dataset']}, which has changed since: {then} images of "
                f"{len(self.run.get('class_names') or ())} classes were for training then, {expected} of "
                f"{len(class_names)} would be now. So the part is unknown; evaluate on other images, or on all with "
                "--validation-split train"
            )

    def remark(self, split: str, train_count: int | None) -> str:
        """Describe the images.

        Args:
            split: The split that they come from.
            train_count: Number of training images in the same split; None if nothing was held out.
        """
        if train_count is not None:
            return f"the part of {split} that the run held out"
        if self.run and split in (self.run.get("train_split"), *TRAIN_NAMES):
            return f"all of {split}, also the images that the model was trained on"
        if split.lower() in TRAIN_NAMES:
            return f"all of {split}; the figures mean little if the model was trained on some of them"
        return split


def evaluated_part(model: str, dataset: str, validation_split: str | None) -> Evaluated:
    """Choose the images to evaluate a model on. If its run used the same dataset, they are the run's validation images.

    Args:
        model: Folder or name of the model.
        dataset: Path or name of the dataset.
        validation_split: The split that the user chose. It is used whole, whatever the run used.

    Raises:
        ConfigError: the configuration of the run is damaged.
    """
    run = read_run(model)
    if not run or not _same(str(run.get("dataset")), dataset):
        run = {}
    if validation_split is not None or not run:
        return Evaluated({"split": "validation", "validation_split": validation_split}, run)
    keys = ("train_split", "validation_split", "validation_fraction", "seed")
    return Evaluated({"split": "held out", **{key: run[key] for key in keys if key in run}}, run)


def read_run(model: str) -> dict[str, Any]:
    """Read the configuration of a model's run; empty if it is not in the output folder of a run.

    Raises:
        ConfigError: the file is damaged.
    """
    folder = Path(model.removeprefix(LOCAL))
    file = (folder.parent if folder.name == "last" else folder) / CONFIG
    if not file.is_file():
        return {}
    try:
        run = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(run, dict):
        raise ConfigError(f"{file}: is not the configuration of a run")
    return run


def class_numbers(name: str, model: nn.Module, class_names: Sequence[str]) -> list[int]:
    """Find the classes of a dataset among those of a classifier.

    Args:
        name: Name of the model.
        model: A timm model. If it has no class names, only the number of classes is compared.
        class_names: Names of the classes of the dataset.

    Returns:
        The model's class number of each class of the dataset.

    Raises:
        ConfigError: the model does not have the classes of the dataset.
    """
    trained = stored_class_names(model, name)
    if trained is not None:
        return match_classes(name, trained, class_names)
    if model.num_classes != len(class_names):
        raise ConfigError(
            f"{name} was trained on {model.num_classes} classes, but the dataset has {len(class_names)}: "
            "use a model trained on the dataset's classes (see `fdconv-zoo train`), or choose another dataset"
        )
    _logger.warning("%s has no class names: its classes are taken to be in the order of the dataset's.", name)
    return list(range(len(class_names)))


def _same(first: str, second: str) -> bool:
    return first == second or Path(first).expanduser().resolve() == Path(second).expanduser().resolve()
