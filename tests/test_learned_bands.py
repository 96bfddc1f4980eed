"""FBM with learned edges: soft masks against full FFTs, exact while neutral, and right as a part of any model."""

import copy

import literal
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import randomize, relative_error
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.export import Dim, export
from torch.func import functional_call, grad, vmap

from fdconv_zoo import FDConv2d, FrequencyBandModulation, param_groups, script_model, set_path, to_plain
from fdconv_zoo.layers import BandModulatedConv2d
from fdconv_zoo.layers.fbm import BAND_EDGES

EDGES = (0.31, 0.12, 0.05)


def learned(channels=3, edges=EDGES, **factory):
    """With random modulators and edges that have moved."""
    fbm = randomize(FrequencyBandModulation(channels, edges, "learned", **factory))
    with torch.no_grad():
        fbm.edge_logits += torch.tensor([0.3, -0.4, 0.2][: len(edges)])
    return fbm


def soft_bands(fbm, image):
    """What FBM does to an image (C, H, W), by full FFTs with masks over the plane."""
    logits = F.conv2d(torch.from_numpy(image)[None], fbm.attention.weight, fbm.attention.bias, padding=1)
    weights = literal.sigmoid2(logits[0].detach().numpy())
    share = 1 / (1 + np.exp(-fbm.edge_logits.detach().double().numpy()))
    u, v = (np.abs(np.fft.fftfreq(size)) for size in image.shape[1:])
    previous, result = image, 0
    for m in range(len(share)):
        edge = 0.5 * np.prod(share[: m + 1])
        mask = 1 / (1 + (u[:, None] / edge) ** 8) / (1 + (v / edge) ** 8)
        low = np.fft.ifft2(np.fft.fft2(image) * mask).real
        result = result + weights[m] * (previous - low)
        previous = low
    return result + previous


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    edges=st.sampled_from([BAND_EDGES, EDGES, (0.4, 0.2), (0.3,)]),
)
def test_soft_bands_match_full_ffts_and_masks_at_every_size(height, width, edges):
    fbm = learned(edges=edges, dtype=torch.float64)
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    for image, result in zip(x.numpy(), fbm(x).detach().numpy(), strict=True):
        np.testing.assert_allclose(result, soft_bands(fbm, image), atol=1e-11)


def test_edges_start_at_the_fixed_ones_and_fall_wherever_they_move():
    fbm = FrequencyBandModulation(3, EDGES, "learned")
    assert fbm.edges() == pytest.approx(EDGES, abs=1e-7)
    assert FrequencyBandModulation(3, EDGES).edges() == EDGES
    with torch.no_grad():
        fbm.edge_logits.copy_(torch.tensor([8.0, -9.0, 12.0]))
    edges = fbm.edges()
    assert 0.5 > edges[0] > edges[1] > edges[2] > 0
    assert torch.isfinite(fbm(torch.randn(1, 3, 9, 8))).all()


def test_neutral_modulation_is_the_identity_bit_for_bit_wherever_the_edges_are():
    fbm = FrequencyBandModulation(5, EDGES, "learned")
    nn.init.normal_(fbm.edge_logits)
    x = torch.randn(2, 5, 13, 9)
    assert torch.equal(fbm(x), x)


def test_gradients_of_first_and_second_order():
    fbm = learned(2, (0.3, 0.1), dtype=torch.float64)
    names, parameters = zip(*fbm.named_parameters(), strict=True)
    assert "edge_logits" in names

    def function(x, *values):
        return functional_call(fbm, dict(zip(names, values, strict=True)), (x,))

    inputs = (torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True), *parameters)
    assert gradcheck(function, inputs, check_forward_ad=True)
    assert gradgradcheck(function, inputs)


def test_transforms_of_torch_func():
    fbm = learned(2, dtype=torch.float64)
    parameters, x = dict(fbm.named_parameters()), torch.randn(3, 2, 6, 5, dtype=torch.float64)

    def loss(parameters, image):
        return functional_call(fbm, parameters, (image[None],)).square().sum()

    each = vmap(grad(loss), (None, 0))(parameters, x)
    for image, gradient in zip(x, each["edge_logits"], strict=True):
        assert torch.allclose(gradient, grad(loss)(parameters, image)["edge_logits"])


def test_edges_can_be_learned():
    target, fbm = learned(4), FrequencyBandModulation(4, EDGES, "learned")
    fbm.attention.load_state_dict(target.attention.state_dict())
    x = torch.randn(8, 4, 24, 24)
    before = np.abs(np.log(fbm.edges()) - np.log(target.edges()))
    optimizer = torch.optim.Adam([fbm.edge_logits], lr=0.03)
    for _ in range(40):
        optimizer.zero_grad()
        (fbm(x) - target(x).detach()).square().mean().backward()
        optimizer.step()
    assert (np.abs(np.log(fbm.edges()) - np.log(target.edges())) < before / 4).all()


