"""What a model costs: parameters, multiply-adds, time and memory, measured beside its plain twin."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fdconv_zoo.backbones.build import split_layer_options

WARM_UP = 2  # rounds that are not timed: caches, the allocator, the choice of algorithms, compilation
TOLERANCE = 1e-5  # of the largest logit: float32 rounding through some fifty layers stays well below


class TwinMismatchError(RuntimeError):
    """A model with its plain twin's weights does not compute the twin's function: comparing their costs is void."""


@dataclass(frozen=True)
class Profile:
    """The costs of one model; None: not measured.

    Attributes:
        parameters: Their number.
        multiply_adds: For one image, see :func:`count_multiply_adds`.
        forward_seconds, forward_iqr_seconds: A batch in inference, median and interquartile range.
        train_seconds, train_iqr_seconds: A training step: forward, backward and SGD's update.
        saved_bytes: What the forward pass of a training step keeps, see :func:`bytes_saved_for_backward`.
        peak_bytes: On a GPU, see :func:`peak_bytes_of_step`.
    """

    parameters: int
    multiply_adds: int
    forward_seconds: float
    forward_iqr_seconds: float
    train_seconds: float | None = None
    train_iqr_seconds: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None


def create_with_twin(name: str, **kwargs: Any) -> dict[str, nn.Module]:
    """Build a timm model and the plain model it is compared with, both with random weights.

    The twin of ``X_fdconv`` is timm's ``X``, or, where timm has no such model, ours with ``fdconv_layers=()``. The
    options of FDConv layers among ``kwargs`` do not reach plain models.

    Returns:
        The models by name, the twin first; a model that is plain itself is its own twin and stands alone.
    """
    _, plain_kwargs = split_layer_options(kwargs)
    plain_kwargs.pop("fdconv_layers", None)
    if "_fdconv" not in name:
        return {name: timm.create_model(name, **plain_kwargs)}
    model = timm.create_model(name, **kwargs)
    plain_kwargs["num_classes"] = model.num_classes  # a tag of the model's own may have set it
    architecture = name.partition(".")[0]
    twin_name = architecture.replace("_fdconv", "")
    if timm.is_model(twin_name):
        return {twin_name: timm.create_model(twin_name, **plain_kwargs), name: model}
    return {f"{architecture} (plain)": timm.create_model(architecture, **plain_kwargs, fdconv_layers=()), name: model}


def check_same_function(model: nn.Module, twin: nn.Module, x: Tensor) -> None:
    """Give both models the same weights, none of them neutral, and hold their logits against each other in float32.

    Args:
        model: Loads the twin's weights; FDConv layers convert them.
        twin: Its constant weights become random. timm starts the last norm of a residual branch at zero: as they
            are, no logit would depend on the branches. Biases stay: they could drown what comes from the image.
        x: (B, C, H, W), float32.

    Raises:
        TwinMismatchError: the weights do not fit, or the logits differ by more than rounding.
    """
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if not name.endswith("bias") and parameter.min() == parameter.max():
                parameter.uniform_(-1, 1)
    try:
        model.load_state_dict(twin.state_dict())
    except RuntimeError as error:
        raise TwinMismatchError(f"the plain twin's weights do not fit: {error}") from error
    # TF32, on by default in cuDNN, rounds a thousand times more coarsely.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        actual, expected = model.eval()(x), twin.eval()(x)
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    if not error <= TOLERANCE:  # so that NaN fails too
        raise TwinMismatchError(
            f"with the plain twin's weights the logits differ by {error:.1e} of the largest one; "
            f"float rounding explains {TOLERANCE:.0e}"
        )


def profile(
    models: Mapping[str, nn.Module],
    x: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    training: bool = True,
    repeats: int = 10,
) -> dict[str, Profile]:
    """Measure models that are to be compared, in one process and by turns.

    Args:
        models: By name, on x's device; their weights change a little.
        x: (B, C, H, W), float32.
        dtype: Of autocast; float32: none.
        compiled: Compile the models, in place, before time and memory are measured.
        training: Measure training steps and their memory too.
        repeats: How often each time is taken.
    """
    costs: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        costs[name] = dict(parameters=count_parameters(model), multiply_adds=count_multiply_adds(model, x[:1]))
    if compiled:
        for model in models.values():
            model.compile()

    forwards = [_forward_step(model.eval(), x, dtype) for model in models.values()]
    for cost, (median, iqr) in zip(costs.values(), time_by_turns(forwards, repeats, x.device), strict=True):
        cost.update(forward_seconds=median, forward_iqr_seconds=iqr)

    if training:
        steps = [_training_step(model.train(), x, dtype) for model in models.values()]
        for cost, (median, iqr) in zip(costs.values(), time_by_turns(steps, repeats, x.device), strict=True):
            cost.update(train_seconds=median, train_iqr_seconds=iqr)
        for cost, model, step in zip(costs.values(), models.values(), steps, strict=True):
            with _autocast(x, dtype):
                cost["saved_bytes"] = bytes_saved_for_backward(model, x)
            if x.device.type == "cuda":
                cost["peak_bytes"] = peak_bytes_of_step(model, x, step)
    return {name: Profile(**cost) for name, cost in costs.items()}


def count_parameters(model: nn.Module) -> int:
    """The number of trainable and frozen parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, x: Tensor) -> int:
    """Multiply-adds of convolutions, matrix products and attention for x (1, C, H, W) in inference.

    FFTs and element-wise work are not counted, which leaves out how FDConv assembles its kernels.
    """
    # Not inference_mode: there the counter is not shown the operations that a matrix product is made of.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    return counter.get_total_flops() // 2


def bytes_saved_for_backward(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps between forward and backward: each storage once, no parameters and buffers.

    The input counts where a layer keeps it.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}  # holds the storages themselves, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes_of_step(model: nn.Module, x: Tensor, step: Callable[[], None]) -> int:
    """Peak GPU memory of a training step, as if the model and its input were alone on the device.

    What was allocated before the step, other models included, is taken off; the model and its input come back on.
    """
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    before = torch.cuda.memory_allocated(x.device)
    step()
    above = torch.cuda.max_memory_allocated(x.device) - before
    return above + sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), x))


def time_by_turns(steps: Sequence[Callable[[], None]], repeats: int, device: torch.device) -> list[tuple[float, float]]:
    """Time steps in the order A B A B ..., so that a machine that slows down slows all of them.

    Returns:
        Median and interquartile range of each step, in seconds, the device's work included.
    """

    def seconds(step: Callable[[], None]) -> float:
        start = time.perf_counter()
        step()
        _synchronize(device)
        return time.perf_counter() - start

    for _ in range(WARM_UP):
        for step in steps:
            seconds(step)
    times = torch.tensor([[seconds(step) for step in steps] for _ in range(repeats)], dtype=torch.float64)
    lower, median, upper = times.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
    return list(zip(median.tolist(), (upper - lower).tolist(), strict=True))


def _forward_step(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    @torch.inference_mode()
    def step() -> None:
        with _autocast(x, dtype):
            model(x)

    return step


def _training_step(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    # The weights must stay finite over all repeats, whatever the gradients: the step is short.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(x, dtype):
            logits = model(x)
        logits.float().sum().backward()
        optimizer.step()

    return step


def _autocast(x: Tensor, dtype: torch.dtype) -> torch.autocast:
    enabled = dtype != torch.float32
    return torch.autocast(x.device.type, dtype=dtype if enabled else None, enabled=enabled)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
