import json

import pytest
import timm
import torch

from fdconv_zoo.__main__ import main
from fdconv_zoo.errors import ConfigError, MismatchError
from fdconv_zoo.store.build import resolve_preprocessing
from fdconv_zoo.store.export import export_model

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("fdconv_zoo.store.onnx")
export = pytest.importorskip("fdconv_zoo.cli.export", reason="torch's exporter to ONNX needs onnx and onnxscript")


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
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    images = torch.randn(5, 1, 32, 32)
    with torch.no_grad():
        expected = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-5)
    stored = session.get_modelmeta().custom_metadata_map
    assert json.loads(stored["class_names"]) == ["ant", "bee", "cät"]
    assert json.loads(stored["preprocessing"])["input_size"] == [1, 32, 32]

    with pytest.raises(ConfigError, match=r"model.onnx exists: choose another file, or remove it"):
        export.main(["--model", str(folder), "--output", str(file)])


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
