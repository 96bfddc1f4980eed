"""What is Swin's own: which layers are FDConv, other image and window sizes, Microsoft's checkpoints."""

import re

import pytest
import timm
import torch
from conftest import relative_error
from contract import (
    FAMILIES,
    assert_same,
    images,
    num_parameters,
    plain_example,
    plain_twin,
    save_weights,
    small,
)

from fdconv_zoo import FDConv2d, FDLinear
from fdconv_zoo.layers import BandModulatedConv2d

TINY = FAMILIES["swin"]
BLOCKS = [f"layers.{stage}.blocks.{block}" for stage, blocks in enumerate((2, 1, 2, 1)) for block in range(blocks)]


def dynamic_layers(model):
    return {name for name, m in model.named_modules() if isinstance(m, FDConv2d | FDLinear | BandModulatedConv2d)}


def test_mlps_are_dynamic():
    model = small(TINY)
    assert dynamic_layers(model) == {f"{block}.mlp.{layer}" for block in BLOCKS for layer in ("fc1", "fc2")}
    assert not any("fbm" in name for name, _ in model.named_parameters())


def test_layers_are_chosen_by_name():
    assert dynamic_layers(small(TINY, fdconv_layers=("mlp.fc2",))) == {f"{block}.mlp.fc2" for block in BLOCKS}
    assert num_parameters(small(TINY, fdconv_layers=())) == num_parameters(plain_twin(TINY))
    with pytest.raises(ValueError, match=r"'attn.qkv'.*mlp\.fc1, mlp\.fc2"):
        small(TINY, fdconv_layers=("attn.qkv",))


def test_layer_options_reach_the_layers():
    model = small(TINY, num_kernels=8, ksm_global=False)
    layers = [m for m in model.modules() if isinstance(m, FDLinear)]
    assert all(layer.fdw.num_kernels == 8 and layer.ksm.global_branch is None for layer in layers)


@pytest.mark.parametrize(
    ("short", "tiny"), [("swin_fdconv", TINY), ("convnext_fdconv", FAMILIES["convnext"])], ids=["swin", "convnext"]
)
def test_short_names_are_the_tiny_models(short, tiny):
    tags = {name: [n.partition(".")[2] for n in timm.list_pretrained(f"{name}.*")] for name in (short, tiny)}
    assert tags[short] == tags[tiny] != []
    for tag in ["", *tags[tiny]]:
        cfgs = [timm.get_pretrained_cfg(f"{name}.{tag}".rstrip(".")).to_dict() for name in (short, tiny)]
        assert [cfg.pop("architecture") for cfg in cfgs] == [short, tiny]
        assert cfgs[0] == cfgs[1]
    models = [timm.create_model(name) for name in (short, tiny)]
    assert str(models[0]) == str(models[1])


@pytest.mark.parametrize(
    "sizes",
    [
        dict(img_size=96),
        dict(img_size=(64, 96)),
        dict(window_size=4),
        dict(img_size=128, window_size=8),
        dict(img_size=96, window_size=5, always_partition=True),
    ],
    ids=str,
)
def test_loads_into_other_sizes_as_the_plain_twin(sizes, tmp_path):
    """Relative position tables are interpolated."""
    args = dict(pretrained=True, pretrained_cfg_overlay=save_weights(plain_example(TINY), tmp_path)) | sizes
    model, plain = small(TINY, **args).eval(), plain_twin(TINY, **args).eval()
    height, width = model.patch_embed.img_size
    x = images(size=(height, width))
    with torch.no_grad():
        assert_same(model(x), plain(x))
    if "window_size" in sizes:
        assert model.layers[0].blocks[0].attn.relative_position_bias_table.shape[0] != 13 * 13


def test_input_size_can_be_set(tmp_path):
    overlay = save_weights(plain_example(TINY), tmp_path)
    args = dict(pretrained=True, pretrained_cfg_overlay=overlay)
    model, plain = small(TINY, **args).eval(), plain_twin(TINY, **args).eval()
    x = images(size=(96, 128))
    for net in (model, plain):
        with pytest.raises(AssertionError, match="height"):
            net(x)
        net.set_input_size((96, 128), window_size=(6, 8))
    with torch.no_grad():
        assert_same(model(x), plain(x))


@pytest.mark.parametrize("size", [(72, 88), (60, 52), (128, 64)], ids=str)
def test_free_sizes_as_the_plain_twin(size):
    model, plain, x = small(TINY, strict_img_size=False), plain_twin(TINY, strict_img_size=False), images(size=size)
    for net in (model, plain):
        net.load_state_dict(plain_example(TINY).state_dict())
    assert_same(model.eval()(x), plain.eval()(x))


def to_microsofts_names(model):
    """A plain model's state dict as in the checkpoints that Microsoft published: stages end with their downsampling."""
    theirs = {}
    for key, value in model.state_dict().items():
        key = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
        theirs[key.replace("head.fc.", "head.")] = value
    theirs["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    theirs["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    return theirs


def test_loads_microsofts_checkpoints(tmp_path):
    plain, x = plain_example(TINY), images()
    theirs = to_microsofts_names(plain)
    assert {"layers.0.downsample.reduction.weight", "head.weight"} <= set(theirs)
    torch.save({"model": theirs}, tmp_path / "microsoft.pth")
    overlay = dict(file=str(tmp_path / "microsoft.pth"), num_classes=11)
    model = small(TINY, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.no_grad():
        assert_same(model(x), plain(x))
    assert relative_error(small(TINY).eval()(x), plain(x)) > 0.1
