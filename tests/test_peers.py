"""The peers compute what their papers define, checked against loops over images and kernels."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import relative_error
from torch import nn

from fdconv_zoo import FDConv2d
from fdconv_zoo.profiling import count_parameters
from fdconv_zoo.profiling.peers import DCD, PEERS, CondConv, DYConv, KernelWarehouse, ODConv, replace_layers
from fdconv_zoo.profiling.twins import PLAIN, trained_twin

CONVOLUTIONS = {
    "3x3": dict(kernel_size=3, padding=1),
    "strided": dict(kernel_size=3, padding=1, stride=2),
    "dilated": dict(kernel_size=(3, 1), padding=(2, 0), dilation=2),
    "1x1": dict(kernel_size=1),
}


@pytest.fixture(params=CONVOLUTIONS)
def conv(request):
    return nn.Conv2d(24, 20, bias=False, **CONVOLUTIONS[request.param])


@pytest.fixture
def x():
    return torch.randn(3, 24, 9, 8)


@pytest.fixture
def stage(conv):
    """The layer, and another of its stage. The greatest common divisors of their channels are 20 and 12."""
    return nn.ModuleDict({"stage1": nn.ModuleList([nn.Conv2d(12, 40, (3, 2), bias=False), conv])})


def replaced(stage, peer):
    """The stage with peers as its layers."""
    stage = copy.deepcopy(stage)
    replace_layers(stage, ["stage1.0", "stage1.1"], peer)
    return stage["stage1"]


def convolve(conv, image, kernel):
    return F.conv2d(image[None], kernel, None, conv.stride, conv.padding, conv.dilation)


def mean(image):
    return torch.stack([channel.sum() / channel.numel() for channel in image])


def cond_conv(layer, conv, image):
    weights = 1 / (1 + torch.exp(-(layer.routing.weight @ mean(image) + layer.routing.bias)))
    kernel = sum(w * k.view(conv.weight.shape) for w, k in zip(weights, layer.conv.weight, strict=True))
    return convolve(conv, image, kernel)


def dy_conv(layer, conv, image):
    first, _, second = layer.attention
    assert first.out_features == 24 // 4
    logits = second.weight @ (first.weight @ mean(image) + first.bias).clamp(min=0) + second.bias
    weights = torch.exp(logits / 30) / torch.exp(logits / 30).sum()
    return convolve(conv, image, sum(w * k for w, k in zip(weights, layer.kernels.weight, strict=True)))


def od_conv(layer, conv, image):
    squeeze = layer.squeeze[0]
    hidden = (squeeze.weight @ mean(image) + squeeze.bias).clamp(min=0)
    assert len(hidden) == 16

    def head(linear):
        return linear.weight @ hidden + linear.bias

    weights = torch.exp(head(layer.kernel)) / torch.exp(head(layer.kernel)).sum()
    filter, channel = 1 / (1 + torch.exp(-head(layer.filter))), 1 / (1 + torch.exp(-head(layer.channel)))
    spatial = torch.ones(1, 1) if layer.spatial is None else 1 / (1 + torch.exp(-head(layer.spatial)))
    spatial = spatial.view(conv.kernel_size)
    kernel = torch.zeros_like(conv.weight)
    for w, k in zip(weights, layer.kernels.weight, strict=True):
        for o in range(conv.out_channels):
            for i in range(conv.in_channels):
                kernel[o, i] += w * filter[o] * channel[i] * spatial * k[o, i]
    return convolve(conv, image, kernel)


def dcd(layer, conv, image):
    hidden = (layer.squeeze.weight @ mean(image)).clamp(min=0)
    excited = layer.excite.weight @ hidden
    assert len(hidden) == 4
    assert len(excited) == 20 + 4 * 4  # 4 = floor(sqrt(24))
    scale, fusion = excited[:20], excited[20:].view(4, 4)
    kernel = torch.diag((scale + 3).clamp(0, 6) / 3) @ layer.weight.flatten(1)
    kernel = kernel.view(conv.weight.shape).clone()
    rows, columns = conv.kernel_size
    kernel[:, :, rows // 2, columns // 2] += layer.p @ fusion @ layer.q
    return convolve(conv, image, kernel)


def kernel_warehouse(layer, conv, image, temperature=0.75):
    (warehouse,) = layer._shared
    cells = warehouse.cells
    rows, columns = conv.kernel_size
    start = 2 * 1 * 3 * 2  # cells of the other layer
    mixtures = 1 * 2 * rows * columns
    assert cells.shape == (start + mixtures, 20, 12)
    hidden = (layer.squeeze.weight @ mean(image) + layer.squeeze.bias).clamp(min=0)
    assert len(hidden) == 16
    logits = (layer.attention.weight @ hidden + layer.attention.bias).view(mixtures, -1)
    kernel = torch.zeros_like(conv.weight)
    for i in range(mixtures):
        weights = (1 - temperature) * logits[i] / logits[i].abs().sum()
        weights[start + i] += temperature
        mixture = sum(w * cell for w, cell in zip(weights, cells, strict=True))
        block, row, column = i // (rows * columns), i // columns % rows, i % columns
        kernel[:, 12 * block : 12 * (block + 1), row, column] = mixture
    return convolve(conv, image, kernel)


ORACLES = {CondConv: cond_conv, DYConv: dy_conv, DCD: dcd, ODConv: od_conv, KernelWarehouse: kernel_warehouse}


def test_every_peer_has_an_oracle():
    assert set(PEERS.values()) == set(ORACLES)


@pytest.mark.parametrize("peer", ORACLES)
def test_a_peer_equals_the_papers_layer(peer, stage, conv, x):
    layer = replaced(stage, peer)[1]
    if peer is KernelWarehouse:
        layer.steps += 125  # a quarter of the 500 over which the temperature falls to zero
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.ndim < 3:
                parameter.mul_(4)  # attentions far from uniform
            if not parameter.any():
                parameter.normal_()
        expected = torch.cat([ORACLES[peer](layer, conv, image) for image in x])
        actual = layer.eval()(x)
    assert actual.shape == conv(x).shape
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("peer", ORACLES)
def test_every_parameter_has_a_gradient(peer, stage, x):
    layers = replaced(stage, peer)
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    # DCD's branch and matrices wait for its last weights, which start at zero.
    for _ in range(2 if peer is DCD else 1):
        optimizer.zero_grad()
        sum(layer(inputs).square().sum() for layer, inputs in zip(layers, (x[:, :12], x), strict=True)).backward()
        optimizer.step()
    for name, parameter in layers.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("peer", [DCD, KernelWarehouse])
def test_some_start_as_the_layers_that_they_replace(peer, stage, conv, x):
    layers = replaced(stage, peer).eval()
    for layer, plain, inputs in zip(layers, stage["stage1"], (x[:, :12], x), strict=True):
        assert relative_error(layer(inputs), plain(inputs)) < 1e-6
    assert relative_error(peer(conv).eval()(x), conv(x)) < 1e-6  # alone
    assert not torch.equal(replaced(stage, ODConv)[1](x), conv(x))


def test_odconv_loads_a_plain_layer_and_its_kernels_move_apart(conv, x):
    layer = ODConv(conv)
    assert relative_error(layer(x), conv(x)) > 0.1
    layer.load_state_dict(conv.state_dict())
    assert relative_error(layer(x), conv(x)) < 1e-6
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    layer(x).square().sum().backward()
    optimizer.step()
    first, *others = layer.kernels.weight.detach()
    assert all(relative_error(kernel, first) > 1e-6 for kernel in others)
    assert all(head.weight.grad.any() for head in (layer.filter, layer.channel))


@pytest.mark.parametrize("peer", ORACLES)
def test_copies_and_state_dicts_keep_the_function(peer, stage, x):
    layers = replaced(stage, peer)
    layers[1](x)  # a step in training mode, which the warehouse counts
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.normal_(std=0.1)
    state = layers.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)  # safetensors refuses shared tensors
    others = replaced(stage, peer)
    others.load_state_dict(state)
    for again in (others, copy.deepcopy(layers)):
        for layer, own, inputs in zip(layers.eval(), again.eval(), (x[:, :12], x), strict=True):
            assert torch.equal(own(inputs), layer(inputs))
    assert sum(name.endswith("warehouse.cells") for name in state) == (peer is KernelWarehouse)


def test_the_temperature_falls_in_training_only(stage, x):
    layer = replaced(stage, lambda conv: KernelWarehouse(conv, annealing_steps=3))[1]
    start = layer.eval()(x)
    assert torch.equal(layer(x), start)
    for _ in range(4):  # one more than it needs
        layer.train()(x)
    expected = torch.cat([kernel_warehouse(layer, stage["stage1"][1], image, temperature=0) for image in x])
    assert relative_error(layer.eval()(x), expected) < 1e-5
    assert relative_error(start, expected) > 0.1


def test_each_stage_has_its_warehouse():
    model = timm.create_model("resnet10s_kernelwarehouse")
    warehouses = [name for name, _ in model.named_parameters() if name.endswith("warehouse.cells")]
    stages = sorted({name.split(".")[0] for name, layer in model.named_modules() if isinstance(layer, KernelWarehouse)})
    assert warehouses == [f"{stage}.0.conv1.warehouse.cells" for stage in stages]
    plain = timm.create_model(PLAIN)
    kernels = sum(p.numel() for name, p in plain.named_parameters() if "layer" in name and ".conv" in name)
    assert sum(model.get_parameter(name).numel() for name in warehouses) == kernels


def test_dcd_starts_from_weights_of_the_plain_twin():
    plain, x = timm.create_model(PLAIN).eval(), torch.randn(2, 3, 32, 32)
    model = timm.create_model("resnet10s_dcd").eval()
    for layer in model.modules():
        if isinstance(layer, DCD):
            nn.init.normal_(layer.excite.weight)  # trained, as it were
    model.load_state_dict(plain.state_dict())
    assert relative_error(model(x), plain(x)) < 1e-5
    assert trained_twin("resnet10s_dcd") == PLAIN
    assert trained_twin("resnet10s_kernelwarehouse") == "resnet10s_kernelwarehouse"


@pytest.mark.parametrize("peer", ORACLES)
def test_layers_that_a_peer_cannot_replace_are_refused(peer):
    for options in (dict(), dict(bias=False, groups=2), dict(bias=False, padding_mode="reflect")):
        with pytest.raises(ValueError, match="without bias and groups"):
            peer(nn.Conv2d(24, 20, 3, padding=1, **options))


def resnet50_with(peer, select=lambda name: True, more=()):
    with torch.device("meta"):
        dynamic = timm.create_model("resnet50_fdconv")
        model = timm.create_model("resnet50")
        names = [name for name, layer in dynamic.named_modules() if isinstance(layer, FDConv2d) and select(name)]
        replace_layers(model, [*names, *more], peer)
        return model


@pytest.mark.parametrize(
    ("peer", "added"),
    [
        (CondConv, 144_902_016),
        (DYConv, 66_666_928),
        (DCD, 3_973_440),
        (ODConv, 65_112_416),
        (KernelWarehouse, 1_682_869),
    ],
    ids=str,
)
def test_parameters_added_to_resnet50(peer, added):
    model = resnet50_with(peer)
    assert sum(isinstance(layer, peer) for layer in model.modules()) == 48
    assert count_parameters(model) - 25_557_032 == added


def test_the_papers_counts_belong_to_other_layers():
    def millions(model):
        return round((count_parameters(model) - 25_557_032) / 1e6, 1)

    assert millions(resnet50_with(CondConv, lambda name: name.startswith("layer4"))) == 90.0
    assert millions(resnet50_with(DYConv, more=[f"layer{stage}.0.downsample.0" for stage in range(1, 5)])) == 75.3
    assert millions(resnet50_with(ODConv)) == 65.1


def test_the_count_of_dcd_is_the_papers():
    layers = [layer for layer in resnet50_with(DCD).modules() if isinstance(layer, DCD)]
    rest = 0
    for layer in layers:
        (outputs, inputs, *_), latent, hidden = layer.weight.shape, layer.latent, layer.squeeze.out_features
        # W_0, P and Q, and a branch from C to C / 16 to C + L^2
        expected = layer.weight.numel() + (inputs + outputs) * latent + (inputs + outputs + latent**2) * inputs // 16
        assert count_parameters(layer) == expected
        assert latent == math.isqrt(inputs)
        rest += hidden**2 + 4 * latent  # a gate and two normalizations, which only the authors' code has
    classifier = (2048 + 1000) * 32 + 2048 * 32 + 32 * 32 + 32 * (32**2 + 1000) + 4 * 32
    assert 25_557_032 + 3_973_440 + rest + classifier == 29_835_056  # their 29.84M


def test_the_count_of_kernel_warehouse_is_the_papers():
    """The authors' ResNet-50: 28.05M, of which 0.01M for logits of an empty cell."""
    with torch.device("meta"):
        model = timm.create_model("resnet50")
    stages = [[], [], [], []]
    for index, layers in enumerate((model.layer1, model.layer2, model.layer3, model.layer4)):
        for number, block in enumerate(layers):
            early = [block.conv1] if number else [block.conv1, block.downsample[0]]
            later = index if number else index - 1
            if later >= 0:  # the first layers of a stage belong to the one before, those of the first stay plain
                stages[later] += early
            stages[index] += [block.conv2, block.conv3]
    added = 0
    with torch.device("meta"):
        for convs in stages:
            layers = nn.ModuleList(map(KernelWarehouse, convs))
            KernelWarehouse.share(layers)
            added += count_parameters(layers) - sum(conv.weight.numel() for conv in convs)
            added += sum((layer.squeeze.out_features + 1) * len(layer.assigned) for layer in layers)
    assert round((25_557_032 + added) / 1e6, 2) == 28.05
