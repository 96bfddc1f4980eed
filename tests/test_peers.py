"""The peers compute what their papers define, checked against loops over images and kernels."""

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import relative_error
from torch import nn

from fdconv_zoo import FDConv2d
from fdconv_zoo.profiling import count_parameters
from fdconv_zoo.profiling.peers import PEERS, CondConv, DYConv, ODConv, replace_layers

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


ORACLES = {CondConv: cond_conv, DYConv: dy_conv, ODConv: od_conv}


def test_every_peer_has_an_oracle():
    assert set(PEERS.values()) == set(ORACLES)


@pytest.mark.parametrize("peer", ORACLES)
def test_a_peer_equals_the_papers_layer(peer, conv, x):
    layer = peer(conv)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.ndim < 3:
                parameter.mul_(4)  # attentions far from uniform
        expected = torch.cat([ORACLES[peer](layer, conv, image) for image in x])
        actual = layer(x)
    assert actual.shape == conv(x).shape
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("peer", ORACLES)
def test_every_parameter_has_a_gradient(peer, conv, x):
    layer = peer(conv)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().max() > 0, name


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
    ("peer", "added"), [(CondConv, 144_902_016), (DYConv, 66_666_928), (ODConv, 65_112_416)], ids=lambda p: str(p)
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
