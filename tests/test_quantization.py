"""Quantization, fusing, half precision; what the layers refuse, and in which words; what ``print`` shows."""

import copy
import math

import pytest
import timm
import torch
from conftest import randomize, relative_error
from contract import assert_same, each_family, example, images, plain_example, small
from timm.layers import ScaledStdConv2d, StdConv2d
from timm.utils.model import freeze_batch_norm_2d
from torch import nn
from torch.ao.quantization import fuse_modules, fuse_modules_qat, quantize_dynamic
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fdconv_zoo import FDConv2d, FDLinear, KernelSpatialModulation, convert_model, set_path
from fdconv_zoo.layers import BandModulatedConv2d

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PATHS = [None, "plain"]


def build(**kwargs):
    torch.manual_seed(1)
    return randomize(FDConv2d(32, 24, 3, padding=1, num_kernels=8, **kwargs), std=0.1).eval()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["resnet10s_fdconv", "swin_tiny_patch4_window7_224_fdconv"])
def test_dynamic_quantization(name, path):
    """int8 heads of KSM, and of the classifier; kernels stay as they are."""
    model, x = copy.deepcopy(example(name)), images()
    set_path(model, path)
    quantized = quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    heads = [m for key, m in quantized.named_modules() if key.endswith("global_branch.filter")]
    assert heads
    assert all(isinstance(head, torch.ao.nn.quantized.dynamic.Linear) for head in heads)
    with torch.no_grad():
        assert 0 < relative_error(quantized(x), model(x)) < 0.1
        assert quantized(images(1)).shape == (1, 11)
    again = quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    again.load_state_dict(quantized.state_dict())
    with torch.no_grad():
        assert_same(again(x), quantized(x), 1e-6)


def test_dynamic_quantization_to_half():
    layer, x = nn.Sequential(build()), torch.randn(2, 32, 7, 6)
    quantized = quantize_dynamic(copy.deepcopy(layer), {nn.Linear}, dtype=torch.float16)
    with torch.no_grad():
        assert relative_error(quantized(x), layer(x)) < 1e-2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = build(), nn.BatchNorm2d(24), nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


def test_fusing_says_what_is_wrong():
    """A kernel per image leaves nothing to fuse a BatchNorm into."""
    block, x = randomize(Block()).eval(), torch.randn(2, 32, 7, 6)
    expected = block(x)
    for fuse in (
        lambda: fuse_modules(block, ["conv", "bn"]),
        lambda: fuse_modules(block, ["conv", "bn", "relu"]),
        lambda: fuse_modules_qat(copy.deepcopy(block).train(), ["conv", "bn"]),
        lambda: fuse_conv_bn_eval(block.conv, block.bn),
    ):
        with pytest.raises((TypeError, NotImplementedError, AttributeError, AssertionError), match="FDConv2d"):
            fuse()
    assert_same(block(x), expected, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("path", PATHS)
@each_family
def test_half_models(name, path, dtype):
    model, x = copy.deepcopy(example(name)), images()
    set_path(model, path)
    expected = model(x).detach()
    model.to(dtype)
    for batch in (x, x[:1]):
        with torch.no_grad():
            y = model(batch.to(dtype))
        assert y.dtype == dtype
        assert relative_error(y, expected[: len(batch)]) < 0.2
    model.train()(x.to(dtype)).float().square().sum().backward()
    assert all(parameter.grad.dtype == dtype for parameter in model.parameters())


BAD_TEMPERATURES = [0.0, -0.0, -1.0, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("value", BAD_TEMPERATURES, ids=str)
@pytest.mark.parametrize("name", ["temperature", "kernel_temperature"])
def test_temperatures_out_of_range_are_refused(name, value):
    for make in (
        lambda: FDConv2d(8, 6, 3, num_kernels=4, **{name: value}),
        lambda: FDLinear(8, 6, num_kernels=4, **{name: value}),
        lambda: FDConv2d.from_conv(nn.Conv2d(8, 6, 3), num_kernels=4, **{name: value}),
        lambda: KernelSpatialModulation(8, 6, (3, 3), 4, **{name: value}),
        lambda: timm.create_model("resnet10s_fdconv", **{name: value}),
        lambda: convert_model(nn.Sequential(nn.Conv2d(32, 32, 3)), **{name: value}),
    ):
        with pytest.raises(ValueError, match="temperature"):
            make()


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return -super().forward(x)


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return -super()._conv_forward(x, weight, bias)


class OwnLinear(nn.Linear):
    def forward(self, x):
        return -super().forward(x)


class Renamed(nn.Conv2d):
    """A subclass of the same function, as libraries derive to initialize."""

    def reset_parameters(self):
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)


NOT_CONVOLUTIONS = [
    nn.ConvTranspose2d(8, 8, 3), nn.Conv1d(8, 8, 3), nn.Conv3d(8, 8, 3), nn.Linear(8, 8), nn.LazyConv2d(8, 3),
    nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(8, 8, 3)), StdConv2d(8, 8, 3), ScaledStdConv2d(8, 8, 3),
    OwnForward(8, 8, 3), OwnConvolution(8, 8, 3), FDConv2d(8, 8, 3, num_kernels=4), FDLinear(8, 8, num_kernels=4),
    BandModulatedConv2d(8, 8, 3),
]  # fmt: skip


