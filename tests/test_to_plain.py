"""Conversion of FDConv models back to plain ones, exactly with neutral modulators and approximately otherwise."""

import copy

import literal
import numpy as np
import pytest
import timm
import torch
from conftest import randomize, relative_error
from torch import nn

from fdconv_zoo import FDConv2d, FDLinear, approximate_plain, convert_model, to_plain
from fdconv_zoo.layers import BandModulatedConv2d


class Net(nn.Module):
    """One FDConv layer of each kind."""

    def __init__(self):
        super().__init__()
        self.conv = FDConv2d(6, 8, 3, stride=2, padding=1, groups=2, num_kernels=5)
        self.bands = BandModulatedConv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.point = FDConv2d(8, 12, 1, bias=False, num_kernels=3, temperature=2.0)
        self.mlp = FDLinear(12, 4, num_kernels=4)

    def forward(self, x):
        x = self.point(self.bands(self.conv(x).relu()).relu()).relu()
        return {"tokens": [self.mlp(x.flatten(2).transpose(1, 2))]}


LAYERS = ("conv", "bands", "point", "mlp")


def images(num=3):
    return torch.randn(num, 6, 16, 16)


def is_plain(model):
    return not any(isinstance(module, FDConv2d | FDLinear | BandModulatedConv2d) for module in model.modules())


def test_neutral_models_become_plain():
    model, x = Net().eval(), images()
    model.point.fdw.spectrum.requires_grad_(False)
    model.bands.weight.requires_grad_(False)
    model.conv.train()
    bias, weight = model.conv.bias, model.bands.weight
    expected = model(x)["tokens"][0]
    assert to_plain(model) is model
    assert is_plain(model)
    assert relative_error(model(x)["tokens"][0], expected) < 1e-5
    assert model.conv.bias is bias
    assert model.bands.weight is weight
    assert [model.get_submodule(name).weight.requires_grad for name in LAYERS] == [True, False, False, True]
    assert [model.get_submodule(name).training for name in LAYERS] == [True, False, False, False]
    assert (type(model.bands), type(model.mlp)) == (nn.Conv2d, nn.Linear)
    assert all(parameter.is_contiguous() and parameter.is_leaf for parameter in model.parameters())
    assert to_plain(model) is model


