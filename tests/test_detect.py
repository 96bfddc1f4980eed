"""detect.py: training, stopping and going on, evaluation, and its recipes on stand-ins for their data."""

import json
import shutil
from collections import Counter

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from run_scripts import kill_and_resume, load_script, read_figures, read_tracked, run_on_the_cpu
from safetensors.torch import load_file

from fdconv_zoo.dense.detection.model import Detector
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import MODELS, read_index
from fdconv_zoo.training.run_folder import LOCK, PATTERNS

detect = load_script("detect")
pytestmark = pytest.mark.usefixtures("on_one_cpu_thread", "blank_pictures")
RECIPES = [name for name, entry in read_index().items() if entry.task == "detection"]
TINY = [
    *("--model", "resnet10s_fdconv", "--no-pretrained", "--model-kwargs", "num_kernels=8", "--norm", "batch"),
    *("--head-kwargs", "box_score_thresh=0.01", "box_detections_per_img=10", "--fpn-channels", "16"),
    *("--min-size", "48", "--epochs", "2", "--batch-size", "4", "--lr", "0.002", "--warmup-epochs", "0"),
    *("--ema-decay", "0.5", "--layer-decay", "0.9", "--log-every", "1", "--workers", "0", "--pictures", "2"),
]


@pytest.fixture(scope="module")
def finished(small_canvases, tmp_path_factory):
    """A run of TINY that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run_on_the_cpu(detect, *TINY, "--dataset", small_canvases, "--output", folder)
    return folder


def test_a_run_leaves_a_model_figures_predictions_and_pictures(finished, small_canvases):
    history = read_figures(finished)
    assert [row["update"] for row in history] == [4, 8]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    tracked = read_tracked(finished)
    assert tracked["validation/box_ap"] == pytest.approx([row["box_ap"] for row in history])
    shirts = [part["mask_ap"] for row in history for part in row["classes"] if part["name"] == "T-shirt/top"]
    assert tracked["validation/mask_ap/T-shirt_top"] == pytest.approx(shirts)
    model = Detector.from_pretrained(finished / "last")
    saved = load_file(finished / "checkpoints/update-000000008/ema.safetensors")
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    files = {path for path in finished.rglob("*") if path.is_file() and "checkpoints" not in path.parts}
    files.remove(finished / LOCK)  # it stays
    assert not files - {path for pattern in PATTERNS for path in finished.glob(pattern)}  # --overwrite knows them all
    for name in ("curves.png", "pictures.png", "precision_recall.png"):
        with Image.open(finished / name) as picture:
            assert picture.width > 500

    # the predictions that it leaves, judged by pycocotools alone
    truth = COCO(str(small_canvases / "annotations" / "instances_validation.json"))
    predictions = truth.loadRes(str(finished / "predictions.json"))
    for kind, key in (("bbox", "box_ap50"), ("segm", "mask_ap50")):
        evaluation = COCOeval(truth, predictions, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert history[-1][key] == pytest.approx(100 * evaluation.stats[1])


def test_killed_and_resumed_it_ends_with_the_same_weights(finished, small_canvases, tmp_path):
    flags = [*TINY, "--dataset", small_canvases, "--checkpoint-every", 1]
    kill_and_resume("detect", tmp_path / "run", "update-000000002", *flags, finished=finished)
    for name in ("model.safetensors", "last/model.safetensors", "last/config.json", "predictions.json"):
        assert (finished / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name
    assert read_figures(finished) == read_figures(tmp_path / "run")


def test_evaluation_gives_the_runs_figures(finished, small_canvases, tmp_path, capsys):
    flags = ["--evaluate", finished / "last", "--dataset", small_canvases, "--output", tmp_path / "out", "--workers", 0]
    detect.main(list(map(str, flags)))
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["box_ap50"] == pytest.approx(read_figures(finished)[-1]["box_ap50"])
    assert "| T-shirt/top |" in capsys.readouterr().out
    again, before = (json.loads((folder / "predictions.json").read_text()) for folder in (tmp_path / "out", finished))
    for one, other in zip(again, before, strict=True):  # loaded weights lie elsewhere in memory: rounding may differ
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-6)
        assert one.pop("bbox") == pytest.approx(other.pop("bbox"), abs=1e-4)
        assert one == other
    with pytest.raises(ConfigError, match=r"results.json exists"):
        detect.main(list(map(str, flags)))
    detect.main([*map(str, flags), "--overwrite", "--scales", "0.75", "1.25", "--flip"])
    views = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert views != again
    assert max(Counter(item["image_id"] for item in views).values()) <= 10


def test_the_last_epoch_of_a_run_is_published(finished, hub, capsys):
    hub.log_in(hub.add_user("ada"))
    load_script("publish").main(["--run", str(finished / "last"), "--repo", "ada/garments", "--private"])
    commit = HfApi().model_info("ada/garments").sha
    assert f"published: Detector.from_pretrained('ada/garments', revision={commit!r})" in capsys.readouterr().out
    published, own = Detector.from_pretrained("ada/garments"), Detector.from_pretrained(finished / "last")
    images = [torch.rand(3, 48, 60)]
    with torch.no_grad():
        (found,), (expected,) = published(images), own(images)
    assert len(found["boxes"])
    assert all(torch.equal(found[key], expected[key]) for key in ("boxes", "labels", "scores", "masks"))
    card, row = ModelCard.load("ada/garments"), read_figures(finished)[-1]
    measured = [result.metric_value for result in card.data.eval_results]
    assert measured == [row[key] for key in ("box_ap", "box_ap50", "mask_ap", "mask_ap50")]
    for line in ("These are the weights of the last epoch.", "the shorter side to 48 pixels", "10. Ankle boot"):
        assert line in card.text
    assert "category_ids" not in card.text
    assert card.data.license is None


def test_boxes_in_the_format_of_yolo(small_canvases, tmp_path):
    """Without numbers of images and classes of their own, the run writes those that its predictions refer to."""
    content = json.loads((small_canvases / "annotations" / "instances_validation.json").read_text())
    names = [entry["name"] for entry in content["categories"]]
    folder = tmp_path / "yolo"
    shutil.copytree(small_canvases / "images" / "validation", folder / "images")
    (folder / "labels").mkdir()
    for entry in content["images"]:
        lines = []
        for item in content["annotations"]:
            if item["image_id"] == entry["id"]:
                x, y, w, h = item["bbox"]
                lines.append(f"{item['category_id'] - 1} {(x + w / 2) / 48} {(y + h / 2) / 48} {w / 48} {h / 48}\n")
        (folder / "labels" / entry["file_name"]).with_suffix(".txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(json.dumps({"train": "images", "val": "images", "names": names}))
    flags = [*TINY, "--head", "faster_rcnn", "--epochs", "1", "--output", str(tmp_path / "run")]
    detect.main([*flags, "--dataset", str(folder / "data.yaml")])
    truth = COCO(str(tmp_path / "run" / "truth.json"))
    assert [entry["name"] for entry in truth.dataset["categories"]] == names
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "run" / "predictions.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert read_figures(tmp_path / "run")[-1]["box_ap"] == pytest.approx(100 * evaluation.stats[0])
    detect.main([*flags, "--dataset", str(folder), "--overwrite"])


def test_other_classes_are_refused(finished, small_canvases, tmp_path):
    annotations = json.loads((small_canvases / "annotations" / "instances_validation.json").read_text())
    annotations["categories"][0]["name"] = "Hat"
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(annotations))
    flags = [
        "--evaluate",
        finished,
        "--dataset",
        small_canvases,
        "--validation-annotations",
        file,
        "--output",
        tmp_path / "out",
    ]
    with pytest.raises(ConfigError, match="but the dataset has Hat"):
        detect.main([*map(str, flags), "--workers", "0"])


@pytest.mark.parametrize("head", ["retinanet", "fcos"])
def test_one_stage_heads(head, small_canvases, tmp_path):
    flags = ["--model", "resnet10s_fdconv", "--head", head, "--norm", "batch", "--dataset", str(small_canvases)]
    few = ["--model-kwargs", "num_kernels=8", "--head-kwargs", "score_thresh=0.0", "detections_per_img=5"]
    detect.main([*flags, *few, "--smoke", "--output", str(tmp_path / "run")])
    (figures,) = read_figures(tmp_path / "run")
    assert figures["mask_ap"] is None
    predictions = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert {entry["category_id"] for entry in predictions} <= set(range(1, 11))
    assert Detector.from_pretrained(tmp_path / "run").config["head"] == head


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_a_stand_in(name, tmp_path):
    detect.main(["--config", str(MODELS / f"{name}.yaml"), "--smoke", "--output", str(tmp_path / "run")])
    assert read_figures(tmp_path / "run")[0]["update"] == 2
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", ""], "--dataset is required"),
        (["--model", ""], "--model is required"),
        (["--norm", "frozen"], "--norm frozen keeps statistics, but random weights do not have any"),
        (["--frozen-stages", "1"], "--frozen-stages keeps weights, but --no-pretrained makes them random"),
        (["--min-size", "0"], "--min-size"),
        (["--cuda-graphs"], "--cuda-graphs needs images of one size"),
        (["--head", "yolo"], "--head"),
        (["--model", "resnet10s_fdconf"], "did you mean resnet10s_fdconv"),
    ],
)
def test_wrong_flags_are_named_before_work_starts(flags, message, small_canvases, tmp_path):
    with pytest.raises(ConfigError, match=message):
        detect.main([*TINY, "--dataset", str(small_canvases), "--output", str(tmp_path / "run"), *flags])
    assert not (tmp_path / "run").exists()
