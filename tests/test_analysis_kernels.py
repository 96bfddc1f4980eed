import numpy as np
import pytest
import torch
from conftest import randomize
from literal import assembled_kernel, disjoint_weight, frequency_groups
from torch import nn

from fdconv_zoo.analysis import kernel_figures as figures
from fdconv_zoo.analysis.kernels import (
    disjoint_kernels,
    group_map,
    kernel_movement,
    kernel_similarity,
    largest_similarity,
    plane_power,
    project_filters,
    spatial_response,
)
from fdconv_zoo.layers import FDConv2d, FDLinear
from fdconv_zoo.profiling.peers import CondConv, ODConv


def make_layer(n=5, **options):
    return randomize(FDConv2d(6, 4, 3, padding=1, num_kernels=n, dtype=torch.float64, **options)).eval()


def literal_kernels(layer):
    n = layer.fdw.num_kernels
    spectrum = layer.fdw.spectrum.detach().double().numpy()
    return np.stack([disjoint_weight(spectrum, layer.fdw.kernel_shape, n, row) for row in np.eye(n) / n])


def mirrored_pairs(layer):
    """The pairs of groups that have the two halves of a sinusoid, by going through the columns of real coefficients."""
    out_channels, in_channels, a, b = layer.fdw.kernel_shape
    rows, cols = out_channels * a, in_channels * b
    groups = frequency_groups(rows, cols, layer.fdw.num_kernels)
    columns = [0, cols // 2] if cols % 2 == 0 else [0]
    pairs = {(groups[r, c], groups[-r % rows, c]) for c in columns for r in range(rows)}
    return {pair for pair in pairs if pair[0] != pair[1]}


@pytest.mark.parametrize("layer", [make_layer(), make_layer(1), make_layer(groups=2)], ids=["n=5", "n=1", "groups"])
def test_disjoint_kernels_are_the_inverse_transforms_of_one_group_each(layer):
    kernels = disjoint_kernels(layer)
    expected = literal_kernels(layer)
    assert kernels.shape == expected.shape
    np.testing.assert_allclose(kernels, expected, atol=1e-14)


def test_disjoint_kernels_add_up_to_the_plain_kernel():
    linear = nn.Linear(12, 20)
    kernels = disjoint_kernels(FDLinear.from_linear(linear, num_kernels=7))
    np.testing.assert_allclose(kernels.sum(0)[..., 0, 0], linear.weight.detach(), atol=1e-6)


def test_the_map_of_groups_is_that_of_sorted_radii():
    np.testing.assert_array_equal(group_map(make_layer()), frequency_groups(12, 18, 5))


@pytest.mark.parametrize("n", [4, 5, 16, 30])
def test_only_kernels_with_two_halves_of_a_sinusoid_are_similar(n):
    layer = make_layer(n)
    similarity = kernel_similarity(disjoint_kernels(layer))
    np.testing.assert_allclose(np.diag(similarity), 1)
    found = {(i, j) for i, j in np.argwhere(np.abs(similarity) > 1e-12) if i != j}
    assert found == mirrored_pairs(layer)


def test_there_are_such_pairs_and_layers_without():
    assert mirrored_pairs(make_layer(30))
    assert not mirrored_pairs(make_layer(4))
    assert largest_similarity(kernel_similarity(disjoint_kernels(make_layer(4)))) < 1e-14


def test_similarity_of_the_kernels_that_other_convolutions_store():
    conv = nn.Conv2d(6, 4, 3, bias=False)
    odconv, condconv = ODConv(conv), CondConv(conv)
    stored = odconv.kernels.weight
    with torch.no_grad():
        stored[1] = -2 * stored[0]
        stored[3] = stored[2] + stored[0]
    similarity = kernel_similarity(stored)
    expected = nn.functional.cosine_similarity(stored.flatten(1)[:, None], stored.flatten(1)[None], dim=2)
    np.testing.assert_allclose(similarity, expected.detach(), atol=1e-6)
    assert similarity[0, 1] == pytest.approx(-1)
    assert largest_similarity(similarity) == pytest.approx(1)
    experts = condconv.conv.weight.view(8, 4, 6, 3, 3)
    assert kernel_similarity(experts).shape == (8, 8)
    assert plane_power(experts)[1].shape == (8, 48)


def test_similarity_of_a_zero_kernel_is_undefined():
    similarity = kernel_similarity(torch.stack((torch.zeros(3), torch.ones(3), torch.ones(3))))
    assert np.isnan(similarity[0]).all()
    assert largest_similarity(similarity) == 1
    assert np.isnan(largest_similarity(similarity[1:2, 1:2]))


@pytest.mark.parametrize("shape", [(3, 4, 6, 3, 3), (2, 5, 7, 1, 1)])
def test_power_on_the_plane_is_that_of_the_whole_transform(shape):
    kernels = np.random.default_rng(0).normal(size=shape)
    edges, power = plane_power(kernels, bins=10)
    np.testing.assert_allclose(power.sum(1), (kernels**2).sum((1, 2, 3, 4)))
    _, out_channels, in_channels, a, b = shape
    rows, cols = out_channels * a, in_channels * b
    expected = np.zeros_like(power)
    for j, kernel in enumerate(kernels):
        spectrum = np.fft.fft2(kernel.transpose(0, 2, 1, 3).reshape(rows, cols))
        for r, u in enumerate(np.fft.fftfreq(rows)):
            for c, v in enumerate(np.fft.fftfreq(cols)):
                place = min(np.searchsorted(edges, np.hypot(u, v), side="right") - 1, 9)
                expected[j, place] += abs(spectrum[r, c]) ** 2 / (rows * cols)
    np.testing.assert_allclose(power, expected, atol=1e-12)


def test_each_kernel_has_power_only_at_the_radii_of_its_group():
    layer = make_layer(6)
    edges, power = plane_power(disjoint_kernels(layer))
    groups = frequency_groups(12, 18, 6)
    radius = np.hypot(np.fft.fftfreq(12)[:, None], np.fft.rfftfreq(18))
    for j, row in enumerate(power):
        own = radius[groups == j]
        occupied = np.flatnonzero(row > 1e-20)
        assert edges[occupied[0]] <= own.min() + 1e-12
        assert edges[occupied[-1] + 1] >= own.max() - 1e-12
        outside = (edges[1:] < own.min() - 1e-12) | (edges[:-1] > own.max() + 1e-12)
        assert row[outside].max(initial=0) < 1e-25


def test_response_to_waves_is_that_of_the_convolution():
    kernels = np.random.default_rng(0).normal(size=(2, 3, 2, 3, 3))
    response = spatial_response(kernels, size=8)
    place = np.arange(8)
    for row, col in [(4, 4), (1, 6), (7, 2)]:
        u, v = (row - 4) / 8, (col - 4) / 8
        wave = torch.from_numpy(np.exp(2j * np.pi * (u * place[:, None] + v * place)))[None, None]
        for kernel, found in zip(kernels, response, strict=True):
            filters = torch.from_numpy(kernel.reshape(6, 1, 3, 3)).to(wave.dtype)
            passed = nn.functional.conv2d(wave, filters).abs()[0, :, 0, 0]
            assert found[row, col] == pytest.approx(passed.square().mean().sqrt().item())


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"ksm_local": False}])
def test_movement_is_the_distance_of_the_assembled_kernels(options):
    layer = make_layer(**options)
    image, other = torch.randn(1, 6, 8, 8).double(), torch.randn(1, 6, 5, 9).double() + 1
    kernels = [assembled_kernel(layer, x[0].mean((1, 2)).numpy()) for x in (image, other)]
    expected = np.linalg.norm(kernels[0] - kernels[1]) / np.linalg.norm((kernels[0] + kernels[1]) / 2)
    model = nn.Sequential(nn.Identity(), layer)
    assert kernel_movement(model, image, other) == {"1": pytest.approx(expected)}
    assert kernel_movement(model, image, image) == {"1": 0}


