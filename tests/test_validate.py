import json
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from run_scripts import load_script
from timm.data import create_transform

from fdconv_zoo.cli.validate import as_table
from fdconv_zoo.data import ImageDataset, load_image_data
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.build import build_model, resolve_preprocessing
from fdconv_zoo.store.export import export_model

validate = load_script("validate")
SAMPLE = ["--dataset", "fashion_mnist_sample", "--limit", "90", "--workers", "0", "--batch-size", "32"]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two random models that differ in size, channels and preprocessing."""
    root = tmp_path_factory.mktemp("models")
    names = load_image_data("fashion_mnist_sample", limit=90, split="validation").class_names
    torch.manual_seed(3)
    for name, options in (("colour", {"img_size": 40, "crop_pct": 0.8}), ("gray", {"img_size": 32, "in_chans": 1})):
        model, arguments = build_model(
            "test_resnet", num_classes=10, pretrained=False, in_chans=options.get("in_chans")
        )
        torch.nn.init.normal_(model.fc.weight)
        preprocessing = resolve_preprocessing(model, **options)
        export_model(model, root / name, class_names=names, preprocessing=preprocessing, model_args=arguments)
    return root


def test_each_model_is_measured_through_its_own_preprocessing(folders, tmp_path, capsys):
    validate.main(
        [
            *SAMPLE,
            "--model",
            str(folders / "colour"),
            f"local-dir:{folders / 'gray'}",
            "--json",
            str(tmp_path / "r.json"),
        ]
    )
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    table = capsys.readouterr().out
    source = load_image_data("fashion_mnist_sample", limit=90, split="validation").validation
    for result, name, mode in zip(results, ("colour", "gray"), ("RGB", "L"), strict=True):
        model = timm.create_model(f"local-dir:{folders / name}", pretrained=True).eval()
        dataset = ImageDataset(source, create_transform(**resolve_preprocessing(model)), mode=mode)
        images, labels = zip(*dataset, strict=True)
        labels = torch.tensor(labels)
        with torch.no_grad():
            logits = model(torch.stack(images))
        assert result["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert result["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
        assert result["top5"] == pytest.approx(
            100 * (logits.topk(5).indices == labels[:, None]).any(1).float().mean().item()
        )
        assert result["images"] == 90
        assert result["images_per_second"] > 0
        assert re.search(rf"{folders / name}\s+{result['image_size']}\s+{result['top1']:.2f}", table)
    assert [result["image_size"] for result in results] == ["40x40", "32x32"]


def test_another_number_of_classes_is_an_error(tmp_path):
    model, arguments = build_model("test_resnet", num_classes=3, pretrained=False)
    preprocessing = resolve_preprocessing(model)
    export_model(model, tmp_path, class_names="abc", preprocessing=preprocessing, model_args=arguments)
    with pytest.raises(ConfigError, match="was trained on 3 classes, but the dataset has 10"):
        validate.main([*SAMPLE, "--model", str(tmp_path)])


def test_an_unknown_name_is_an_error_before_the_data_is_read():
    with pytest.raises(ConfigError, match="no such model"):
        validate.main(["--dataset", "no/such/folder", "--model", "resnet18_fdcnv"])


def test_top5_needs_more_than_five_classes():
    row = {"model": "m", "image_size": "32x32", "loss": 0.5, "top1": 50.0, "top5": None, "images": 4}
    table = as_table([{**row, "images_per_second": 1.0}])
    assert "top-5 is reported for more than five classes only" in table
    assert table.splitlines()[1].split() == ["m", "32x32", "50.00", "-", "0.5000", "4", "1.0"]
