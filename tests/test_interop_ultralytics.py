"""YOLO11n of Ultralytics with FDConv layers; nothing is downloaded."""

import copy
import importlib.util
import shutil

import matplotlib
import numpy as np
import pytest
import torch
from conftest import relative_error
from examples import modulators, run_examples
from PIL import Image
from torch import nn

from fdconv_zoo import FDConv2d, to_plain
from fdconv_zoo.conversion.ultralytics import ConvertingTrainer, convert_ultralytics
from fdconv_zoo.errors import WeightsError
from fdconv_zoo.layers.replace import find_layers

needs_ultralytics = pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None, reason="ultralytics, which is under AGPL-3.0, is not installed"
)
DOWNSAMPLING = ["model.3.conv", "model.5.conv", "model.7.conv"]  # what the examples convert


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Ultralytics in a folder of its own, where it looks for nothing in a network."""
    folder = tmp_path_factory.mktemp("ultralytics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(folder))  # all read at the first import
        patch.setenv("YOLO_OFFLINE", "true")
        patch.setenv("YOLO_AUTOINSTALL", "false")
        patch.chdir(folder)
        from ultralytics.utils import SETTINGS, USER_CONFIG_DIR

        SETTINGS.update(sync=False, tensorboard=False, runs_dir=str(folder / "runs"))
        font = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
        shutil.copy(font, USER_CONFIG_DIR / "Arial.ttf")  # else downloaded
        yield folder


@pytest.fixture
def network(offline):
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel("yolo11n.yaml", nc=2, verbose=False).eval()


@pytest.fixture(scope="module")
def dataset(offline):
    """Four images with a bright square each, in the format of YOLO."""
    generator = np.random.default_rng(0)
    for part in ("images", "labels"):
        (offline / "data" / part).mkdir(parents=True)
    for i in range(4):
        pixels = generator.integers(0, 100, (64, 64, 3), dtype=np.uint8)
        pixels[16:48, 8 * i : 8 * i + 32] = 255
        Image.fromarray(pixels).save(offline / "data" / "images" / f"{i}.png")
        label = f"{i % 2} {(8 * i + 16) / 64} 0.5 0.5 0.5\n"
        (offline / "data" / "labels" / f"{i}.txt").write_text(label, encoding="utf-8")
    file = offline / "data.yaml"
    text = f"path: {offline / 'data'}\ntrain: images\nval: images\nnames: [left, right]\n"
    file.write_text(text, encoding="utf-8")
    return file


def converted(model):
    return [names[0] for names in find_layers(model, (FDConv2d,)).values()]


def off_neutral(model):
    """Move the modulators away from their neutral start, and let BatchNorm see images, so that both are felt."""
    with torch.no_grad():
        for name, parameter in modulators(model).items():
            if ".fdw." not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):  # not those of modulators: pooled features of noise hardly vary
            module.momentum = 0 if ".ksm." in name else 1
    with torch.no_grad():
        model.train()(torch.rand(8, 3, 64, 64))
    return model.eval()


def features(model, images):
    """What the head gets: its boxes hardly depend on the images if the weights are random."""
    maps = []
    with model.model[-1].register_forward_pre_hook(lambda _, args: maps.extend(args[0])), torch.no_grad():
        model(images)
    return torch.cat([values.flatten() for values in maps])


@needs_ultralytics
def test_fuse_keeps_the_function(network):
    images = torch.rand(2, 3, 64, 64)
    plain = features(network, images)
    convert_ultralytics(network, include="model.?.*", example=images)
    assert len(converted(network)) == 27
    assert relative_error(features(network, images), plain) < 1e-4
    again = to_plain(copy.deepcopy(network)).fuse(verbose=False)
    assert relative_error(features(again, images), plain) < 1e-4
    assert not [module for module in again.model[:10].modules() if isinstance(module, nn.BatchNorm2d)]
    expected = features(off_neutral(network), images)
    fused = copy.deepcopy(network).fuse(verbose=False)
    assert fused.is_fused()
    assert not network.is_fused()
    assert relative_error(features(fused, images), expected) < 1e-4
    assert fused.fuse(verbose=False) is fused


@needs_ultralytics
@pytest.mark.parametrize("name", ["yolov9t", "yolov10n"])  # with RepConv, and with RepVGGDW
def test_merged_convolutions_stay_plain(offline, name):
    from ultralytics.nn.tasks import DetectionModel

    model = convert_ultralytics(DetectionModel(f"{name}.yaml", nc=2, verbose=False).eval(), include="model.*.conv*")
    merged = [m for m in model.modules() if type(m).__name__ in ("RepConv", "RepVGGDW")]
    assert merged
    assert not any(converted(block) for block in merged)
    images = torch.rand(1, 3, 64, 64)
    expected = features(off_neutral(model), images)
    assert relative_error(features(model.fuse(verbose=False), images), expected) < 1e-4


@needs_ultralytics
def test_plan_changes_nothing(network, capsys):
    convert_ultralytics(network, include="model.?.*", dry_run=True)
    assert "model.3.conv" in capsys.readouterr().out
    assert not converted(network)
    assert "fuse" not in vars(network)


@needs_ultralytics
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_examples(dataset, offline):
    scope = run_examples("guides/ultralytics.md", "Convert")
    assert converted(scope["yolo"].model) == DOWNSAMPLING

    settings = dict(epochs=1, imgsz=64, batch=2, workers=0, device="cpu", optimizer="SGD", lr0=0.1, warmup_epochs=0)
    settings |= dict(plots=False, amp=False, mosaic=0, verbose=False)
    scope = run_examples("guides/ultralytics.md", "Train", data=str(dataset), settings=settings)
    model = scope["yolo"].model
    assert converted(model) == DOWNSAMPLING
    heads = {n: p for n, p in modulators(model).items() if n.endswith(("filter.bias", "attention.bias"))}
    assert len(heads) == 6
    assert all(parameter.any() and torch.isfinite(parameter).all() for parameter in heads.values())

    image = str(offline / "data" / "images" / "0.png")
    scope = run_examples("guides/ultralytics.md", "Predict", YOLO=scope["YOLO"], yolo=scope["yolo"], image=image)
    model = scope["yolo"].model
    assert converted(model) == DOWNSAMPLING
    assert scope["results"][0].orig_shape == (64, 64)

    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    for branch in (*off_neutral(model).model[-1].cv2, *model.model[-1].cv3):
        nn.init.normal_(branch[-1].weight)  # else boxes and scores hardly depend on the image
    file = run_examples("guides/ultralytics.md", "Export", yolo=scope["yolo"])["file"]
    session = onnxruntime.InferenceSession(file)
    images = torch.rand(1, 3, 64, 64)
    output = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    with torch.no_grad():
        expected = model.eval()(images)[0]
    for actual, wanted in zip(output.split((4, 2), 1), expected.split((4, 2), 1), strict=True):  # boxes, scores
        assert relative_error(actual, wanted) < 1e-3


class Trainer:
    """What `ConvertingTrainer` knows of a trainer."""

    def get_model(self, cfg=None, weights=None, verbose=True):
        from ultralytics.nn.tasks import DetectionModel

        model = DetectionModel("yolo11n.yaml", nc=2, verbose=False).eval()
        if weights:
            model.load(weights)
        return model


def converting(**conversion):
    return type("Converting", (ConvertingTrainer, Trainer), dict(conversion=conversion))()


@needs_ultralytics
def test_trainer_takes_weights(network):
    trainer = converting(include="model.[35].conv", num_kernels=16)
    images = torch.rand(2, 3, 64, 64)
    expected = features(network, images)
    assert relative_error(features(trainer.get_model(weights=network), images), expected) < 1e-4  # plain ones

    convert_ultralytics(network, include="model.3.conv", num_kernels=16)
    expected = features(off_neutral(network), images)
    again = trainer.get_model(weights=network)
    assert converted(again) == DOWNSAMPLING[:2]
    assert relative_error(features(again, images), expected) < 1e-4

    with pytest.raises(WeightsError, match=r"has none: model\.3\.conv\. Give the trainer"):
        converting(include="model.5.conv").get_model(weights=network)
    with pytest.raises(WeightsError, match=r"other options than the trainer's: model\.3\.conv"):
        converting(include="model.3.conv", num_kernels=8).get_model(weights=network)


def test_other_models_are_refused():
    with pytest.raises(TypeError, match=r"A Conv2d is not a network of Ultralytics: pass the attribute `model`"):
        convert_ultralytics(nn.Conv2d(32, 32, 3))


@needs_ultralytics
def test_wrappers_are_refused(offline):
    from ultralytics import YOLO

    with pytest.raises(TypeError, match=r"A YOLO is not a network"):
        convert_ultralytics(YOLO("yolo11n.yaml", verbose=False))
