"""Frequency Band Modulation in C, and its gradients, beside the plain path in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fdconv_zoo.layers.fbm import BAND_EDGES
from fdconv_zoo.ops import bands_native, native
from fdconv_zoo.ops.bands_plain import modulate_bands_plain

pytestmark = pytest.mark.skipif(native.library() is None, reason=f"no native code: {native.problem()}")

EDGES = [BAND_EDGES, (0.5,), (0.4, 0.3, 0.2, 0.1, 0.05), (0.26, 1e-3)]


def draw(shape, num_bands, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch, _, *size = shape
    return torch.randn(shape, generator=generator), torch.randn(batch, num_bands, *size, generator=generator)


def check(shape, edges, memory_format=torch.contiguous_format, dtype=torch.float32, tolerance=1e-6):
    x, attention = draw(shape, len(edges))
    x = x.to(dtype).to(memory_format=memory_format)
    in_double = [tensor.double().requires_grad_() for tensor in (x, attention)]
    expected = modulate_bands_plain(*in_double, edges)
    y = bands_native._forward(x, attention, edges)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, torch.empty_like(x).stride())
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    pairs = [
        (y, expected),
        *zip(
            bands_native._backward(grad, x, attention, edges),
            torch.autograd.grad(expected, in_double, grad.double()),
            strict=True,
        ),
    ]
    rounding = (grad * x).double().norm()  # what the gradient of a weight is a difference of
    for actual, wanted in pairs:
        assert (actual.double() - wanted).norm() <= tolerance * (wanted.norm() + rounding)


@pytest.mark.parametrize("threads", [1, 2, 3])
@settings(max_examples=30)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    channels=st.integers(1, 40),
    batch=st.integers(1, 3),
    edges=st.sampled_from(EDGES),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_any_map(threads, size, channels, batch, edges, memory_format):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "num_threads", lambda: threads)
        check((batch, channels, *size), edges, memory_format)


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (28, 28), (56, 56), (61, 67), (1, 70), (70, 1), (128, 2)], ids=str)
def test_maps_of_many_sizes(size):
    check((2, 20, *size), BAND_EDGES)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_maps_in_half_precision(dtype, tolerance):
    check((2, 20, 9, 12), BAND_EDGES, dtype=dtype, tolerance=tolerance)


def test_maps_that_are_not_contiguous():
    x, attention = draw((2, 6, 9, 7), 3)
    whole = torch.zeros(2, 12, 9, 14)
    whole[:, ::2, :, ::2] = x
    expected = bands_native._forward(x, attention, BAND_EDGES)
    assert torch.equal(bands_native._forward(whole[:, ::2, :, ::2], attention, BAND_EDGES), expected)
    assert torch.equal(bands_native._forward(x, attention.transpose(2, 3).contiguous().mT, BAND_EDGES), expected)


def test_results_do_not_depend_on_the_order_of_threads():
    x, attention = draw((2, 40, 16, 16), 3)
    first = bands_native._backward(x.sin(), x, attention, BAND_EDGES)
    for _ in range(10):
        again = bands_native._backward(x.sin(), x, attention, BAND_EDGES)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_one_weight_for_all_bands_is_a_factor():
    x, _ = draw((1, 5, 12, 9), 3)
    assert torch.equal(bands_native._forward(x, torch.ones(1, 3, 12, 9), BAND_EDGES), x)


def test_zeros_stay_zeros():
    x, attention = draw((2, 20, 12, 9), 3)
    zeros = torch.zeros_like(x)
    assert torch.equal(bands_native._forward(zeros, attention, BAND_EDGES), zeros)
    for gradient in bands_native._backward(zeros, x, attention, BAND_EDGES):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_buffers_may_hold_anything(threads, memory_format, monkeypatch):
    """Memory that is kept between calls holds what other sizes left there: here, what would show in any result."""
    monkeypatch.setattr(native, "num_threads", lambda: threads)
    monkeypatch.setattr(
        bands_native, "scratch", lambda _name, shape, dtype, _: torch.full(shape, torch.nan, dtype=dtype)
    )
    for channels, *size in ((3, 9, 7), (20, 14, 14), (37, 5, 33)):
        check((2, channels, *size), BAND_EDGES, memory_format)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", ["x", "attention", "grad"])
@pytest.mark.parametrize("size", [(12, 10), (9, 7)], ids=str)
def test_what_is_not_finite_comes_through(which, value, size):
    """To the pixels and channels to which it comes on the plain path, and to no others."""
    shape = (2, 20, *size)
    x, attention = draw(shape, 3)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    {"x": x, "attention": attention, "grad": grad}[which][1, 2, 4, 5] = value
    inputs = [x.requires_grad_(), attention.requires_grad_()]
    y = modulate_bands_plain(*inputs, BAND_EDGES)
    expected = (y, *torch.autograd.grad(y, inputs, grad))
    x, attention = (tensor.detach() for tensor in inputs)
    actual = bands_native._forward(x, attention, BAND_EDGES), *bands_native._backward(grad, x, attention, BAND_EDGES)
    for tensor, wanted in zip(actual, expected, strict=True):
        assert torch.equal(tensor.isfinite(), wanted.isfinite())
