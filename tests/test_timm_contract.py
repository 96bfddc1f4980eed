"""What timm promises of every model, for every entrypoint: names, configurations, head, features.

As timm's own tests/test_models.py, but against the plain twin or a second way to the same tensors where there is one.
"""

import copy
import math

import pytest
import timm
import torch
from contract import (
    FAMILIES,
    NAMES,
    SIZE,
    assert_same,
    each_family,
    every_model,
    example,
    family,
    images,
    num_parameters,
    plain_example,
    plain_name,
    plain_twin,
    save_weights,
    small,
)
from timm.models import safe_model_name
from torch import nn


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def channels_first(name: str, features: torch.Tensor) -> torch.Tensor:
    """Features (B, C, H, W) of square images; of a ViT's tokens those of patches."""
    if features.ndim == 3:
        patches = features[:, 5 if "dinov3" in name else 1 :].transpose(1, 2)
        side = math.isqrt(patches.shape[2])
        return patches.unflatten(2, (side, side))
    return features.permute(0, 3, 1, 2) if family(name) == "swin" else features


@every_model
def test_names_are_free_and_safe(name):
    assert not hasattr(timm.models, name)  # where timm has the entrypoints of its own models
    assert safe_model_name(name) == name
    assert timm.is_model(name)
    assert name == "resnet10s_fdconv" or timm.is_model(plain_name(name))


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@every_model
def test_full_size_on_the_meta_device(name):
    try:
        with torch.device("meta"):
            plain = plain_twin(name, full_size=True)
    except NotImplementedError:
        pytest.skip("this timm cannot build the plain model without memory")
    with torch.device("meta"):
        model, twin = timm.create_model(name).eval(), timm.create_model(name, fdconv_layers=())
        x = torch.empty(2, *model.pretrained_cfg["input_size"])
    assert shapes(twin) == shapes(plain)
    assert model.feature_info == plain.feature_info
    assert num_parameters(plain) < num_parameters(model) < 1.4 * num_parameters(plain)
    features = model.forward_features(x)
    assert model.forward_head(features).shape == (2, model.pretrained_cfg["num_classes"] or model.num_features)
    features = channels_first(name, features)
    # ViTs have no pool_size in their configurations: 16 pixels a patch.
    pool_size = model.pretrained_cfg["pool_size"] or [length // 16 for length in x.shape[2:]]
    assert features.shape == (2, model.num_features, *pool_size)


@every_model
def test_configuration_fits_the_model(name):
    model = small(name)
    cfg = model.pretrained_cfg
    assert model.default_cfg is cfg
    assert cfg["architecture"] == name
    assert model.get_submodule(cfg["first_conv"]).in_channels == cfg["input_size"][0] == 3
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.get_classifier().out_features == model.num_classes == 11
    assert len(cfg["mean"]) == len(cfg["std"]) == 3


@every_model
def test_preprocessing_is_the_plain_twins(name):
    if name == "resnet10s_fdconv":
        pytest.skip("timm has no such model")
    ours, plain = example(name), plain_example(name)
    for use_test_size in (False, True):
        config = timm.data.resolve_model_data_config(ours, use_test_size=use_test_size)
        assert config == timm.data.resolve_model_data_config(plain, use_test_size=use_test_size)
    x = (torch.rand(3, 300, 260) * 255).byte()
    image = timm.data.transforms_factory.transforms.ToPILImage()(x)
    transforms = [timm.data.create_transform(**timm.data.resolve_model_data_config(m)) for m in (ours, plain)]
    assert torch.equal(transforms[0](image), transforms[1](image))


@every_model
def test_features_and_head_make_up_the_forward_pass(name):
    model, x = example(name), images()
    logits, features = model(x), model.forward_features(x)
    assert features.shape == plain_example(name).forward_features(x).shape
    assert channels_first(name, features).shape[1] == model.num_features == model.feature_info[-1]["num_chs"]
    assert_same(model.forward_head(features), logits)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert_same(model.get_classifier()(pooled), logits)
    # Each image has kernels of its own, whatever stands beside it.
    assert_same(model(x[:1]), logits[:1])


@every_model
def test_classifier_can_be_reset(name):
    model, plain, x = copy.deepcopy(example(name)), copy.deepcopy(plain_example(name)), images()
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)

    model.reset_classifier(7)
    assert model.num_classes == model.get_classifier().out_features == 7
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert_same(model(x), pooled)

    for pool in ("max", "avgmax", ""):
        for m in (model, plain):
            m.reset_classifier(5, pool) if pool else m.reset_classifier(0, "")
        assert model(x).shape == plain(x).shape
        assert model.head_hidden_size == plain.head_hidden_size
    assert channels_first(name, model(x)).shape[1:] == channels_first(name, features).shape[1:]

    headless = small(name, num_classes=0)
    assert isinstance(headless.get_classifier(), nn.Identity)
    assert headless(x).shape == (2, headless.num_features)


