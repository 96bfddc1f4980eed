"""Pretrained weights of every entrypoint: the tags, and loading what timm publishes. No test needs a network."""

import hashlib
import inspect
import re

import pytest
import timm
import torch
from contract import (
    NAMES,
    SMALL,
    assert_same,
    each_family,
    every_model,
    example,
    family,
    images,
    plain_example,
    plain_name,
    plain_twin,
    save_weights,
    small,
)
from timm.models import _hub, load_checkpoint, load_state_dict
from timm.models._hub import save_for_hf
from torch import nn

from fdconv_zoo.data import SAMPLE, ImageDataset, load_image_data

SHIPPED = "resnet10s_fdconv.fashion_mnist"
TAGGED = [name for name in timm.list_pretrained("*_fdconv*") if name != SHIPPED]
PRETRAINED = [name for name in NAMES if name != "resnet10s_fdconv"]


def test_every_model_of_timms_has_weights():
    assert {name.partition(".")[0] for name in TAGGED} == set(PRETRAINED)
    assert all(timm.is_model_pretrained(name) for name in PRETRAINED)
    assert timm.get_pretrained_cfg("resnet10s_fdconv").tag == "fashion_mnist"


def test_the_shipped_weights_classify(hub):
    with hub.offline():
        model = timm.create_model("resnet10s_fdconv", pretrained=True).eval()
    assert not hub.requests
    data = load_image_data(SAMPLE, split="validation", limit=200)
    dataset = ImageDataset(data.validation, timm.data.create_transform(**timm.data.resolve_model_data_config(model)))
    images, labels = torch.utils.data.default_collate([dataset[index] for index in range(len(dataset))])
    with torch.inference_mode():
        right = (model(images).argmax(1) == labels).float().mean()
    assert right > 0.9  # 93.81 % of all test images, from which these are
    assert list(model.pretrained_cfg["label_names"]) == data.class_names


def test_the_shipped_weights_start_models_of_other_shapes(tmp_path):
    model = timm.create_model(SHIPPED, pretrained=True)
    other = timm.create_model(
        SHIPPED, pretrained=True, num_classes=3, in_chans=1, fdconv_layers=("conv2",), stem_pool=True
    )
    for name in ("layer1.0.bn1.weight", "layer1.0.conv2.fdw.spectrum"):
        assert torch.equal(other.state_dict()[name], model.state_dict()[name]), name
    assert other(torch.rand(2, 1, 64, 64)).shape == (2, 3)
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert str(tmp_path.home()) not in (tmp_path / "config.json").read_text()  # not where the package is installed
    assert "safetensors" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("name", TAGGED)
def test_tags_are_timms_own(name):
    ours, plain = timm.get_pretrained_cfg(name), timm.get_pretrained_cfg(plain_name(name), allow_unregistered=False)
    assert plain.hf_hub_id or plain.url
    ours, plain = ours.to_dict(), plain.to_dict()
    assert ours.pop("architecture") == name.partition(".")[0]
    assert plain.pop("architecture") == plain_name(name).partition(".")[0]
    assert ours.pop("tag") == name.partition(".")[2]
    assert plain.pop("tag") == plain_name(name).partition(".")[2]
    assert ours == plain | {"custom_load": False}  # timm's loader of NumPy files knows only plain layers
    # The repository is written out: timm would fill a bare "timm/" in with our name.
    assert ours["hf_hub_id"] == f"timm/{plain_name(name)}"


@pytest.mark.parametrize("name", PRETRAINED)
def test_default_weights_are_timms_default(name):
    assert timm.get_pretrained_cfg(name).tag == timm.get_pretrained_cfg(plain_name(name)).tag


@every_model
def test_loads_plain_weights_exactly(name, tmp_path):
    plain, x = plain_example(name), images()
    overlay = save_weights(plain, tmp_path)
    models = {
        "pretrained": small(name, pretrained=True, pretrained_cfg_overlay=overlay),
        "checkpoint_path": small(name, checkpoint_path=overlay["file"]),
        "load_checkpoint": small(name),
        "load_state_dict": small(name),
    }
    load_checkpoint(models["load_checkpoint"], overlay["file"])
    models["load_state_dict"].load_state_dict(plain.state_dict())
    with torch.no_grad():
        for model in models.values():
            assert_same(model.eval()(x), plain(x))


