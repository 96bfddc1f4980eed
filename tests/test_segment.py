"""segment.py: training, stopping and going on, evaluation, and its recipes on stand-ins for their data."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from PIL import Image
from run_scripts import kill_and_resume, load_script, read_figures, read_tracked, run_on_the_cpu
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import jaccard_score
from torch import nn

from fdconv_zoo.cli.class_weights import class_weights
from fdconv_zoo.dense import publishing
from fdconv_zoo.dense.backbone import Backbone
from fdconv_zoo.dense.segmentation.model import Segmenter
from fdconv_zoo.errors import ConfigError, PublishError
from fdconv_zoo.index import MODELS, read_index
from fdconv_zoo.training.run_folder import LOCK, PATTERNS

segment = load_script("segment")
pytestmark = pytest.mark.usefixtures("on_one_cpu_thread", "blank_pictures")
RECIPES = [name for name, entry in read_index().items() if entry.task == "segmentation"]
TINY = [
    *("--model", "resnet10s_fdconv", "--no-pretrained", "--model-kwargs", "stem_pool=True", "num_kernels=8"),
    *("--decoder", "fpn", "--decoder-kwargs", "decoder_pyramid_channels=32", "decoder_segmentation_channels=64"),
    *("--crop-size", "32", "--epochs", "2", "--batch-size", "4", "--lr", "0.01", "--dice-weight", "0.5"),
    *("--ema-decay", "0.9", "--layer-decay", "0.9", "--log-every", "1", "--workers", "0", "--pictures", "2"),
]


@pytest.fixture(scope="module")
def finished(small_canvases, tmp_path_factory):
    """A run of TINY that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run_on_the_cpu(segment, *TINY, "--dataset", small_canvases, "--output", folder)
    return folder


def test_a_run_leaves_a_model_figures_and_pictures(finished):
    history = read_figures(finished)
    assert [row["update"] for row in history] == [4, 8]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert [part["name"] for part in history[0]["classes"]][:2] == ["background", "T-shirt/top"]
    tracked = read_tracked(finished)
    assert tracked["validation/miou"] == pytest.approx([row["miou"] for row in history])
    shirts = [part["iou"] for row in history for part in row["classes"] if part["name"] == "T-shirt/top"]
    assert tracked["validation/iou/T-shirt_top"] == pytest.approx(shirts)
    model = Segmenter.from_pretrained(finished / "last")
    saved = load_file(finished / "checkpoints/update-000000008/ema.safetensors")
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    table = list(csv.reader((finished / "confusion.csv").open(encoding="utf-8")))
    counts = np.array([row[1:] for row in table[1:]], int)
    assert counts.sum(1).tolist() == [part["pixels"] for part in history[-1]["classes"]]
    assert 100 * counts.trace() / counts.sum() == pytest.approx(history[-1]["pixel_accuracy"])
    files = {path for path in finished.rglob("*") if path.is_file() and "checkpoints" not in path.parts}
    files.remove(finished / LOCK)  # it stays
    assert not files - {path for pattern in PATTERNS for path in finished.glob(pattern)}  # --overwrite knows them all
    for name in ("curves.png", "pictures.png", "confusion.png"):
        with Image.open(finished / name) as picture:
            assert picture.width > 500


def test_weights_of_classes():
    pixels = np.array([600, 0, 200, 100])
    assert class_weights(["balanced"], pixels) == pytest.approx([0.5, 1, 1.5, 3])
    assert class_weights(["1", "0", "2", "3.5"], pixels) == [1, 0, 2, 3.5]
    for words in ("median", "1 2 3", "1 2 3 nan", "1 2 3 -1", "0 0 0 0"):
        with pytest.raises(ConfigError, match=f"--class-weights {words}: must be 'balanced', or 4 numbers"):
            class_weights(words.split(), pixels)


