"""What is ConvNeXt's own: which layers are FDConv, FBM before the depthwise convolutions, Facebook's checkpoints."""

import re

import pytest
import torch
from contract import FAMILIES, assert_same, images, num_parameters, plain_example, plain_twin, small

from fdconv_zoo import FDConv2d, FDLinear
from fdconv_zoo.layers import BandModulatedConv2d

TINY, ATTO = FAMILIES["convnext"], "convnext_atto_fdconv"
BLOCKS = [f"stages.{stage}.blocks.{block}" for stage, blocks in enumerate((1, 1, 2, 1)) for block in range(blocks)]
DYNAMIC = (FDConv2d, FDLinear, BandModulatedConv2d)


def kinds(model):
    """Name -> class of the layers that are not plain."""
    return {name: type(layer) for name, layer in model.named_modules() if isinstance(layer, DYNAMIC)}


@pytest.mark.parametrize(("name", "pointwise"), [(TINY, FDLinear), (ATTO, FDConv2d)])
def test_pointwise_layers_are_dynamic_and_depthwise_ones_have_bands(name, pointwise):
    kind = {"conv_dw": BandModulatedConv2d, "mlp.fc1": pointwise, "mlp.fc2": pointwise}
    assert kinds(small(name)) == {f"{block}.{layer}": kind[layer] for block in BLOCKS for layer in kind}


def test_band_modulation_can_be_switched_off():
    model = small(TINY, fbm=False)
    assert set(kinds(model)) == {f"{block}.mlp.{layer}" for block in BLOCKS for layer in ("fc1", "fc2")}
    assert not any("fbm" in name for name, _ in model.named_parameters())


def test_fbm_acts_on_the_input_of_the_depthwise_convolution():
    layer = small(TINY).stages[0].blocks[0].conv_dw
    assert layer.fbm.attention.in_channels == layer.in_channels
    layer.fbm.attention.bias.data.normal_()
    x = images(channels=24, size=(16, 16))
    plain = torch.nn.functional.conv2d(layer.fbm(x), layer.weight, layer.bias, padding=3, groups=24)
    assert_same(layer(x), plain)


def test_layers_are_chosen_by_name():
    assert kinds(small(TINY, fdconv_layers=("mlp.fc1",))) == {
        f"{block}.{layer}": kind
        for block in BLOCKS
        for layer, kind in (("mlp.fc1", FDLinear), ("conv_dw", BandModulatedConv2d))
    }
    with pytest.raises(ValueError, match=r"'conv1'.*conv_dw, mlp\.fc1, mlp\.fc2"):
        small(TINY, fdconv_layers=("conv1",))


@pytest.mark.parametrize("fbm", [None, True, False])
def test_depthwise_convolutions_can_be_dynamic(fbm):
    model, plain, x = small(TINY, fdconv_layers=("conv_dw", "mlp.fc1"), fbm=fbm).eval(), plain_example(TINY), images()
    layers = [layer for name, layer in model.named_modules() if name.endswith("conv_dw")]
    assert all(isinstance(layer, FDConv2d) and layer.kernel_size == (7, 7) for layer in layers)
    assert all(layer.groups == layer.in_channels for layer in layers)
    assert all((layer.fbm is None) is (fbm is False) for layer in layers)
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert_same(model(x), plain(x))


def test_no_fdconv_layers_make_the_plain_twin():
    assert num_parameters(small(TINY, fdconv_layers=())) == num_parameters(plain_twin(TINY))


def test_layer_options_reach_the_layers():
    model = small(TINY, num_kernels=8, ksm_local=False, band_edges=(0.3, 0.1))
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert all(block.mlp.fc1.fdw.num_kernels == 8 and block.mlp.fc2.ksm.local_branch is None for block in blocks)
    assert all(block.conv_dw.fbm.band_edges == (0.3, 0.1) for block in blocks)


def to_facebooks_names(model):
    """A plain model's state dict as in the checkpoints that Facebook published."""
    theirs = {}
    for key, value in model.state_dict().items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", key)
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        key = key.replace("head.norm.", "norm.").replace("head.fc.", "head.")
        theirs[key] = value.flatten(1) if "pwconv" in key and value.ndim == 4 else value
    return theirs


@pytest.mark.parametrize("name", [TINY, ATTO])
def test_loads_facebooks_checkpoints(name, tmp_path):
    plain, x = plain_example(name), images()
    theirs = to_facebooks_names(plain)
    assert {"downsample_layers.0.0.weight", "stages.2.1.pwconv1.weight", "norm.bias", "head.weight"} <= set(theirs)
    torch.save({"model": theirs}, tmp_path / "facebook.pth")
    overlay = dict(file=str(tmp_path / "facebook.pth"), num_classes=11)
    model = small(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.no_grad():
        assert_same(model(x), plain(x))
