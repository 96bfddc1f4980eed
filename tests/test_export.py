import json
from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import relative_error

from fdconv_zoo.__main__ import main
from fdconv_zoo.errors import ConfigError, MismatchError
from fdconv_zoo.store.build import resolve_preprocessing
from fdconv_zoo.store.export import export_model

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("fdconv_zoo.store.onnx")
export = pytest.importorskip("fdconv_zoo.cli.export", reason="torch's exporter to ONNX needs onnx and onnxscript")

# A single FDConv layer, because the exporter needs seconds for each: stages of 16 or fewer channels are plain.
ONE_LAYER = dict(channels=(8, 8, 8, 24), num_kernels=4)
SIZE = (60, 72)
EXPORTERS = ("_export_backbone", "_export_heads")  # of a detector


def load(file):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def stored(session):
    texts = session.get_modelmeta().custom_metadata_map
    return {key: json.loads(text) if key in ("class_names", "preprocessing") else text for key, text in texts.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    arguments = {"channels": (8, 8, 8, 24), "layers": (1, 1, 1, 1), "in_chans": 1}  # one stage has FDConv layers
    model = timm.create_model("resnet18_fdconv", num_classes=3, **arguments)
    preprocessing = resolve_preprocessing(model, in_chans=1, img_size=32)
    names = ["ant", "bee", "cät"]
    export_model(model, folder, class_names=names, preprocessing=preprocessing, model_args=arguments)
    return folder


def test_a_classifier_is_exported_checked_and_keeps_its_classes(folder, tmp_path, capsys):
    file = tmp_path / "model.onnx"
    main(["export", "--model", str(folder), "--output", str(file)])
    assert f"{file}: images (B, 1, 32, 32) -> logits (B, 3); it deviates from torch by " in capsys.readouterr().out
    session = load(file)
    images = torch.randn(5, 1, 32, 32)
    with torch.no_grad():
        expected = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-5)
    about = stored(session)
    assert about["class_names"] == ["ant", "bee", "cät"]
    assert about["preprocessing"]["input_size"] == [1, 32, 32]
    assert {"mean", "std", "interpolation", "crop_pct"} <= about["preprocessing"].keys()
    assert "grayscale in 0..1" in about["input"]
    assert about["output"].startswith("logits (B, K)")
    kinds = [node.op_type for node in pytest.importorskip("onnx").load(file).graph.node]
    assert "Constant" not in kinds, "the program is not optimized"

    with pytest.raises(ConfigError, match=r"model.onnx exists: choose another file, or remove it"):
        export.main(["--model", str(folder), "--output", str(file)])


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ("32 64", "--img-size 32 64: a classifier takes square images, so one number"),
        ("32 32 32", "--img-size 32 32 32: must be one or two numbers"),
        ("32 0", "--img-size 32 0: must be at least 1 and at most 16,384"),
    ],
)
def test_wrong_sizes(folder, tmp_path, sides, message):
    with pytest.raises(ConfigError, match=message):
        export.main(["--model", str(folder), "--output", str(tmp_path / "model.onnx"), "--img-size", *sides.split()])


def test_a_program_that_deviates_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "compare", lambda *_: 0.01)
    with pytest.raises(MismatchError, match=r"deviates from the model by 1.0e-02"):
        onnx.export_onnx(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), tmp_path / "a.onnx", (1, 2, 2))
    assert not list(tmp_path.iterdir())


