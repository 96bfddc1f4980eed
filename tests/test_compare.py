"""The comparison of a model with its twins: all runs, each tested once, and going on after a stop."""

import json

import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from fdconv_zoo.cli import compare
from fdconv_zoo.data.sources import SAMPLE_FOLDER
from fdconv_zoo.dense.canvases import write_canvases
from fdconv_zoo.dense.detection.model import Detector
from fdconv_zoo.dense.segmentation.model import Segmenter
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import MODELS

MODELS_COMPARED = ["resnet10s_fdconv", "resnet10s_plain", "resnet10s_odconv"]


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, source in (("train", "train"), ("validation", "train"), ("test", "validation")):
        pq.write_table(pq.read_table(SAMPLE_FOLDER / f"{source}.parquet").slice(0, 40), folder / f"{split}.parquet")
    return folder


def test_every_model_is_trained_and_tested_once(dataset, tmp_path, capsys):
    output = tmp_path / "runs"
    recipe = ["--config", MODELS / "resnet10s_fdconv.fashion_mnist.yaml", "--dataset", dataset, "--output", output]
    models = ["--models", *MODELS_COMPARED, "--seeds", 0, 1, "--epochs", 1, "--batch-size", 20, "--warmup-epochs", 0]
    arguments = [str(argument) for argument in (*recipe, *models)]
    compare.main(arguments)
    table = json.loads((output / "comparison.json").read_text())
    assert [row["model"] for row in table["models"]] == MODELS_COMPARED
    assert len(table["runs"]) == 6
    for row in table["models"]:
        top1 = [run["top1"] for run in table["runs"] if run["model"] == row["model"]]
        assert row["top1_mean"] == pytest.approx(sum(top1) / 2)
        assert row["top1_std"] == pytest.approx(abs(top1[0] - top1[1]) / 2**0.5)
        assert row["images"] == 40
    assert min(row["step_time"] for row in table["models"]) == 1
    parameters = {row["model"]: row["parameters"] for row in table["models"]}
    assert parameters["resnet10s_plain"] < parameters["resnet10s_fdconv"] < parameters["resnet10s_odconv"]
    assert "| `resnet10s_odconv` | 1,067,330 |" in capsys.readouterr().out

    # what is done is not done again; what is not is
    stamps = {path: path.stat().st_mtime_ns for path in output.glob("*/last/model.safetensors")}
    assert len(stamps) == 6
    (output / "resnet10s_plain-seed1" / "test.json").unlink()
    compare.main(arguments)
    assert stamps == {path: path.stat().st_mtime_ns for path in output.glob("*/last/model.safetensors")}
    assert json.loads((output / "comparison.json").read_text())["runs"] == table["runs"]


PARTS = ["resnet10s_plain", "resnet10s_fdw", "resnet10s_fdw_ksm", "resnet10s_fdconv", "resnet10s_odconv"]


@pytest.fixture(scope="module")
def canvases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "canvases"
    write_canvases(folder, train=8, validation=4, size=64)
    return folder


@pytest.fixture(scope="module")
def trained_twins(tmp_path_factory):
    """Weights of two networks, as a comparison leaves them."""
    folder = tmp_path_factory.mktemp("twins")
    for name in ("resnet10s_plain", "resnet10s_odconv"):
        torch.manual_seed(0)
        (folder / f"{name}-seed5" / "last").mkdir(parents=True)
        save_file(timm.create_model(name).state_dict(), folder / f"{name}-seed5" / "last" / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("task", "parts", "small", "metrics"),
    [
        ("segment", PARTS, ["--crop-size", 64], ["miou"]),
        ("detect", [PARTS[0], *PARTS[2:4]], ["--min-size", 64], ["box_ap", "mask_ap"]),
    ],
)
def test_parts_of_fdconv_in_dense_prediction(task, parts, small, metrics, canvases, trained_twins, tmp_path, capsys):
    output = tmp_path / "runs"
    flags = ["--config", MODELS / f"resnet10s_fdconv.fashion_mnist.{task}_canvases.yaml", "--dataset", canvases]
    flags += ["--models", *parts, "--seeds", 5, "--start-from", trained_twins, "--output", output, "--epochs", 1]
    flags += ["--batch-size", 4, "--warmup-epochs", 0, "--lr", 0, "--pictures", 0, *small]
    compare.main([str(flag) for flag in flags])
    rows = json.loads((output / "comparison.json").read_text())["models"]
    assert [row["model"] for row in rows] == parts
    for row in rows:
        last = json.loads((output / f"{row['model']}-seed5" / "metrics.jsonl").read_text().splitlines()[-1])
        assert [row[f"{metric}_mean"] for metric in metrics] == [last[metric] for metric in metrics]
        assert row["images"] == 4
    parameters = [row["parameters"] for row in rows]
    assert parameters == sorted(parameters)
    assert "| `resnet10s_fdw_ksm` |" in capsys.readouterr().out
    # Nothing was learned: what reads plain weights still is the plain network, to rounding.
    plain, *dynamic = [backbone_kernel(output / f"{name}-seed5" / "last") for name in parts[:4]]
    for kernel in dynamic:
        torch.testing.assert_close(kernel, plain, rtol=0, atol=1e-6)


def test_missing_weights_are_named_before_work_starts(trained_twins, tmp_path):
    flags = ["--config", MODELS / "resnet10s_fdconv.fashion_mnist.segment_canvases.yaml", "--models", "resnet10s_fdw"]
    flags += ["--seeds", 5, 6, "--start-from", trained_twins, "--output", tmp_path / "runs"]
    with pytest.raises(ConfigError, match=r"no resnet10s_plain-seed6/last/model.safetensors, from which resnet10s_fdw"):
        compare.main([str(flag) for flag in flags])
    assert not (tmp_path / "runs").exists()


def backbone_kernel(folder):
    config = json.loads((folder / "config.json").read_text())
    model = (Segmenter if "decoder" in config else Detector).from_pretrained(folder)
    layer = model.backbone.model.layer1[0].conv1
    return layer.weight if isinstance(layer, nn.Conv2d) else layer.fdw()[0]


@pytest.mark.parametrize("name", ["resnet10s_odconv", "resnet10s_dcd", "resnet10s_kernelwarehouse"])
def test_a_twin_comes_back_from_its_folder(name, tmp_path):
    model = timm.create_model(name, num_classes=3)
    model(torch.randn(2, 3, 32, 32))  # in training mode, in which some count their steps
    model.eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))
