from dataclasses import asdict

import literal
import numpy as np
import pytest
import torch
from conftest import randomize
from torch import nn

from fdconv_zoo import FDConv2d, FDLinear, FrequencyBandModulation, set_path
from fdconv_zoo.analysis import modulator_statistics
from fdconv_zoo.layers import BandModulatedConv2d
from fdconv_zoo.layers import modulator_statistics as module
from fdconv_zoo.layers.modulator_statistics import ModulatorObserver

MODULATORS = ("kernel", "channel", "filter", "spatial", "local", "band")
ABSENT = -1.0
OPTIONS = dict(groups=2, num_kernels=5, temperature=2.0, kernel_temperature=0.5, padding=1)


def numbers(row):
    return [row.distance, row.variation, ABSENT if row.within is None else row.within, row.saturated]


def literal_numbers(values):
    """Of one value list for each image, (E,), or of bands (E, P)."""
    values = np.stack(values)
    distance = np.sqrt(np.mean((values - 1) ** 2))
    saturated = np.mean((values < 1 - np.sqrt(0.9)) | (values > 1 + np.sqrt(0.9)))
    if values.ndim == 2:
        return [distance, np.sqrt(np.mean(values.var(0))), ABSENT, saturated]
    return [distance, np.sqrt(np.mean(values.mean(2).var(0))), np.sqrt(np.mean(values.var(2))), saturated]


def literal_statistics(layer, images):
    """By modulator, from the equations in NumPy."""
    params = {key: value.detach().double().numpy() for key, value in layer.state_dict().items()}
    ksm = {key.removeprefix("ksm."): value for key, value in params.items() if key.startswith("ksm.")}
    found = {name: [] for name in MODULATORS}
    for image in images.double():
        pooled, n = image.mean((1, 2)).numpy(), layer.fdw.num_kernels
        of_image = literal.global_modulators(ksm, pooled, 2.0, 0.5, n)
        of_image["kernel"] = of_image["kernel"] * n
        of_image["local"] = literal.local_modulator(ksm, pooled, layer.fdw.kernel_shape, layer.groups).ravel()
        weight, bias = (torch.from_numpy(params[f"fbm.attention.{name}"]) for name in ("weight", "bias"))
        logits = nn.functional.conv2d(image[None], weight, bias, padding=1)[0]
        of_image["band"] = literal.sigmoid2(logits.flatten(1).numpy())
        for name, values in of_image.items():
            found[name].append(values)
    return {name: literal_numbers(values) for name, values in found.items()}


@pytest.fixture
def layer():
    return randomize(FDConv2d(6, 8, 3, **OPTIONS), std=1.0).eval()


@pytest.fixture
def images():
    return torch.randn(5, 6, 7, 9) + torch.randn(5, 6, 1, 1)


def assert_literal(rows, layer, images):
    assert [row.modulator for row in rows] == list(MODULATORS)
    expected = literal_statistics(layer, images)
    for row in rows:
        assert numbers(row) == pytest.approx(expected[row.modulator], rel=1e-4), row
        assert row.images == len(images)
        assert row.variation > 0.01  # images differ, so the comparison sees it


@pytest.mark.parametrize("path", [None, "plain", "rebuild"])
def test_statistics_are_those_of_the_equations(layer, images, path, monkeypatch):
    monkeypatch.setattr(module, "_ELEMENTS", 2 * 8 * 9 * 3)  # local factors of two images at once
    set_path(layer, path)
    assert_literal(modulator_statistics(layer, images), layer, images)


def test_some_values_of_the_comparison_are_saturated(layer, images):
    shares = [row.saturated for row in modulator_statistics(layer, images)]
    assert 0 < max(shares) < 1


def test_batches_that_follow_each_other_count_as_one(layer, images):
    with torch.no_grad(), ModulatorObserver(layer) as observer:
        for batch in images.split([1, 3, 1]):
            layer(batch)
    assert_literal(observer.statistics(), layer, images)