@pytest.mark.parametrize(
    "name",
    [
        "conv.ksm.global_branch.channel.weight",
        "conv.ksm.global_branch.filter.bias",
        "conv.ksm.global_branch.spatial.bias",
        "point.ksm.global_branch.kernel.weight",
        "mlp.ksm.local_branch.conv.weight",
        "conv.fbm.attention.bias",
        "bands.fbm.attention.weight",
    ],
)
def test_layers_that_are_not_neutral_are_named(name):
    model = Net()
    layers = dict(model.named_modules())
    with torch.no_grad():
        model.get_parameter(name).flatten()[0] = 1e-9
    layer = name.split(".")[0]
    with pytest.raises(ValueError, match=rf"1 of 4 FDConv layers .*'{layer}': .*approximate_plain"):
        to_plain(model)
    assert dict(model.named_modules()) == layers


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_models_of_the_zoo_get_the_parameters_of_timm(name):
    model = timm.create_model(f"{name}_fdconv", num_kernels=8)
    twin = randomize(timm.create_model(name), std=0.05).eval()
    model.load_state_dict(twin.state_dict())
    fresh = timm.create_model(name).eval()
    fresh.load_state_dict(to_plain(model).state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(fresh(x), twin(x)) < 1e-4


def test_other_groups_give_the_same_plain_layer():
    """Equal attention on all groups is the whole spectrum, for any grouping, such as the paper authors'."""
    model = Net().eval()
    groups = torch.randint(5, model.conv.fdw.group_index.shape)
    state = model.state_dict() | {"conv.fdw.group_index": groups}
    model.load_state_dict(state)
    assert torch.equal(model.conv.fdw.group_index, groups)
    x = images()
    expected = model(x)["tokens"][0]
    assert relative_error(to_plain(model)(x)["tokens"][0], expected) < 1e-5


def literal_kernel(layer, pooled):
    """Compute the kernel of one image with pooled features (I,), in double precision."""
    state = {key: value.double().numpy() for key, value in layer.state_dict().items()}
    ksm = {key.removeprefix("ksm."): value for key, value in state.items() if key.startswith("ksm.")}
    branch, n, shape = layer.ksm.global_branch, layer.fdw.num_kernels, layer.fdw.kernel_shape
    mods = literal.global_modulators(ksm, pooled, branch.temperature, branch.kernel_temperature, n)
    kernel = literal.disjoint_weight(state["fdw.spectrum"], shape, n, mods["kernel"])
    kernel = kernel * literal.local_modulator(ksm, pooled, shape, layer.groups)
    out_channels, in_channels, height, width = shape
    for o in range(out_channels):
        first = o // (out_channels // layer.groups) * in_channels
        kernel[o] *= mods["filter"][o] * mods["channel"][first : first + in_channels, None, None]
    return kernel if mods["spatial"] is None else kernel * mods["spatial"].reshape(height, width)


def literal_factor(fbm, inputs):
    """Compute <x, fbm(x)> / <x, x> over images (C, H, W), in double precision."""
    weight, bias = (tensor.detach().double().numpy() for tensor in (fbm.attention.weight, fbm.attention.bias))
    energy = passed = 0
    for x in inputs:
        energy += (x * x).sum()
        passed += (x * literal.band_modulation(x, weight, bias, fbm.band_edges)).sum()
    return passed / energy


def moved_model(std):
    """Make a model with random modulators, and two batches; record each layer's inputs and outputs."""
    model = randomize(Net(), std).train()
    batches = [images(3), images(2)]
    seen = {}

    def record(name):
        return lambda _, args, output: seen.setdefault(name, []).append((args[0].double(), output.double()))

    probe = copy.deepcopy(model).eval()
    for name in LAYERS:
        probe.get_submodule(name).register_forward_hook(record(name))
    with torch.no_grad():
        outputs = torch.cat([probe(batch)["tokens"][0].double() for batch in batches])
    seen = {name: tuple(torch.cat(parts) for parts in zip(*pairs, strict=True)) for name, pairs in seen.items()}
    return model, batches, seen, outputs


@pytest.fixture
def moved():
    return moved_model(std=0.5)


def relative_rms(actual, expected):
    return ((actual - expected).square().sum() / expected.square().sum()).sqrt().item()


def test_approximation_is_the_literal_mean(moved):
    model, batches, seen, outputs = moved
    dynamic = copy.deepcopy(model)
    plain, deviation = approximate_plain(model, iter(batches))
    assert plain is model
    assert is_plain(model)
    assert model.training
    assert list(deviation.layers) == list(LAYERS)
    for name in LAYERS:
        layer, inputs = dynamic.get_submodule(name), seen[name][0].numpy()
        if name == "bands":
            kernel = layer.weight.detach().double().numpy()
        else:
            pooled = inputs.mean(1) if name == "mlp" else inputs.mean((2, 3))
            kernel = np.mean([literal_kernel(layer, p) for p in pooled], axis=0)
        if layer.fbm is not None:
            factor = literal_factor(layer.fbm, inputs)
            assert abs(factor - 1) > 0.01  # otherwise the factor is not tested
            kernel = kernel * factor
        weight = model.get_submodule(name).weight
        assert relative_error(weight, torch.from_numpy(kernel).view(weight.shape)) < 1e-5
        with torch.no_grad():
            expected = relative_rms(copy.deepcopy(model.get_submodule(name)).double()(seen[name][0]), seen[name][1])
        assert expected > 0.01
        assert deviation.layers[name] == pytest.approx(expected, rel=1e-3)
    with torch.no_grad():
        actual = torch.cat([model(batch)["tokens"][0].double() for batch in batches])
    assert deviation.output == pytest.approx(relative_rms(actual, outputs), rel=1e-3)


def test_the_division_into_batches_does_not_matter(moved):
    model, batches, *_ = moved
    together, one = approximate_plain(copy.deepcopy(model), torch.cat(batches))
    apart, two = approximate_plain(copy.deepcopy(model), batches)
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(together.parameters(), apart.parameters(), strict=True))
    assert one.output == pytest.approx(two.output, rel=1e-4)