def names_the_type(module):
    return pytest.raises(TypeError, match=rf"\b{type(module).__name__}\b")


@pytest.mark.parametrize("module", NOT_CONVOLUTIONS, ids=lambda module: type(module).__name__)
def test_from_conv_names_what_it_cannot_stand_for(module):
    with names_the_type(module):
        FDConv2d.from_conv(module, num_kernels=4)
    with names_the_type(module):
        BandModulatedConv2d.from_conv(module)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(8, 8, 1), nn.Bilinear(8, 8, 8), nn.LazyLinear(8), nn.Identity(), OwnLinear(8, 8),
        FDLinear(8, 8, num_kernels=4), FDConv2d(8, 8, 1, num_kernels=4), nn.Conv1d(8, 8, 1),
        nn.Embedding(8, 8),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_from_linear_names_what_it_cannot_stand_for(module):
    with names_the_type(module):
        FDLinear.from_linear(module, num_kernels=4)


def test_from_conv_takes_subclasses_of_the_same_function():
    conv, x = Renamed(8, 6, 3), torch.randn(2, 8, 5, 5)
    assert relative_error(FDConv2d.from_conv(conv, num_kernels=4)(x), conv(x)) < 1e-5
    assert relative_error(BandModulatedConv2d.from_conv(conv)(x), conv(x)) < 1e-5


@pytest.mark.parametrize(
    "layer", [build(), build(fbm=False), FDLinear(8, 6, num_kernels=4), BandModulatedConv2d(8, 8, 3)]
)
def test_a_layer_prints_as_one_line(layer):
    text = repr(layer)
    assert "\n" not in text
    assert text.startswith(f"{type(layer).__name__}(")
    if not isinstance(layer, BandModulatedConv2d):
        assert f"num_kernels={layer.fdw.num_kernels}" in text


@each_family
def test_a_model_prints_no_more_lines_than_the_plain_one(name):
    model, plain = small(name), plain_example(name)
    assert len(str(model).splitlines()) <= len(str(plain).splitlines())
    assert "FDConv2d(" in str(model) or "FDLinear(" in str(model)


def test_parts_still_print_themselves():
    layer = build()
    for part in (layer.fdw, layer.ksm, layer.fbm):
        assert type(part).__name__ in repr(part)


def test_freezing_norms_finds_ours():
    """timm's helper replaces BatchNorm2d: a frozen model computes what the model in eval mode does."""
    model, x = copy.deepcopy(example("resnet10s_fdconv")), images()
    expected = model(x).detach()
    frozen = freeze_batch_norm_2d(model).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    assert_same(frozen(x), expected, 1e-5)
