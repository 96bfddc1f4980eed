"""segment.py: training, stopping and going on, evaluation, and its recipes on stand-ins for their data."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from run_scripts import kill_when_there, load_script, read_figures, start_script
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score

from fdconv_zoo.dense.canvases import write_canvases
from fdconv_zoo.dense.segmentation.model import Segmenter
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import MODELS, read_index
from fdconv_zoo.training import checkpoint

segment = load_script("segment")
pytestmark = pytest.mark.usefixtures("on_one_cpu_thread")
RECIPES = [name for name, entry in read_index().items() if entry.task == "segmentation"]
TINY = [
    *("--model", "resnet10s_fdconv", "--no-pretrained", "--model-kwargs", "stem_pool=True", "num_kernels=8"),
    *("--decoder", "fpn", "--decoder-kwargs", "decoder_pyramid_channels=32", "decoder_segmentation_channels=64"),
    *("--crop-size", "32", "--epochs", "2", "--batch-size", "4", "--lr", "0.01", "--dice-weight", "0.5"),
    *("--ema-decay", "0.9", "--layer-decay", "0.9", "--log-every", "1", "--workers", "0", "--pictures", "2"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "canvases"
    write_canvases(folder, train=16, validation=5, size=48)
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of TINY that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        torch.set_num_threads(1)
        segment.main([*TINY, "--dataset", str(data), "--output", str(folder)])
    return folder


def test_a_run_leaves_a_model_figures_and_pictures(finished):
    history = read_figures(finished)
    assert [row["update"] for row in history] == [4, 8]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert [part["name"] for part in history[0]["classes"]][:2] == ["background", "T-shirt/top"]
    model = Segmenter.from_pretrained(finished / "last")
    saved = load_file(finished / "checkpoints/update-000000008/ema.safetensors")
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    for name in ("curves.png", "pictures.png"):
        with Image.open(finished / name) as picture:
            assert picture.width > 500


def test_killed_and_resumed_it_ends_with_the_same_weights(finished, data, tmp_path):
    output = [*TINY, "--dataset", str(data), "--output", str(tmp_path / "run"), "--checkpoint-every", "1"]
    process = start_script("segment", *output)
    kill_when_there(process, tmp_path / "run/checkpoints/update-000000002")
    assert checkpoint.list_checkpoints(tmp_path / "run/checkpoints")[-1].name < "update-000000008"
    segment.main([*output, "--resume"])
    for name in ("model.safetensors", "last/model.safetensors", "last/config.json"):
        assert (finished / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name
    assert read_figures(finished) == read_figures(tmp_path / "run")


def test_evaluation_gives_the_runs_figures_and_those_of_other_code(finished, data, tmp_path, capsys):
    flags = ["--evaluate", finished / "last", "--dataset", data, "--output", tmp_path / "whole", "--workers", 0]
    segment.main(list(map(str, flags)))
    found = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert found["miou"] == pytest.approx(read_figures(finished)[-1]["miou"])
    assert "| T-shirt/top |" in capsys.readouterr().out

    # the pictures that predict.py leaves, judged by scikit-learn
    images = sorted((data / "images" / "validation").iterdir())
    load_script("predict").main(
        ["--model", str(finished / "last"), "--output", str(tmp_path / "seen"), "--device", "cpu", *map(str, images)]
    )
    predicted = [np.asarray(Image.open(tmp_path / "seen" / f"{image.stem}.mask.png")).ravel() for image in images]
    truth = [np.asarray(Image.open(data / "masks" / "validation" / image.name)).ravel() for image in images]
    other = 100 * jaccard_score(np.concatenate(truth), np.concatenate(predicted), average="macro")
    assert found["miou"] == pytest.approx(other, abs=0.02)

    with pytest.raises(ConfigError, match=r"results.json exists"):
        segment.main(list(map(str, flags)))
    views = ["--overwrite", "--window", "32", "--scales", "0.75", "1", "--flip"]
    segment.main([*map(str, flags), *views])
    assert json.loads((tmp_path / "whole" / "results.json").read_text())["images"] == 5


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_a_stand_in(name, tmp_path):
    segment.main(["--config", str(MODELS / f"{name}.yaml"), "--smoke", "--output", str(tmp_path / "run")])
    assert read_figures(tmp_path / "run")[0]["update"] == 2
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", ""], "--dataset is required"),
        (["--model", ""], "--model is required"),
        (["--crop-size", "32", "32", "32"], "--crop-size"),
        (["--stride", "0"], "--stride"),
        (["--scales", "0"], "--scales"),
        (["--decoder", "unknown"], "--decoder"),
        (["--model", "resnet10s_fdconf"], "did you mean resnet10s_fdconv"),
        (["--config", str(MODELS / "resnet50_fdconv.tv_in1k.mask_rcnn_coco.yaml")], "use scripts/detect.py"),
    ],
)
def test_wrong_flags_are_named_before_work_starts(flags, message, data, tmp_path):
    given = [*TINY, "--dataset", str(data), "--output", str(tmp_path / "run"), *flags]
    with pytest.raises(ConfigError, match=message):
        segment.main(given)
    assert not (tmp_path / "run").exists()
