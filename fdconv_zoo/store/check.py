"""Checks weights files and model folders before a model loads them."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from torch import Tensor, nn

from fdconv_zoo.errors import WeightsError, first_of
from fdconv_zoo.store.config import check_config
from fdconv_zoo.store.names import CONFIG_FILE, LOCAL_WEIGHTS_FILES, WEIGHTS_FILE
from fdconv_zoo.store.read import read_checkpoint


def check_weights_file(path: str | Path, model: nn.Module | None = None) -> None:
    """Check that a weights file is complete and safe, that all weights are finite, and that they fit a model.

    Args:
        path: a safetensors file, or a file written by ``torch.save``.
        model: the model to load the weights into; not changed. FDConv models also accept plain weights and the paper
            authors' weights.

    Raises:
        WeightsError: a check fails; the message names the file, the tensor and the remedy.
    """
    tensors = read_checkpoint(path).tensors
    check_finite(path, tensors)
    if model is not None:
        load_strictly(deepcopy(model), tensors, path)


def check_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that all weights are finite.

    Args:
        path: the weights file, for the message.
        tensors: tensors of any dtype, by name.

    Raises:
        WeightsError: weights are NaN or infinite; the message names their tensors.
    """
    bad = [key for key, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        raise WeightsError(
            f"{path} has weights that are NaN or infinite, in {first_of(bad)}. Either the training diverged or the "
            "file is damaged: use an earlier checkpoint, or get the file again."
        )


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.dtype.itemsize == 1:  # isfinite does not support most 8-bit formats, and is wrong for float8_e8m0fnu
        try:
            tensor = tensor.float()
        except NotImplementedError:
            return True  # float4_e2m1fn_x2: the format has neither NaN nor infinity
    return bool(tensor.isfinite().all())


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Load weights whose names and shapes must match the model's exactly.

    Args:
        model: changed in place.
        tensors: the weights, by parameter name.
        path: the weights file, for the message.

    Raises:
        WeightsError: weights are missing, unexpected or of another shape; the message names the first ones.
    """
    try:
        missing, unexpected = model.load_state_dict(dict(tensors), strict=False)
    except ValueError as error:  # a variant of the authors' layer
        raise WeightsError(f"{path}: {error}") from error
    except RuntimeError as error:
        lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
        mismatches = [line for line in lines if line.startswith(("size mismatch", "While copying"))]
        if not mismatches:
            raise
        reasons = [first_of(mismatches, 3)]
    else:
        reasons = [f"{len(missing)} missing: {first_of(missing)}"] if missing else []
        reasons += [f"{len(unexpected)} unexpected: {first_of(unexpected)}"] if unexpected else []
    if reasons:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(reasons)}. Build the model with the name and "
            "arguments that the weights were made with."
        )


def check_model_folder(folder: str | Path) -> None:
    """Check the configuration and the weights of a folder before ``timm.create_model("local-dir:...")`` loads it.

    Raises:
        WeightsError: a file is missing, damaged or unsafe, weights are not finite, or timm does not know the
            architecture.
    """
    folder = Path(folder)
    check_config(folder / CONFIG_FILE)
    weights = find_weights_file(folder)
    if weights is None:
        raise WeightsError(f"{folder} has no {WEIGHTS_FILE}: is the folder complete?")
    check_weights_file(weights)


def find_weights_file(folder: Path) -> Path | None:
    """Return the weights file that timm loads from a folder; None if there is none."""
    return next((folder / name for name in LOCAL_WEIGHTS_FILES if (folder / name).is_file()), None)
