"""All paths compute the same: ``"rebuild"``, whose backward is written by hand, beside ``"plain"``, torch's own."""

import copy
import itertools
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import get_args

import pytest
import timm
import torch
from conftest import randomize, relative_error
from hypothesis import given
from hypothesis import strategies as st
from test_fdconv import geometries
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fdconv_zoo import FDConv2d, FDLinear, FrequencyBandModulation, ops, set_path
from fdconv_zoo.ops import convolution, image_by_image, planes
from fdconv_zoo.profiling import bytes_saved_for_backward

PATHS = get_args(ops.Path)


@contextmanager
def small_blocks():
    """Work on each image alone, and on large intermediates in many blocks, however small they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(image_by_image._ELEMENTS_AT_ONCE, "cpu", 1)
        patch.setattr(planes, "LARGE_TEMPORARY", 100)
        patch.setattr(convolution, "LARGE_TEMPORARY", 100)
        image_by_image._make_plan.cache_clear()
        yield
    image_by_image._make_plan.cache_clear()


def results(layer, x, path=None):
    """The output, and the gradients of some function of it with respect to the input and all parameters."""
    if path is not None:
        set_path(layer, path)
    x = x.detach().requires_grad_()
    y = layer(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])
    return {"output": y.detach(), **gradients_by_name(layer, gradients)}


def gradients_by_name(layer, gradients):
    return dict(zip(["input", *(name for name, _ in layer.named_parameters())], gradients, strict=True))


def clone(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def equal(actual, expected):
    assert actual.keys() == expected.keys()
    return all(torch.equal(actual[name], expected[name]) for name in expected)


def assert_close(actual, expected, tolerance):
    """Each tensor, up to a fraction of its largest element and a smaller one of the largest of all gradients."""
    assert actual.keys() == expected.keys()
    rounding = 1e-2 * max(gradient.abs().max() for name, gradient in expected.items() if name != "output")
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        error = (actual[name].double() - tensor.double()).abs().max()
        assert error <= tolerance * (tensor.abs().max() + rounding), f"{name}: {error:.1e} of {tensor.abs().max():.1e}"


def double(kind, *arguments, **options):
    """A layer in double precision whose modulators are nowhere neutral."""
    return randomize(kind(*arguments, dtype=torch.float64, num_kernels=options.pop("num_kernels", 4), **options))


def odd(dtype=torch.float32):
    """Layers of unlike shapes, with an input each. The second one convolves patches."""
    return [
        (randomize(FDConv2d(6, 10, 3, padding=1, num_kernels=4, dtype=dtype)), torch.randn(3, 6, 9, 7, dtype=dtype)),
        (randomize(FDConv2d(6, 40, 3, padding=1, num_kernels=4, dtype=dtype)), torch.randn(3, 6, 4, 5, dtype=dtype)),
        (randomize(FDConv2d(12, 8, 1, num_kernels=4, dtype=dtype)), torch.randn(3, 12, 5, 4, dtype=dtype)),
        (randomize(FDLinear(24, 40, num_kernels=4, dtype=dtype)), torch.randn(3, 6, 24, dtype=dtype)),
    ]


GRADCHECKS = {
    "1x1": ((FDConv2d, 5, 7, 1), {}, (4, 3)),
    "1x1 with more weights than features": ((FDConv2d, 5, 9, 1), {}, (2, 3)),
    "1x1 with bands": ((FDConv2d, 3, 4, 1), {"fbm": True}, (4, 3)),
    "1x1 stride": ((FDConv2d, 3, 4, 1, 2), {}, (5, 4)),
    "3x3": ((FDConv2d, 3, 5, 3, 1, 1), {}, (4, 5)),
    "3x3 without bands": ((FDConv2d, 3, 5, 3, 1, 1), {"fbm": False}, (4, 5)),
    "3x3 patches": ((FDConv2d, 3, 11, 3, 1, 1), {}, (3, 2)),
    "3x3 patches without bands": ((FDConv2d, 3, 11, 3, 1, 1), {"fbm": False}, (3, 2)),
    "stride": ((FDConv2d, 3, 4, 3, (2, 1), 1), {}, (6, 5)),
    "dilation": ((FDConv2d, 3, 4, 3, 1, (2, 1), (2, 1)), {}, (6, 5)),
    "stride and dilation, patches": ((FDConv2d, 3, 13, 3, (2, 1), (2, 1), (2, 1)), {}, (6, 3)),
    "groups": ((FDConv2d, 4, 6, 3, 1, 1, 1, 2), {}, (4, 3)),
    "depthwise": ((FDConv2d, 5, 5, 3, 1, 1, 1, 5), {}, (4, 3)),
    "2x4 kernel": ((FDConv2d, 3, 4, (2, 4), 1, "same"), {}, (5, 4)),
    "one kernel": ((FDConv2d, 3, 4, 3, 1, 1), {"num_kernels": 1}, (4, 5)),
    "no global branch": ((FDConv2d, 3, 4, 3, 1, 1), {"ksm_global": False}, (4, 5)),
    "no global branch, patches": ((FDConv2d, 3, 11, 3, 1, 1), {"ksm_global": False}, (3, 2)),
    "no local branch": ((FDConv2d, 3, 4, 3, 1, 1), {"ksm_local": False}, (4, 5)),
    "no branch": ((FDConv2d, 3, 4, 3, 1, 1), {"ksm_global": False, "ksm_local": False}, (4, 5)),
    "linear": ((FDLinear, 5, 7), {}, (6,)),
}


@pytest.mark.parametrize(("batch", "train"), [(1, False), (3, True)], ids=["one image", "batch statistics"])
@pytest.mark.parametrize("case", GRADCHECKS)
def test_gradients_match_finite_differences(case, batch, train):
    (kind, *arguments), options, size = GRADCHECKS[case]
    layer = double(kind, *arguments, **options).train(train)
    shape = (*size, arguments[0]) if kind is FDLinear else (arguments[0], *size)
    check_gradients(layer, torch.randn(batch, *shape, dtype=torch.float64), fast_mode=True)


@pytest.mark.parametrize("out_channels", [2, 5], ids=["convolution", "patches"])
def test_every_single_derivative_matches_finite_differences(out_channels):
    layer = double(FDConv2d, 2, out_channels, 3, padding=1, num_kernels=2).eval()
    check_gradients(layer, torch.randn(2, 2, 2, 2, dtype=torch.float64))


def check_gradients(layer, x, check=torch.autograd.gradcheck, path="rebuild", **options):
    """With respect to the input and all parameters."""
    set_path(layer, path)
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *parameters):
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert check(function, (x.requires_grad_(), *layer.parameters()), **options)


@given(
    geometry=geometries(),
    options=st.fixed_dictionaries(
        {"ksm_global": st.booleans(), "ksm_local": st.booleans(), "fbm": st.sampled_from([None, True, False])}
    ),
    batch=st.integers(1, 3),
    train=st.booleans(),
    in_blocks=st.booleans(),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_paths_agree_on_any_geometry(geometry, options, batch, train, in_blocks, memory_format):
    arguments, bias, n, size = geometry
    layer = double(FDConv2d, *arguments, bias, num_kernels=n, **options).train(train)
    x = torch.randn(batch, arguments[0], *size, dtype=torch.float64).to(memory_format=memory_format)
    expected = results(layer, x, "plain")
    if in_blocks:
        with small_blocks():
            actual = results(layer, x, "rebuild")
    else:
        actual = results(layer, x, "rebuild")
    assert_close(actual, expected, 1e-9)


@given(
    in_features=st.integers(1, 20), out_features=st.integers(1, 20), tokens=st.integers(1, 20), batch=st.integers(1, 3)
)
def test_paths_agree_on_tokens(in_features, out_features, tokens, batch):
    layer = double(FDLinear, in_features, out_features, num_kernels=1 + (in_features > 1 and out_features > 1))
    x = torch.randn(batch, tokens, in_features, dtype=torch.float64)
    expected = results(layer, x, "plain")
    assert_close(results(layer, x, "rebuild"), expected, 1e-9)
    with small_blocks():
        assert_close(results(layer, x, "rebuild"), expected, 1e-9)


def test_paths_agree_where_kernels_are_large():
    """Of a size at which intermediates really go in blocks, and images alone."""
    layer = randomize(FDConv2d(256, 256, 3, padding=1))
    x = torch.randn(2, 256, 5, 7)
    assert layer.fdw.spectrum.nbytes > 2 * planes.LARGE_TEMPORARY / 2
    expected = results(layer.double(), x.double(), "plain")
    actual = results(layer.float(), x, "rebuild")
    assert_close({name: tensor.double() for name, tensor in actual.items()}, expected, 1e-4)


def test_gradients_stop_at_what_is_frozen():
    layer, x = odd()[0]
    expected = results(layer, x, "plain")
    set_path(layer, "rebuild")
    for trained in ("fdw.spectrum", "ksm.local_branch.norm.weight", "fbm.attention.bias"):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name == trained)
        y = layer(x)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (y * weights).sum().backward()
        with_gradient = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        assert with_gradient.keys() == {trained}
        assert relative_error(with_gradient[trained], expected[trained]) < 1e-4
        layer.zero_grad()


@pytest.mark.parametrize("out_channels", [6, 40], ids=["convolution", "patches"])
def test_a_layer_used_twice_sums_its_gradients(out_channels):
    layer = double(FDConv2d, 6, out_channels, 3, padding=1).eval()
    first, second = torch.randn(2, 2, 6, 5, 4, dtype=torch.float64)
    set_path(layer, "rebuild")
    parameters = list(layer.parameters())
    alone = [torch.autograd.grad(layer(x).square().sum(), parameters) for x in (first, second)]
    together = torch.autograd.grad((layer(first).square() + layer(second).square()).sum(), parameters)
    for gradient, *parts in zip(together, *alone, strict=True):
        assert relative_error(gradient, sum(parts)) < 1e-12


def test_a_layer_applied_to_its_own_output():
    layer = double(FDConv2d, 6, 6, 3, padding=1)
    twice = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    assert_close(results(twice, x, "rebuild"), results(twice, x, "plain"), 1e-9)


def test_backward_through_a_graph_that_is_kept():
    layer, x = odd()[0]
    y = layer(x).square().sum()
    first = torch.autograd.grad(y, layer.parameters(), retain_graph=True)
    again = torch.autograd.grad(y, layer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "in blocks"])
def test_interleaved_layers_do_not_disturb_each_other(blocks):
    with small_blocks() if blocks else nullcontext():
        layers = odd()
        expected = [results(layer.eval(), x, "rebuild") for layer, x in layers]
        # All forward passes before the first backward pass, and backward in the same order, not the reverse.
        inputs = [x.detach().requires_grad_() for _, x in layers]
        outputs = [layer(x) for (layer, _), x in zip(layers, inputs, strict=True)]
        for (layer, _), x, y, alone in zip(layers, inputs, outputs, expected, strict=True):
            weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            gradients = torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])
            assert equal({"output": y, **gradients_by_name(layer, gradients)}, alone)


@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "in blocks"])
@pytest.mark.parametrize("options", [{}, {"ksm_global": False}, {"ksm_local": False}], ids=str)
@pytest.mark.parametrize("shape", [(6, 10, 3, 1, 1), (6, 100, 3, 1, 1), (6, 10, 1), (6, 100, 1)], ids=str)
def test_results_are_not_overwritten_by_later_calls(shape, options, blocks):
    with small_blocks() if blocks else nullcontext():
        layer = randomize(FDConv2d(*shape, num_kernels=4, **options))
        for batch in (1, 3):
            kept = results(layer, torch.randn(batch, 6, 5, 4), "rebuild")
            with torch.no_grad():
                kept["output without gradient"] = layer(torch.randn(batch, 6, 5, 4))
            before = clone(kept)
            results(layer, torch.randn(batch, 6, 5, 4), "rebuild")
            with torch.no_grad():
                layer(torch.randn(batch, 6, 5, 4))
            assert equal(kept, before)


def test_threads_do_not_disturb_each_other():
    layers = [(randomize(FDConv2d(64, 64, 3, padding=1)).eval(), torch.randn(2, 64, 6, 6)) for _ in range(2)]
    expected = [results(layer, x, "rebuild") for layer, x in layers]
    start = threading.Barrier(len(layers))

    def work(layer, x):
        start.wait()
        return [results(layer, x) for _ in range(10)]

    with ThreadPoolExecutor(len(layers)) as pool:
        found = pool.map(work, *zip(*layers, strict=True))
    for repeats, alone in zip(found, expected, strict=True):
        for result in repeats:
            assert_close(result, alone, 1e-5)


def in_a_fresh_thread(function):
    """Buffers that live on between calls belong to a thread: in a new one the first call makes them."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("then", [torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("shape", [(12, 10, 3, 1, 1), (12, 10, 1)], ids=str)
def test_inference_and_training_by_turns(first, then, shape):
    ops.bands_image_by_image._low_passes.cache_clear()
    layer = randomize(FDConv2d(*shape)).eval()
    x = torch.randn(2, 12, 7, 6)
    expected = results(layer, x, "plain")
    set_path(layer, "rebuild")

    def run(mode):
        with mode():
            if mode is torch.enable_grad:
                return results(layer, x)
            return {"output": layer(x)}

    def work():
        run(first)
        return run(then)

    found = in_a_fresh_thread(work)
    assert_close(found, {name: tensor for name, tensor in expected.items() if name in found}, 1e-4)
