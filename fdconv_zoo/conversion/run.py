"""Runs a model on an example and observes its layers."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from fdconv_zoo.layers.modes import evaluation_mode
from fdconv_zoo.layers.replace import find_plain_layers

# The input of a model: a tensor, its positional arguments, or its keyword arguments.
Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def run(
    model: nn.Module,
    example: Example,
    layers: Collection[nn.Module] = (),
    on_call: Callable[[Any, Tensor, Tensor], Tensor | None] | None = None,
) -> Any:
    """Run a model in eval mode without gradients. Its modes and the random state are restored afterwards.

    Args:
        model: any module.
        example: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        layers: layers whose calls are reported.
        on_call: called with one of these layers, its input and its output; may return another output.

    Returns:
        The model's output. Random numbers that the model draws are the same in every run.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        if module in layers and on_call is not None:
            return on_call(module, next(iter((*args, *kwargs.values()))), output)
        return None

    # A global hook: some parents (torch's transformer layers) take another code path if their children have hooks.
    # Torch's own type hint leaves out hooks that return another output.
    handle = torch_module.register_module_forward_hook(hook, with_kwargs=True)  # type: ignore[arg-type]
    try:
        with evaluation_mode(model), torch.no_grad(), _fixed_randomness(model):
            if isinstance(example, Mapping):
                return model(**example)
            return model(*example) if isinstance(example, tuple) else model(example)
    finally:
        handle.remove()
        # torch does not remove this entry for the hook's keyword arguments, which slows down all later module calls.
        torch_module._global_forward_hooks_with_kwargs.pop(handle.id, None)


@dataclass(frozen=True)
class Calls:
    """Calls of a model's layers during a run.

    Attributes:
        batch: Number of images in the example.
        shapes: Input shapes of each layer that was called, one per call.
    """

    batch: int
    shapes: dict[nn.Module, list[torch.Size]]


def observe(model: nn.Module, layers: Collection[nn.Module], example: Example) -> tuple[Calls, Any]:
    """Run a model on an example and record the calls of some layers, see :func:`run`.

    Returns:
        The calls, and the model's output.
    """
    first = next(find_tensors(example), None)
    calls = Calls(1 if first is None or first.ndim == 0 else first.shape[0], {})

    def record(layer: nn.Module, x: Tensor, _: Tensor) -> None:
        calls.shapes.setdefault(layer, []).append(x.shape)

    output = run(model, example, layers, record)
    return calls, output


def observe_plain_layers(model: nn.Module, example: Example) -> tuple[Calls, Any]:
    """Record the calls of a model's plain layers, as :func:`observe` does, before a conversion.

    Raises:
        ValueError: the model has lazy parameters, which the run would initialise; the message names the layer.
        RuntimeError: the model does not run on the example; the message names the layer that fails.
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            layer = name.rpartition(".")[0]
            raise ValueError(f"{layer!r} has lazy parameters that are not initialised: run the model once before.")
    try:
        return observe(model, find_plain_layers(model), example)
    except Exception as error:
        raise RuntimeError(
            f"The model does not run on the example: {failing_module(model, error)} raises {type(error).__name__} "
            f"({error})."
        ) from error


def failing_module(model: nn.Module, error: BaseException) -> str:
    """Name the innermost module of a model that was running when an error was raised, for a message."""
    names = {module: repr(name) if name else "the model" for name, module in model.named_modules()}
    running = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
    return next(
        (names[module] for module in reversed(running) if isinstance(module, nn.Module) and module in names),
        "the model",
    )


def find_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
        return
    children: Iterable[Any]
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
    """Return the floating-point tensors among those of :func:`find_tensors`."""
    return [tensor for tensor in find_tensors(value) if tensor.is_floating_point()]


@contextmanager
def _fixed_randomness(model: nn.Module) -> Iterator[None]:
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        # Not torch.manual_seed: it also seeds GPUs whose state is not restored here.
        torch.default_generator.manual_seed(0)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield
