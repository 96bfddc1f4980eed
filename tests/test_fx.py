"""torch.fx: what timm's own tests ask of every model, and what torchvision and plain symbolic tracing do with ours."""

import copy
import pickle

import pytest
import torch
from contract import FAMILIES, assert_same, each_family, example, images, plain_example, save_weights, small
from timm.layers import DropPath
from timm.models import FeatureGraphNet, GraphExtractNet, get_graph_node_names
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

from fdconv_zoo import FDConv2d, FDLinear, set_path
from fdconv_zoo.layers import BandModulatedConv2d

every_small_model = pytest.mark.parametrize("name", ["resnet10s_fdconv", *FAMILIES.values()])
PATHS = [None, "rebuild", "plain"]
X = torch.linspace(-3, 3, 2 * 20 * 7 * 8).sin().view(2, 20, 7, 8)
LAYERS = {
    "3x3": (FDConv2d(20, 24, 3, padding=1, num_kernels=8), X),
    "1x1": (FDConv2d(20, 24, 1, num_kernels=8), X),
    "same padding": (FDConv2d(20, 24, 3, padding="same", padding_mode="reflect", num_kernels=8), X),
    "tokens": (FDLinear(8, 12, num_kernels=4), X),
    "bands": (BandModulatedConv2d(20, 24, 3, padding=1), X),
}


def to_graph(model):
    """The whole model as timm traces it."""
    _, nodes = get_graph_node_names(model)
    return GraphExtractNet(model, [nodes[-1]])


@every_small_model
def test_forward(name):
    """timm's test_model_forward_fx."""
    model, x = copy.deepcopy(example(name)), images()
    net = to_graph(copy.deepcopy(model))
    with torch.no_grad():
        assert net(x).shape == (2, 11)
        assert_same(net(x), model(x), 1e-6)
        for other in (images(1), images(5)):
            assert_same(net(other), model(other))


@every_small_model
def test_backward(name):
    """timm's test_model_backward_fx."""
    model, x = copy.deepcopy(example(name)).train(), images()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    net = to_graph(copy.deepcopy(model))
    results = []
    for each in (net, model):
        y = each(x)
        y.mean().backward()
        results.append((y, {key.removeprefix("graph_module."): p.grad for key, p in each.named_parameters()}))
    (y, gradients), (expected, right) = results
    assert_same(y, expected, 1e-5)
    assert gradients.keys() == right.keys()
    largest = max(gradient.abs().max() for gradient in right.values())
    for key, gradient in right.items():
        assert gradients[key] is not None, key
        assert (gradients[key] - gradient).abs().max() <= 1e-4 * (gradient.abs().max() + 1e-2 * largest), key


@pytest.mark.parametrize("out_indices", [None, (1, 2), (-1,)], ids=str)
@pytest.mark.parametrize("name", [name for family, name in FAMILIES.items() if family != "vit"])
def test_features(name, out_indices, tmp_path):
    """timm's test_model_forward_features_fx: the same feature maps as its default wrapper's.

    In the graph of a ViT, features are tokens; timm's wrapper makes maps of them.
    """
    x, args = images(), dict(features_only=True) | (dict(out_indices=out_indices) if out_indices else {})
    args |= dict(pretrained=True, pretrained_cfg_overlay=save_weights(example(name), tmp_path))
    default, graph = small(name, **args).eval(), small(name, feature_cls="fx", **args).eval()
    assert isinstance(graph, FeatureGraphNet)
    assert graph.feature_info.channels() == default.feature_info.channels()
    with torch.no_grad():
        for found, expected in zip(graph(x), default(x), strict=True):
            assert_same(found, expected)


def middle(name):
    """A layer inside the model, FDConv."""
    kinds = FDConv2d, FDLinear, BandModulatedConv2d
    names = [key for key, module in example(name).named_modules() if isinstance(module, kinds)]
    return names[len(names) // 2]


@every_small_model
def test_torchvision_extracts_an_fdconv_layers_output(name):
    model, x, node = copy.deepcopy(example(name)), images(), middle(name)
    extract = create_feature_extractor(model, return_nodes={node: "features"})
    seen = []
    handle = model.get_submodule(node).register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(x)
        handle.remove()
        assert_same(extract.eval()(x)["features"], seen[0])
        assert extract(images(3))["features"].shape[0] == 3


@every_small_model
def test_graphs_are_readable(name):
    """To timm FDConv layers are nodes, as convolutions are, and their insides are not."""
    for nodes in get_graph_node_names(copy.deepcopy(example(name))):
        assert middle(name) in nodes
        assert not [node for node in nodes if ".fdw" in node or ".ksm" in node]


@every_small_model
def test_symbolic_trace(name):
    try:
        fx.symbolic_trace(plain_example(name))
    except fx.proxy.TraceError:
        pytest.skip("timm's plain model cannot be traced by torch alone")
    model, x = copy.deepcopy(example(name)), images()
    traced = fx.symbolic_trace(model)
    traced.graph.lint()
    with torch.no_grad():
        expected = model(x)
        for other in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
            assert_same(other(x), expected, 1e-6)
        one = images(1)
        assert_same(traced(one), model(one))
    optimizer = torch.optim.SGD(traced.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        traced(x).square().mean().backward()
        optimizer.step()
    # The traced model holds the model's own parameters.
    with torch.no_grad():
        assert_same(traced(x), model(x), 1e-5)
        assert (model(x) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", LAYERS)
def test_symbolic_trace_of_layers(kind, path):
    """Within a model of one's own, by torch alone."""
    layer, x = LAYERS[kind]
    model = nn.Sequential(copy.deepcopy(layer), nn.GELU()).eval()
    set_path(model, path)
    traced = fx.symbolic_trace(model)
    results = []
    for each in (traced, model):
        leaf = x.clone().requires_grad_()
        y = each(leaf)
        (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
        results.append((y.detach(), gradient))
    for found, expected in zip(*results, strict=True):
        assert_same(found, expected)
    for batch in (x[:1], torch.cat([x, x])):
        assert_same(traced(batch), model(batch))
    clone = pickle.loads(pickle.dumps(copy.deepcopy(traced)))
    assert_same(clone(x), model(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_symbolic_trace_of_a_layer_itself(kind):
    """A tracer goes into the root, leaf or not: it works, or says to trace a model that holds the layer."""
    layer, x = LAYERS[kind]
    layer = copy.deepcopy(layer).eval()
    try:
        traced = fx.symbolic_trace(layer)
    except fx.proxy.TraceError:
        return
    assert_same(traced(x), layer(x))
    assert_same(traced(x[:1]), layer(x[:1]))


@each_family
def test_traced_models_keep_their_hooks_and_layers(name):
    model = copy.deepcopy(example(name))
    traced = to_graph(model).graph_module
    layer = traced.get_submodule(middle(name))
    assert layer is model.get_submodule(middle(name))
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    traced(images(1))
    assert len(calls) == 1


@each_family
def test_fresh_models_trace_while_they_train(name):
    """As timm builds them for ``features_only=True, feature_cls="fx"``: in training mode."""
    net = to_graph(small(name))
    net(images(2)).sum().backward()
