import numpy as np
import pytest
import torch
from conftest import randomize
from literal import band_modulation, low_pass, sigmoid2
from scipy import ndimage, stats
from torch import nn
from torch.nn import functional as F

from fdconv_zoo.analysis.maps import (
    band_names,
    draw_maps,
    edge_correlations,
    gradient_energy,
    mean_correlations,
    modulation_maps,
)
from fdconv_zoo.analysis.observe import find_band_modulations, find_dynamic_layers, observe
from fdconv_zoo.analysis.spectra import band_spectra, draw_spectrum, radial_power
from fdconv_zoo.layers import BandModulatedConv2d, FDConv2d, FrequencyBandModulation


@pytest.fixture
def model():
    layers = [FDConv2d(3, 20, 3, stride=2, padding=1), nn.ReLU(), BandModulatedConv2d(20, 4, 3)]
    model = nn.Sequential(*layers, FDConv2d(4, 5, 1, num_kernels=3))
    return randomize(model).train()


def test_finds_layers_by_name(model):
    assert [*find_dynamic_layers(model)] == ["0", "3"]
    assert find_band_modulations(model) == {"0": model[0].fbm, "2": model[2].fbm}
    assert [*find_band_modulations(model[0])] == [""]
    assert [*find_band_modulations(nn.Sequential(model[0].fbm))] == ["0"]


def test_maps_are_the_factors_of_the_bands(model):
    images = torch.randn(2, 3, 16, 12)
    found = modulation_maps(model, images)
    assert all(module.training for module in model.modules())
    model.eval()
    inputs = {"0": images, "2": model[:2](images)}
    for name, x in inputs.items():
        attention = model[int(name)].fbm.attention
        logits = F.conv2d(x.double(), attention.weight.double(), attention.bias.double(), padding=1)
        np.testing.assert_allclose(found[name], sigmoid2(logits.detach().numpy()), rtol=1e-4)
    assert found["2"].shape == (2, 3, 8, 6)
    only = modulation_maps(model, images, layers=["2"])
    assert [*only] == ["2"]
    np.testing.assert_array_equal(only["2"], found["2"])


def test_a_model_is_left_as_it_was_even_if_it_fails(model):
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modulation_maps(model, torch.randn(2, 3, 16, 12))
    with pytest.raises(ValueError, match="channels"):
        modulation_maps(model, torch.randn(2, 4, 16, 12))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_of_several_calls_the_first_is_recorded_and_modules_that_are_not_called_are_left_out():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(self.used(x))

    model, x = Twice(), torch.randn(1, 2)
    seen = observe(model, x, [model.used, model.unused])
    assert [*seen] == [model.used]
    assert torch.equal(seen[model.used][0], x)


def test_bands_are_named_by_their_edges():
    fbm = FrequencyBandModulation(2)
    assert band_names(fbm.band_edges) == ["0.25 to 0.5", "0.125 to 0.25", "0.0625 to 0.125"]


def test_gradient_energy_is_that_of_sobel():
    images = torch.rand(2, 3, 12, 16)
    expected = np.zeros((2, 12, 16))
    for image, channel in np.ndindex(2, 3):
        plane = images[image, channel].double().numpy()
        expected[image] += sum((ndimage.sobel(plane, axis, mode="nearest") / 8) ** 2 for axis in (0, 1))
    np.testing.assert_allclose(gradient_energy(images), expected, rtol=1e-4, atol=1e-7)
    blocks = expected.reshape(2, 3, 4, 4, 4).mean((2, 4))
    np.testing.assert_allclose(gradient_energy(images, (3, 4)), blocks, rtol=1e-4, atol=1e-7)


def test_a_ramp_has_the_gradient_of_its_slope():
    ramp = 3 * torch.arange(10.0).expand(1, 1, 10, 10)
    np.testing.assert_allclose(gradient_energy(ramp)[0, :, 1:-1], 9)


def test_correlation_tells_maps_that_follow_edges_from_those_that_avoid_them():
    images = torch.zeros(2, 1, 32, 32)
    images[0, 0, 8:24, 8:24] = 1
    images[1] = torch.rand(1, 32, 32)
    energy = gradient_energy(images, (8, 8))
    rng = np.random.default_rng(0)
    maps = np.stack((energy**0.3, 2 - energy, np.ones_like(energy), rng.uniform(0, 2, energy.shape)), axis=1)
    found = edge_correlations(maps, images)
    np.testing.assert_allclose(found[:, 0], 1)
    np.testing.assert_allclose(found[:, 1], -1)
    assert np.isnan(found[:, 2]).all()
    for image in range(2):
        ranks = [stats.rankdata(values[image].ravel()) for values in (maps[:, 3], energy)]
        assert found[image, 3] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert np.isnan(edge_correlations(maps, torch.ones(2, 1, 32, 32))).all()


