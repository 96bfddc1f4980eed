"""Base of the segmentation and detection commands."""

import argparse
import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from accelerate import Accelerator
from datasets import Dataset as Table
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fdconv_zoo.cli.recipes import RecipeParser, add_arguments_flag
from fdconv_zoo.cli.task import SMOKE, CommandTask, train
from fdconv_zoo.dense.backbone import Backbone
from fdconv_zoo.dense.evaluation import choose_varied, evaluation_loader
from fdconv_zoo.dense.freezing import freeze_stages
from fdconv_zoo.dense.saved_model import SavedModel, export
from fdconv_zoo.dense.stand_ins import stand_in
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.files import replacing, write_text
from fdconv_zoo.training.data_checksum import data_checksum
from fdconv_zoo.training.norms import NORMS, set_norm
from fdconv_zoo.training.run_folder import DATA

_NOT_IN_NAMES = re.compile(r"[^\w.: -]")  # mlflow accepts only these and "/", which makes groups

DENSE_SMOKE = {**SMOKE, "limit": 4, "crop_size": 64, "updates_per_epoch": 2}


class DenseTask(CommandTask):
    """A task whose model has a timm backbone. It can also evaluate a trained model.

    Attributes:
        model_type: Class of the model.
        class_metrics: Keys of the per-class figures that trackers log.
        validation_images: Dataset of the validation images, set by `validation_loader`.
    """

    model_type: ClassVar[type[SavedModel]]
    class_metrics: ClassVar[Sequence[str]]
    validation_images: Dataset

    @classmethod
    def add_flags(cls, parser: RecipeParser) -> None:
        """Add the flag for evaluation."""
        parser.add_argument("--evaluate", metavar="MODEL", help="only evaluate: folder of a run, or hf-hub:NAME")

    @classmethod
    def check_arguments(cls, args: argparse.Namespace) -> None:
        """Raise `ConfigError` for mistakes that can be found without reading data."""
        super().check_arguments(args)
        if not (args.model or args.evaluate):
            raise ConfigError("--model is required: a backbone, or an entry of models/ with --config")
        if args.frozen_stages is not None and starts_at_random(args):
            raise ConfigError(
                "--frozen-stages keeps weights, but --no-pretrained makes them random: leave one of them out, or start "
                "from --checkpoint"
            )

    @classmethod
    def run(cls, args: argparse.Namespace) -> None:
        """Train or evaluate. With `--smoke`, use a small stand-in for the dataset."""
        with stand_in(args.dataset) if args.smoke else nullcontext(args.dataset) as dataset:
            evaluate_only(cls, args, dataset) if args.evaluate else train(cls, args, dataset)

    @abstractmethod
    def load_data(self, dataset: str, trained: SavedModel | None = None) -> None:
        """Find and check the images of a dataset, and set `data`.

        Args:
            dataset: Path or name of the dataset.
            trained: A trained model to evaluate. Only the validation images are read, with the model's classes.

        Raises:
            DataError: something is wrong with them.
            ConfigError: the dataset does not fit the trained model.
        """

    @abstractmethod
    def measure(self, model: SavedModel) -> Any:
        """Evaluate the model on the validation images. Every process must call it; all get the result.

        Returns:
            A dataclass with the number of `images`, and the methods `figures` and `as_table`.
        """

    @abstractmethod
    def evaluation_dataset(self, model: SavedModel) -> Dataset:
        """Return the validation images, in the form that the model takes."""

    @property
    @abstractmethod
    def present(self) -> np.ndarray:
        """Whether each of K classes occurs in each of N validation images, bool (N, K)."""

    @abstractmethod
    def draw(self, model: SavedModel, indices: Sequence[int], result: Any) -> Image.Image:
        """Draw some of `validation_images` with truth and prediction; `result` is from `measure`."""

    def save_tables(self, result: Any) -> None:
        """Write the tables of a result besides its figures. Only the main process calls this."""

    def validation_loader(self, model: SavedModel) -> DataLoader:
        """Make the loader of the validation images, in the form that the model takes, for `accelerator.prepare`."""
        self.validation_images = self.evaluation_dataset(model)
        return evaluation_loader(self.validation_images, self.args.batch_size, self.args.workers)

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the run depends on besides the flags, such as the class names."""
        tables = [self.checked_content(part) for part in (self.data.train, self.data.validation)]
        return {
            "num_train_images": len(self.data.train),
            "class_names": self.data.class_names,
            DATA: data_checksum(tables, self.args.workers),
        }

    @abstractmethod
    def checked_content(self, part: Any) -> Table:
        """Return a table of what the run depends on in a part of `data`: undecoded images, and truth."""

    def loss(self, model: nn.Module, images: Any, targets: Any) -> Tensor:
        """Return the sum of the model's losses for a batch."""
        return sum(model(images, targets).values())

    def tracked(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics that trackers log, and those of each class."""
        of_classes = {
            f"{key}/{_NOT_IN_NAMES.sub('_', entry['name'])}": entry[key]
            for key in self.class_metrics
            for entry in row["classes"]
            if entry[key] is not None
        }
        return super().tracked(row) | of_classes

    def compiled_part(self, model: SavedModel) -> nn.Module:
        """Return the backbone only, because heads and losses have data-dependent branches."""
        return model.backbone

    def evaluate(self, model: SavedModel) -> dict[str, Any]:
        """Evaluate the model, and return its figures. The main process also saves tables and pictures."""
        result = self.measure(model)
        self.save_result(model, result)
        return result.figures()

    def export(self, model: SavedModel, folder: Path) -> None:
        """Write the model in the form that its `from_pretrained` loads."""
        export(model, folder)

    def freeze(self, backbone: Backbone) -> None:
        """Set the norms and the frozen stages of a new model's backbone according to the flags."""
        set_norm(backbone, self.args.norm)
        if self.args.frozen_stages is not None:
            freeze_stages(backbone, self.args.frozen_stages)

    def save_result(self, model: SavedModel, result: Any) -> None:
        """Write tables, and pictures.png unless `--pictures` is 0. Only the main process writes."""
        if not self.accelerator.is_main_process:
            return
        self.save_tables(result)
        if self.args.pictures:
            picture = self.draw(model, choose_varied(self.present, self.args.pictures), result)
            with replacing(self.output / "pictures.png") as temporary:
                picture.save(temporary, format="png")

    def loading_code(self) -> str:
        """Return the Python code that loads the trained model, on one line."""
        name = self.model_type.__name__
        return f"from fdconv_zoo.dense import {name}; model = {name}.from_pretrained({str(self.output)!r})"


def evaluate_only(task_type: type[DenseTask], args: argparse.Namespace, dataset: str) -> None:
    """Evaluate a trained model: print its table, and write results.json, tables and pictures.

    Args:
        task_type: The task.
        args: Its flags.
        dataset: Path or name of the dataset.

    Raises:
        ConfigError: there are results in `--output` already, or the dataset does not fit the model.
    """
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    task = task_type(args, accelerator)
    results = task.output / "results.json"
    if results.exists() and not args.overwrite:
        raise ConfigError(f"{results} exists: choose another --output, or replace it with --overwrite")
    with accelerator.local_main_process_first():
        model = task.model_type.from_pretrained(args.evaluate.removeprefix("hf-hub:")).to(accelerator.device)
        task.load_data(dataset, trained=model)
    task.validation = accelerator.prepare(task.validation_loader(model))
    task.output.mkdir(parents=True, exist_ok=True)
    result = task.measure(model)
    task.save_result(model, result)
    figures = result.figures()
    accelerator.print(result.as_table())
    accelerator.print(f"{task.describe(figures)}, {result.images} images")
    if accelerator.is_main_process:
        write_text(results, json.dumps({"model": args.evaluate, "dataset": args.dataset, **figures}, indent=2))
    accelerator.end_training()


def starts_at_random(args: argparse.Namespace) -> bool:
    """Whether training starts from a backbone with random weights. False with `--evaluate` or `--smoke`."""
    return not (args.pretrained or args.checkpoint or args.smoke or args.evaluate)


def add_backbone_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that name the backbone."""
    group.add_argument("--model", help="the backbone: a timm name")
    add_arguments_flag(group, "--model-kwargs", "backbone")


def add_weights_flags(group: argparse._ArgumentGroup, *, norm: str) -> None:
    """Add the flags of the backbone's weights.

    Args:
        group: Group of the model's flags.
        norm: Default of `--norm`.
    """
    boolean = argparse.BooleanOptionalAction
    group.add_argument("--pretrained", action=boolean, default=True, help="start from the backbone's published weights")
    group.add_argument("--checkpoint", metavar="FILE", help="start from these weights of the backbone instead")
    group.add_argument(
        "--frozen-stages",
        type=int,
        help="keep the weights of the backbone's stem and first N stages, except KSM and FBM; 0: of the stem",
    )
    group.add_argument("--norm", choices=NORMS, default=norm, help="BatchNorm of the backbone in training")
