"""Checks layers and models on the device, on every path and in every dtype, against the plain path on the CPU."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from fdconv_zoo.layers import FDConv2d, FDLinear, set_path
from fdconv_zoo.profiling.checks import check_computation, plain_copy, randomize_constants, randomize_modulators
from fdconv_zoo.profiling.gpu_report.clock import first_call
from fdconv_zoo.profiling.gpu_report.section import Item, Recorder, Settings
from fdconv_zoo.profiling.graphs import capture
from fdconv_zoo.profiling.timing import autocast

# Limits of `deviation`.
LIMITS = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 0.1}

MODELS = (
    "resnet50_fdconv",
    "convnext_tiny_fdconv",
    "swin_tiny_patch4_window7_224_fdconv",
    "vit_tiny_patch16_224_fdconv",
)
SMALL_MODELS = ("resnet10s_fdconv",)
# Stages with 16 or fewer channels are plain: tracing takes a second for each FDConv layer.
FEW_LAYERS = MappingProxyType({"channels": (8, 8, 8, 24)})


class Case(NamedTuple):
    """A layer and the shape of its input."""

    kind: type[nn.Module]
    arguments: tuple[Any, ...]
    shape: tuple[int, ...]
    options: Mapping[str, Any] = MappingProxyType({})
    layout: Callable[[Tensor], Tensor] = Tensor.contiguous


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


SMALL_CASES = {
    "3x3": Case(FDConv2d, (6, 10, 3, 1, 1), (2, 6, 9, 7), {"num_kernels": 4}),
    "1x1": Case(FDConv2d, (12, 8, 1), (2, 12, 5, 4), {"num_kernels": 4}, _channels_last),
    "linear": Case(FDLinear, (24, 40), (2, 6, 24), {"num_kernels": 4}),
}
CASES = {
    "3x3, 64 to 64": Case(FDConv2d, (64, 64, 3, 1, 1), (2, 64, 28, 28)),
    "1x1, 256 to 64": Case(FDConv2d, (256, 64, 1), (2, 256, 14, 14)),
    "1x1, 64 to 256, channels_last": Case(FDConv2d, (64, 256, 1), (2, 64, 14, 14), {}, _channels_last),
    "3x3, 256 to 256 at 7x7": Case(FDConv2d, (256, 256, 3, 1, 1), (3, 256, 7, 7)),
    "3x3, channels_last": Case(FDConv2d, (128, 128, 3, 1, 1), (2, 128, 14, 14), {}, _channels_last),
    "3x3, stride 2, odd": Case(FDConv2d, (64, 96, 3, 2, 1), (3, 64, 29, 31)),
    "3x3, one image, 100x84": Case(FDConv2d, (32, 32, 3, 1, 1), (1, 32, 100, 84)),
    "3x3, batch 16": Case(FDConv2d, (64, 64, 3, 1, 1), (16, 64, 7, 7)),
    "linear, 96 to 384": Case(FDLinear, (96, 384), (3, 49, 96)),
    "linear, (B, H, W, C)": Case(FDLinear, (384, 96), (2, 14, 14, 384)),
    "odd channels, bias": Case(FDConv2d, (33, 20, 3, 1, 1), (2, 33, 13, 11)),
    "transposed input": Case(FDConv2d, (32, 48, 3, 1, 1), (2, 32, 12, 20), {}, _transposed),
    "groups": Case(FDConv2d, (64, 64, 3, 1, 1, 1, 32), (2, 64, 14, 14), {"num_kernels": 8}),
    "depthwise": Case(FDConv2d, (32, 32, 7, 1, 3, 1, 32), (2, 32, 14, 14), {"num_kernels": 8, "fbm": True}),
    "dilation": Case(FDConv2d, (24, 32, 3, 1, 2, 2), (2, 24, 17, 19)),
    "2x4 kernel": Case(FDConv2d, (24, 32, (2, 4), 1, "same"), (2, 24, 9, 8)),
    "reflected": Case(FDConv2d, (24, 32, 3, 1, 1, 1, 1, True, "reflect"), (2, 24, 9, 8)),
    "n = 1": Case(FDConv2d, (32, 32, 3, 1, 1), (2, 32, 9, 8), {"num_kernels": 1}),
    "n = 300": Case(FDConv2d, (32, 32, 3, 1, 1), (2, 32, 9, 8), {"num_kernels": 300}),
    "no global branch": Case(FDConv2d, (32, 48, 3, 1, 1), (2, 32, 9, 8), {"ksm_global": False}),
    "no local branch": Case(FDConv2d, (32, 48, 3, 1, 1), (2, 32, 9, 8), {"ksm_local": False}),
    "no branch": Case(FDConv2d, (32, 48, 3, 1, 1), (2, 32, 9, 8), {"ksm_global": False, "ksm_local": False}),
    "no bands": Case(FDConv2d, (32, 48, 3, 1, 1), (2, 32, 9, 8), {"fbm": False}),
    "two bands": Case(FDConv2d, (32, 48, 3, 1, 1), (2, 32, 30, 25), {"band_edges": (0.3, 0.2)}),
    "reference masks": Case(FDConv2d, (32, 48, 3, 1, 1), (2, 32, 30, 26), {"band_mask": "reference"}),
    "one pixel": Case(FDConv2d, (32, 48, 3, 1, 1), (2, 32, 1, 1)),
    "few channels": Case(FDConv2d, (3, 5, 3, 1, 1), (2, 3, 6, 5), {"num_kernels": 2}),
}


def items(settings: Settings) -> list[Item]:
    """Return the items: whole models on the newest path, CUDA graphs, layers; then other paths, and compilation."""
    device = torch.device(settings.device)
    cases, models = (SMALL_CASES, SMALL_MODELS) if settings.small else (CASES, MODELS)
    side = 32 if settings.small else 224
    graphed, compiled = ("resnet10s_fdconv",) * 2 if settings.small else ("resnet50_fdconv", "resnet18_fdconv")
    newest, *others = reversed(settings.paths)

    def whole(path: str) -> list[Item]:
        return [Item(f"{name}, {path}", partial(_check_model, name, path, side, device), limit=50) for name in models]

    def graphs(path: str) -> list[Item]:
        checks = {"forward": _check_forward_graph, "training": _check_training_graph}
        found = [(f"CUDA graph, {kind}, {path}", partial(check, graphed, path, side)) for kind, check in checks.items()]
        return [Item(*item) for item in found if device.type == "cuda"]

    layers = [Item(name, partial(_check_layer, name, case, settings), limit=40) for name, case in cases.items()]
    found = [*whole(newest), *graphs(newest), *layers]
    for path in others:
        found += [*whole(path), *graphs(path)]
    arguments = FEW_LAYERS if settings.small else {}
    found += [
        Item(f"torch.compile, {path}", partial(_check_compiled, compiled, arguments, path, device), limit=90)
        for path in (settings.paths[-1:] if settings.small else reversed(settings.paths))
    ]
    return found


def outcomes(layer: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Compute the output of a layer and the gradients of a random function of it; return both in float64 on the CPU."""
    x = x.detach().requires_grad_()
    with autocast(x.device, torch.float32 if x.dtype == torch.float64 else dtype):
        y = layer(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # Powers of two, which no dtype rounds, so that all dtypes differentiate the same function.
    weights = weights.sign() * 2.0 ** weights.abs().round()
    parameters = dict(layer.named_parameters())
    gradients = torch.autograd.grad(y, [x, *parameters.values()], weights.to(y), allow_unused=True)
    found = dict(zip(["output", "input", *parameters], [y, *gradients], strict=True))
    return {name: tensor.detach().double().cpu() for name, tensor in found.items() if tensor is not None}


def deviation(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Find the tensor with the largest deviation; return the deviation and the tensor's name.

    A deviation is relative to the tensor's largest element, plus a hundredth of the largest element of all tensors:
    gradients that cancel out are small, but their rounding is not.
    """
    rounding = 1e-2 * max(tensor.abs().max().item() for tensor in expected.values())
    worst = (0.0, "")
    for name, tensor in expected.items():
        error = ((actual[name] - tensor).abs().max() / (tensor.abs().max() + rounding)).item()
        if math.isnan(error):
            return error, name
        worst = max(worst, (error, name))
    return worst


def _check_layer(name: str, case: Case, settings: Settings, recorder: Recorder) -> None:
    torch.manual_seed(0)
    layer = case.kind(*case.arguments, **case.options)
    randomize_modulators(layer)
    x = case.layout(torch.randn(case.shape) + torch.randn(case.shape[0], *[1] * (len(case.shape) - 1)))
    references = {training: plain_copy(layer).double().train(training) for training in (False, True)}
    expected = {training: outcomes(reference, x.double()) for training, reference in references.items()}
    device = torch.device(settings.device)
    layer, x = layer.to(device), x.to(device)
    for path in reversed(settings.paths):
        set_path(layer, path)
        modes = [(_short(dtype), partial(outcomes, layer.eval(), x, dtype), False, LIMITS[dtype]) for dtype in LIMITS]
        # In half precision, the statistics of a few images amplify rounding beyond any limit.
        trained, half = copy.deepcopy(layer).train(), copy.deepcopy(layer).to(torch.bfloat16)
        modes.append(("batch statistics", partial(outcomes, trained, x), True, 10 * LIMITS[torch.float32]))
        modes.append(("bfloat16 weights", partial(outcomes, half, x.bfloat16()), False, 5 * LIMITS[torch.bfloat16]))
        errors = {}
        for mode, run, training, limit in modes:
            with recorder.attempt(f"{path}, {mode}"), _exact():
                errors[mode], where = deviation(run(), expected[training])
                if not errors[mode] <= limit:
                    text = f"{where} deviates by {errors[mode]:.1e}, more than {limit:.0e}"
                    recorder.failure(f"{path}, {mode}", text)
        recorder.row("layers: largest deviation from float64", layer=name, path=path, **errors)


def _check_model(name: str, path: str, side: int, device: torch.device, recorder: Recorder) -> None:
    """Check logits against the plain path in float32 on the CPU, and gradients against plain operations."""
    model, x = example(name, side)
    with torch.no_grad():
        expected = plain_copy(model)(x).double()
    model, x = model.to(device), x.to(device)
    set_path(model, path)
    for layout in (torch.contiguous_format, torch.channels_last):
        figures = {"model": name, "path": path, "layout": _short(layout)}
        for dtype in LIMITS:
            kind = _short(dtype)
            with recorder.attempt(kind), torch.no_grad(), autocast(device, dtype), _exact():
                y = model.to(memory_format=layout)(x.contiguous(memory_format=layout)).double().cpu()
                figures[kind] = _distance(y, expected)
                if not figures[kind] <= 3 * LIMITS[dtype]:
                    recorder.failure(kind, f"the logits deviate by {figures[kind]:.1e}")
        recorder.row("models: deviation of the logits from the CPU's", **figures)
    for dtype in (torch.float32, torch.bfloat16):
        with recorder.attempt(f"{_short(dtype)}, gradients"):
            check_computation(model, plain_copy(model), x, dtype=dtype)
            recorder.row("models: gradients", model=name, path=path, dtype=_short(dtype), result="as expected")


def example(name: str, side: int, batch: int = 2, **arguments: Any) -> tuple[nn.Module, Tensor]:
    """Build a model in eval mode with randomized modulators, and a batch of images of ``side`` x ``side`` pixels."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    randomize_constants(model)
    randomize_modulators(model)
    return model, torch.randn(batch, 3, side, side) + torch.randn(batch, 3, 1, 1)


def _short(value: torch.dtype | torch.memory_format) -> str:
    return str(value).removeprefix("torch.")


def _exact() -> torch.backends.cudnn.flags:
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def _check_forward_graph(name: str, path: str, side: int, recorder: Recorder) -> None:
    """Check a captured forward pass that is replayed on other images."""
    model, x = (part.cuda() for part in example(name, side))
    set_path(model, path)
    other = torch.randn_like(x)
    with torch.no_grad():
        expected = model(other)
        with recorder.attempt("capture", leaves_device=False):
            replay, y = capture(lambda: model(x))
            x.copy_(other)
            replay()
            _compare_replayed(recorder, name, path, "forward", [y], [expected], 1e-3)


def _check_training_graph(name: str, path: str, side: int, recorder: Recorder) -> None:
    """Check a captured forward and backward pass in bfloat16 that is replayed on other images."""
    model, x = (part.cuda() for part in example(name, side))
    set_path(model, path)
    other, parameters = torch.randn_like(x), list(model.parameters())

    def gradients() -> tuple[Tensor, ...]:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            y = model(x)
        return torch.autograd.grad(y.float().square().mean(), parameters)

    with recorder.attempt("capture", leaves_device=False):
        replay, found = capture(gradients)
        x.copy_(other)
        replay()
        found = [gradient.clone() for gradient in found]
        _compare_replayed(recorder, name, path, "gradients", found, gradients(), 0.1)


def _compare_replayed(
    recorder: Recorder,
    name: str,
    path: str,
    what: str,
    actual: Sequence[Tensor],
    expected: Sequence[Tensor],
    limit: float,
) -> None:
    error = max(_distance(a, b) for a, b in zip(actual, expected, strict=True))
    recorder.row("CUDA graphs: deviation from eager mode", model=name, path=path, what=what, deviation=error)
    if not error <= limit:
        recorder.failure(what, f"deviate by {error:.1e} from eager mode when the graph is replayed")


def _distance(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm().clamp_min(1e-12)).item()


def _check_compiled(
    name: str, arguments: Mapping[str, Any], path: str, device: torch.device, recorder: Recorder
) -> None:
    model, x = example(name, 64, **arguments)
    model, x = model.to(device), x.to(device)
    set_path(model, path)
    torch._dynamo.reset()
    # On a CPU, the backend that generates no code: a C++ compiler would take too long for a test.
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with _exact():
        expected = model(x)
        expected_gradients = torch.autograd.grad(expected.square().mean(), list(model.parameters()))
        found: list[Tensor] = []

        def step() -> None:
            y = compiled(x)
            found.extend([y, *torch.autograd.grad(y.square().mean(), list(model.parameters()))])

        seconds = first_call(step, device)
    errors = [_distance(a, b) for a, b in zip(found, (expected, *expected_gradients), strict=True)]
    figures = {"first call/s": seconds, "logits": errors[0], "worst gradient": max(errors[1:])}
    recorder.row("torch.compile(fullgraph=True)", model=name, path=path, backend=backend, **figures)
    if not errors[0] <= 1e-3:
        recorder.failure("logits", f"the compiled model's logits deviate by {errors[0]:.1e} from eager mode")
