"""The Triton path, against the plain path in float64: on a GPU where there is one, else in Triton's interpreter."""

import warnings
from typing import Any

import pytest
import torch
from conftest import randomize
from interpreter import DEVICE, HAS_GPU, outside, run_in_interpreter, runs_kernels
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fdconv_zoo import FDConv2d, FDLinear, FrequencyBandModulation, keep_kernels, set_path
from fdconv_zoo.layers.fdw import frequency_groups
from fdconv_zoo.ops import bands_triton, choose_path, image_convolution, kernels_triton, modulation, triton_support
from fdconv_zoo.ops.bands_plain import modulate_bands_plain
from fdconv_zoo.ops.convolution import Geometry, convolve, geometry_arguments
from fdconv_zoo.ops.kernels_plain import DisjointWeights, KernelModulators, LocalFactors, convolve_plain
from fdconv_zoo.ops.operators import KernelTensors, empty_kernels

# Of a tensor's norm. Gradients of half precision come from products of rounded kernels and features.
LIMITS = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
# Of gradients from kernels that are kept, and so rounded. Found here: 4e-7, 3.3e-4, 7e-3, assembled again 4e-7, 3.2e-4,
# 3.5e-3; the interpreter truncates bfloat16 where a GPU rounds.
KEPT_LIMITS = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
EDGES = (1 / 4, 1 / 8 + 1e-8, 1 / 16 + 1e-8)


@outside
def test_in_the_interpreter():
    run_in_interpreter(__file__)


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Uninitialized memory is NaN, and convolutions are exact."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*deterministic")
        yield
    torch.use_deterministic_algorithms(False)


def relative_errors(actual, expected):
    return [
        ((a.detach().double().cpu() - b).norm() / b.norm().clamp_min(1e-12)).item()
        for a, b in zip(actual, expected, strict=True)
    ]


