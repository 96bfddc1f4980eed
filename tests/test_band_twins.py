"""Cheap approximations of FBM and the twins with them: what they compute, and that they start as the plain network."""

import numpy as np
import pytest
import timm
import torch
from conftest import randomize, relative_error
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fdconv_zoo import FDConv2d, FrequencyBandModulation
from fdconv_zoo.profiling.band_twins import BAND_TWINS
from fdconv_zoo.profiling.cheap_bands import HalfResolutionBands, PooledBands
from fdconv_zoo.profiling.twins import PLAIN, trained_twin
from fdconv_zoo.store.export import export_model

FORMS = (PooledBands, HalfResolutionBands)


@pytest.mark.parametrize("form", FORMS)
@given(height=st.integers(1, 20), width=st.integers(1, 20))
def test_every_form_is_the_identity_bit_for_bit_while_neutral(form, height, width):
    x = torch.randn(2, 3, height, width)
    assert torch.equal(form(3)(x), x)


def interpolation(size, side):
    """(size, ceil(size / side)): linear between the centres of blocks, constant beyond them."""
    count = -(-size // side)
    place = ((np.arange(size) + 0.5) * count / size - 0.5).clip(0)
    low = np.floor(place).astype(int).clip(max=count - 1)
    matrix = np.zeros((size, count))
    for row, (start, share) in enumerate(zip(low, place - low, strict=True)):
        matrix[row, start] += 1 - share
        matrix[row, min(start + 1, count - 1)] += share
    return matrix


def means(size, side):
    """(ceil(size / side), size): over blocks."""
    matrix = np.zeros((-(-size // side), size))
    for block in range(len(matrix)):
        places = range(block * side, min((block + 1) * side, size))
        matrix[block, list(places)] = 1 / len(places)
    return matrix


def attention_of(fbm, x):
    logits = torch.nn.functional.conv2d(x, fbm.attention.weight, fbm.attention.bias, padding=1)
    return 2 * torch.sigmoid(logits)


@pytest.mark.parametrize("size", [(16, 24), (13, 9)])
def test_pooled_bands_are_between_the_levels_of_a_pyramid(size):
    fbm, x = randomize(PooledBands(3)).double(), torch.randn(2, 3, *size, dtype=torch.float64)
    weights, previous, expected = attention_of(fbm, x), x, 0
    for band, side in enumerate((2, 4, 8)):
        rows, cols = (torch.from_numpy(interpolation(n, side) @ means(n, side)) for n in size)
        low = rows @ x @ cols.T
        expected = expected + weights[:, band : band + 1] * (previous - low)
        previous = low
    assert relative_error(fbm(x), expected + previous) < 1e-12


def test_bands_at_half_resolution_are_exact_bands_of_the_smaller_map():
    fbm, x = randomize(HalfResolutionBands(3)).double(), torch.randn(2, 3, 16, 12, dtype=torch.float64)
    weights = attention_of(fbm, x)
    rows, cols = (torch.from_numpy(means(n, 2)) for n in (16, 12))
    small, small_weights = rows @ x @ cols.T, rows @ weights @ cols.T
    u, v = (np.abs(np.fft.fftfreq(n)) for n in (8, 6))
    lower = 0
    for band, edge in enumerate((1 / 2, 1 / 4 + 2e-8, 1 / 8 + 2e-8)):
        mask = np.maximum(u[:, None], v) < edge
        low = torch.from_numpy(np.fft.ifft2(np.fft.fft2(small.numpy()) * mask).real)
        step = (small_weights[:, band + 1 : band + 2] if band < 2 else 1) - small_weights[:, band : band + 1]
        lower = lower + step * low
    up_rows, up_cols = (torch.from_numpy(interpolation(n, 2)) for n in (16, 12))
    assert relative_error(fbm(x), weights[:, :1] * x + up_rows @ lower @ up_cols.T) < 1e-12


@pytest.mark.parametrize("form", [FrequencyBandModulation, *FORMS])
def test_smooth_maps_lie_in_the_lowest_band_of_every_form_and_noise_does_not(form):
    fbm, wave = randomize(form(3), 0.2), torch.sin(torch.arange(64) * (2 * np.pi / 64))
    smooth, noise = (wave[:, None] * wave).expand(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    assert relative_error(fbm(smooth), smooth) < 0.05
    assert relative_error(fbm(noise), noise) > 0.1


TWINS = {
    **{name: {} for name in BAND_TWINS},
    "resnet10s_stages": dict(fdconv_stages=(2, 3, 4), fbm_stages=(3,)),
    "resnet10s_fdconv": dict(band_mask="learned"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    model = timm.create_model(PLAIN).eval()
    file = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    save_file(model.state_dict(), file)
    return model, {"file": str(file)}


@pytest.mark.parametrize("name", TWINS)
def test_twins_start_as_the_plain_network_and_load_again(name, plain, tmp_path):
    arguments = TWINS[name]
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=plain[1], **arguments).eval()
    x = torch.randn(2, 3, 32, 32)
    assert trained_twin(name) == PLAIN
    assert relative_error(model(x), plain[0](x)) < 1e-5
    randomize(model, 0.05)
    preprocessing = {
        key: model.pretrained_cfg[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")
    }
    export_model(model, tmp_path, class_names=None, preprocessing=preprocessing, model_args=arguments)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **arguments).eval()
    assert torch.equal(again(x), model(x))


def test_stages_are_those_that_are_named():
    model = timm.create_model("resnet10s_stages", fdconv_stages=[2, 4], fbm_stages=[4])
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, FDConv2d)}
    assert {name[:6] for name in layers} == {"layer2", "layer4"}
    assert all((layer.fbm is not None) == name.startswith("layer4") for name, layer in layers.items())
    everything = timm.create_model("resnet10s_stages").state_dict()
    assert everything.keys() == timm.create_model("resnet10s_fdconv").state_dict().keys()


@pytest.mark.parametrize("wrong", [dict(fdconv_stages=3), dict(fbm_stages=(5,)), dict(fdconv_stages="34")])
def test_stages_that_are_not_there_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*: give a tuple of stages"):
        timm.create_model("resnet10s_stages", **wrong)


def test_soft_bands_keep_their_edges():
    model = timm.create_model("resnet10s_fbm_soft")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in model.state_dict() if name.endswith("edge_logits")}
    assert frozen
