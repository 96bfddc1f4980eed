"""Builds a model and its preprocessing from command-line arguments."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import _hub, load_model_config_from_hf
from torch import nn

from fdconv_zoo.errors import ConfigError, UserError
from fdconv_zoo.store import check_model_folder, check_weights_file
from fdconv_zoo.store.check import find_weights_file
from fdconv_zoo.store.config import check_config, limited_by
from fdconv_zoo.store.fetch import fetch_file
from fdconv_zoo.store.hub_errors import REQUEST_ERRORS, explain
from fdconv_zoo.store.names import CONFIG_FILE, HUB, LOCAL, unknown_name
from fdconv_zoo.store.timm_loading import DownloadError


def check_model_name(name: str) -> str:
    """Check a model name and return it in timm's form: an existing folder gets the prefix `local-dir:`.

    Raises:
        ConfigError: timm does not know the model or its tag, or the folder has no configuration.
    """
    if name.startswith(HUB):
        return name
    folder = Path(name.removeprefix(LOCAL)).expanduser()
    is_path = name.startswith((".", "~")) or "/" in name or "\\" in name  # no timm name contains these
    if name.startswith(LOCAL) or folder.is_dir() or is_path:
        if not folder.is_dir():
            hint = "" if name.startswith(LOCAL) else f"; for a model on the Hub write {HUB}{name}"
            raise ConfigError(f"--model {name}: no such folder{hint}")
        if not (folder / CONFIG_FILE).is_file():
            raise ConfigError(f"--model {name}: no {CONFIG_FILE} in {folder}; is it the output folder of a run?")
        return f"{LOCAL}{folder}"
    if problem := unknown_name(name):
        raise ConfigError(f"--model {name}: {problem}")
    return name


def saved_model_args(name: str) -> dict[str, Any]:
    """Return the construction arguments stored in a model folder or Hub repository; empty for a registered name."""
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
        name: Any timm name, or a `local-dir:` or `hf-hub:` source.
        num_classes: Number of classes. Default: the model's own.
        pretrained: Load the published weights.
        checkpoint: Weights file to load instead of the published weights.
        in_chans: Image channels, 1 or 3. Default: the model's own.
        img_size: Side of the image in pixels. Default: the model's own.
        regularisation: Arguments that take effect in training only (`drop_rate`, `drop_path_rate`).
        model_kwargs: Other arguments of the model.

    Returns:
        The model, and the arguments other than `num_classes` that rebuild its architecture.

    Raises:
        ConfigError: the name is unknown, the weights could not be loaded, or the model does not support an argument or
            the image size.
    """
    name = check_model_name(name)
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise ConfigError(f"--checkpoint {checkpoint}: no such file")
    arguments = dict(model_kwargs or {})
    for key in ("num_classes", "in_chans", "img_size"):
        if key in arguments:
            raise ConfigError(f"--model-kwargs {key}: remove it; it has its own flag or is set from the dataset")
    if in_chans is not None:
        arguments["in_chans"] = in_chans
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    described = name.startswith((LOCAL, HUB))  # by a configuration, which may contain anything
    try:
        if checkpoint is not None:
            check_weights_file(checkpoint)
        weights = _check_description(name, pretrained=pretrained and checkpoint is None)
        arguments = {**saved_model_args(name), **arguments}
        with limited_by(weights) if described else nullcontext():
            model = timm.create_model(
                name,
                pretrained=pretrained or checkpoint is not None,
                pretrained_cfg_overlay={"file": checkpoint} if checkpoint else None,
                **arguments,
                **(regularisation or {}),
            )
    except Exception as error:
        if not isinstance(error, OSError | RuntimeError | TypeError | ValueError) and not described:
            raise
        reason = explain_download(error) or str(error) or type(error).__name__
        if described and not isinstance(error, UserError):
            reason = " ".join(reason.split())
            reason = f"its {CONFIG_FILE}, its weights and its arguments do not fit together ({reason:.300})"
        raise ConfigError(f"--model {name} cannot be built: {reason.rstrip('.')}") from error

    own_size = model.pretrained_cfg["input_size"]
    if img_size is not None and model.pretrained_cfg.get("fixed_input_size") and img_size != own_size[-1]:
        if not hasattr(model, "set_input_size"):
            raise ConfigError(f"--img-size {img_size}: {name} supports only images of {own_size[1]}x{own_size[2]}")
        model.set_input_size(img_size=img_size)
        arguments["img_size"] = img_size
    arguments.pop("num_classes", None)
    return model, arguments


def explain_download(error: Exception) -> str | None:
    """Explain why published weights could not be downloaded, with remedies by flags; None for another error."""
    reason = error.reason if isinstance(error, DownloadError) else None
    if isinstance(error, REQUEST_ERRORS):
        reason = explain(error)
    return reason and (
        f"its published weights could not be downloaded: {reason}. A training command can also load a file with "
        "--checkpoint FILE, or start from random weights with --no-pretrained"
    )


def _check_description(name: str, *, pretrained: bool) -> Path | None:
    """Check the configuration of a folder or repository, and a folder's weights; return the folder's weights file."""
    if name.startswith(LOCAL):
        folder = Path(name.removeprefix(LOCAL))
        check_model_folder(folder) if pretrained else check_config(folder / CONFIG_FILE)
        return find_weights_file(folder)
    if name.startswith(HUB):
        repo_id, _, revision = name.removeprefix(HUB).partition("@")
        check_config(fetch_file(repo_id, CONFIG_FILE, revision or None))
    return None


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
    """Return the preprocessing of `model`, with its own settings unless they are overridden.

    For grayscale input, three-channel statistics are averaged.

    Returns:
        `input_size` (C, H, W), `mean`, `std`, `interpolation`, `crop_pct` and `crop_mode`, as for timm's transforms.

    Raises:
        ConfigError: the number of channels is neither 1 nor 3, or `mean` or `std` has another number of values.
    """
    config = model.pretrained_cfg
    own = (use_test_size and config.get("test_input_size")) or config["input_size"]
    channels = in_chans or own[0]
    if channels not in (1, 3):
        raise ConfigError(
            f"the model takes {channels} channels, but images are read as RGB (3) or grayscale (1); see --in-chans"
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
    """Return Pillow's mode for the images of a model: "L" for one channel, otherwise "RGB"."""
    return "L" if preprocessing["input_size"][0] == 1 else "RGB"


@torch.no_grad()
def check_forward(model: nn.Module, input_size: Sequence[int]) -> None:
    """Run one blank image through `model`, to check before training that it supports the size.

    Args:
        model: A timm model.
        input_size: (C, H, W).

    Raises:
        ConfigError: the model fails on the image.
    """
    model.eval()
    try:
        model(torch.zeros(1, *input_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        size = "x".join(map(str, input_size))
        raise ConfigError(
            f"the model does not support images of {size}: {error}; see --img-size and --in-chans"
        ) from error


def stored_class_names(model: nn.Module, name: str) -> list[str] | None:
    """Return the class names in a model's configuration; None if there are none.

    Args:
        model: A timm model.
        name: Name of the model, for the message.

    Raises:
        ConfigError: there is not exactly one distinct name for each class.
    """
    labels = model.pretrained_cfg.get("label_names")
    if not labels:
        return None
    names = [str(label) for label in labels] if isinstance(labels, list | tuple) else []
    if len(names) != model.num_classes or len(set(names)) != len(names):
        raise ConfigError(
            f"{name}: the {len(set(names))} different label_names in its configuration do not name its "
            f"{model.num_classes} classes; correct them in {CONFIG_FILE}, or remove them"
        )
    return names
