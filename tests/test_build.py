import json
import re

import pytest
import timm
import torch

import fdconv_zoo  # noqa: F401
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.build import (
    build_model,
    check_forward,
    check_model_name,
    resolve_preprocessing,
    stored_class_names,
)
from fdconv_zoo.store.export import export_model


def export(model, folder, arguments, **preprocessing):
    names = [f"class {number}" for number in range(model.num_classes)]
    resolved = resolve_preprocessing(model, **preprocessing)
    export_model(model, folder, class_names=names, preprocessing=resolved, model_args=arguments)


@pytest.mark.parametrize(
    ("name", "options", "preprocessing"),
    [
        ("resnet10s_fdconv", {"model_kwargs": {"num_kernels": 4, "fbm": False}}, {"img_size": 48}),
        ("resnet10s_fdconv", {"in_chans": 1}, {"in_chans": 1, "crop_pct": 0.9}),
        ("test_vit", {"img_size": 64}, {"img_size": 64, "mean": (0.1, 0.2, 0.3)}),
        ("test_efficientnet", {"regularisation": {"drop_rate": 0.5}}, {}),
    ],
)
def test_an_exported_model_comes_back_the_same(tmp_path, name, options, preprocessing):
    model, arguments = build_model(name, num_classes=3, pretrained=False, **options)
    export(model, tmp_path, arguments, **preprocessing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded, arguments_again = build_model(str(tmp_path))
    size = resolve_preprocessing(loaded)["input_size"]
    x = torch.randn(2, *size)
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    assert loaded.pretrained_cfg["label_names"] == ["class 0", "class 1", "class 2"]
    for key, value in preprocessing.items():
        if key in ("mean", "crop_pct"):
            assert resolve_preprocessing(loaded)[key] == value
    if "img_size" in preprocessing:
        assert size[1:] == (preprocessing["img_size"],) * 2

    # and once more, as when a run starts from the folder of a run
    export(loaded, tmp_path / "again", arguments_again)
    again, _ = build_model(str(tmp_path / "again"))
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_a_run_can_start_from_a_run_with_other_classes(tmp_path):
    model, arguments = build_model("test_resnet", num_classes=3, pretrained=False)
    export(model, tmp_path, arguments)
    started, _ = build_model(f"local-dir:{tmp_path}", num_classes=5)
    assert started.num_classes == 5
    assert torch.equal(started.layer1[0].conv1.weight, model.layer1[0].conv1.weight)


def test_weights_from_a_file(tmp_path):
    model, arguments = build_model("test_resnet", pretrained=False)
    export(model, tmp_path, arguments)
    loaded, _ = build_model("test_resnet", checkpoint=str(tmp_path / "model.safetensors"), num_classes=7)
    assert torch.equal(loaded.layer1[0].conv1.weight, model.layer1[0].conv1.weight)


def test_the_source_models_config_is_left_alone(tmp_path):
    model, arguments = build_model("resnet10s_fdconv", pretrained=False)
    before = dict(model.pretrained_cfg)
    export(model, tmp_path, arguments)
    assert model.pretrained_cfg == before
    stored = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert "hf_hub_id" not in stored
    assert "tag" not in stored


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18_fdcnv", "did you mean resnet18_fdconv"),
        ("zzzzzz", "timm.list_models()"),
        ("resnet18_fdconv.zz", "its tags are a1_in1k"),
        ("local-dir:/no/such", "no such folder"),
        ("runs/mine", "no such folder; for a model on the Hub write hf-hub:runs/mine"),
        (".", "no config.json"),
    ],
)
def test_wrong_model_names_say_what_would_be_right(name, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_model_name(name)


def test_names_that_timm_knows_pass():
    assert check_model_name("resnet50_fdconv.a1_in1k") == "resnet50_fdconv.a1_in1k"
    assert check_model_name("hf-hub:timm/resnet18.a1_in1k") == "hf-hub:timm/resnet18.a1_in1k"


def test_arguments_with_flags_of_their_own_are_refused():
    with pytest.raises(ConfigError, match="in_chans: remove it; it has its own flag"):
        build_model("test_resnet", pretrained=False, model_kwargs={"in_chans": 1})


def test_a_fixed_size_without_a_way_to_change_it_is_named():
    with pytest.raises(ConfigError, match="supports only images of 224x224"):
        build_model("mixer_s32_224", pretrained=False, img_size=64)


def test_grayscale_gets_the_mean_of_the_colour_statistics():
    model = timm.create_model("resnet10s_fdconv", in_chans=1)
    resolved = resolve_preprocessing(model, in_chans=1)
    assert resolved["input_size"] == (1, 32, 32)
    assert resolved["mean"] == pytest.approx((sum((0.485, 0.456, 0.406)) / 3,))
    assert resolve_preprocessing(model, in_chans=3, std=[0.5])["std"] == (0.5, 0.5, 0.5)


def test_test_sizes_are_used_where_asked_for():
    model = timm.create_model("resnet50_fdconv", num_classes=2)
    assert resolve_preprocessing(model)["input_size"] == (3, 224, 224)
    assert resolve_preprocessing(model, use_test_size=True)["input_size"] == (3, 288, 288)


def test_a_size_the_model_cannot_take_is_found_before_training():
    with pytest.raises(ConfigError, match="does not support images of 3x37x37"):
        check_forward(timm.create_model("test_vit"), (3, 37, 37))
    with pytest.raises(ConfigError, match="does not support images of 1x32x32"):
        check_forward(timm.create_model("test_resnet"), (1, 32, 32))


def test_stored_class_names_fit_the_model():
    model = timm.create_model("test_resnet", num_classes=2)
    assert stored_class_names(model, "it") is None
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ("b", "a")}
    assert stored_class_names(model, "it") == ["b", "a"]
    for wrong in (["a"], ["a", "a"], ["a", "b", "c"], "ab", {"a": 0, "b": 1}):
        model.pretrained_cfg = {**model.pretrained_cfg, "label_names": wrong}
        with pytest.raises(ConfigError, match=r"it: the .* label_names in its configuration do not name its 2 classes"):
            stored_class_names(model, "it")
