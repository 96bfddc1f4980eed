"""Losses of a classifier: from labels, and from the logits of a teacher."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.loss import BinaryCrossEntropy
from torch import nn

from fdconv_zoo.cli.class_weights import class_weights
from fdconv_zoo.cli.trained_on import class_numbers
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.build import build_model, check_forward, check_model_name, resolve_preprocessing
from fdconv_zoo.training.distillation import Teacher


def add_loss_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the loss."""
    boolean = argparse.BooleanOptionalAction
    group.add_argument("--smoothing", type=float, default=0.1, help="label smoothing")
    group.add_argument("--bce", action=boolean, default=False, help="binary cross-entropy of each class")
    group.add_argument(
        "--class-weights", nargs="+", metavar="X", help="of each class, or 'balanced': inverse to its images"
    )
    group.add_argument("--teacher", metavar="MODEL", help="also learn from the logits of this trained classifier")
    group.add_argument("--distill-weight", type=float, default=1.0, help="weight of the loss to the teacher")
    group.add_argument("--temperature", type=float, default=1.0, help="of that loss; above 1 softens the logits")


def build_criterion(args: argparse.Namespace, counts: np.ndarray) -> nn.Module:
    """Build the loss of logits (B, K) against class numbers (B,) or, for mixed images, probabilities (B, K).

    Args:
        args: The flags of `add_loss_flags` and of mixup.
        counts: Number of training images of each class, int64 (K,).

    Raises:
        ConfigError: `--class-weights` does not fit the classes.
    """
    weight = None
    if args.class_weights:
        weight = torch.tensor(class_weights(args.class_weights, counts), dtype=torch.float32)
    smoothing = 0.0 if args.mixup or args.cutmix else args.smoothing  # timm's Mixup smooths the labels itself
    if args.bce:
        return BinaryCrossEntropy(smoothing, weight=weight)
    return nn.CrossEntropyLoss(weight, label_smoothing=smoothing)


def check_teacher_name(name: str) -> str:
    """Check the name of a teacher like `check_model_name`. Errors name `--teacher`."""
    with _naming_the_teacher():
        return check_model_name(name)


def build_teacher(name: str, class_names: Sequence[str], student: Mapping[str, Any]) -> Teacher:
    """Load a teacher.

    Args:
        name: As `check_teacher_name` returns it.
        class_names: Classes of the student.
        student: The preprocessing of the student's images.

    Raises:
        ConfigError: the teacher cannot be loaded, lacks a class, or does not accept the images.
    """
    channels = student["input_size"][0]
    with _naming_the_teacher():
        model, _ = build_model(name, in_chans=channels)
    try:
        check_forward(model, student["input_size"])
    except ConfigError as error:
        raise ConfigError(f"--teacher {name}: {error}") from error
    preprocessing = resolve_preprocessing(model, in_chans=channels)
    return Teacher(model, class_numbers(name, model, class_names), preprocessing=preprocessing, student=student)


@contextmanager
def _naming_the_teacher() -> Iterator[None]:
    """Replace `--model` by `--teacher` in the messages of errors."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace("--model", "--teacher")) from error
