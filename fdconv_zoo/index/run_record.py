"""The record of a run: the flags and metrics that it has written to its folder."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from fdconv_zoo.errors import PublishError

FLAGS_FILE, ROWS_FILE = "train_config.yaml", "metrics.jsonl"
# Flags that are not part of a recipe: values that a run determined, and where and how it was started.
_NOT_RECIPE = {
    *("class_names", "num_train_images", "data_checksum", "versions", "num_processes", "model_kwargs"),
    *("config", "output", "resume", "overwrite", "smoke", "workers", "checkpoint_every", "log_every", "log_with"),
    *("watch", "category_ids", "evaluate", "pictures"),
}
_PATHS = (  # flags that may contain paths of the publisher's machine
    *("dataset", "checkpoint", "config", "output", "model", "teacher", "class_names_file", "evaluate"),
    *("train_annotations", "validation_annotations", "train_images", "validation_images"),
)


@dataclass(frozen=True)
class RunRecord:
    """The record of a run.

    Attributes:
        folder: Folder of the run.
        flags: The contents of train_config.yaml; absolute paths are shortened to their last part.
        row: The row of metrics.jsonl for the epoch of the weights.
        is_last: Whether the weights are those of the last epoch, not of the best one.
    """

    folder: Path
    flags: Mapping[str, Any]
    row: Mapping[str, Any]
    is_last: bool

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the model's order."""
        return list(self.flags["class_names"])

    @property
    def recipe(self) -> dict[str, Any]:
        """The flags that the result depends on, as in an entry of the index."""
        kept = {key: value for key, value in self.flags.items() if key not in _NOT_RECIPE and value is not None}
        return kept | ({"model_kwargs": arguments} if (arguments := self.flags.get("model_kwargs")) else {})

    @property
    def dataset(self) -> str:
        """The dataset; if there is none, the file of validation annotations."""
        return str(self.flags["dataset"] or self.flags.get("validation_annotations"))

    def copy_to(self, folder: Path) -> None:
        """Write the published part of the record to a folder: flags, metrics and their curves, but no data."""
        flags = yaml.safe_dump(dict(self.flags), sort_keys=False, allow_unicode=True)
        (folder / FLAGS_FILE).write_text(flags, encoding="utf-8")
        for name in (ROWS_FILE, "curves.png"):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)


def read_run(weights: Path, metric: str) -> RunRecord:
    """Read the record of a run.

    Args:
        weights: The run's folder, with the weights of its best epoch, or the folder `last` in it.
        metric: Key in the rows of the metric that chose the best epoch.

    Raises:
        PublishError: there is no record of a run with this metric, or it is damaged; the message names the file.
    """
    folder = weights if (weights / FLAGS_FILE).is_file() else weights.resolve().parent
    is_last = folder != weights
    if not (folder / FLAGS_FILE).is_file() or (is_last and weights.resolve().name != "last"):
        raise PublishError(f"--run {weights}: it has no {FLAGS_FILE}, so it is not the output folder of a run")
    flags, text = _read(folder / FLAGS_FILE), _text(folder / ROWS_FILE)
    try:
        rows = [json.loads(line) for line in text.splitlines()]
        best = max(rows, key=lambda row: row[metric])  # the first of equal rows, as in training
    except (ValueError, KeyError, TypeError) as error:
        raise PublishError(
            f"{folder / ROWS_FILE}: it does not hold the epochs of a run, with their {metric} ({error})"
        ) from error
    return RunRecord(folder, flags, rows[-1] if is_last else best, is_last)


def _read(path: Path) -> dict[str, Any]:
    try:
        flags = yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise PublishError(f"{path}: it is damaged, it is not YAML ({' '.join(str(error).split()):.200})") from error
    if not isinstance(flags, dict) or not isinstance(flags.get("class_names"), list) or "dataset" not in flags:
        raise PublishError(f"{path}: it does not hold the flags and classes of a run")
    for key in _PATHS:
        value = flags.get(key)
        if isinstance(value, str) and PurePath(value.removeprefix("local-dir:")).is_absolute():
            flags[key] = PurePath(value).name
    return flags


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise PublishError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PublishError(f"{path}: it is damaged, it is not text ({error})") from error
