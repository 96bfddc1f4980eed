import pytest
import timm
import torch

import fdconv_zoo  # noqa: F401
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.training.tuning import freeze, train_mode


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_modulators_trains_them_and_the_head():
    model = timm.create_model("resnet10s_fdconv")
    freeze(model, "modulators")
    names = trained_names(model)
    assert {"fc.weight", "fc.bias"} <= names
    assert names == {n for n, _ in model.named_parameters() if n.startswith("fc.") or ".ksm." in n or ".fbm." in n}
    assert any(".ksm." in name for name in names)
    assert any(".fbm." in name for name in names)


def test_head_trains_the_classifier_only():
    model = timm.create_model("test_resnet")
    freeze(model, "head")
    assert trained_names(model) == {"fc.weight", "fc.bias"}


def test_both_heads_of_a_distilled_model_are_trained():
    model = timm.create_model("deit_tiny_distilled_patch16_224", depth=1)
    freeze(model, "head")
    assert trained_names(model) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_all_leaves_everything_trained():
    model = timm.create_model("resnet10s_fdconv")
    freeze(model, "all")
    train_mode(model)
    assert trained_names(model) == {name for name, _ in model.named_parameters()}
    assert all(module.training for module in model.modules())


def test_frozen_statistics_stay_and_trained_ones_move():
    model = timm.create_model("resnet10s_fdconv")
    freeze(model, "modulators")
    train_mode(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(4, 3, 32, 32))
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved
    assert all(".ksm." in name for name in moved)


def test_modulators_without_fdconv_layers_is_an_error():
    with pytest.raises(ConfigError, match="needs a model with FDConv layers"):
        freeze(timm.create_model("test_resnet"), "modulators")


def test_head_without_a_classifier_is_an_error():
    with pytest.raises(ConfigError, match="no parameters to train"):
        freeze(timm.create_model("test_resnet", num_classes=0), "head")
