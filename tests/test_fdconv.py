"""FDConv2d and FDLinear as drop-ins for nn.Conv2d and nn.Linear."""

import copy
import math
import pickle
from typing import get_args

import literal
import pytest
import torch
from conftest import needs_cpp_compiler, randomize, relative_error
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from fdconv_zoo import FDConv2d, FDLinear, ops, set_path

PATHS = get_args(ops.Path)
on_every_path = pytest.mark.parametrize("path", PATHS)


def max_kernels(o, i, k):
    return o * k * (i * k // 2 + 1)


@st.composite
def geometries(draw):
    """Arguments of a convolution and a feature map they fit."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    in_per_group, out_per_group = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    kernel_size = draw(st.sampled_from([1, 3, 5]))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding = draw(st.one_of(st.integers(0, 3), st.just("same") if stride == 1 else st.just("valid")))
    reach = dilation * (kernel_size - 1) + 1 if padding != "same" else 1
    height, width = draw(st.integers(reach, reach + 8)), draw(st.integers(reach, reach + 8))
    arguments = (in_per_group * groups, out_per_group * groups, kernel_size, stride, padding, dilation, groups)
    n = draw(st.integers(1, min(max_kernels(out_per_group * groups, in_per_group, kernel_size), 6)))
    return arguments, draw(st.booleans()), n, (height, width)


@given(
    geometry=geometries(), ksm_global=st.booleans(), ksm_local=st.booleans(), fbm=st.sampled_from([None, True, False]),
    path=st.sampled_from(PATHS),
)  # fmt: skip
def test_layer_matches_the_literal_paper(geometry, ksm_global, ksm_local, fbm, path):
    arguments, bias, n, size = geometry
    layer = FDConv2d(
        *arguments, bias, dtype=torch.float64, num_kernels=n, ksm_global=ksm_global, ksm_local=ksm_local, fbm=fbm,
        temperature=1.5, kernel_temperature=0.8,
    )  # fmt: skip
    randomize(layer).eval()
    set_path(layer, path)
    x = torch.randn(2, arguments[0], *size, dtype=torch.float64)
    assert relative_error(layer(x), literal.fdconv2d(layer, x)) < 1e-9


@given(
    geometry=geometries(), mode=st.sampled_from(["zeros", "zeros", "reflect", "circular"]), path=st.sampled_from(PATHS)
)
def test_from_conv_computes_the_same_function(geometry, mode, path):
    arguments, bias, n, size = geometry
    in_channels, _, kernel_size, _, padding, dilation, _ = arguments
    reach = padding if isinstance(padding, int) else dilation * (kernel_size - 1) // 2
    assume(mode == "zeros" or reach < min(size))
    conv = nn.Conv2d(*arguments, bias, padding_mode=mode)
    layer = FDConv2d.from_conv(conv, num_kernels=n)
    set_path(layer, path)
    x = torch.randn(3, in_channels, *size)
    for mode in (True, False):
        y = layer.train(mode)(x)
        assert y.shape == conv(x).shape
        assert relative_error(y, conv(x)) < 1e-5


@on_every_path
@pytest.mark.parametrize("shape", [(2, 10, 48), (2, 4, 6, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_computes_the_same_function(shape, bias, path):
    linear = nn.Linear(48, 96, bias)
    layer = FDLinear.from_linear(linear)
    set_path(layer, path)
    x = torch.randn(shape)
    assert layer(x).shape == linear(x).shape
    assert relative_error(layer(x), linear(x)) < 1e-5


@on_every_path
def test_linear_is_a_pointwise_convolution(path):
    linear = randomize(FDLinear(24, 40, num_kernels=8)).eval()
    conv = FDConv2d(24, 40, 1, num_kernels=8).eval()
    conv.load_state_dict(linear.state_dict())
    set_path(nn.ModuleList([linear, conv]), path)
    x = torch.randn(2, 5, 7, 24)
    assert relative_error(linear(x), conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)) < 1e-5
    assert relative_error(linear(x.flatten(1, 2)), linear(x).flatten(1, 2)) < 1e-6


@on_every_path
@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_depthwise(k, path):
    conv = nn.Conv2d(33, 33, k, padding=k // 2, groups=33)
    layer = FDConv2d.from_conv(conv, num_kernels=16)
    set_path(layer, path)
    x = torch.randn(2, 33, 12, 10)
    assert relative_error(layer(x), conv(x)) < 1e-5


@on_every_path
@pytest.mark.parametrize("n", [1, 2, 63, 64, 96 * 49])
def test_any_number_of_kernels_for_any_shape(n, path):
    """96 channels with n = 64 do not divide evenly: the first stage of ConvNeXt-T and Swin-T."""
    linear = nn.Linear(96, 96)
    layer = FDLinear.from_linear(linear, num_kernels=n)
    set_path(layer, path)
    x = torch.randn(2, 3, 96)
    assert relative_error(layer(x), linear(x)) < 1e-5


def train_two_steps(layer, x, lr=0.1):
    """The gradients of the second of two steps towards a random target."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    target = torch.randn_like(layer(x))
    for _ in range(2):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    return {name: parameter.grad for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "plain",
    [nn.Conv2d(24, 32, 3, padding=1), nn.Conv2d(24, 32, 1), nn.Conv2d(24, 24, 7, groups=24), nn.Linear(24, 32)],
    ids=["3x3", "1x1", "depthwise", "linear"],
)
def test_converted_layers_train_all_their_parameters_at_once(plain, batch):
    if isinstance(plain, nn.Linear):
        layer, x = FDLinear.from_linear(plain, num_kernels=8), torch.randn(batch, 6, 24)
    else:
        layer, x = FDConv2d.from_conv(plain, num_kernels=8), torch.randn(batch, 24, 9, 9)
    still = [name for name, grad in train_two_steps(layer, x).items() if grad is None or grad.abs().max() == 0]
    assert not still


@on_every_path
@pytest.mark.parametrize("batch", [1, 2])
def test_feature_maps_of_one_pixel(batch, path):
    layer = randomize(FDConv2d(20, 24, 3, padding=1))
    set_path(layer, path)
    x = torch.randn(batch, 20, 1, 1)
    assert relative_error(layer.double().eval()(x.double()), literal.fdconv2d(layer, x)) < 1e-9
    layer.float().train()(x).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_autocast_is_finite_and_close(dtype, kernel_size):
    layer = randomize(FDConv2d(48, 64, kernel_size, padding=kernel_size // 2), std=0.1).eval()
    x = torch.randn(2, 48, 28, 20)
    expected = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    y.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    # A plain layer rounds its two factors too: see the drift table in the README.
    assert relative_error(y, expected) < (2e-2 if dtype == torch.bfloat16 else 2e-3)


def test_autocast_survives_large_activations_in_half_precision():
    layer = FDConv2d(32, 32, 3, padding=1)
    x = 3e4 * torch.rand(2, 32, 64, 64)
    x[:, 0] = 0
    with torch.autocast("cpu", dtype=torch.float16):
        kernels = layer.assemble(x.half().mean((2, 3), dtype=torch.float32))
        modulated = layer.fbm(x.half())
    assert kernels.isfinite().all()
    assert modulated.isfinite().all()


@pytest.mark.parametrize("layer", [FDConv2d(32, 48, 3, padding=1), FDConv2d(32, 48, 1), FDLinear(32, 48)])
def test_half_parameters(layer):
    layer = copy.deepcopy(randomize(layer, std=0.1)).eval()
    x = torch.randn(2, 32, 10, 32) if isinstance(layer, FDLinear) else torch.randn(2, 32, 10, 8)
    expected = layer(x)
    layer.to(torch.bfloat16)
    for mode in (True, False):
        y = layer.train(mode)(x.bfloat16())
        assert y.dtype == torch.bfloat16
    assert relative_error(y, expected) < 3e-2
    y.float().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_channels_last(kernel_size):
    layer = randomize(FDConv2d(32, 48, kernel_size, stride=2, padding=kernel_size // 2)).eval()
    x = torch.randn(2, 32, 10, 8)
    expected = layer(x)
    y = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert relative_error(y, expected) < 1e-5


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_compiles_to_one_graph(kernel_size):
    layer = randomize(FDConv2d(20, 24, kernel_size, padding=kernel_size // 2, num_kernels=16))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 20, 9, 7)
    assert relative_error(compiled(x), layer(x)) < 1e-5
    compiled(x).sum().backward()


@needs_cpp_compiler
def test_compiles_with_the_default_backend():
    layer = randomize(FDConv2d(20, 24, 3, padding=1, num_kernels=16)).eval()
    x = torch.randn(2, 20, 9, 7)
    assert relative_error(torch.compile(layer, fullgraph=True)(x), layer(x)) < 1e-5


@pytest.mark.parametrize("layer", [FDConv2d(20, 24, 3, padding=1, num_kernels=16), FDLinear(20, 24, num_kernels=16)])
@pytest.mark.parametrize("free_batch", [False, True])
def test_exports(layer, free_batch):
    if free_batch and torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 cannot trace irfft over an axis of unknown size")
    randomize(layer).eval()
    shape = (20, 9, 7) if isinstance(layer, FDConv2d) else (9, 20)
    dynamic_shapes = ({0: torch.export.Dim("batch", min=2, max=64)},) if free_batch else None
    program = torch.export.export(layer, (torch.randn(3, *shape),), dynamic_shapes=dynamic_shapes)
    x = torch.randn(5 if free_batch else 3, *shape)
    assert relative_error(program.module()(x), layer(x)) < 1e-5


def test_copies_and_pickles():
    layer = randomize(FDConv2d(20, 24, 3, padding=1)).eval()
    x = torch.randn(2, 20, 9, 7)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


def test_state_dict_holds_parameters_and_batch_norm_only():
    layer = FDConv2d(20, 24, 3, padding=1)
    parameters = {name for name, _ in layer.named_parameters()}
    norm = {f"ksm.global_branch.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(layer.state_dict()) == parameters | norm


@pytest.mark.parametrize("batch", [1, 3])
def test_sync_batch_norm_conversion(batch):
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(randomize(FDConv2d(20, 24, 3, padding=1)))
    assert isinstance(layer.ksm.global_branch.norm, nn.SyncBatchNorm)
    layer.train()(torch.randn(batch, 20, 9, 7)).sum().backward()


def test_loads_a_plain_state_dict_and_forgets_its_modulation():
    conv = nn.Conv2d(20, 24, 3, padding=1)
    layer = randomize(FDConv2d(20, 24, 3, padding=1))
    layer.load_state_dict(conv.state_dict())
    x = torch.randn(2, 20, 9, 7)
    assert relative_error(layer(x), conv(x)) < 1e-5

    linear = nn.Linear(20, 24)
    layer = FDLinear(20, 24)
    layer.load_state_dict(linear.state_dict())
    x = torch.randn(2, 9, 20)
    assert relative_error(layer(x), linear(x)) < 1e-5


def test_loading_reports_what_does_not_fit():
    layer = FDConv2d(20, 24, 3)
    with pytest.raises(RuntimeError, match=r"size mismatch for weight.*\(24, 20, 5, 5\).*\(24, 20, 3, 3\)"):
        layer.load_state_dict(nn.Conv2d(20, 24, 5).state_dict())
    with pytest.raises(RuntimeError, match=r"size mismatch for weight"):
        layer.load_state_dict({"weight": torch.zeros(24, 9, 20, 1), "bias": torch.zeros(24)})
    with pytest.raises(RuntimeError, match=r"Missing key.*fdw\.spectrum"):
        layer.load_state_dict({})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*nonsense"):
        layer.load_state_dict(layer.state_dict() | {"nonsense": torch.zeros(1)})


def test_a_fresh_layer_is_initialized_like_its_plain_twin():
    plain, layer = nn.Conv2d(64, 64, 3), FDConv2d(64, 64, 3)
    kernel = layer.fdw()[0].detach()
    assert math.isclose(kernel.std(), plain.weight.detach().std(), rel_tol=0.02)
    assert math.isclose(kernel.abs().max(), plain.weight.detach().abs().max(), rel_tol=0.02)
    assert layer.bias.abs().max() <= (64 * 9) ** -0.5
    assert layer.bias.std() > 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((32, 32, 3), {"num_kernels": 0}, "num_kernels is 0.*between 1 and"),
        ((2, 2, 1), {}, "num_kernels is 64.*between 1 and 4"),
        ((32, 32, 3), {"groups": 5}, r"groups is 5.*in_channels \(32\)"),
        ((32, 33, 3), {"groups": 2}, r"out_channels \(33\)"),
        ((32, 32, 3), {"groups": 0}, "groups is 0"),
        ((32, 32, 3), {"temperature": 0.0}, "temperature"),
        ((32, 32, 3), {"padding": "full"}, "padding"),
        ((32, 32, 3), {"band_mask": "fft"}, "band_mask"),
        ((32, 32, 3), {"band_edges": (0.1, 0.2)}, "band_edges"),
        ((32, 32, 0), {}, "kernel_size is .0, 0."),
        ((32, 32, (3, 3, 3)), {}, "kernel_size is"),
        ((32, 32, 3), {"stride": 0}, "stride is"),
        ((0, 32, 3), {}, "0 input and 32 output channels"),
    ],
)
def test_refuses_bad_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        FDConv2d(*arguments, **options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 16, 8, 8), "expected 32 channels.*got 16"),
        ((32, 8, 8), r"expected a batch \(B, C, H, W\).*x\[None\]"),
        ((0, 32, 8, 8), "is empty"),
        ((2, 32, 0, 8), "is empty"),
    ],
)
def test_refuses_bad_input(shape, message):
    with pytest.raises(ValueError, match=message):
        FDConv2d(32, 32, 3)(torch.zeros(shape))


def test_refuses_inputs_that_are_not_floating():
    with pytest.raises(TypeError, match=r"torch\.uint8.*\.float\(\)"):
        FDConv2d(32, 32, 3)(torch.zeros(2, 32, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        FDLinear(32, 32)(torch.zeros(2, 8, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(B, N, C\) or \(B, H, W, C\)"):
        FDLinear(32, 32)(torch.zeros(8, 32))


def test_a_layer_built_on_the_meta_device_takes_a_checkpoints_tensors_as_they_are():
    layer = randomize(FDConv2d(24, 20, 3, num_kernels=300)).eval()
    with torch.device("meta"):
        empty = FDConv2d(24, 20, 3, num_kernels=300).eval()
    empty.load_state_dict(layer.state_dict(), assign=True)
    x = torch.randn(2, 24, 8, 8)
    assert torch.equal(empty(x), layer(x))


@pytest.mark.parametrize(
    ("path", "message"), [(None, "Input of 2x2.*smaller than the kernel, 3x3"), ("plain", "2 x 2.*3 x 3")]
)
def test_inputs_smaller_than_the_kernel_raise_the_error_of_conv2d(path, message):
    layer = FDConv2d(32, 32, 3)
    set_path(layer, path)
    with pytest.raises(RuntimeError, match=message):
        layer(torch.zeros(1, 32, 2, 2))


@pytest.mark.parametrize("num_kernels", [2.5, "4", True])
def test_num_kernels_is_an_integer(num_kernels):
    with pytest.raises(TypeError, match=r"num_kernels is .* integer"):
        FDConv2d(32, 32, 3, num_kernels=num_kernels)
