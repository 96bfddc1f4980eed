"""Base of the commands that train: their common shape, and the steps they all take in the same order."""

import argparse
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from fdconv_zoo.cli.recipes import ArgumentParser
from fdconv_zoo.training.batches import TrainingBatches
from fdconv_zoo.training.flags import add_optimization_flags, check_optimization
from fdconv_zoo.training.loop import fit, start
from fdconv_zoo.training.task import Task

# Settings of --smoke for all tasks; None resets a flag to its default.
SMOKE = {
    "workers": 0,
    "pretrained": False,
    "checkpoint": None,
    "epochs": 1,
    "warmup_epochs": 0,
    "batch_size": 2,
    "mixed_precision": None,
    "grad_accum": 1,
    "log_every": 1,
}


class CommandTask(Task):
    """A task with a command line.

    Args:
        args: The flags of `build_parser`.
        accelerator: Of the run.

    Attributes:
        name: Of the recipes it accepts, a key of `fdconv_zoo.index.TASKS`.
        description: Of the command, for its `--help`.
        smoke: Settings of `--smoke`.
        defaults: Of the optimization flags, where they differ from those of other tasks.
        output: Folder for all files of the run.
        data: As `load_data` found them.
        validation: The loader of the validation images, as the accelerator prepared it.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    smoke: ClassVar[Mapping[str, Any]]
    defaults: ClassVar[Mapping[str, Any]] = {}
    data: Any
    validation: DataLoader

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator):
        self.args = args
        self.accelerator = accelerator
        self.output = Path(args.output)

    @classmethod
    def build_parser(cls) -> ArgumentParser:
        """Build the parser of the flags, which are also the keys of a recipe."""
        parser = ArgumentParser(cls.description, task=cls.name)
        cls.add_flags(parser)
        add_optimization_flags(parser)
        parser.set_defaults(**cls.defaults)
        return parser

    @classmethod
    @abstractmethod
    def add_flags(cls, parser: ArgumentParser) -> None:
        """Add the task's own flags."""

    @classmethod
    def check_arguments(cls, args: argparse.Namespace) -> None:
        """Raise `ConfigError` for mistakes that the command line alone shows."""
        check_optimization(args)

    @classmethod
    def run(cls, args: argparse.Namespace) -> None:
        """Do what the flags ask for."""
        train(cls, args, args.dataset)

    @abstractmethod
    def load_data(self, dataset: str) -> None:
        """Find and check the images of a dataset, and set `data`.

        Raises:
            DataError: something is wrong with them.
        """

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Build the model that the flags name, for the classes of `data`, on the CPU."""

    @abstractmethod
    def training_batches(self, model: nn.Module) -> TrainingBatches:
        """Make this process's batches of the training images, as the model takes them."""

    @abstractmethod
    def validation_loader(self, model: nn.Module) -> DataLoader:
        """Load the validation images, as the model takes them, for `accelerator.prepare`."""

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Facts besides the flags that the run depends on."""

    @property
    def left_out(self) -> str:
        """Description of what `load_data` left out or changed; empty for nothing."""
        return ""

    @abstractmethod
    def loading_code(self) -> str:
        """The Python expression that loads the finished model."""


def run_task(task_type: type[CommandTask], argv: Sequence[str] | None = None) -> None:
    """Run the command of a task; `argv` is the command line without the program."""
    args = task_type.build_parser().parse(argv, smoke=task_type.smoke)
    task_type.check_arguments(args)
    task_type.run(args)


def train(task_type: type[CommandTask], args: argparse.Namespace, dataset: str) -> None:
    """Train from the beginning, or from where the run was stopped, and print how to load the best model.

    Args:
        task_type: The task.
        args: Its flags.
        dataset: Where the images are.
    """
    accelerator, run = start(args)
    task = task_type(args, accelerator)
    with accelerator.local_main_process_first():  # it checks the data and downloads the weights
        task.load_data(dataset)
        model = task.build_model().to(accelerator.device)
    batches = task.training_batches(model)
    task.validation = accelerator.prepare(task.validation_loader(model))
    if task.left_out:
        accelerator.print(task.left_out)
    try:
        history = fit(task, model, batches, args, task.facts, accelerator=accelerator, run=run)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("--resume continues from the last checkpoint") from interrupt
    if batches.skipped:
        accelerator.print(f"skipped unreadable images of the stream {batches.skipped} times")
    best = max(history, key=lambda row: row[task.chosen_by])
    accelerator.print(
        f"best: {task.metrics[task.chosen_by]} {best[task.chosen_by]:.2f} % after epoch {best['epoch']}, over "
        f"{best['images']} images; load it with\n    {task.loading_code()}"
    )
