"""KSM in one native call: the same as its modules in float64, and only where nobody can tell the difference."""

import pytest
import torch
from conftest import randomize
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from fdconv_zoo import FDConv2d, convert_model, set_path
from fdconv_zoo.layers.untouched import TouchedError
from fdconv_zoo.ops import native
from fdconv_zoo.ops.kernels_plain import LocalFactors

pytestmark = pytest.mark.skipif(native.library() is None, reason=f"no native path: {native.problem()}")

LAYERS = {
    "1x1": ((64, 64, 1), {}),
    "3x3": ((48, 96, 3), {}),
    "groups": ((48, 96, 3), {"groups": 3}),
    "odd, 3x1": ((21, 7, (3, 1)), {"num_kernels": 5}),
    "wide": ((512, 600, 1), {"temperature": 3.0, "kernel_temperature": 0.3}),
    "one kernel": ((20, 7, 3), {"num_kernels": 1}),
    "global alone": ((20, 7, 3), {"ksm_local": False}),
    "local alone": ((20, 7, 3), {"ksm_global": False}),
}


def make(name="3x3"):
    arguments, options = LAYERS[name]
    return randomize(FDConv2d(*arguments, **options), std=0.1).eval()


def tensors(modulators):
    found = {name: tensor for name, tensor in modulators._asdict().items() if name != "local"}
    if isinstance(modulators.local, LocalFactors):
        found |= modulators.local._asdict()
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_modulators_are_those_of_the_modules(name, batch):
    layer = make(name)
    pooled = torch.randn(batch, layer.in_channels)
    found = tensors(layer.ksm._predict_at_once(pooled))
    expected = tensors(layer.double().ksm(pooled.double(), assemble=False))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].shape == tensor.shape
        assert (found[key].double() - tensor).norm() <= 1e-6 * tensor.norm(), key


@torch.no_grad()
def test_a_single_image_in_training_takes_the_running_statistics():
    layer = make().train()
    pooled = torch.randn(1, 48)
    found = tensors(layer.ksm._predict_at_once(pooled))
    expected = tensors(layer.double().ksm(pooled.double(), assemble=False))
    assert all((found[key].double() - tensor).norm() <= 1e-6 * tensor.norm() for key, tensor in expected.items())


@torch.no_grad()
def test_nan_stays():
    layer = make()
    pooled = torch.full((1, 48), float("nan"))
    found = tensors(layer.ksm._predict_at_once(pooled))
    assert all(found[name].isnan().all() for name in ("kernel", "channel", "filter", "spatial"))
    assert found["windows"][..., 1].isnan().all()


@torch.no_grad()
def test_operations_are_counted_alike():
    layer, pooled = make(), torch.randn(2, 48)
    counts = []
    for path in ("native", "rebuild"):
        set_path(layer, path)
        with FlopCounterMode(display=False) as counter:
            layer.ksm(pooled, assemble=False)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def hook(layer, module):
    module.register_forward_hook(lambda *_: None)


def pre_hook(layer, module):
    module.register_forward_pre_hook(lambda *_: None)


def wrap(layer, module):
    module.forward = module.forward


def subclass(layer, module):
    module.__class__ = type("Other", (type(module),), {})


@torch.no_grad()
@pytest.mark.parametrize("touch", [hook, pre_hook, wrap, subclass])
def test_touched_modules_are_called(touch):
    names = [name for name, _ in make().ksm.named_modules() if name]
    for name in names:
        layer = make()
        touch(layer, layer.ksm.get_submodule(name))
        with pytest.raises(TouchedError):
            layer.ksm._predict_at_once(torch.randn(2, 48))


@torch.no_grad()
@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_modules_are_called_while_all_calls_are_observed(register):
    layer, pooled = make(), torch.randn(2, 48)
    handle = register(lambda *_: None)
    try:
        with pytest.raises(TouchedError):
            layer.ksm._predict_at_once(pooled)
    finally:
        handle.remove()
    layer.ksm._predict_at_once(pooled)


@torch.no_grad()
def test_a_conversion_leaves_later_calls_as_they_were():
    net = nn.Sequential(nn.Conv2d(3, 48, 3), nn.Conv2d(48, 48, 3))
    convert_model(net, example=torch.randn(1, 3, 8, 8))
    assert not torch_module._has_any_global_hook()
    make().ksm._predict_at_once(torch.randn(2, 48))


class Tagged(torch.Tensor):
    pass


SETTINGS = {
    "batch statistics": lambda layer: layer.train(),
    "another path": lambda layer: set_path(layer, "rebuild"),
    "double": lambda layer: layer.double(),
    "a bias that is not there": lambda layer: setattr(
        layer.ksm.global_branch.reduce, "bias", nn.Parameter(torch.ones(16))
    ),
    "a frozen norm of another kind": lambda layer: setattr(layer.ksm.global_branch, "norm", nn.BatchNorm2d(16)),
    "a subclass of tensors": lambda layer: layer.ksm.global_branch.filter._parameters.update(
        weight=torch.randn(96, 16).as_subclass(Tagged)
    ),
    "a transposed weight": lambda layer: setattr(
        layer.ksm.global_branch.filter, "weight", nn.Parameter(torch.randn(16, 96).t())
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", SETTINGS)
def test_modules_are_called_where_the_native_code_differs(name):
    layer = make()
    SETTINGS[name](layer)
    dtype = layer.fdw.spectrum.dtype
    pooled = torch.randn(2, 48, dtype=dtype)
    with pytest.raises(TouchedError):
        layer.ksm._predict_at_once(pooled)
    layer.ksm(pooled, assemble=False)


def test_gradients_come_from_the_modules():
    layer, pooled = make(), torch.randn(2, 48)
    with pytest.raises(TouchedError):
        layer.ksm._predict_at_once(pooled)
    layer.ksm(pooled, assemble=False).channel.sum().backward()
    assert layer.ksm.global_branch.channel.weight.grad is not None