def random_tensors(batch, kernel_shape, groups, num_kernels, num_taps, missing=(), shared=False):
    """Float64, on the CPU."""
    out_channels, in_channels, height, width = kernel_shape
    rows, cols = out_channels * height, in_channels * width
    features = torch.randn(batch, groups * in_channels + num_taps - 1, dtype=torch.float64)
    tensors = KernelTensors(
        # Not the spectrum of a real plane, as after training.
        spectrum=torch.randn(rows, cols // 2 + 1, 2, dtype=torch.float64),
        group_index=torch.tensor(frequency_groups(rows, cols, num_kernels)),
        attention=torch.rand(1 if shared else batch, num_kernels, dtype=torch.float64) + 0.5,
        taps=torch.randn(rows * width, 1, num_taps, dtype=torch.float64),
        windows=features.unfold(1, num_taps, 1).unflatten(1, (groups, in_channels)),
        channel=torch.rand(batch, groups * in_channels, dtype=torch.float64) + 0.5,
        filter=torch.rand(batch, out_channels, dtype=torch.float64) + 0.5,
        spatial=torch.rand(batch, height, width, dtype=torch.float64) + 0.5,
    )
    return tensors._replace(**dict.fromkeys(missing))


def plain_results(x: Tensor, tensors: KernelTensors, kernel_shape: Any, geometry: Geometry, grad: Tensor):
    """Output and gradients of x and tensors, by autograd."""
    leaves = [
        tensor.detach().clone().requires_grad_() if tensor is not None and tensor.is_floating_point() else tensor
        for tensor in (x, *tensors)
    ]
    own = KernelTensors(*leaves[1:])
    weights = DisjointWeights(own.spectrum, own.group_index, own.attention, kernel_shape)
    local = None if own.taps is None else LocalFactors(own.taps, own.windows)
    modulators = KernelModulators(None, own.channel, own.filter, own.spatial, local)
    y = convolve_plain(leaves[0], weights, modulators, geometry)
    wanted = [tensor for tensor in leaves if tensor is not None and tensor.requires_grad]
    return y.detach(), torch.autograd.grad(y, wanted, grad)


def move(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """To the device, with the strides it has."""
    if tensor is None:
        return None
    moved = tensor.to(DEVICE, dtype if tensor.is_floating_point() else tensor.dtype)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=moved.dtype, device=DEVICE).copy_(moved)


ONE, THREE = ((1, 1), (1, 1), (0, 0), (1, 1), 1), ((3, 3), (1, 1), (1, 1), (1, 1), 1)
LAYOUTS = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}
# Batch, channels out and in (of a group), geometry, number of kernels and of taps, and what else is special.
KERNELS = {
    "1x1": (2, 6, 4, ONE, 4, 3, {}),
    "1x1, channels_last": (3, 6, 4, ONE, 4, 3, {"layout": "channels_last"}),
    "1x1, stride": (2, 5, 4, ((1, 1), (2, 1), (0, 0), (1, 1), 1), 4, 3, {}),
    "1x1, stride, channels_last": (2, 5, 4, ((1, 1), (2, 1), (0, 0), (1, 1), 1), 4, 3, {"layout": "channels_last"}),
    "1x1, several blocks": (2, 70, 66, ONE, 64, 5, {}),
    "1x1, blocks of several steps": (2, 38, 20, ONE, 9, 5, {"steps": 3}),
    "1x1, 18 images, 17 at once": (18, 38, 20, ONE, 9, 1, {"steps": 3, "chunk": 17 * 38 * 20}),
    "3x3, blocks of several steps": (2, 13, 20, THREE, 70, 15, {"steps": 3}),
    "1x1, 300 kernels": (2, 40, 30, ONE, 300, 3, {}),
    "1x1, odd": (2, 6, 5, ONE, 4, 3, {}),
    "1x1, groups": (2, 6, 2, ((1, 1), (1, 1), (0, 0), (1, 1), 2), 4, 3, {}),
    "3x3": (2, 6, 4, THREE, 4, 3, {}),
    "3x3, one image": (1, 6, 4, THREE, 4, 5, {}),
    "3x3, one kernel, channels_last": (3, 6, 4, THREE, 1, 1, {"layout": "channels_last"}),
    "3x3, transposed": (2, 6, 4, THREE, 4, 4, {"layout": "transposed"}),
    "3x3, odd, wide enough": (2, 17, 17, THREE, 9, 3, {}),
    "stride": (2, 6, 4, ((3, 3), (2, 1), (1, 0), (1, 1), 1), 4, 2, {}),
    "dilation": (2, 6, 4, ((3, 3), (1, 1), (2, 1), (2, 1), 1), 4, 3, {"layout": "channels_last"}),
    "2x4 kernel, groups": (2, 6, 3, ((2, 4), (1, 1), (1, 1), (1, 1), 2), 4, 3, {}),
    "3x3, one by one": (3, 6, 4, THREE, 4, 3, {"chunk": 1}),
    "shared attention, one by one": (2, 6, 4, THREE, 4, 3, {"chunk": 1, "shared": True}),
    "depthwise": (2, 5, 1, ((3, 3), (1, 1), (1, 1), (1, 1), 5), 4, 3, {}),
    "no local": (2, 6, 4, THREE, 4, 3, {"missing": ("taps", "windows")}),
    "no channel": (2, 6, 4, THREE, 4, 3, {"missing": ("channel",)}),
    "no filter": (2, 6, 4, THREE, 4, 3, {"missing": ("filter",)}),
    "no spatial": (2, 6, 4, THREE, 4, 3, {"missing": ("spatial",)}),
    "local alone": (2, 6, 4, THREE, 1, 3, {"missing": ("channel", "filter", "spatial"), "shared": True}),
    "spatial alone": (2, 6, 4, THREE, 4, 3, {"missing": ("taps", "windows", "channel", "filter")}),
    "no modulator": (2, 6, 4, THREE, 4, 3, {"missing": ("taps", "windows", "channel", "filter", "spatial")}),
    "shared attention": (3, 6, 4, THREE, 4, 3, {"shared": True}),
    "float16": (2, 6, 4, THREE, 4, 3, {"dtype": torch.float16}),
    "bfloat16": (2, 6, 4, THREE, 4, 3, {"dtype": torch.bfloat16}),
    "bfloat16, 1x1": (3, 6, 4, ONE, 4, 3, {"dtype": torch.bfloat16, "layout": "channels_last"}),
    "bfloat16, implicit": (
        2, 16, 18, ((3, 3), (1, 2), (1, 1), (1, 1), 1), 4, 3, {"dtype": torch.bfloat16, "layout": "channels_last"},
    ),
}  # fmt: skip

