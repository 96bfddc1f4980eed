"""transformers' wrappers of timm's models, around ours."""

import pytest
import timm
import torch
from conftest import randomize, relative_error
from examples import modulators, open_residual_branches, run_examples
from PIL import Image

from fdconv_zoo import FDConv2d
from fdconv_zoo.store.export import export_model

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

CLASSES = ["cat", "dog", "horse", "ship"]


def test_classifier_from_a_folder(tmp_path, monkeypatch):
    arguments = dict(num_kernels=16)
    model = randomize(timm.create_model("resnet10s_fdconv", num_classes=4, **arguments), std=0.1).eval()
    export_model(model, tmp_path / "folder", class_names=CLASSES, preprocessing={}, model_args=arguments)
    monkeypatch.chdir(tmp_path)
    scope = run_examples("guides/other_libraries.md", "Classification: transformers")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(scope["model"](x).logits, model(x))
    assert scope["logits"].shape == (2, 4)
    assert list(scope["model"].config.id2label.values()) == CLASSES
    assert scope["processor"](Image.new("RGB", (40, 40)))["pixel_values"].shape == (1, 3, 32, 32)


def test_classifier_there_and_back(tmp_path):
    config = transformers.TimmWrapperConfig(
        architecture="resnet10s_fdconv", num_labels=5, model_args=dict(num_kernels=16)
    )
    model = randomize(transformers.TimmWrapperForImageClassification(config), std=0.1).eval()
    x = torch.randn(2, 3, 32, 32)
    loss = model(x, labels=torch.tensor([0, 4])).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in modulators(model).values())
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(again(x).logits, model(x).logits)


def test_backbone_and_mask2former(tmp_path):
    scope = run_examples("guides/other_libraries.md", "Backbones: transformers")
    backbone, model = scope["backbone"], scope["model"]
    assert [feature.shape[1] for feature in scope["feature_maps"]] == backbone.channels == [64, 128, 256, 512]
    assert [feature.shape[-1] for feature in scope["feature_maps"]] == [16, 8, 4, 2]

    assert any(isinstance(layer, FDConv2d) for layer in model.modules())
    assert torch.isfinite(scope["loss"])
    open_residual_branches(model)
    masks = [scope["masks"]] * 2
    model.train()(scope["images"], mask_labels=masks, class_labels=[torch.tensor([0, 2])] * 2).loss.backward()
    gradients = {name: parameter.grad for name, parameter in modulators(model).items()}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert all(g.any() for name, g in gradients.items() if name.endswith(("filter.bias", "attention.bias")))
    assert scope["outputs"].masks_queries_logits.shape == (2, 5, 16, 16)
    assert [tuple(labels.shape) for labels in scope["segmentation"]] == [(64, 64), (64, 64)]
    found = scope["processor"].post_process_instance_segmentation(scope["outputs"], target_sizes=[(64, 64)] * 2)
    assert all(one["segmentation"].shape == (64, 64) for one in found)

    randomize(model, std=0.05).eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(pixel_values=scope["images"]).masks_queries_logits
        assert relative_error(again(pixel_values=scope["images"]).masks_queries_logits, expected) < 1e-5


def test_backbone_takes_plain_weights():
    plain = randomize(timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4)), std=0.1).eval()
    config = transformers.TimmBackboneConfig(backbone="resnet18_fdconv", out_indices=(1, 2, 3, 4))
    backbone = transformers.AutoBackbone.from_config(config).eval()
    backbone._backbone.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for feature, expected in zip(backbone(x).feature_maps, plain(x), strict=True):
            assert relative_error(feature, expected) < 1e-4
