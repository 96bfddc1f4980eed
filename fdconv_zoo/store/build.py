"""The model and its preprocessing, from what the command line asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import _hub, load_model_config_from_hf
from torch import nn

from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store import check_model_folder, check_weights_file
from fdconv_zoo.store.names import unknown_name

LOCAL, HUB = "local-dir:", "hf-hub:"


def check_model_name(name: str) -> str:
    """Return the name as timm wants it: a folder that exists gets its `local-dir:`.

    Raises:
        ConfigError: timm has no such model; near names are in the message.
    """
    if name.startswith(HUB):
        return name
    folder = Path(name.removeprefix(LOCAL))
    if name.startswith(LOCAL) or folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"--model {name}: no config.json in {folder}; is it the output folder of a run?")
        return f"{LOCAL}{folder}"
    if problem := unknown_name(name):
        raise ConfigError(f"--model {name}: {problem}")
    return name


def saved_model_args(name: str) -> dict[str, Any]:
    """The construction arguments stored with a model folder or Hub repository; empty for a registered name."""
    if name.startswith(LOCAL):
        return _hub.load_model_config_from_path(name.removeprefix(LOCAL))[2] or {}  # not in timm before 1.0.26
    if name.startswith(HUB):
        return load_model_config_from_hf(name.removeprefix(HUB))[2] or {}
    return {}


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool = True,
    checkpoint: str | None = None,
    in_chans: int | None = None,
    img_size: int | None = None,
    regularisation: Mapping[str, float] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Build a timm model for square images.

    Args:
        name: Any timm name, or `local-dir:` / `hf-hub:` source.
        num_classes: Size of the classifier; None keeps the model's own.
        pretrained: Load its weights.
        checkpoint: A file to load instead of the published weights.
        in_chans: Image channels, 1 or 3; None keeps the model's own.
        img_size: Side of the image in pixels; None keeps the model's own.
        regularisation: Arguments that act in training only (`drop_rate`, `drop_path_rate`).
        model_kwargs: Further arguments of the model.

    Returns:
        The model, and the arguments besides `num_classes` that build the same architecture again.

    Raises:
        ConfigError: unknown name, weights that cannot be had, arguments the model does not take, a size it cannot take.
    """
    name = check_model_name(name)
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise ConfigError(f"--checkpoint {checkpoint}: no such file")
    arguments = dict(model_kwargs or {})
    for key in ("num_classes", "in_chans", "img_size"):
        if key in arguments:
            raise ConfigError(f"--model-kwargs {key}: it has a flag of its own, or follows from the dataset")
    if in_chans is not None:
        arguments["in_chans"] = in_chans
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    try:
        if checkpoint is not None:
            check_weights_file(checkpoint)
        elif name.startswith(LOCAL) and pretrained:
            check_model_folder(name.removeprefix(LOCAL))
        arguments = {**saved_model_args(name), **arguments}
        model = timm.create_model(
            name,
            pretrained=pretrained or checkpoint is not None,
            pretrained_cfg_overlay={"file": checkpoint} if checkpoint else None,
            **arguments,
            **(regularisation or {}),
        )
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        remedy = ""
        if pretrained and not checkpoint:
            remedy = ". train.py takes weights from a file with --checkpoint FILE, and random ones with --no-pretrained"
        raise ConfigError(f"--model {name} cannot be built: {str(error).rstrip('.')}{remedy}") from error

    own_size = model.pretrained_cfg["input_size"]
    if img_size is not None and model.pretrained_cfg.get("fixed_input_size") and img_size != own_size[-1]:
        if not hasattr(model, "set_input_size"):
            raise ConfigError(f"--img-size {img_size}: {name} takes only images of {own_size[1]}x{own_size[2]}")
        model.set_input_size(img_size=img_size)
        arguments["img_size"] = img_size
    arguments.pop("num_classes", None)
    return model, arguments


def resolve_preprocessing(
    model: nn.Module,
    *,
    in_chans: int | None = None,
    img_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    use_test_size: bool = False,
) -> dict[str, Any]:
    """The preprocessing of `model`: its own, except for what is given.

    Three-channel statistics become their mean for grayscale input.

    Returns:
        `input_size` (C, H, W), `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`, as timm's transforms take them.

    Raises:
        ConfigError: neither 1 nor 3 channels, or statistics for another number of channels.
    """
    config = model.pretrained_cfg
    own = (use_test_size and config.get("test_input_size")) or config["input_size"]
    channels = in_chans or own[0]
    if channels not in (1, 3):
        raise ConfigError(
            f"the model takes {channels} channels; images are read as RGB (3) or grayscale (1): --in-chans"
        )
    resolved = resolve_data_config(
        {
            "input_size": (channels, *((img_size, img_size) if img_size else own[1:])),
            "interpolation": interpolation,
            "crop_pct": crop_pct,
        },
        pretrained_cfg=config,
        use_test_size=use_test_size,
    )
    for key, given in (("mean", mean), ("std", std)):
        values = tuple(given or resolved[key])
        if len(values) != channels:
            if given and len(values) != 1:
                raise ConfigError(f"--{key}: {len(values)} values for {channels} channels")
            values = (sum(values) / len(values),) * channels
        resolved[key] = values
    return resolved


def image_mode(preprocessing: Mapping[str, Any]) -> str:
    """Pillow's mode of the images that a model takes: "L" for one channel, else "RGB"."""
    return "L" if preprocessing["input_size"][0] == 1 else "RGB"


@torch.no_grad()
def check_forward(model: nn.Module, input_size: Sequence[int]) -> None:
    """Run one blank image through `model`, to learn before training whether it takes that size.

    Raises:
        ConfigError: it does not.
    """
    model.eval()
    try:
        model(torch.zeros(1, *input_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        size = "x".join(map(str, input_size))
        raise ConfigError(f"the model cannot take images of {size}: {error}; see --img-size and --in-chans") from error


def check_classes(name: str, model: nn.Module, class_names: Sequence[str]) -> None:
    """Hold the classes of a finished model against a dataset's.

    Args:
        name: Of the model, for the message.
        model: A timm model.
        class_names: Of the dataset, in the order of its class numbers.

    Raises:
        ConfigError: another number of classes, or the same classes in another order.
    """
    if model.num_classes != len(class_names):
        raise ConfigError(
            f"{name} tells {model.num_classes} classes apart, but the dataset has {len(class_names)}: evaluate a model "
            "that was trained on these classes (scripts/train.py makes one), or choose another dataset"
        )
    labels = list(model.pretrained_cfg.get("label_names") or class_names)
    if labels != list(class_names) and sorted(labels) == sorted(class_names):
        raise ConfigError(
            f"{name} and the dataset have the same classes in another order: the model begins with {labels[:3]}, the "
            f"dataset with {list(class_names)[:3]}; number the dataset's classes as the model does"
        )
