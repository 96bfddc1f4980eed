"""Checks that a model computes the right results in the way it is timed."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fdconv_zoo.errors import MismatchError
from fdconv_zoo.layers import set_path
from fdconv_zoo.layers.modulators import find_modulators
from fdconv_zoo.profiling.timing import autocast

TOLERANCE = 1e-5  # of the largest logit; float32 rounding in about fifty layers stays well below
# Multiple of the deviation from rounding every weight once: activations are rounded too, and the draw is random.
MARGIN = 4
# Fraction of the gradients' norm: gradients jump where rounding switches a ReLU.
STEP = 5e-2


def check_same_function(model: nn.Module, twin: nn.Module, x: Tensor) -> None:
    """Check that a model computes the same logits as its plain twin in float32, with the twin's weights.

    Args:
        model: Loads the twin's weights; FDConv layers convert them.
        twin: Its constant weights are randomized, see :func:`randomize_constants`.
        x: (B, C, H, W), float32.

    Raises:
        MismatchError: the weights do not fit, or the logits differ by more than rounding.
    """
    randomize_constants(twin)
    try:
        model.load_state_dict(twin.state_dict())
    except RuntimeError as error:
        raise MismatchError(f"the plain twin's weights do not fit: {error}") from error
    with torch.no_grad(), _without_tf32():
        actual, expected = model.eval()(x), twin.eval()(x)
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    if not error <= TOLERANCE:  # NaN fails too
        raise MismatchError(
            f"with the plain twin's weights the logits differ by {error:.1e} of the largest one; "
            f"float rounding explains at most {TOLERANCE:.0e}"
        )


@torch.no_grad()
def randomize_constants(model: nn.Module) -> None:
    """Randomize weights whose elements are all equal, in place.

    timm initialises the last norm of a residual branch to zero, so no logit would depend on the branch. Biases are
    kept: random ones could outweigh the signal from the image.
    """
    for name, parameter in model.named_parameters():
        if not name.endswith("bias") and parameter.min() == parameter.max():
            parameter.uniform_(-1, 1)


@torch.no_grad()
def randomize_modulators(model: nn.Module) -> None:
    """Randomize the zero parameters of KSM and FBM, in place: the last layers, which keep both neutral.

    While they are zero, a layer that skips its modulators would pass every check.
    """
    for parameter in (parameter for module in find_modulators(model) for parameter in module.parameters()):
        if not parameter.any():
            # Logits of about 0.5 for any number of inputs, so that factors are between 0.5 and 1.5.
            parameter.normal_(0, 0.5 / math.sqrt(parameter[0].numel()))


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a model, and let FDConv layers in the copy use torch's own operations only; for checks and counts."""
    model = copy.deepcopy(model)
    set_path(model, "plain")
    return model


def check_computation(
    model: nn.Module, reference: nn.Module, x: Tensor, *, dtype: torch.dtype = torch.float32, training: bool = True
) -> None:
    """Check a model, as it will be timed, against a reference in eager mode and float32, one image at a time.

    Compares the logits in inference and the gradients by norm. Gradients are computed with the running statistics of
    BatchNorm: batch statistics amplify rounding until it hides errors.

    The tolerance is measured for each model: the weights of the reference are changed by at most one machine epsilon,
    relative to each, and the effect is multiplied by ``MARGIN``; for gradients, ``STEP`` is added. In half precision,
    only gross errors are found.

    Args:
        model: May be compiled or forced to a path. Left in eval mode.
        reference: The same model with the same weights, see :func:`plain_copy`. Its weights change slightly.
        x: (B, C, H, W), float32, on the device of both.
        dtype: Autocast dtype of the model; float32 disables autocast.
        training: Compare gradients too.

    Raises:
        MismatchError: they differ by more than rounding; names what differs.
    """
    actual, precision = _outcomes(model, [x], dtype, training), _precision(x, dtype)
    with _without_tf32():
        expected = _outcomes(reference, x.split(1), torch.float32, training)
        _round_weights(reference, precision)
        rounded = _outcomes(reference, x.split(1), torch.float32, training)
    for name, value in expected.items():
        error, rounding = ((other[name] - value).norm() / value.norm() for other in (actual, rounded))
        limit = MARGIN * rounding + (0 if name == "logits" else STEP)
        if not error <= limit:
            raise MismatchError(
                f"the {name} differ by {error:.1e} of their norm from those of plain operations in float32; "
                f"rounding to {dtype} explains at most {limit:.1e}"
            )


def _outcomes(model: nn.Module, batches: Sequence[Tensor], dtype: torch.dtype, training: bool) -> dict[str, Tensor]:
    """Compute the logits of all batches, and the gradients of their sum as one vector per part of FDConv."""
    model.eval()
    with torch.inference_mode(), autocast(batches[0].device, dtype):
        outcomes = {"logits": torch.cat([model(x).float() for x in batches])}
    if not training:
        return outcomes
    model.zero_grad(set_to_none=True)
    for x in batches:
        with autocast(x.device, dtype):
            logits = model(x)
        logits.float().sum().backward()
    gradients: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        part = next((part for part in ("fdw", "ksm", "fbm") if f".{part}." in name), "plain layers")
        if parameter.grad is not None:
            gradients.setdefault(f"gradients of {part}", []).append(parameter.grad.float().flatten())
    model.zero_grad(set_to_none=True)
    return outcomes | {name: torch.cat(parts) for name, parts in gradients.items()}


@torch.no_grad()
def _round_weights(model: nn.Module, precision: float) -> None:
    for parameter in model.parameters():
        parameter.mul_(1 + precision * (2 * torch.rand_like(parameter) - 1))


def _precision(x: Tensor, dtype: torch.dtype) -> float:
    """Return the machine epsilon of convolutions of x under autocast."""
    if dtype == torch.float32 and x.device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return 2**-10
    return torch.finfo(dtype).eps


def _without_tf32() -> torch.backends.cudnn.flags:
    """Disable TF32, cuDNN's default, whose rounding is a thousand times coarser than float32's."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