def test_the_approximation_beats_dropping_the_modulators():
    model, batches, seen, _ = moved_model(std=0.2)
    neutral = copy.deepcopy(model)
    for name in ("conv", "point", "mlp"):
        neutral.get_submodule(name)._reset_modulators()
    neutral.bands.fbm.reset_parameters()
    to_plain(neutral)
    _, deviation = approximate_plain(model, batches)
    for name in LAYERS:
        with torch.no_grad():
            dropped = relative_rms(neutral.get_submodule(name).double()(seen[name][0]), seen[name][1])
        assert deviation.layers[name] < dropped


def test_neutral_models_are_approximated_exactly():
    model, x = Net().eval(), images()
    expected = model(x)["tokens"][0]
    exact = to_plain(copy.deepcopy(model))
    _, deviation = approximate_plain(model, x)
    assert max(*deviation.layers.values(), deviation.output) < 1e-6
    assert relative_error(model(x)["tokens"][0], expected) < 1e-5
    assert all(relative_error(a, b) < 1e-6 for a, b in zip(model.parameters(), exact.parameters(), strict=True))


def test_layers_without_ksm_share_one_kernel():
    layer = randomize(FDConv2d(6, 8, 3, num_kernels=4, ksm_global=False, ksm_local=False), std=0.3)
    x = images(5)
    with torch.no_grad():
        kernel = layer.fdw()[0]
        factor = literal_factor(layer.fbm, x.double().numpy())
    plain, deviation = approximate_plain(layer, x)
    assert type(plain) is nn.Conv2d
    assert list(deviation.layers) == [""]
    assert relative_error(plain.weight, kernel * factor) < 1e-5
    assert deviation.layers[""] == deviation.output > 0


def test_the_table_of_deviations(moved):
    model, batches, *_ = moved
    _, deviation = approximate_plain(model, batches)
    lines = str(deviation).splitlines()
    assert lines[0].split() == ["layer", "deviation"]
    assert [line.split()[0] for line in lines[2:-1]] == list(LAYERS)
    assert lines[3].split() == ["bands", f"{deviation.layers['bands']:.1e}"]
    assert lines[-1].split() == ["output", "of", "the", "model", f"{deviation.output:.1e}"]
    assert len({len(line) for line in lines}) == 1


def test_approximating_has_no_side_effects(moved):
    model, batches, *_ = moved
    model.bands.eval()
    buffers = {name: value.clone() for name, value in model.named_buffers() if "num_batches" in name}
    random_state = torch.get_rng_state()
    dynamic = copy.deepcopy(model)
    approximate_plain(model, batches)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert buffers
    assert all(torch.equal(dynamic.get_buffer(name), value) for name, value in buffers.items())
    assert [model.get_submodule(name).training for name in LAYERS] == [True, False, True, True]


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "images is empty"),
        ([(torch.zeros(1, 6, 16, 16), torch.zeros(1))], TypeError, r"A batch is a tuple: .*\(x for x, _ in loader\)"),
        (torch.zeros(2, 5, 16, 16), ValueError, "expected 6 channels"),
    ],
)
def test_wrong_images_leave_the_model_unchanged(moved, batches, error, message):
    model = moved[0]
    layers = dict(model.named_modules())
    with pytest.raises(error, match=message):
        approximate_plain(model, batches)
    assert dict(model.named_modules()) == layers


def test_layers_the_images_do_not_reach(moved):
    model, batches, *_ = moved
    model.unused = FDConv2d(6, 8, 3, num_kernels=4)
    neutral_kernel = model.unused.fdw()[0].detach()
    other = copy.deepcopy(model)
    _, deviation = approximate_plain(model, batches)
    assert "unused" not in deviation.layers
    assert relative_error(model.unused.weight, neutral_kernel) < 1e-6
    randomize(other.unused)
    with pytest.raises(ValueError, match="The images do not reach 'unused', whose modulators are not neutral"):
        approximate_plain(other, batches)
    assert isinstance(other.conv, FDConv2d)


def test_a_trained_model_of_another_library_keeps_its_names():
    model = timm.create_model("test_vit").eval()
    keys = model.state_dict().keys()
    x = torch.randn(2, 3, *model.default_cfg["input_size"][1:])
    randomize(convert_model(model, example=x, num_kernels=4), std=0.02)
    _, deviation = approximate_plain(model, x)
    assert model.state_dict().keys() == keys
    assert 1e-4 < deviation.output < 0.5