@pytest.mark.parametrize("path", ["plain", "rebuild", "native", "triton"])
def test_every_path_falls_back_to_the_same_operations(path):
    fbm, x = learned(), torch.randn(2, 3, 21, 17)
    expected = fbm(x)
    set_path(fbm, path)
    assert torch.equal(fbm(x), expected)
    assert "band_mask='learned', path='plain'" in repr(fbm)


LAYERS = {
    "FDConv": (lambda **kwargs: FDConv2d(6, 8, 3, num_kernels=4, band_mask="learned", **kwargs), nn.Conv2d(6, 8, 3)),
    "bands": (
        lambda **kwargs: BandModulatedConv2d(6, 6, 3, groups=6, band_mask="learned", **kwargs),
        nn.Conv2d(6, 6, 3, groups=6),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_plain_weights_load_as_the_same_function(kind, device):
    build, plain = LAYERS[kind]
    layer = build(device=device)
    if device == "cpu":
        nn.init.normal_(layer.fbm.edge_logits)  # they go back to where they start
    layer.load_state_dict(plain.state_dict(), assign=device == "meta")
    assert layer.fbm.edges() == pytest.approx(BAND_EDGES, abs=1e-7)
    x = torch.randn(2, 6, 9, 8)
    assert relative_error(layer(x), plain(x)) < 1e-6


@pytest.mark.parametrize("kind", LAYERS)
def test_converted_layers_go_back_to_plain_ones_wherever_their_edges_are(kind):
    build, plain = LAYERS[kind]
    layer = type(build()).from_conv(plain, band_mask="learned", **({"num_kernels": 4} if kind == "FDConv" else {}))
    nn.init.normal_(layer.fbm.edge_logits)
    back = to_plain(nn.Sequential(layer))[0]
    assert type(back) is nn.Conv2d
    assert relative_error(back.weight, plain.weight) < 1e-6


def test_state_dict_and_copies_have_the_edges():
    fbm, x = learned(), torch.randn(1, 3, 9, 8)
    other = FrequencyBandModulation(3, band_mask="learned")
    other.load_state_dict(fbm.state_dict())
    assert torch.equal(other(x), fbm(x))
    assert torch.equal(copy.deepcopy(fbm)(x), fbm(x))
    assert "edge_logits" not in FrequencyBandModulation(3).state_dict()
    with pytest.raises(RuntimeError, match="edge_logits"):  # of fixed edges: another function
        other.load_state_dict(FrequencyBandModulation(3).state_dict())


def test_edges_learn_at_the_plain_rate_without_weight_decay():
    fbm = nn.Sequential(FDConv2d(6, 8, 3, num_kernels=4, band_mask="learned"))

    def group_of_edges(**rates):
        groups = param_groups(fbm, 0.01, 0.05, **rates)
        (found,) = [group for group in groups if any(p is fbm[0].fbm.edge_logits for p in group["params"])]
        return found["lr"], found["weight_decay"]

    assert group_of_edges() == (0.01, 0.0)
    assert group_of_edges(modulator_lr=0.1) == (pytest.approx(0.001), 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    fbm, x = learned(), torch.randn(2, 3, 16, 12)
    expected = fbm(x)
    with torch.autocast("cpu", dtype):
        y = fbm(x)
    assert y.dtype == torch.float32
    assert relative_error(y, expected) < 0.02
    half = copy.deepcopy(fbm).to(dtype)
    y = half(x.to(dtype))
    assert y.dtype == dtype
    assert relative_error(y.float(), expected) < 0.02


@pytest.fixture(scope="module")
def layer():
    return randomize(BandModulatedConv2d(4, 6, 3, padding=1, band_mask="learned")).eval()


def test_programs_take_any_size(layer):
    free = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    program = export(layer, (torch.randn(2, 4, 12, 14),), dynamic_shapes=free, strict=False).module()
    scripted = script_model(layer)
    for shape in ((3, 4, 17, 9), (1, 4, 8, 11)):
        x = torch.randn(shape)
        for other in (program, scripted):
            assert relative_error(other(x), layer(x)) < 1e-5


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_of_any_size(layer, tmp_path, dynamo):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    onnxruntime = pytest.importorskip("onnxruntime")
    axes = {0: "batch", 2: "height", 3: "width"}
    free = dict(dynamic_shapes=(axes,)) if dynamo else dict(dynamic_axes={"x": axes})
    file = str(tmp_path / "layer.onnx")
    torch.onnx.export(
        layer, (torch.randn(2, 4, 12, 14),), file, dynamo=dynamo, input_names=["x"], verbose=False, **free
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for shape in ((2, 4, 12, 14), (3, 4, 17, 9)):
        x = torch.randn(shape)
        assert relative_error(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), layer(x)) < 1e-5


def test_an_edge_at_the_nyquist_frequency_cannot_be_learned():
    with pytest.raises(ValueError, match=r"0\.5.*start below 0\.5"):
        FrequencyBandModulation(3, (0.5, 0.2), "learned")
