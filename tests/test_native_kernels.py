"""Kernels assembled in C, and their gradients, beside the plain path in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fdconv_zoo.ops import DisjointWeights, KernelModulators, LocalFactors, assemble_kernels, kernels_native, native
from fdconv_zoo.ops.convolution import Geometry
from fdconv_zoo.ops.operators import KernelTensors

pytestmark = pytest.mark.skipif(native.library() is None, reason=f"no native code: {native.problem()}")

TOLERANCE = 3e-6  # of the norm; that of torch's own transforms in float32 is about the same
PRESENT = ("taps", "channel", "filter", "spatial")


def make_tensors(batch, kernel_shape, groups=1, num_kernels=4, num_taps=3, present=PRESENT, shared=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    out_channels, in_channels, height, width = kernel_shape
    rows, bins = out_channels * height, in_channels * width // 2 + 1
    num_kernels = min(num_kernels, rows * bins)
    dtype = torch.uint8 if num_kernels <= 256 else torch.int16
    tensors = KernelTensors(
        spectrum=normal(rows, bins, 2),
        group_index=torch.randint(num_kernels, (rows, bins), generator=generator).to(dtype),
        attention=normal(1 if shared else batch, num_kernels),
        taps=normal(rows * width, 1, num_taps),
        windows=normal(batch, groups, in_channels, num_taps),
        channel=normal(batch, groups * in_channels),
        filter=normal(batch, out_channels),
        spatial=normal(batch, height, width),
    )
    absent = {name: None for name in PRESENT if name not in present}
    if "taps" in absent:
        absent["windows"] = None
    return tensors._replace(**absent)


def assemble_plain(tensors, kernel_shape, groups):
    """(B, O, I, a, b), by torch's operations."""
    weights = DisjointWeights(tensors.spectrum, tensors.group_index, tensors.attention, kernel_shape)
    local = None if tensors.taps is None else LocalFactors(tensors.taps, tensors.windows)
    modulators = KernelModulators(None, tensors.channel, tensors.filter, tensors.spatial, local)
    return assemble_kernels(weights, modulators, groups)


def error(actual, expected):
    """Of all elements, relative to their norm."""
    return (actual.double() - expected).norm() / expected.norm()


def check(tensors, batch, kernel_shape, groups=1, chunk=None):
    """Kernels, and the gradients of a random function of them, with some images at a time."""
    chunk = chunk or batch
    in_double = KernelTensors(
        *(t.double().requires_grad_() if t is not None and t.is_floating_point() else t for t in tensors)
    )
    expected = assemble_plain(in_double, kernel_shape, groups)
    expected = expected.expand(batch, *expected.shape[1:])
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = {name: t for name, t in in_double._asdict().items() if t is not None and t.requires_grad}
    gradients = torch.autograd.grad(expected, list(wanted.values()), grad.double())

    assembler = kernels_native._Assembler(tensors, kernel_shape, Geometry(kernel_shape[2:], groups=groups))
    for start in range(0, batch, chunk):
        images = slice(start, min(start + chunk, batch))
        kernels = assembler.make(images)
        assert error(kernels, expected[images]) < TOLERANCE
        assembler.add_gradient(images, kernels, grad[images])
    found = assembler.gradients()
    products = (grad.double() * expected).norm()  # what the gradients of factors are sums of
    for (name, tensor), gradient in zip(wanted.items(), gradients, strict=True):
        actual = getattr(found, name)
        assert actual.shape == tensor.shape
        scale = gradient.norm()
        if name in ("attention", "channel", "filter", "spatial"):
            scale = max(scale, products / tensor.abs().min())  # sums may cancel
        assert (actual.double() - gradient).norm() <= TOLERANCE * scale, name
    assert sum(tensor is not None for tensor in found) == len(wanted)


@st.composite
def cases(draw):
    batch, groups = draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 3]))
    kernel_size = draw(st.sampled_from([(1, 1), (3, 3), (2, 4), (5, 1)]))
    shape = (groups * draw(st.integers(1, 20)), draw(st.integers(1, 40)), *kernel_size)
    options = {
        "num_kernels": draw(st.sampled_from([1, 2, 64, 300])),
        "num_taps": draw(st.sampled_from([1, 3, 5, 7, 9])),
        "present": draw(st.sets(st.sampled_from(PRESENT))),
        "shared": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**20)),
    }
    return make_tensors(batch, shape, groups, **options), batch, shape, groups, draw(st.integers(1, batch))