def test_undefined_correlations_are_left_out_of_the_mean():
    nan = float("nan")
    found = mean_correlations({"a": [np.array([[1, nan, nan]]), np.array([[0, 0.5, nan], [0.5, 0.1, nan]])]})
    np.testing.assert_allclose(found["a"], [0.5, 0.3, nan])


@pytest.mark.parametrize("size", [(12, 12), (9, 9), (8, 14)])
def test_power_of_a_wave_is_at_its_frequency(size):
    height, width = size
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    wave = torch.cos(2 * torch.pi * (rows / height + 2 * cols / width + 0.1))
    frequencies, power = radial_power(torch.stack((wave, 3 * wave)).expand(2, 2, height, width))
    expected = round(max(1 / height, 2 / width) * min(size)) / min(size)
    assert frequencies[power[0].argmax()] == pytest.approx(expected)
    assert np.delete(power[0], power[0].argmax()).max() < 1e-10
    np.testing.assert_array_equal(power[0], power[1])
    assert frequencies[0] == 0
    assert frequencies[-1] <= 0.5


def test_power_over_all_frequencies_is_that_of_the_map():
    x = torch.randn(2, 5, 10, 10)
    frequencies, power = radial_power(x)
    np.testing.assert_allclose(frequencies, np.arange(6) / 10)
    counts = [1, 8, 16, 24, 32, 19]  # rings of a square of 10 x 10; the last has one side only
    np.testing.assert_allclose((power * counts).sum(1), x.double().square().sum((2, 3)).mean(1), rtol=1e-6)


def test_spectra_are_those_before_and_after_fbm(model):
    images = torch.randn(2, 3, 16, 16)
    found = band_spectra(model, images)
    attention = model[0].fbm.attention
    x = images.double().numpy()
    weight, bias = (value.detach().double().numpy() for value in (attention.weight, attention.bias))
    after = np.stack([band_modulation(image, weight, bias, model[0].fbm.band_edges) for image in x])
    np.testing.assert_allclose(found["0"].before, radial_power(torch.from_numpy(x))[1], rtol=1e-5)
    np.testing.assert_allclose(found["0"].after, radial_power(torch.from_numpy(after))[1], rtol=1e-4)
    assert found["0"].band_edges == model[0].fbm.band_edges
    assert [*band_spectra(model, images, layers=["2"])] == ["2"]


def test_a_band_with_a_factor_of_its_own_is_seen_between_its_edges():
    fbm = FrequencyBandModulation(1, band_edges=(0.25, 0.125))
    nn.init.constant_(fbm.attention.bias, -40)  # both bands are removed
    fbm.attention.bias.data[0] = np.log(3)  # and the upper one is weighed by 1.5
    x = torch.randn(1, 1, 32, 32)
    spectrum = band_spectra(nn.Sequential(fbm), x)["0"]
    gain = spectrum.after[0] / spectrum.before[0]
    expected = np.where(spectrum.frequencies >= 0.25, 1.5**2, np.where(spectrum.frequencies >= 0.125, 0, 1))
    np.testing.assert_allclose(gain, expected, rtol=1e-3, atol=1e-3)
    assert np.ptp(low_pass(x[0].double().numpy(), 0.125)) > 0


def test_figures_show_image_maps_and_edges_of_bands(model):
    images = torch.randn(1, 3, 16, 16)
    maps = modulation_maps(model, images)["0"]
    names = band_names(model[0].fbm.band_edges)
    figure = draw_maps(np.random.default_rng(0).random((16, 16, 3)), maps[0], names, [0.5, float("nan"), -0.25])
    figure.canvas.draw()
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["image", "0.25 to 0.5\nedges +0.50", "0.125 to 0.25", "0.0625 to 0.125\nedges -0.25"]
    for axes, values in zip(figure.axes[1:4], maps[0], strict=True):
        picture = axes.images[0]
        np.testing.assert_array_equal(picture.get_array(), values)
        assert picture.get_extent() == figure.axes[0].images[0].get_extent()  # at the size of the image
        low, high = picture.get_clim()
        assert low + high == pytest.approx(2)  # 1 is the neutral colour
    spectrum = draw_spectrum(band_spectra(model, images)["0"])
    spectrum.canvas.draw()
    dashed = [line for line in spectrum.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == pytest.approx([0.25, 0.125, 0.0625])
