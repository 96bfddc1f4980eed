"""What has to hold before a time means anything: a model computes what it should, the way it is timed."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fdconv_zoo.layers import set_path
from fdconv_zoo.layers.modulators import find_modulators
from fdconv_zoo.profiling.timing import autocast

TOLERANCE = 1e-5  # of the largest logit: float32 rounding through some fifty layers stays well below
# Against what rounding every weight once does: the activations are rounded too, layer by layer, and luck plays a part.
MARGIN = 4
# Of the norm of the gradients: where rounding switches a ReLU, they make a step.
STEP = 5e-2


class MismatchError(RuntimeError):
    """A model does not compute what it should: its costs say nothing."""


def check_same_function(model: nn.Module, twin: nn.Module, x: Tensor) -> None:
    """Give both models the same weights, none of them neutral, and hold their logits against each other in float32.

    Args:
        model: Loads the twin's weights; FDConv layers convert them.
        twin: Its constant weights become random, see :func:`randomize_constants`.
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
    if not error <= TOLERANCE:  # so that NaN fails too
        raise MismatchError(
            f"with the plain twin's weights the logits differ by {error:.1e} of the largest one; "
            f"float rounding explains {TOLERANCE:.0e}"
        )


@torch.no_grad()
def randomize_constants(model: nn.Module) -> None:
    """Make weights that are all the same number random, in place.

    timm starts the last norm of a residual branch at zero: as they are, no logit would depend on the branches.
    Biases stay: they could drown what comes from the image.
    """
    for name, parameter in model.named_parameters():
        if not name.endswith("bias") and parameter.min() == parameter.max():
            parameter.uniform_(-1, 1)


@torch.no_grad()
def randomize_modulators(model: nn.Module) -> None:
    """Make the zero parameters of KSM and FBM random, in place: the last layers, which are what keeps both neutral.

    As long as they are zero, a layer that leaves the modulators out would pass every check.
    """
    for parameter in (parameter for module in find_modulators(model) for parameter in module.parameters()):
        if not parameter.any():
            # Logits of about 0.5, whatever the number of inputs: factors between a half and one and a half.
            parameter.normal_(0, 0.5 / math.sqrt(parameter[0].numel()))


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy whose FDConv layers compute with torch's ordinary operations; for the other checks and counts."""
    model = copy.deepcopy(model)
    set_path(model, "plain")
    return model


def check_computation(
    model: nn.Module, reference: nn.Module, x: Tensor, *, dtype: torch.dtype = torch.float32, training: bool = True
) -> None:
    """Hold a model, as it will be timed, against a reference in eager mode and float32, image by image.

    Compared are the logits in inference and, by norm, the gradients of a forward pass with the norms' running
    statistics: batch statistics magnify rounding until it hides errors.

    How far they may differ depends on the model. It is measured: what a relative change of every weight by at most
    one step of the precision does to the reference, times ``MARGIN``. In half precision only gross errors show.

    Args:
        model: Compiled and forced to a path or not. In eval mode afterwards.
        reference: The same model with the same weights, see :func:`plain_copy`. Its weights change a little.
        x: (B, C, H, W), float32, on the device of both.
        dtype: Of the model's autocast; float32: none.
        training: Compare gradients too.

    Raises:
        MismatchError: they differ by more than rounding; says in what.
    """
    actual = _outcomes(model, [x], dtype, training)
    with _without_tf32():
        expected = _outcomes(reference, x.split(1), torch.float32, training)
        _round_weights(reference, _precision(x, dtype))
        rounded = _outcomes(reference, x.split(1), torch.float32, training)
    for name, value in expected.items():
        error, rounding = ((other[name] - value).norm() / value.norm() for other in (actual, rounded))
        limit = MARGIN * rounding + (0 if name == "logits" else STEP)
        if not error <= limit:
            raise MismatchError(
                f"the {name} differ by {error:.1e} of their norm from those of plain operations in float32; "
                f"rounding to {dtype} explains {limit:.1e}"
            )


def _outcomes(model: nn.Module, batches: Sequence[Tensor], dtype: torch.dtype, training: bool) -> dict[str, Tensor]:
    """The logits of all batches, and the gradients of their sum: those of each part of FDConv as one vector."""
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
    """The relative distance of neighbouring numbers in what convolutions of x compute with under autocast."""
    if dtype == torch.float32 and x.device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return 2**-10
    return torch.finfo(dtype).eps


def _without_tf32() -> torch.backends.cudnn.flags:
    """TF32, on by default in cuDNN, rounds a thousand times more coarsely than float32."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