@pytest.mark.parametrize("threads", [1, 2, 3])
@settings(max_examples=30)
@given(case=cases())
def test_any_kernel(threads, case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "num_threads", lambda: threads)
        check(*case)


# Lengths with each factor that has a butterfly, primes, one larger than a vector, and whole vectors; several strips.
@pytest.mark.parametrize(
    "shape",
    [
        (64, 64, 1, 1), (48, 96, 1, 1), (35, 49, 1, 1), (13, 101, 1, 1), (31, 2, 1, 1), (1, 1, 1, 1), (17, 3, 7, 7),
        (64, 64, 3, 3), (256, 300, 1, 1), (128, 1024, 1, 1), (2100, 34, 1, 1),
    ],
    ids=str,
)  # fmt: skip
def test_kernels_of_many_sizes(shape):
    check(make_tensors(2, shape, num_kernels=64, num_taps=5), 2, shape)


def test_a_group_index_of_any_type():
    tensors = make_tensors(1, (6, 8, 3, 3))
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        check(tensors._replace(group_index=tensors.group_index.to(dtype)), 1, (6, 8, 3, 3))


def test_results_do_not_depend_on_the_order_of_threads():
    tensors, shape = make_tensors(3, (40, 24, 3, 3), num_kernels=64), (40, 24, 3, 3)

    def run():
        assembler = kernels_native._Assembler(tensors, shape, Geometry((3, 3)))
        kernels = assembler.make(slice(0, 3))
        assembler.add_gradient(slice(0, 3), kernels, kernels.sin())
        return kernels.clone(), *(t for t in assembler.gradients() if t is not None)

    first = run()
    for _ in range(10):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["spectrum", "attention", "taps", "windows", "channel", "filter", "spatial"])
def test_what_is_not_finite_comes_through(name, value):
    shape = (6, 8, 3, 3)
    tensors = make_tensors(1, shape)
    getattr(tensors, name).flatten()[0] = value
    expected = assemble_plain(tensors, shape, 1)
    kernels = kernels_native._Assembler(tensors, shape, Geometry((3, 3))).make(slice(0, 1))
    if value != value or name not in ("taps", "windows"):  # an infinite logit is a factor of 0 or 2
        assert (~kernels.isfinite()).any()
        assert (~kernels.isfinite() >= ~expected.isfinite()).all()
    finite = expected.isfinite() & kernels.isfinite()
    if finite.any():
        assert torch.allclose(kernels[finite], expected[finite], rtol=1e-4, atol=1e-5)


def test_large_logits_saturate():
    shape = (4, 8, 1, 1)
    tensors = make_tensors(1, shape, num_taps=1)
    for logit in (-1e4, -200.0, 200.0, 1e4):
        tensors = tensors._replace(taps=torch.full((4, 1, 1), logit), windows=torch.ones(1, 1, 8, 1))
        kernels = kernels_native._Assembler(tensors, shape, Geometry((1, 1))).make(slice(0, 1))
        expected = assemble_plain(tensors, shape, 1)
        assert torch.allclose(kernels, expected, rtol=1e-5, atol=1e-12)
        assert kernels.isfinite().all()


def test_a_factor_of_zero_has_no_gradient():
    shape = (4, 8, 1, 1)
    tensors = make_tensors(1, shape)
    tensors.channel[0, 3] = 0
    assembler = kernels_native._Assembler(tensors, shape, Geometry((1, 1)))
    kernels = assembler.make(slice(0, 1))
    assembler.add_gradient(slice(0, 1), kernels, torch.ones(kernels.shape))
    assert all(tensor.isfinite().all() for tensor in assembler.gradients() if tensor is not None)
    assert assembler.gradients().channel[0, 3] == 0


def test_memory_lives_as_long_as_a_call(monkeypatch):
    """Also where :func:`scratch` keeps none, as within compiled programs."""
    monkeypatch.setattr(kernels_native, "scratch", lambda name, shape, dtype, device: torch.full(shape, torch.nan))
    check(make_tensors(3, (64, 64, 3, 3), num_kernels=64), 3, (64, 64, 3, 3), chunk=2)