LARGE = {"1x1, several blocks", "1x1, 18 images, 17 at once", "1x1, 300 kernels", "3x3, blocks of several steps"}


@runs_kernels
@pytest.mark.parametrize("case", KERNELS)
def test_kernels_match_plain_operations(case, monkeypatch):
    batch, out_channels, in_channels, sizes, num_kernels, num_taps, special = KERNELS[case]
    if "chunk" in special:
        monkeypatch.setattr(kernels_triton, "_elements_at_once", lambda _: special["chunk"])
    if "steps" in special:
        monkeypatch.setattr(kernels_triton, "_WARPS", 2)
        monkeypatch.setattr(kernels_triton, "_MOST_STEPS", special["steps"])
    geometry, dtype = Geometry(*sizes), special.get("dtype", torch.float32)
    kernel_shape = (out_channels, in_channels, *geometry.kernel_size)
    tensors = random_tensors(
        batch, kernel_shape, geometry.groups, num_kernels, num_taps, special.get("missing", ()), "shared" in special
    )
    x = torch.randn(batch, geometry.groups * in_channels, 6, 5).to(dtype).double()
    grad = torch.randn(batch, out_channels, *geometry.output_size((6, 5))).to(dtype).double()
    expected = plain_results(x, tensors, kernel_shape, geometry, grad)
    x = move(LAYOUTS[special.get("layout", "contiguous")](x), dtype)
    tensors = KernelTensors(*map(move, tensors))
    y = kernels_triton._forward(x, tensors, kernel_shape, geometry)
    assert y.dtype == dtype
    assert image_convolution.is_channels_last(y) == image_convolution.is_channels_last(x)
    arguments = move(grad, dtype), True, x, tensors, kernel_shape, geometry
    grad_x, gradients = kernels_triton._backward(*arguments)
    assert [gradient is None for gradient in gradients[2:]] == [tensor is None for tensor in tensors[2:]]
    found = [y, grad_x, *(gradient for gradient in gradients if gradient is not None)]
    assert max(relative_errors(found, [expected[0], *expected[1]])) < LIMITS[dtype]
    if case not in LARGE:
        kept_y, kept = kernels_triton._forward_keeping(x, tensors, kernel_shape, geometry)
        before, others = kept.clone(), kernels_triton._backward(*arguments, kept)
        assert kept.shape == (batch, *kernel_shape)
        assert kept.dtype == dtype
        # They are what is convolved: no gradients but those of modulators differ.
        same = [kept, kept_y, others[0], *others[1][:3]], [before, y, grad_x, *gradients[:3]]
        assert all(one is other is None or torch.equal(one, other) for one, other in zip(*same, strict=True))
        found = [others[0], *(gradient for gradient in others[1] if gradient is not None)]
        assert max(relative_errors(found, expected[1])) < KEPT_LIMITS[dtype]
    if case == "3x3":
        grad_x, again = kernels_triton._backward(move(grad, dtype), False, x, tensors, kernel_shape, geometry)
        assert grad_x is None
        assert all(one is other is None or torch.equal(one, other) for one, other in zip(gradients, again, strict=True))


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_kernels_that_are_kept_and_vanish(dtype):
    """Where kernels round to 0, the gradients of factors are finite, and of factors' logarithms as good as exact."""
    kernel_shape, geometry = (6, 4, 3, 3), Geometry(*THREE)
    tensors = random_tensors(2, kernel_shape, 1, 4, 3)
    tensors.channel[:, :2] = torch.tensor([0.0, 1e-9])
    tensors.filter[0, 0] = 0
    x, grad = torch.randn(2, 4, 6, 5, dtype=torch.float64), torch.randn(2, 6, 6, 5, dtype=torch.float64)
    x, grad = x.to(dtype).double(), grad.to(dtype).double()
    _, expected = plain_results(x, tensors, kernel_shape, geometry, grad)
    x, grad, own = move(x, dtype), move(grad, dtype), KernelTensors(*map(move, tensors))
    _, kept = kernels_triton._forward_keeping(x, own, kernel_shape, geometry)
    assert (kept[:, :, 1] == 0).all() == (dtype == torch.float16)
    _, gradients = kernels_triton._backward(grad, False, x, own, kernel_shape, geometry, kept)
    gradients = [gradient for gradient in gradients if gradient is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[4][:, 0] == 0).all()
    factors = [1, 1, 1, 1, tensors.channel, tensors.filter, tensors.spatial]
    found = [gradient.cpu() * factor for gradient, factor in zip(gradients, factors, strict=True)]
    expected = [gradient * factor for gradient, factor in zip(expected[1:], factors, strict=True)]
    assert max(relative_errors(found, expected)) < KEPT_LIMITS[dtype]