def test_a_kernel_without_ksm_does_not_move():
    model = nn.Sequential(make_layer(ksm_global=False, ksm_local=False))
    assert kernel_movement(model, torch.randn(1, 6, 8, 8).double(), torch.randn(1, 6, 8, 8).double()) == {"0": 0}


def test_movement_of_tokens_layers():
    layer = randomize(FDLinear(20, 24, num_kernels=4)).eval()
    x, y = torch.randn(1, 9, 20), torch.randn(1, 9, 20)
    kernels = [assembled_kernel(layer, tokens[0].mean(0).double().numpy()) for tokens in (x, y)]
    expected = np.linalg.norm(kernels[0] - kernels[1]) / np.linalg.norm((kernels[0] + kernels[1]) / 2)
    assert kernel_movement(nn.Sequential(layer), x, y) == {"0": pytest.approx(expected, rel=1e-4)}


def test_projections_keep_filters_of_a_kind_together():
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(2, 1, 4, 3, 3)) * 5
    kernels = kinds + 0.01 * rng.normal(size=(2, 10, 4, 3, 3))
    flat = kernels.reshape(20, -1) - kernels.reshape(20, -1).mean(0)
    left, values, _ = np.linalg.svd(flat, full_matrices=False)
    points = project_filters(kernels)
    np.testing.assert_allclose(np.abs(points.reshape(20, 2)), np.abs(left * values)[:, :2], atol=1e-8)
    points = project_filters(kernels, "tsne")
    assert points.shape == (2, 10, 2)
    spread = np.linalg.norm(points - points.mean(1, keepdims=True), axis=2).mean()
    assert np.linalg.norm(points[0].mean(0) - points[1].mean(0)) > 2 * spread


def test_figures_are_drawn():
    layer = make_layer(3)
    kernels = disjoint_kernels(layer)
    drawn = [
        figures.draw_groups(group_map(layer)),
        figures.draw_plane_power(*plane_power(kernels)),
        figures.draw_similarity(kernel_similarity(kernels)),
        figures.draw_spatial_response(spatial_response(kernels)),
        figures.draw_movement({"a$b$": 0.1, "c": 0.0}),
        figures.draw_filters(project_filters(kernels)),
    ]
    for figure in drawn:
        figure.canvas.draw()
    rows = [label.get_text() for label in drawn[4].axes[0].get_yticklabels()]
    assert rows == [r"a\$b\$", "c"]
    image = drawn[0].axes[0].images[0].get_array()
    np.testing.assert_array_equal(np.fft.ifftshift(image, axes=0), frequency_groups(12, 18, 3))