def levels(model, intermediates):
    """The intermediates that feature_info counts; older versions of timm have ConvNeXt's stem before them."""
    return intermediates[-len(model.feature_info) :]


@every_model
def test_intermediates(name):
    model, x = example(name), images()
    final, intermediates = model.forward_intermediates(x)
    features = model.forward_features(x)
    assert_same(final, features)
    plain = plain_example(name).forward_intermediates(x, intermediates_only=True)
    assert [f.shape for f in intermediates] == [f.shape for f in plain]
    assert [f.shape[1] for f in levels(model, intermediates)] == [info["num_chs"] for info in model.feature_info]

    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    assert_same(normed[-1], channels_first(name, features))
    last = len(intermediates) - 1
    for indices, expected in ((2, [last - 1, last]), ([0, 2], [0, 2]), ([-2], [last - 1])):
        for stop_early in (False, True):
            some = model.forward_intermediates(x, indices, stop_early=stop_early, intermediates_only=True)
            assert len(some) == len(expected)
            for actual, place in zip(some, expected, strict=True):
                assert_same(actual, intermediates[place])
    with pytest.raises(AssertionError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="CHWN")


@every_model
@pytest.mark.parametrize("indices", [1, [0, 2]], ids=["last", "middle"])
def test_pruned_models_keep_the_intermediates(name, indices):
    model, x = example(name), images()
    pruned, plain = copy.deepcopy(model), copy.deepcopy(plain_example(name))
    kept = pruned.prune_intermediate_layers(indices)
    assert kept == plain.prune_intermediate_layers(indices)
    assert isinstance(pruned.get_classifier(), nn.Identity)
    assert {key for key, _ in pruned.named_children()} == {key for key, _ in plain.named_children()}
    assert num_parameters(pruned) < num_parameters(model)
    expected = model.forward_intermediates(x, indices, intermediates_only=True)
    actual = pruned.forward_intermediates(x, kept, stop_early=True, intermediates_only=True)
    for a, e in zip(actual, expected, strict=True):
        assert_same(a, e)


@every_model
@pytest.mark.parametrize("out_indices", [None, (0, 2), (-3, -1)], ids=str)
def test_features_only(name, out_indices, tmp_path):
    model, x = example(name), images()
    args = dict(features_only=True) | (dict(out_indices=out_indices) if out_indices else {})
    overlay = save_weights(model, tmp_path)
    backbone = small(name, pretrained=True, pretrained_cfg_overlay=overlay, **args).eval()
    info, plain = backbone.feature_info, plain_twin(name, **args).feature_info
    if name != "resnet10s_fdconv":
        assert info.reduction() == plain.reduction()
    assert info.channels() == plain.channels()

    features = [channels_first(name, f) for f in backbone(x)]
    expected = levels(model, model.forward_intermediates(x, intermediates_only=True))
    for actual, place in zip(features, out_indices or range(len(expected)), strict=True):
        assert_same(actual, expected[place])
    assert [f.shape[1] for f in features] == info.channels()
    assert [SIZE // f.shape[2] for f in features] == info.reduction()


@every_model
@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_dilates_as_the_plain_twin(name, output_stride):
    if family(name) in ("swin", "vit"):
        pytest.skip("neither Swin nor ViT has an output stride in timm")
    plain = plain_twin(name, output_stride=output_stride)
    plain.load_state_dict(plain_example(name).state_dict())
    model, x = small(name, output_stride=output_stride), images()
    model.load_state_dict(plain.state_dict())
    assert_same(model.eval()(x), plain.eval()(x))
    assert model.forward_features(x).shape[2] == SIZE // model.feature_info[-1]["reduction"]
    if name != "resnet10s_fdconv":  # its stem has half the stride
        assert model.feature_info[-1]["reduction"] == output_stride


@each_family
@pytest.mark.parametrize("size", [(65, 97), (33, 64), (40, 32)], ids=str)
def test_other_image_sizes_as_the_plain_twin(name, size):
    if family(name) in ("swin", "vit"):
        pytest.skip("built for one size; tests/test_swin.py and tests/test_vit.py have others")
    plain, model, x = plain_example(name), small(name), images(size=size)
    model.load_state_dict(plain.state_dict())
    assert_same(model.eval()(x), plain(x))
    assert example(name).forward_features(x).shape == plain.forward_features(x).shape


def test_every_family_is_tested():
    assert {family(name) for name in NAMES} == set(FAMILIES)