@every_model
def test_other_classes_and_channels_as_the_plain_twin(name, tmp_path):
    overlay = save_weights(plain_example(name), tmp_path)
    for in_chans, num_classes in ((1, 11), (4, 11), (3, 5), (3, 0)):
        args = dict(pretrained=True, pretrained_cfg_overlay=overlay, in_chans=in_chans, num_classes=num_classes)
        ours, x = small(name, **args).eval(), images(channels=in_chans)
        overlay_of_plain = overlay | dict(first_conv=ours.pretrained_cfg["first_conv"])  # resnet10s has another stem
        plain = plain_twin(name, **args | dict(pretrained_cfg_overlay=overlay_of_plain)).eval()
        with torch.no_grad():
            assert_same(ours.forward_features(x), plain.forward_features(x))
            if num_classes in (0, 11):
                assert_same(ours(x), plain(x))
        assert isinstance(ours.get_classifier(), nn.Identity if num_classes == 0 else nn.Linear)


@every_model
def test_loads_its_own_checkpoints(name, tmp_path):
    model, x = example(name), images()
    overlay = save_weights(model, tmp_path)
    with torch.no_grad():
        for again in (
            small(name, pretrained=True, pretrained_cfg_overlay=overlay),
            small(name, checkpoint_path=overlay["file"]),
        ):
            assert torch.equal(again.eval()(x), model(x))


@each_family
def test_loads_plain_weights_from_the_hub_cache(name, tmp_path):
    """The layout of huggingface_hub's cache, as a download would leave it."""
    plain, x = plain_example(name), images()
    commit = hashlib.sha1(b"commit").hexdigest()
    repo = tmp_path / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    save_weights(plain, repo / "snapshots" / commit)
    model = small(name, pretrained=True, cache_dir=str(tmp_path), pretrained_cfg_overlay=dict(num_classes=11))
    with torch.no_grad():
        assert_same(model.eval()(x), plain(x))


@each_family
def test_offline_without_a_cached_file_says_what_to_do(name, tmp_path):
    hub_id = timm.get_pretrained_cfg(name).hf_hub_id
    with pytest.raises(RuntimeError, match=rf"{re.escape(hub_id)}.*pretrained_cfg_overlay=dict\(file="):
        small(name, pretrained=True, cache_dir=str(tmp_path))


@pytest.mark.skipif(not hasattr(_hub, "load_model_config_from_path"), reason="this timm has no local-dir source")
@each_family
def test_loads_from_a_local_folder(name, tmp_path):
    model, x = example(name), images()
    save_for_hf(model, tmp_path, model_args=SMALL[family(name)], safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model(x))


@each_family
def test_own_configurations(name, tmp_path):
    mean = (0.1, 0.2, 0.3)
    overlay = save_weights(plain_example(name), tmp_path) | dict(mean=mean, interpolation="bilinear")
    model = small(name, pretrained=True, pretrained_cfg_overlay=overlay)
    assert model.pretrained_cfg["mean"] == timm.data.resolve_model_data_config(model)["mean"] == mean
    tag = TAGGED[[n.partition(".")[0] for n in TAGGED].index(name)].partition(".")[2]
    model = small(name, pretrained_cfg=tag)
    assert model.pretrained_cfg["tag"] == tag
    cfg = timm.get_pretrained_cfg(name).to_dict() | dict(std=mean)
    assert small(name, pretrained_cfg=cfg).pretrained_cfg["std"] == mean


@pytest.mark.parametrize("name", [name for name in TAGGED if name.endswith(("in21k", "in22k"))])
def test_models_have_as_many_classes_as_their_weights(name):
    model = timm.create_model(name, **SMALL[family(name)])
    expected = 21841 if name.endswith("in22k") else 21843
    assert (
        model.num_classes
        == model.get_classifier().out_features
        == timm.get_pretrained_cfg(name).num_classes
        == expected
    )


@pytest.mark.skipif(
    inspect.signature(load_state_dict).parameters["weights_only"].default is False,
    reason="this timm unpickles whatever it is given",
)
def test_refuses_checkpoints_that_run_code(tmp_path):
    class Exploit:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"state_dict": Exploit()}, tmp_path / "model.pth")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        timm.create_model("resnet10s_fdconv", checkpoint_path=str(tmp_path / "model.pth"))