def test_maps_of_different_sizes_are_averaged_image_by_image():
    band = randomize(FrequencyBandModulation(3))
    images = [torch.randn(1, 3, *size) for size in ((8, 8), (5, 12))]
    with ModulatorObserver(band) as observer:
        for image in images:
            band(image)
    values = [2 * torch.sigmoid(band.attention(image)).detach()[0].flatten(1) for image in images]
    (row,) = observer.statistics()
    means = torch.stack([value.mean(1) for value in values])
    expected = [
        torch.stack([(value - 1).square().mean() for value in values]).mean().sqrt(),
        means.var(0, correction=0).mean().sqrt(),
        torch.stack([value.var(1, correction=0).mean() for value in values]).mean().sqrt(),
        torch.stack([((value - 1).square() > 0.9).double().mean() for value in values]).mean(),
    ]
    assert numbers(row) == pytest.approx([float(number) for number in expected], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fresh_layers_are_exactly_neutral(dtype):
    model = nn.Sequential(
        FDConv2d(6, 7, 3, num_kernels=49, padding=1),  # 49 * (1 / 49) is not 1
        BandModulatedConv2d(7, 4, 3),
        nn.Flatten(2),
        FDLinear(16, 5, num_kernels=3),
    ).to(dtype)
    rows = modulator_statistics(model, torch.randn(3, 6, 6, 6, dtype=dtype))
    assert [(row.layer, row.modulator) for row in rows] == [
        *(("0", name) for name in MODULATORS),
        ("1", "band"),
        *(("3", name) for name in ("kernel", "channel", "filter", "local")),
    ]
    for row in rows:
        assert numbers(row) == [0.0, 0.0, 0.0 if row.modulator == "band" else ABSENT, 0.0]


def test_saturation_counts_values_near_the_ends():
    """A tenth of the gradient at neutral is left at logits of +-3.637."""
    layer = FDConv2d(4, 4, 3, num_kernels=4, padding=1, temperature=2.0)
    with torch.no_grad():
        layer.ksm.global_branch.filter.bias.copy_(torch.tensor([3.63, 3.64, -3.64, 20.0]) * 2)
        layer.fbm.attention.bias.copy_(torch.tensor([-9.0, 0.0, 0.0]))
    rows = {row.modulator: row for row in modulator_statistics(layer, torch.randn(2, 4, 6, 6))}
    assert rows["filter"].saturated == pytest.approx(3 / 4)
    assert rows["band"].saturated == pytest.approx(1 / 3)
    assert rows["channel"].saturated == 0
    assert rows["filter"].variation == 0

    logit = torch.tensor([3.63, 3.64], dtype=torch.float64, requires_grad=True)
    (2 * torch.sigmoid(logit)).sum().backward()
    assert logit.grad[1] < 0.1 * 0.5 < logit.grad[0]  # 0.5 is the slope at 0


def test_the_model_is_left_as_it_was(images):
    model = nn.Sequential(FDConv2d(6, 8, 3), nn.BatchNorm2d(8), FDConv2d(8, 8, 1, num_kernels=4))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modulator_statistics(model, images)
    with pytest.raises(ValueError, match="6"):
        modulator_statistics(model, images[:, :3])
    assert [model[i].training for i in range(3)] == [True, False, True]
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_observing_training_changes_nothing(layer, images):
    def gradients():
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            layer(images).float().square().mean().backward()
        return [parameter.grad for parameter in layer.parameters()]

    layer.train()
    layer.ksm.global_branch.norm.eval()
    alone = gradients()
    with ModulatorObserver(layer) as observer:
        observed = gradients()
    assert all(map(torch.equal, alone, observed))
    # The factors are those of float32 under autocast, too; only the bands' logits are rounded, by autocast.
    expected = literal_statistics(layer, images)
    for row in observer.statistics():
        assert numbers(row) == pytest.approx(expected[row.modulator], rel=0.02 if row.modulator == "band" else 1e-4)


def test_compiled_models_are_seen_through(layer, images):
    expected = modulator_statistics(layer, images)
    compiled = torch.compile(layer, backend="eager")
    with torch.no_grad():
        compiled(images)
    rows = modulator_statistics(compiled, images)
    assert [asdict(row) | {"layer": ""} for row in rows] == [asdict(row) for row in expected]


def test_a_model_without_modulators_is_refused():
    with pytest.raises(ValueError, match="Conv2d has no modulators: give a model with FDConv layers"):
        modulator_statistics(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 2, 2))
