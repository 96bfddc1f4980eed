"""Running a model to look at it: what its layers are given, what it gives back."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.parameter import is_lazy

# The input of a model: a tensor, its positional arguments, or its keyword arguments.
Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def run(
    model: nn.Module,
    example: Example,
    layers: Collection[nn.Module] = (),
    on_call: Callable[[nn.Module, Tensor, Tensor], Tensor | None] | None = None,
) -> Any:
    """Run a model in evaluation mode without gradients and leave no trace: not in its modes, not in the random state.

    Args:
        example: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        layers: whose calls are reported.
        on_call: called with each of these layers, what it is given and what it returns; may return what to go on with.

    Returns:
        What the model returns; what it draws at random is the same in every run.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        if module in layers:
            return on_call(module, next(iter((*args, *kwargs.values()))), output)
        return None

    modes = {module: module.training for module in model.modules()}
    # A hook of all modules, not of these: some parents (torch's transformer layers) go other ways where there are hooks
    # on their children. Modes are set one by one: train() may be overridden with effects of its own.
    handle = register_module_forward_hook(hook, with_kwargs=True)
    try:
        for module in modes:
            module.training = False
        with torch.no_grad(), _fixed_randomness(model):
            if isinstance(example, Mapping):
                return model(**example)
            return model(*example) if isinstance(example, tuple) else model(example)
    finally:
        handle.remove()
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True)
class Calls:
    """What an example showed.

    Attributes:
        batch: How many images it holds.
        shapes: The input shapes of each layer that was called, one a call.
    """

    batch: int
    shapes: dict[nn.Module, list[torch.Size]]


def observe(model: nn.Module, layers: Collection[nn.Module], example: Example) -> tuple[Calls, Any]:
    """Run a model on an example, see :func:`run`.

    Returns:
        What the layers are given, and what the model returns.

    Raises:
        ValueError: the run would initialise lazy parameters.
    """
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("The model has lazy parameters that are not initialised: run it once before.")
    first = next(find_tensors(example), None)
    calls = Calls(1 if first is None or first.ndim == 0 else first.shape[0], {})

    def record(layer: nn.Module, x: Tensor, _: Tensor) -> None:
        calls.shapes.setdefault(layer, []).append(x.shape)

    output = run(model, example, layers, record)
    return calls, output


def find_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        children = value.values()
    elif isinstance(value, list | tuple):
        children = value
    elif is_dataclass(value) and not isinstance(value, type):
        children = [getattr(value, field.name) for field in fields(value)]
    else:
        children = ()
    for child in children:
        yield from find_tensors(child)


def find_floating(value: Any) -> list[Tensor]:
    """The tensors of floating types among :func:`find_tensors`."""
    return [tensor for tensor in find_tensors(value) if tensor.is_floating_point()]


@contextmanager
def _fixed_randomness(model: nn.Module) -> Iterator[None]:
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        # Not torch.manual_seed, which reaches GPUs whose state is not kept here.
        torch.default_generator.manual_seed(0)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield
