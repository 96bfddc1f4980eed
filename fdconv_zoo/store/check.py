"""Whether a weights file, or a folder with a model, can be given to a model."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import timm
from torch import Tensor, nn

from fdconv_zoo.errors import WeightsError, first_of
from fdconv_zoo.store.read import read_checkpoint

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")  # timm's order


def check_weights_file(path: str | Path, model: nn.Module | None = None) -> None:
    """Check a weights file: that it is whole, holds nothing but weights, all of them numbers, and fits a model.

    Args:
        path: safetensors, or a file of ``torch.save``.
        model: what its weights are for; it is not changed. Plain weights and the paper authors' fit FDConv models.

    Raises:
        WeightsError: it is not so; names the file, the tensor and the remedy.
    """
    tensors = read_checkpoint(path).tensors
    check_finite(path, tensors)
    if model is not None:
        load_strictly(deepcopy(model), tensors, path)


def check_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that all weights are numbers.

    Raises:
        WeightsError: some are NaN or infinite; names their tensors.
    """
    bad = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise WeightsError(
            f"{path} has weights that are NaN or infinite, in {first_of(bad)}. The training that made it went wrong, "
            "or the file is damaged: take an earlier checkpoint, or get the file again."
        )


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Load weights that must be the model's, no more and no less.

    Args:
        model: changed in place.
        tensors: by their names in the model.
        path: of the file they come from, for the message.

    Raises:
        WeightsError: names missing and left over, or of other shapes; gives the first of them.
    """
    try:
        missing, unexpected = model.load_state_dict(dict(tensors), strict=False)
    except ValueError as error:  # a variant of the authors' layer
        raise WeightsError(f"{path}: {error}") from error
    except RuntimeError as error:
        sizes = [line.strip().rstrip(".") for line in str(error).splitlines() if "size mismatch" in line]
        if not sizes:
            raise
        reasons = [first_of(sizes, 3)]
    else:
        reasons = [f"{len(missing)} missing: {first_of(missing)}"] if missing else []
        reasons += [f"{len(unexpected)} without a place in the model: {first_of(unexpected)}"] if unexpected else []
    if reasons:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(reasons)}. Choose the model, and its arguments, "
            "that the weights were made with."
        )


def check_model_folder(folder: str | Path) -> None:
    """Check a folder that ``timm.create_model("local-dir:...")`` is to load: its configuration and its weights.

    Raises:
        WeightsError: files are missing or damaged, the weights are unsafe or not numbers, or the configuration is not
            of a model that timm knows.
    """
    folder = Path(folder)
    check_config(folder / "config.json")
    weights = find_weights(folder)
    if weights is None:
        raise WeightsError(f"{folder} has no {_WEIGHTS[0]}: is it the whole folder?")
    check_weights_file(weights)


def find_weights(folder: Path) -> Path | None:
    """The weights file of a folder that timm loads; None without one."""
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)


def check_config(path: str | Path) -> None:
    """Check a model's ``config.json``.

    Raises:
        WeightsError: it cannot be read, is not JSON, or names an architecture that timm does not have.
    """
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON ({error}). Get the file again.") from error
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(architecture, str):
        raise WeightsError(f"{path} names no architecture: it is not the configuration of a timm model.")
    if not timm.is_model(architecture):
        raise WeightsError(
            f"{path} names the architecture {architecture!r}, which neither timm nor fdconv_zoo has. It is another "
            "library's model, or a newer version's."
        )