def test_the_comparison_finds_other_weights(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    assert onnx.export_onnx(model, tmp_path / "a.onnx", (1, 2, 2)) < 1e-5
    model[1].weight.data += 0.1
    assert onnx.compare(model, tmp_path / "a.onnx", (1, 2, 2)) > 1e-2


# Segmenters.


def test_a_segmenter_is_exported_with_what_its_user_needs(tmp_path, capsys):
    models = pytest.importorskip("test_segmentation_models")
    model = models.make_random("fpn", backbone_args={**models.BACKBONE, **ONE_LAYER}).train()
    model.save_pretrained(tmp_path / "run")
    flags = ["--model", str(tmp_path / "run"), "--output", str(tmp_path / "model.onnx")]
    with pytest.raises(ConfigError, match=r"--img-size is required: .* the configuration of \S*run has none"):
        export.main(flags)
    export.main([*flags, "--img-size", "40", "72"])
    assert "images (B, 3, 40, 72) -> scores (B, 3, 40, 72); it deviates from torch by " in capsys.readouterr().out
    session = load(tmp_path / "model.onnx")
    images = torch.randn(2, 3, 40, 72)
    (scores,) = session.run(["scores"], {"images": images.numpy()})
    with torch.no_grad():
        assert relative_error(torch.from_numpy(scores), model.eval()(images)) < 1e-5
    about = stored(session)
    assert about["class_names"] == models.CLASSES
    assert about["preprocessing"] == {
        "input_size": [3, 40, 72],
        "mean": model.mean,
        "std": model.std,
        "interpolation": "bilinear",
    }
    assert {"input", "output"} <= about.keys()


def test_the_size_of_a_segmenter_of_one_size(tmp_path, monkeypatch):
    models = pytest.importorskip("test_segmentation_models")
    from fdconv_zoo.dense.segmentation import onnx

    sizes = []
    monkeypatch.setattr(onnx, "export_onnx", lambda model, file, size: sizes.append(size) or 0.0)
    swin = "swin_tiny_patch4_window7_224_fdconv"
    models.make("fpn", swin, backbone_args=models.SMALL["swin"]).save_pretrained(tmp_path)
    for flags in ([], ["--img-size", "96"], ["--img-size", "32", "64"]):
        export.main(["--model", str(tmp_path), "--output", str(tmp_path / "model.onnx"), *flags])
    assert sizes == [(64, 64), (96, 96), (32, 64)]


# Detectors.


@dataclass
class Exported:
    """An exported detector, which finds nothing in most images."""

    model: torch.nn.Module
    folder: Path
    parts: dict[str, list] = field(default_factory=lambda: defaultdict(list))  # what the exporters returned
    compared: list[tuple] = field(default_factory=list)  # network, program, images, deviation

    @property
    def flags(self):
        return ["--model", str(self.folder), "--img-size", *map(str, SIZE), "--output", str(self.folder / "model.onnx")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    models = pytest.importorskip("test_detection_models")
    from fdconv_zoo.dense.detection import onnx

    model = models.make_random("mask_rcnn", backbone_args=ONE_LAYER)
    threshold = models.detect(model, [torch.zeros(3, *SIZE)])[0]["scores"].max().item() + 1e-4
    model.network.roi_heads.score_thresh = model.config["head_args"]["box_score_thresh"] = threshold
    exported = Exported(model, tmp_path_factory.mktemp("detector"))
    model.save_pretrained(exported.folder)
    original = {name: getattr(onnx, name) for name in (*EXPORTERS, "compare")}

    def compare(*args):
        exported.compared.append((*args, original["compare"](*args)))
        return exported.compared[-1][-1]

    def record(name, *args):
        exported.parts[name].append(original[name](*args))
        return deepcopy(exported.parts[name][-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "compare", compare)
        for name in EXPORTERS:
            patch.setattr(onnx, name, partial(record, name))
        export.main(exported.flags)
    return exported


def test_a_detector_is_exported_with_what_its_user_needs(exported):
    """Images with many detections and with none, in a program that was exported with none."""
    model = exported.model
    (twin, *_, deviation), (network, *_, own_deviation) = exported.compared
    assert twin.roi_heads.score_thresh < network.roi_heads.score_thresh == model.network.roi_heads.score_thresh
    assert max(deviation, own_deviation) < 1e-4
    session = load(exported.folder / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    counts = []
    for image in (torch.zeros(3, *SIZE), *torch.rand(3, 3, *SIZE), torch.ones(3, *SIZE)):
        with torch.no_grad():
            (expected,) = model([image])
        objects = dict(zip(names, map(torch.from_numpy, session.run(None, {"image": image.numpy()})), strict=True))
        counts.append(len(expected["scores"]))
        assert objects.keys() == expected.keys()
        assert all(objects[key].shape == expected[key].shape for key in objects)
        if counts[-1]:
            assert torch.equal(objects["labels"], expected["labels"])
            assert all(relative_error(objects[key], expected[key]) < 1e-3 for key in ("boxes", "scores", "masks"))
    assert counts[0] == 0 < max(counts)
    about = stored(session)
    assert about["class_names"] == model.class_names
    assert about["preprocessing"]["input_size"] == [3, *SIZE]
    assert about["preprocessing"]["mean"] == [0, 0, 0]  # what comes before the program, which normalizes
    assert about["preprocessing"]["std"] == [1, 1, 1]
    assert "1 is the first of class_names" in about["output"]


@pytest.mark.parametrize(
    ("output", "node", "constant"),
    [
        ("boxes", "Add", np.float32(1)),  # one pixel
        ("labels", "Sub", np.int64(3)),  # 3 - label: the two classes exchanged
        ("scores", "Mul", np.float32(0.99)),
        ("masks", "Mul", np.float32(0.99)),
    ],
)
def test_the_comparison_finds_wrong_outputs(exported, output, node, constant):
    import onnx

    from fdconv_zoo.dense.detection.onnx_check import compare

    network, program, images, _ = exported.compared[0]
    program = onnx.load_from_string(program)
    for each in program.graph.node:
        each.output[:] = [f"right/{name}" if name == output else name for name in each.output]
    program.graph.initializer.append(onnx.numpy_helper.from_array(np.array(constant), "constant"))
    program.graph.node.append(onnx.helper.make_node(node, ["constant", f"right/{output}"], [output]))
    assert compare(network, program.SerializeToString(), images) > 5e-3


def decode_differently(network):
    network.roi_heads.box_coder.weights = (5.0, 5.0, 5.0, 5.0)


def normalize_differently(network):
    network.transform.image_std = [0.25] * 3


def suppress_differently(network):
    network.roi_heads.nms_thresh = 0.3


def change_the_backbone(network):
    next(iter(network.backbone.body.parameters())).data *= 1.05


def change_the_masks(network):
    network.roi_heads.mask_predictor.mask_fcn_logits.bias.data += 0.05


@pytest.mark.parametrize(
    "change",
    [decode_differently, normalize_differently, suppress_differently, change_the_backbone, change_the_masks],
)
def test_the_comparison_finds_programs_of_other_detectors(exported, change):
    from fdconv_zoo.dense.detection.onnx_check import compare

    network, program, images, _ = exported.compared[0]
    other = deepcopy(network)
    change(other)
    assert compare(other, program, images) > 5e-3


def test_a_wrong_program_of_a_detector_that_finds_little_is_not_written(exported, monkeypatch):
    import onnx as library

    from fdconv_zoo.dense.detection import onnx

    network, _, images, _ = exported.compared[1]
    with torch.no_grad():
        assert sum(len(network([image])[0]["scores"]) > 0 for image in images) < 2  # of three images
    for name in EXPORTERS:
        parts = iter(deepcopy(exported.parts[name]))
        monkeypatch.setattr(onnx, name, lambda *_, parts=parts: next(parts))
    (exported.folder / "model.onnx").rename(exported.folder / "right.onnx")
    files = set(exported.folder.iterdir())

    def merge(*graphs, merge=onnx._merge):
        program = merge(*graphs)
        (weight,) = [each for each in program.graph.initializer if each.name.endswith("box_predictor.bbox_pred.weight")]
        weight.CopyFrom(library.numpy_helper.from_array(1.5 * library.numpy_helper.to_array(weight), weight.name))
        return program

    monkeypatch.setattr(onnx, "_merge", merge)
    with pytest.raises(MismatchError, match="deviates from the model by"):
        export.main(exported.flags)
    assert set(exported.folder.iterdir()) == files


def objects(*scores, labels=None):
    boxes = np.array([[10.0 * i, 0, 10 * i + 5, 5] for i in range(len(scores))], np.float32).reshape(-1, 4)
    return dict(boxes=boxes, scores=np.array(scores, np.float32), labels=np.array(labels or [1] * len(scores)))


@pytest.mark.parametrize(
    ("found", "expected", "deviations"),
    [
        (objects(0.8, 0.4), objects(0.8, 0.4), [0, 0]),
        (objects(0.8, 0.4), objects(0.4 * 1.98, 0.4), [0.01, 0]),
        (objects(0.8, 0.4, labels=[1, 2]), objects(0.8, 0.4), [0, 0.25]),  # as if only one had it
        (objects(0.8, 0.2), objects(0.8), [0, 0]),  # at the threshold
        (objects(0.8), objects(), [0.75]),
        (objects(), objects(0.8), []),
        (objects(float("nan")), objects(0.8), [float("nan")]),
    ],
)
def test_deviations_of_objects(found, expected, deviations):
    onnx_check = pytest.importorskip("fdconv_zoo.dense.detection.onnx_check")
    actual = onnx_check.deviations(found, expected, least_score=0.2, side=100)
    np.testing.assert_allclose(actual, deviations, atol=1e-6)


def test_a_detector_of_one_stage_is_refused_first(tmp_path):
    models = pytest.importorskip("test_detection_models")
    models.make("fcos").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="fcos cannot be exported to ONNX; faster_rcnn and mask_rcnn can"):
        export.main(["--model", str(tmp_path), "--output", str(tmp_path / "model.onnx")])


def test_an_old_torch_is_named(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.8.1+cpu"))
    with pytest.raises(SystemExit):
        main(["export", "--model", str(folder), "--output", str(tmp_path / "model.onnx")])
    assert "torch 2.8.1+cpu cannot export FDConv to ONNX: pip install 'torch>=2.9'" in capsys.readouterr().err