BANDS = {
    "odd": ((1, 3, 5, 7), EDGES, {}),
    "channels_last": ((2, 5, 4, 12), EDGES, {"layout": "channels_last"}),
    "transposed": ((1, 3, 7, 6), EDGES, {"layout": "transposed"}),
    "several blocks": ((1, 17, 2, 70), EDGES, {"layout": "channels_last"}),
    "several blocks of rows": ((1, 5, 18, 17), (0.4,), {}),
    "two bands": ((2, 3, 5, 8), (0.5, 0.3), {"chunk": 1}),
    "one band, half precision": ((1, 3, 6, 5), (0.4,), {"dtype": torch.float16}),
    "one pixel": ((2, 3, 1, 1), EDGES, {"chunk": 1}),
    "bfloat16": ((1, 3, 5, 7), EDGES, {"dtype": torch.bfloat16}),
    "bfloat16, several blocks": ((1, 17, 34, 21), EDGES, {"dtype": torch.bfloat16, "layout": "channels_last"}),
}


@runs_kernels
@pytest.mark.parametrize("case", BANDS)
def test_bands_match_plain_operations(case, monkeypatch):
    shape, edges, special = BANDS[case]
    monkeypatch.setattr(bands_triton, "_BLOCK", 16)
    monkeypatch.setattr(bands_triton, "_ELEMENTS_AT_ONCE", special.get("chunk", 2**20))
    dtype, layout = special.get("dtype", torch.float32), LAYOUTS[special.get("layout", "contiguous")]
    x, grad = (torch.randn(shape).relu().to(dtype).double() for _ in range(2))  # most of it in the lowest band
    attention = torch.rand(shape[0], len(edges), *shape[2:], dtype=torch.float64) * 2
    leaves = x.requires_grad_(), attention.requires_grad_()
    y = modulate_bands_plain(*leaves, edges)
    expected = [y.detach(), *torch.autograd.grad(y, leaves, grad)]
    x, attention, grad = move(layout(x.detach()), dtype), move(attention.detach()), move(grad, dtype)
    found = [bands_triton._forward(x, attention, edges), *bands_triton._backward(grad, x, attention, edges)]
    assert [tensor.dtype for tensor in found] == [dtype, dtype, torch.float32]
    if shape[2:] == (1, 1):  # all of it is in the lowest band, and the gradient of attention 0
        assert found.pop().abs().max() < 1e-5
        expected.pop()
    errors = relative_errors(found, expected)
    assert max(errors) < LIMITS[dtype]
    if dtype != torch.float32:  # about as far from exact as rounding the exact maps; the interpreter truncates bfloat16
        rounding = relative_errors([tensor.to(dtype) for tensor in expected[:2]], expected[:2])
        limit = 2.2 if HAS_GPU or dtype == torch.float16 else 6
        assert all(error < limit * least for error, least in zip(errors[:2], rounding, strict=True))
    if case == "odd":
        for one, other in zip(found[1:], bands_triton._backward(grad, x, attention, edges), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(bands_triton._forward(x, torch.ones_like(attention), edges), x)


CONVOLUTIONS = {
    "3x3": (2, 6, 5, ((3, 3), (1, 1), (1, 1), (1, 1), 1)),
    "stride, dilation, groups": (2, 6, 4, ((3, 3), (2, 1), (1, 0), (1, 2), 2)),
    "2x4": (3, 4, 5, ((2, 4), (3, 2), (0, 0), (1, 1), 1)),
    "several blocks": (2, 70, 67, ((3, 3), (1, 1), (1, 1), (1, 1), 1)),
}


@runs_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("form", ["implicit", "grouped", "loop"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_images_are_convolved_alike_in_all_forms(case, form, layout):
    batch, out_channels, in_channels, sizes = CONVOLUTIONS[case]
    geometry = Geometry(*sizes)
    x = torch.randn(batch, geometry.groups * in_channels, 7, 6, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(batch, out_channels, in_channels, *geometry.kernel_size, dtype=torch.float64)
    y = convolve(x, kernels.requires_grad_(), geometry)
    grad = torch.randn_like(y)
    expected = [y.detach(), *torch.autograd.grad(y, (x, kernels), grad)]
    x, grad = (move(LAYOUTS[layout](tensor.detach())) for tensor in (x, grad))
    kernels = empty_kernels(x, batch, kernels.shape[1:]).copy_(kernels.detach())
    y = image_convolution.convolve_images(x, kernels, geometry, form)
    gradients = image_convolution.convolve_images_backward(grad, x, kernels, geometry, True, form)
    assert image_convolution.is_channels_last(y) == image_convolution.is_channels_last(x)
    assert max(relative_errors([y, *gradients], expected)) < LIMITS[torch.float32]


def results(layer, x, path, needs_x=True):
    set_path(layer, path)
    x = x.detach().requires_grad_(needs_x)
    y = layer(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    wanted = [x, *layer.parameters()] if needs_x else list(layer.parameters())
    return [y.detach(), *torch.autograd.grad(y, wanted, weights)]


LAYERS = {
    "3x3": (FDConv2d, (4, 6, 3, 1, 1), {}, (2, 4, 5, 4)),
    "1x1": (FDConv2d, (12, 8, 1), {}, (2, 12, 5, 4)),
    "linear": (FDLinear, (24, 40), {}, (3, 6, 24)),
    "no global branch": (FDConv2d, (6, 4, 3, 1, 1), {"ksm_global": False, "fbm": False}, (1, 6, 5, 4)),
    "depthwise": (FDConv2d, (5, 5, 3, 1, 1, 1, 5), {"fbm": False}, (2, 5, 4, 3)),
    "bands": (FrequencyBandModulation, (5,), {}, (1, 5, 4, 9)),
}


@runs_kernels
@pytest.mark.parametrize("case", LAYERS)
def test_layers_compute_the_same_as_on_the_plain_path(case):
    kind, arguments, options, shape = LAYERS[case]
    if kind is not FrequencyBandModulation:
        options = {"num_kernels": 4, **options}
    layer = randomize(kind(*arguments, **options)).eval()
    x = torch.randn(shape)
    expected = results(layer.double(), x.double(), "plain")
    layer, x = layer.float().to(DEVICE), x.to(DEVICE)
    found = results(layer, x, "triton")
    assert max(relative_errors(found, expected)) < 3 * LIMITS[torch.float32]
    without_x = results(layer, x, "triton", needs_x=False) if case == "1x1" else [found[0], *found[2:]]
    assert all(torch.equal(one, other) for one, other in zip([found[0], *found[2:]], without_x, strict=True))


class Checkpointed(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


@runs_kernels
def test_layers_keep_kernels():
    layer, x = randomize(FDConv2d(4, 6, 1, num_kernels=4)).eval().to(DEVICE), torch.randn(2, 4, 5, 3, device=DEVICE)

    def saves_kernels():
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: shapes.append(tensor.shape), lambda _: None):
            layer(x)
        return (2, *layer.fdw.kernel_shape) in shapes

    expected = results(layer, x, "triton")
    assert not saves_kernels()
    keep_kernels(layer)
    assert "keeps_kernels=True" in repr(layer)
    assert saves_kernels()
    found = results(layer, x, "triton")
    assert max(relative_errors(found, [tensor.double().cpu() for tensor in expected])) < LIMITS[torch.float32]
    for model in (Checkpointed(layer), torch.compile(layer, fullgraph=True, backend="aot_eager")):
        again = results(model, x, "triton")
        # Where modules are compiled they add up in another order; two gradients are sums of terms that nearly cancel.
        assert max(relative_errors(again, [tensor.double().cpu() for tensor in found])) < 10 * LIMITS[torch.float32]
    with torch.no_grad():
        assert torch.equal(layer(x), found[0])
    set_path(layer, "rebuild")
    assert not saves_kernels()
    keep_kernels(layer, False)
    assert "keeps_kernels" not in repr(layer)


@runs_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_operators_that_keep_kernels_keep_torchs_rules(layout):
    """Schema, fake tensors, autograd and its tracing; the kernels have no gradient."""
    kernel_shape, geometry = (6, 4, 3, 3), Geometry(*THREE)
    tensors = map(move, random_tensors(2, kernel_shape, 1, 4, 3))
    x, *tensors = (
        tensor.requires_grad_(tensor.is_floating_point())
        for tensor in (LAYOUTS[layout](torch.randn(2, 4, 6, 5, device=DEVICE)), *tensors)
    )
    arguments = (x, *tensors, kernel_shape, *geometry_arguments(geometry))
    operators = torch.ops.fdconv_zoo
    y, kernels = operators.convolve_triton_keeping(*arguments)
    assert y.requires_grad
    assert not kernels.requires_grad
    if layout == "contiguous":
        torch.library.opcheck(operators.convolve_triton_keeping.default, arguments, test_utils="test_faketensor")
        return
    torch.library.opcheck(operators.convolve_triton_keeping.default, arguments)
    arguments = [tensor.detach() if torch.is_tensor(tensor) else tensor for tensor in arguments]
    torch.library.opcheck(
        operators.convolve_triton_keeping_backward.default, (y.detach(), True, kernels.detach(), *arguments)
    )


@runs_kernels
@pytest.mark.parametrize("keep", [False, True])
def test_layers_are_differentiated_twice(keep):
    layer = randomize(FDConv2d(3, 4, 3, 1, 1, num_kernels=2)).eval()
    keep_kernels(layer, keep)
    x = torch.randn(1, 3, 3, 4)

    def penalty(layer, x, path):
        set_path(layer, path)
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), list(layer.parameters()), allow_unused=True)

    expected = penalty(layer.double(), x.double(), "plain")
    found = penalty(layer.float().to(DEVICE), x.to(DEVICE), "triton")
    pairs = [pair for pair in zip(found, expected, strict=True) if pair[1] is not None]
    assert max(relative_errors(*zip(*pairs, strict=True))) < 1e-4


@runs_kernels
def test_layers_take_the_path_where_they_can():
    layer, x = FDConv2d(4, 4, 3, num_kernels=2).to(DEVICE), torch.randn(1, 4, 3, 4, device=DEVICE)
    set_path(layer, "triton")
    assert "path='triton'" in repr(layer)
    assert layer(x).shape == (1, 4, 1, 2)
    assert choose_path(DEVICE, torch.float64, "triton") != "triton"
    assert (choose_path(DEVICE, torch.float32) == "triton") == HAS_GPU


@outside
def test_another_path_is_taken_where_triton_cannot_run():
    triton_support.warn_once.cache_clear()
    with pytest.warns(UserWarning, match="do not use Triton"):
        assert choose_path(torch.device("cuda"), torch.float32, "triton") == "rebuild"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_path(torch.device("cuda"), torch.float32) == "rebuild"


def test_a_kernel_that_does_not_compile_is_tried_once(monkeypatch):
    if triton_support.triton is None:
        pytest.skip("triton is not installed")
    monkeypatch.setattr(triton_support, "_failures", [])
    monkeypatch.setattr(triton_support, "is_interpreted", lambda: False)
    triton_support.warn_once.cache_clear()
    calls = []

    def broken(x):
        calls.append(x)
        raise triton_support.TritonError("no such instruction")

    run = triton_support.with_fallback(broken, lambda x: -x)
    with pytest.warns(UserWarning, match="no such instruction"):
        assert run(1) == -1
    assert run(2) == -2
    assert calls == [1]
    assert "no such instruction" in triton_support.problem("cuda")


def test_other_errors_are_not_hidden(monkeypatch):
    monkeypatch.setattr(triton_support, "_failures", [])

    def broken(x):
        raise ValueError(x)

    with pytest.raises(ValueError, match="bad"):
        triton_support.with_fallback(broken, lambda x: x)("bad")


@runs_kernels
def test_small_operations_pool_maps():
    for shape, dtype in (
        ((2, 70, 31, 43), torch.float32),
        ((30, 600, 9, 8), torch.float32),
        ((1, 3, 5, 4), torch.bfloat16),
        ((3, 40, 50, 1), torch.float16),
    ):
        x = torch.randn(shape).to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)
        for seen in (x, x[:, :, ::2, :1], x.contiguous()):
            found = modulation.pool_triton(seen)
            expected = modulation.pool_plain(seen.cpu(), torch.float64)
            assert relative_errors([found], [expected])[0] < LIMITS[torch.float32], (shape, seen.stride())


@runs_kernels
def test_small_operations_match_plain_ones():
    shapes, temperatures, counts = [(2, 5), (2, 700), (2, 1)], [1.0, 0.7, 2.0], [1, 4, 1]
    scale, bias = torch.rand(1) + 0.5, torch.randn(1)
    operations = {
        "modulators": (
            [torch.randn(shape) for shape in shapes],
            lambda *logits: modulation.modulate_triton(logits, temperatures, counts),
            lambda *logits: modulation.modulate_plain(logits, temperatures, counts, torch.float64),
        ),
        "StarReLU": (
            [torch.randn(3, 500), scale, bias],
            lambda *tensors: [modulation.star_relu_triton(*tensors)],
            lambda *tensors: [modulation.star_relu_plain(*tensors)],
        ),
        "neighbors": (
            [torch.randn(3, 7)],
            lambda x: [modulation.neighbors_triton(x, 5)],
            lambda x: [modulation.neighbors_plain(x, 5)],
        ),
        "pool": (
            [torch.randn(2, 3, 5, 4)],
            lambda x: [modulation.pool_triton(x)],
            lambda x: [modulation.pool_plain(x, torch.float64)],
        ),
    }
    for name, (inputs, run, oracle) in operations.items():
        expected_leaves = [tensor.double().requires_grad_() for tensor in inputs]
        expected = oracle(*expected_leaves)
        grads = [torch.randn_like(tensor) for tensor in expected]
        leaves = [tensor.to(DEVICE).requires_grad_() for tensor in inputs]
        found = run(*leaves)
        gradients = torch.autograd.grad(found, leaves, [move(grad) for grad in grads], retain_graph=True)
        wanted = torch.autograd.grad(expected, expected_leaves, grads, create_graph=True)
        errors = relative_errors([*found, *gradients], [tensor.detach() for tensor in (*expected, *wanted)])
        assert max(errors) < LIMITS[torch.float32], name
        if name in ("neighbors", "pool"):  # they are linear
            continue
        gradients = torch.autograd.grad(found, leaves, [move(grad) for grad in grads], create_graph=True)
        twice = torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), leaves, allow_unused=True)
        wanted_twice = torch.autograd.grad(
            sum(gradient.square().sum() for gradient in wanted), expected_leaves, allow_unused=True
        )
        for one, other in zip(twice, wanted_twice, strict=True):
            assert one is other is None or relative_errors([one], [other])[0] < 1e-5, name
