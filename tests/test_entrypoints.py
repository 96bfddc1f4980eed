"""What a user is told: an entrypoint's arguments, wrong arguments, and wrong inputs of a whole model."""

import inspect

import pytest
import timm
import torch
from contract import FAMILIES, assert_same, each_family, every_model, images, small
from torch import nn
from torch.func import functional_call, vmap
from torch.fx import symbolic_trace

from fdconv_zoo.backbones.arguments import OPTIONS
from fdconv_zoo.index.family import all_families, find_family
from fdconv_zoo.layers.replace import LAYER_OPTIONS

BAND_OPTIONS = {"fbm", "band_edges", "band_mask"}
features_too = pytest.mark.parametrize("kwargs", [{}, {"features_only": True}], ids=["model", "features"])


def test_all_options_of_the_layers_are_documented():
    assert set(OPTIONS) == LAYER_OPTIONS


@every_model
def test_an_entrypoint_lists_its_arguments(name):
    doc = inspect.getdoc(timm.model_entrypoint(name))
    first, blank, args = doc.split("\n")[:3]
    assert (first[-1], blank, args) == (".", "", "Args:")
    options = LAYER_OPTIONS if find_family(name).has_bands else LAYER_OPTIONS - BAND_OPTIONS
    for option in {"pretrained", "fdconv_layers", "**kwargs", *options}:
        assert doc.count(f"\n    {option}: ") == 1, option
    assert ("fbm" in doc) is find_family(name).has_bands
    assert all(len(line) <= 110 for line in doc.split("\n"))


def test_families_are_told_apart():
    titles = {name: find_family(name).title for name in timm.list_models("*_fdconv*")}
    assert titles["resnext50_32x4d_fdconv"] == "ResNeXt"
    assert titles["wide_resnet50_2_fdconv"] == "Wide ResNet"
    assert titles["resnet10s_fdconv"] == "ResNet"
    assert titles["vit_tiny_patch16_224_fdconv"] == "Vision Transformer"
    assert titles.get("vit_small_patch16_dinov3_fdconv", "DINOv3") == "DINOv3"
    assert set(titles.values()) >= {family.title for family in all_families()} - {"DINOv3"}
    with pytest.raises(KeyError, match="mobilenet_fdconv"):
        find_family("mobilenet_fdconv")


@each_family
@features_too
@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("num_kernel", "num_kernels"),
        ("drop_path_rat", "drop_path_rate"),
        ("fdconv_layer", "fdconv_layers"),
        ("qwertyuiop", None),
    ],
)
def test_a_wrong_argument_is_named_with_the_nearest(name, kwargs, wrong, near):
    with pytest.raises(TypeError, match=f"'{wrong}'" + (rf"; did you mean {near}\?$" if near else "$")):
        small(name, **{wrong: 1}, **kwargs)


@each_family
@features_too
@pytest.mark.parametrize("option", [dict(fbm=True), dict(band_edges=(0.2, 0.1)), dict(band_mask="exact")], ids=str)
def test_options_of_bands_are_refused_where_there_are_none(name, kwargs, option):
    if find_family(name).has_bands:
        small(name, **option, **kwargs)
        return
    with pytest.raises(TypeError, match=f"does not take {next(iter(option))}: .* linear layers"):
        small(name, **option, **kwargs)


@each_family
def test_any_family_can_be_built_without_bands(name):
    assert not any("fbm" in key for key, _ in small(name, fbm=False).named_parameters())


@each_family
@features_too
def test_a_wrong_input_is_explained(name, kwargs):
    model, x = small(name, **kwargs).eval(), images()
    for wrong, error, message in (
        ((x * 255).byte(), TypeError, "torch.uint8: expected a floating type"),
        (x[0], ValueError, r"\(3, 64, 64\): expected a batch .*x\[None\]"),
        (x[:, :1], ValueError, "expected 3 channels in .*, got 1"),
        (x[:0], ValueError, r"\(0, 3, 64, 64\) is empty"),
    ):
        with pytest.raises(error, match=message):
            model(wrong)
        with pytest.raises(error, match=message):
            model(x=wrong)


def test_other_errors_pass_unchanged():
    with pytest.raises(AssertionError, match="height"):
        small(FAMILIES["swin"])(images(size=(72, 72)))
    model = small(FAMILIES["resnet"])
    model.layer1.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(images())


def test_a_stem_of_ones_own_is_taken():
    model = small(FAMILIES["resnet"]).eval()
    model.conv1 = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 64, 3, padding=1))
    assert model(images()).shape == (2, 11)


@pytest.mark.parametrize("name", [FAMILIES["resnet"], FAMILIES["vit"]], ids=["resnet", "vit"])
def test_transforms_see_timms_model_alone(name):
    """With plain layers: what they do with FDConv's is tested elsewhere."""
    model, x = small(name, fdconv_layers=(), fbm=False).eval(), images()
    nested = nn.Sequential(model)
    with torch.no_grad():
        expected = model(x)
        assert_same(torch.jit.trace(nested, x)(x), expected)
        assert_same(torch.jit.script(model)(x), expected)
        assert_same(torch.compile(nested, fullgraph=True, backend="eager")(x), expected)
        assert_same(torch.export.export(nested, (x,), strict=False).module()(x), expected)
        state = dict(model.named_parameters()) | dict(model.named_buffers())
        assert_same(vmap(lambda image: functional_call(model, state, image[None])[0])(x), expected)
    if name == FAMILIES["resnet"]:
        assert_same(symbolic_trace(nested)(x), expected)
