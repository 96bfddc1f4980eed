"""Models on a GPU that is not there: fake tensors find what is on the wrong device, or waits for the host."""

from typing import get_args

import pytest
import torch
from contract import FEW_LAYERS, each_family, family, images, small
from torch import nn
from torch._subclasses import FakeTensorMode

from fdconv_zoo import FDConv2d, FDLinear, keep_kernels, ops, set_path
from fdconv_zoo.profiling.backward import run_backward
from fdconv_zoo.profiling.launches import LaunchCounter, _autocast, _tensors, place_on_fake_device

PATHS = get_args(ops.Path)


class OnlyOnTheDevice(LaunchCounter):
    """Opens the operators of this package; refuses tensors of the CPU, but for single numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in _tensors((args, kwargs, result)):
            assert tensor.device.type == "cuda" or tensor.ndim == 0, f"{func} has a tensor on {tensor.device}"
        return result


def run(build, shape, *, path, dtype=torch.float32, autocast=torch.float32, train=True, layout=None):
    """The output of a forward and backward pass, after everything was on the device on the way."""
    with torch.device("meta"):
        model = build().train(train).to(dtype)
    with FakeTensorMode():
        place_on_fake_device(model)
        x = torch.randn(shape, device="cuda", dtype=dtype)
        if layout is not None:
            x = x.contiguous(memory_format=layout)
        set_path(model, path)
        with OnlyOnTheDevice().counting():
            with _autocast(autocast):
                y = model(x)
            gradients = run_backward(y, torch.empty_like(y))
        assert gradients.keys() == set(model.parameters())
        assert all(gradient.device.type == "cuda" for gradient in gradients.values())
        assert all(gradient.shape == parameter.shape for parameter, gradient in gradients.items())
        assert all(gradient.dtype == parameter.dtype for parameter, gradient in gradients.items())
        assert y.device.type == "cuda"
        return y


@each_family
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)],
    ids=["float32", "autocast", "bfloat16"],
)
def test_families(name, path, dtype, autocast):
    arguments = FEW_LAYERS[family(name)]
    y = run(lambda: small(name, **arguments), images(1).shape, path=path, dtype=dtype, autocast=autocast, train=False)
    assert y.shape == (1, 11)
    assert y.dtype == (autocast if dtype == torch.float32 else dtype)


LAYERS = {
    "large map": (lambda: FDConv2d(8, 8, 3, padding=1, num_kernels=4), (2, 8, 30, 40)),
    "small map": (lambda: FDConv2d(8, 32, 3, padding=1, num_kernels=4), (2, 8, 4, 3)),
    "one image": (lambda: FDConv2d(8, 8, 3, 2, 1, num_kernels=4), (1, 8, 9, 7)),
    "groups": (lambda: FDConv2d(8, 8, 3, padding=1, groups=4, num_kernels=4), (2, 8, 9, 7)),
    "same": (lambda: FDConv2d(8, 8, (2, 4), padding="same", num_kernels=4), (2, 8, 9, 7)),
    "no branch": (lambda: FDConv2d(8, 8, 3, ksm_global=False, ksm_local=False, num_kernels=4), (2, 8, 9, 7)),
    "one kernel": (lambda: FDConv2d(8, 8, 3, num_kernels=1), (2, 8, 9, 7)),
    "reference masks": (lambda: FDConv2d(8, 8, 3, band_mask="reference", num_kernels=4), (2, 8, 9, 7)),
    "stored groups": (lambda: FDConv2d(8, 8, 3, stored_groups=True, num_kernels=4), (2, 8, 9, 7)),
    "tokens": (lambda: FDLinear(8, 8, num_kernels=4), (2, 5, 8)),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_layers(layer, path, dtype):
    build, shape = LAYERS[layer]
    assert run(build, shape, path=path, dtype=dtype).dtype == dtype


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16], ids=str)
def test_layers_under_autocast(layer, path, autocast):
    build, shape = LAYERS[layer]
    assert run(build, shape, path=path, autocast=autocast).dtype == autocast


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_that_keep_kernels(layer):
    build, shape = LAYERS[layer]
    model = build()
    keep_kernels(model)
    assert run(lambda: model.to("meta"), shape, path="triton", autocast=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("path", PATHS)
def test_channels_last(path):
    build, shape = LAYERS["large map"]
    y = run(build, shape, path=path, layout=torch.channels_last)
    assert y.shape == shape


def test_what_is_left_on_the_cpu_is_found():
    class Leaves(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.table = torch.ones(3, device="cpu")  # no buffer: it does not move with the module

        def forward(self, x):
            return x * self.weight * self.table.to(x.device)

    with pytest.raises(Exception, match="FakeTensor"):
        run(Leaves, (2, 3), path=None)