def test_killed_and_resumed_it_ends_with_the_same_weights(finished, small_canvases, tmp_path):
    flags = [*TINY, "--dataset", small_canvases, "--checkpoint-every", 1]
    kill_and_resume("segment", tmp_path / "run", "update-000000002", *flags, finished=finished)
    for name in ("model.safetensors", "last/model.safetensors", "last/config.json"):
        assert (finished / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name
    assert read_figures(finished) == read_figures(tmp_path / "run")


def test_evaluation_gives_the_runs_figures_and_those_of_other_code(finished, small_canvases, tmp_path, capsys):
    flags = [
        "--evaluate",
        finished / "last",
        "--dataset",
        small_canvases,
        "--output",
        tmp_path / "whole",
        "--workers",
        0,
    ]
    segment.main(list(map(str, flags)))
    found = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert found["miou"] == pytest.approx(read_figures(finished)[-1]["miou"])
    printed = capsys.readouterr().out
    assert "| T-shirt/top |" in printed
    lowest = min((part for part in found["classes"] if part["iou"] is not None), key=lambda part: part["iou"])
    assert f"lowest IoU: {lowest['name']} {lowest['iou']:.1f} %" in printed

    # the pictures that predict.py leaves, judged by scikit-learn
    images = sorted((small_canvases / "images" / "validation").iterdir())
    load_script("predict").main(
        ["--model", str(finished / "last"), "--output", str(tmp_path / "seen"), "--device", "cpu", *map(str, images)]
    )
    predicted = [np.asarray(Image.open(tmp_path / "seen" / f"{image.stem}.mask.png")).ravel() for image in images]
    truth = [np.asarray(Image.open(small_canvases / "masks" / "validation" / image.name)).ravel() for image in images]
    other = 100 * jaccard_score(np.concatenate(truth), np.concatenate(predicted), average="macro")
    assert found["miou"] == pytest.approx(other, abs=0.02)

    with pytest.raises(ConfigError, match=r"results.json exists"):
        segment.main(list(map(str, flags)))
    views = ["--overwrite", "--window", "32", "--scales", "0.75", "1", "--flip"]
    segment.main([*map(str, flags), *views])
    assert json.loads((tmp_path / "whole" / "results.json").read_text())["images"] == 5


def test_a_run_is_published_with_its_own_record(finished, hub, tmp_path, capsys, monkeypatch):
    hub.log_in(hub.add_user("ada"))
    publish = [*("--run", str(finished), "--repo", "ada/garments", "--license", "mit", "--tag", "v1")]
    load_script("publish").main(publish)
    assert "published: Segmenter.from_pretrained('ada/garments', revision='v1')" in capsys.readouterr().out
    published, own = Segmenter.from_pretrained("ada/garments", revision="v1"), Segmenter.from_pretrained(finished)
    images = torch.randn(1, 3, 48, 40)
    with torch.no_grad():
        assert torch.equal(published(images), own(images))
    assert (published.config, published.class_names[1]) == (own.config, "T-shirt/top")

    snapshot = Path(snapshot_download("ada/garments", revision="v1"))
    written = {"README.md", "config.json", "model.safetensors", "train_config.yaml", "metrics.jsonl", "curves.png"}
    assert {path.name for path in snapshot.iterdir()} - {".gitattributes"} == written  # and no pictures of the data
    texts = [path.read_text() for path in snapshot.iterdir() if path.suffix in (".md", ".json", ".yaml", ".jsonl")]
    assert str(finished.parent) not in "".join(texts)
    card, best = ModelCard.load(snapshot / "README.md"), max(read_figures(finished), key=lambda row: row["miou"])
    shirt = next(part for part in best["classes"] if part["name"] == "T-shirt/top")
    for line in (
        f"| mIoU | {best['miou']:.2f} % |",
        f"| T-shirt/top | {shirt['pixels']} | {shirt['iou']:.2f} | {shirt['accuracy']:.2f} |",
        "16 training images, 5 validation images. The backbone started from random weights.",
        f"after epoch {best['epoch']}, measured by `fdconv-zoo segment`",
        "dice_weight: 0.5",
        f"the mean {own.mean}",
    ):
        assert line in card.text
    assert card.data.eval_results[0].metric_value == best["miou"]
    assert (card.data.license, card.data.library_name) == ("mit", "fdconv-zoo")
    with safe_open(snapshot / "model.safetensors", "pt") as file:
        known = {"model": "resnet10s_fdconv", "status": "trained", "source": "random weights", "license": "mit"}
        assert known.items() <= file.metadata().items()

    with pytest.raises(PublishError, match="ada/garments exists and has"):
        load_script("publish").main(publish)
    with pytest.raises(ConfigError, match="holds a resnet10s_fdconv, but the entry is a resnet50_fdconv"):
        load_script("publish").main([str(MODELS / "resnet50_fdconv.tv_in1k.upernet_ade20k.yaml"), *publish])


def test_other_weights_than_the_runs_are_not_published(finished, tmp_path, monkeypatch):
    def shift(path, **known):
        save_file({key: value + 1 for key, value in load_file(path).items()}, path)

    monkeypatch.setattr(publishing, "write_provenance", shift)
    with pytest.raises(PublishError, match="holds another model than"):
        publishing.make_run_repository(finished, "ada/garments", tmp_path / "made")


def test_a_run_keeps_its_ignored_value_and_its_part_of_the_images(small_canvases, tmp_path, capsys):
    """Masks whose value 0 is ignored, in one split: without any flag the evaluation is that of the run."""
    for name in ("images", "masks"):
        shutil.copytree(small_canvases / name / "train", tmp_path / "set" / name)
    flags = ["--dataset", str(tmp_path / "set"), "--workers", "0"]
    run = tmp_path / "run"
    only = ["--epochs", "1", "--ignore-index", "0", "--validation-fraction", "0.3", "--seed", "2"]
    segment.main([*TINY, *flags, *only, "--output", str(run)])
    (row,) = read_figures(run)
    assert Segmenter.from_pretrained(run).ignore_index == 0
    segment.main(["--evaluate", str(run), *flags, "--output", str(tmp_path / "again")])
    found = json.loads((tmp_path / "again/results.json").read_text())
    assert (found["images"], found["miou"]) == (row["images"], pytest.approx(row["miou"]))
    assert row["images"] == 5
    assert "the part of train that the run held out" in capsys.readouterr().out

    image = next((tmp_path / "set/images").iterdir())
    picture = ["--model", str(run), "--output", str(tmp_path / "seen"), "--device", "cpu", str(image)]
    load_script("predict").main(picture)
    assert np.asarray(Image.open(tmp_path / "seen" / f"{image.stem}.mask.png")).min() >= 1

    shutil.copy(image, image.with_stem("more"))
    shutil.copy(tmp_path / "set/masks" / image.name, tmp_path / "set/masks" / image.with_stem("more").name)
    with pytest.raises(ConfigError, match="which has changed since"):
        segment.main(["--evaluate", str(run), *flags, "--output", str(tmp_path / "changed")])


def test_a_compiled_run_compiles_the_backbone(finished, small_canvases, tmp_path, monkeypatch):
    """With the compiler's front end only."""
    compiled, compile_module = [], nn.Module.compile

    def compile_in_front(module, mode):
        compiled.append(type(module))
        compile_module(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_in_front)
    flags = [*TINY, "--epochs", "1", "--updates-per-epoch", "1", "--compile"]
    segment.main([*flags, "--dataset", str(small_canvases), "--output", str(tmp_path / "run")])
    torch._dynamo.reset()
    assert compiled == [Backbone]
    keys = [load_file(folder / "last/model.safetensors").keys() for folder in (finished, tmp_path / "run")]
    assert keys[0] == keys[1]


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
        (["--config", str(MODELS / "resnet50_fdconv.tv_in1k.mask_rcnn_coco.yaml")], "use fdconv-zoo detect"),
    ],
)
def test_wrong_flags_are_named_before_work_starts(flags, message, small_canvases, tmp_path):
    given = [*TINY, "--dataset", str(small_canvases), "--output", str(tmp_path / "run"), *flags]
    with pytest.raises(ConfigError, match=message):
        segment.main(given)
    assert not (tmp_path / "run").exists()
