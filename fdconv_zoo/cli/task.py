"""Base class of the commands that train, and the steps that all of them take."""

import argparse
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from fdconv_zoo.cli.ranges import check_ranges
from fdconv_zoo.cli.recipes import RecipeParser
from fdconv_zoo.errors import first_of
from fdconv_zoo.training.batches import TrainingBatches
from fdconv_zoo.training.flags import add_optimization_flags, check_optimization
from fdconv_zoo.training.loop import fit, start
from fdconv_zoo.training.task import Task
from fdconv_zoo.training.termination import Termination

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
        accelerator: Accelerator of the run.

    Attributes:
        name: Name of the task, a key of `fdconv_zoo.index.TASKS`. Only recipes for this task are accepted.
        description: Description of the command for `--help`.
        smoke: Settings of `--smoke`.
        defaults: Defaults of optimization flags that differ from those of `add_optimization_flags`.
        output: Folder for all files of the run.
        data: The dataset, set by `load_data`.
        validation: Loader of the validation images, prepared by the accelerator.
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
    def build_parser(cls) -> RecipeParser:
        """Build the parser of the flags, which are also the keys of a recipe."""
        parser = RecipeParser(cls.description, task=cls.name)
        cls.add_flags(parser)
        add_optimization_flags(parser)
        parser.set_defaults(**cls.defaults)
        return parser

    @classmethod
    @abstractmethod
    def add_flags(cls, parser: RecipeParser) -> None:
        """Add the task's own flags."""

    @classmethod
    def check_arguments(cls, args: argparse.Namespace) -> None:
        """Raise `ConfigError` for mistakes that can be found without reading data."""
        check_optimization(args)

    @classmethod
    def run(cls, args: argparse.Namespace) -> None:
        """Run the command with these flags."""
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
        """Make this process's batches of training images, in the form that the model takes."""

    @abstractmethod
    def validation_loader(self, model: nn.Module) -> DataLoader:
        """Make the loader of the validation images, in the form that the model takes, for `accelerator.prepare`."""

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what the run depends on besides the flags, such as the class names."""

    @property
    def left_out(self) -> str:
        """Describe what `load_data` left out or changed; empty if nothing."""
        return ""

    @abstractmethod
    def loading_code(self) -> str:
        """Return the Python code that loads the trained model, on one line."""


def run_task(task_type: type[CommandTask], argv: Sequence[str] | None = None) -> None:
    """Run the command of a task. `argv` defaults to `sys.argv[1:]`."""
    task_type.run(checked_arguments(task_type, argv))


def checked_arguments(task_type: type[CommandTask], argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line of a task.

    Raises:
        ConfigError: a flag or a recipe key is unknown or invalid, or flags do not fit together.
        EntryError: the file of `--config` is not a valid entry.
    """
    args = task_type.build_parser().parse(argv, smoke=task_type.smoke)
    check_ranges(args)
    task_type.check_arguments(args)
    return args


def train(task_type: type[CommandTask], args: argparse.Namespace, dataset: str) -> None:
    """Train, or continue a stopped run, and print how to load the best model.

    Args:
        task_type: The task.
        args: Its flags.
        dataset: Path or name of the dataset.
    """
    with Termination() as termination:
        accelerator, run = start(args)
        task = task_type(args, accelerator)
        with accelerator.local_main_process_first():  # the first process checks the data and downloads the weights
            task.load_data(dataset)
            model = task.build_model().to(accelerator.device)
        batches = task.training_batches(model)
        task.validation = accelerator.prepare(task.validation_loader(model))
        accelerator.print(describe_run(task, model, batches))
        facts = task.facts if accelerator.is_main_process else {}  # only the main process writes them
        try:
            history = fit(task, model, batches, args, facts, accelerator=accelerator, run=run, termination=termination)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt("--resume continues from the last checkpoint") from interrupt
        finally:
            run.release()
    if batches.skipped:
        accelerator.print(f"skipped unreadable images of the stream {batches.skipped} times")
    best = max(history, key=lambda row: row[task.chosen_by])
    accelerator.print(
        f"best: {task.metrics[task.chosen_by]} {best[task.chosen_by]:.2f} % {when(task, history, best)}, over "
        f"{best['images']} images; load it in Python with\n    {task.loading_code()}"
    )


def when(task: CommandTask, history: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> str:
    """Describe when a run was best and, if it is known, the metric before training."""
    if best["epoch"] == 0:
        return "before training"
    first = history[0]
    start = f" (before training: {first[task.chosen_by]:.2f} %)" if first["epoch"] == 0 else ""
    return f"after epoch {best['epoch']}{start}"


def describe_run(task: CommandTask, model: nn.Module, batches: TrainingBatches) -> str:
    """Describe the device, model, data and output of a run, one per line."""
    accelerator = task.accelerator
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    device = accelerator.device
    name = f"{torch.cuda.get_device_name(device)} ({device})" if device.type == "cuda" else str(device)
    precision = {"no": "float32", "fp16": "mixed, float16", "bf16": "mixed, bfloat16"}
    per_update = task.args.batch_size * accelerator.num_processes * accelerator.gradient_accumulation_steps
    splits = {"training": task.data.train, "validation": task.data.validation}
    sizes = [f"{_length(images)} for {split}" for split, images in splits.items()]
    lines = {
        "device": f"{name}, processes: {accelerator.num_processes}, "
        f"precision: {precision.get(accelerator.mixed_precision, accelerator.mixed_precision)}",
        "model": f"{task.args.model}, {count:,} parameters: {trained:,} trained, {count - trained:,} frozen",
        "data": f"{len(task.data.class_names)} classes ({first_of(task.data.class_names)}), images: {', '.join(sizes)}",
        "left out": task.left_out,
        "epoch": f"{batches.updates_per_epoch} updates of {per_update} images, "
        f"{batches.updates_per_epoch * per_update:,} in all; epochs: {task.args.epochs}",
        "warm-up": _long_warm_up(task.args),
        "output": str(task.output),
    }
    return "\n".join(f"{key}: {text}" for key, text in lines.items() if text)


def _long_warm_up(args: argparse.Namespace) -> str:
    """Return a hint if warm-up takes half of the run or longer; else an empty string."""
    if args.warmup_epochs < args.epochs / 2:
        return ""
    return f"{args.warmup_epochs:g} of {args.epochs} epochs, so most updates are small: lower --warmup-epochs"


def _length(images: Any) -> str:
    return f"{len(images):,}" if hasattr(images, "__len__") else "a stream"
