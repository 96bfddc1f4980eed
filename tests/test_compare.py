"""The comparison of a model with its twins: all runs, each tested once, and going on after a stop."""

import json
import sys

import pyarrow.parquet as pq
import pytest
import timm
import torch
from run_scripts import ROOT, load_script

from fdconv_zoo.data.sources import SAMPLE_FOLDER
from fdconv_zoo.index import MODELS

MODELS_COMPARED = ["resnet10s_fdconv", "resnet10s_plain", "resnet10s_condconv", "resnet10s_odconv"]


@pytest.fixture(scope="module")
def compare():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")  # the script imports others beside it
        yield load_script("compare")
        for name in ("train", "validate", "twins", "peers"):
            sys.modules.pop(name, None)


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, source in (("train", "train"), ("validation", "train"), ("test", "validation")):
        pq.write_table(pq.read_table(SAMPLE_FOLDER / f"{source}.parquet").slice(0, 40), folder / f"{split}.parquet")
    return folder


def test_every_model_is_trained_and_tested_once(compare, dataset, tmp_path, capsys):
    output = tmp_path / "runs"
    recipe = ["--config", MODELS / "resnet10s_fdconv.fashion_mnist.yaml", "--dataset", dataset, "--output", output]
    models = ["--models", *MODELS_COMPARED, "--seeds", 0, 1, "--epochs", 1, "--batch-size", 20, "--warmup-epochs", 0]
    arguments = [str(argument) for argument in (*recipe, *models)]
    compare.main(arguments)
    table = json.loads((output / "comparison.json").read_text())
    assert [row["model"] for row in table["models"]] == MODELS_COMPARED
    assert len(table["runs"]) == 8
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
    assert len(stamps) == 8
    (output / "resnet10s_plain-seed1" / "test.json").unlink()
    compare.main(arguments)
    assert stamps == {path: path.stat().st_mtime_ns for path in output.glob("*/last/model.safetensors")}
    assert json.loads((output / "comparison.json").read_text())["runs"] == table["runs"]


def test_a_twin_comes_back_from_its_folder(compare, tmp_path):
    model = timm.create_model("resnet10s_odconv", num_classes=3).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))
