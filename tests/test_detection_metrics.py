"""COCO's average precision, compared with a literal one and another library; and the evaluation of a detector."""

import csv
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from coco_files import annotation, box_polygon, coco, image, write_dataset
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn
from two_processes import run_in_two

from fdconv_zoo.dense.detection.coco import CocoImages
from fdconv_zoo.dense.detection.curves import draw_curves, write_curves
from fdconv_zoo.dense.detection.dataset import EvaluationDataset
from fdconv_zoo.dense.detection.evaluate import evaluate_detector, to_coco_results
from fdconv_zoo.dense.detection.loading import load_detection_data
from fdconv_zoo.dense.detection.metrics import DetectionResult, coco_truth, score_detections
from fdconv_zoo.dense.evaluation import evaluation_loader

SIZES = {"ap": (0, 1e10), "ap_small": (0, 32**2), "ap_medium": (32**2, 96**2), "ap_large": (96**2, 1e10)}


def load(folder: Path, content: dict, masks: bool = True) -> CocoImages:
    return load_detection_data(write_dataset(folder, content), masks=masks, split="validation").validation


def found(box: list[float], image_id: int = 1, category: int = 3, score: float = 0.5, **more: object) -> dict:
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": score, **more}


# Literal average precision of boxes, as COCO describes it


def overlap(detected: list[float], true: list[float], crowd: bool) -> float:
    (x, y, w, h), (u, v, s, t) = detected, true
    common = max(min(x + w, u + s) - max(x, u), 0) * max(min(y + h, v + t) - max(y, v), 0)
    return common / (w * h if crowd else w * h + s * t - common)


def literal_ap(truth: list[dict], predictions: list[dict], threshold: float, area: tuple[float, float]) -> float | None:
    """Average precision of one category, in 0..1; None if there are no objects of that size."""
    levels = literal_curve(truth, predictions, threshold, area)
    return None if levels is None else float(np.mean(levels))


def literal_curve(
    truth: list[dict], predictions: list[dict], threshold: float, area: tuple[float, float]
) -> list[float] | None:
    """Precision of one category at 101 recalls; None if there are no objects of that size."""
    ranked = []  # score, whether correct
    count = 0
    for image_id in {entry["image_id"] for entry in truth + predictions}:
        objects = [dict(entry, found=False) for entry in truth if entry["image_id"] == image_id]
        for entry in objects:
            entry["ignored"] = entry["iscrowd"] or not area[0] <= entry["area"] <= area[1]
        count += sum(not entry["ignored"] for entry in objects)
        here = sorted((p for p in predictions if p["image_id"] == image_id), key=lambda p: -p["score"])
        for prediction in here[:100]:
            match, best = None, threshold
            for ignored in (False, True):  # an ignored object only if no other matches
                for entry in objects:
                    if match is not None and ignored and not match["ignored"]:
                        continue
                    if entry["ignored"] != ignored or (entry["found"] and not entry["iscrowd"]):
                        continue
                    value = overlap(prediction["bbox"], entry["bbox"], entry["iscrowd"])
                    if value >= best:
                        match, best = entry, value
            if match is not None:
                match["found"] = True
                if not match["ignored"]:
                    ranked.append((prediction["score"], True))
            elif area[0] <= prediction["bbox"][2] * prediction["bbox"][3] <= area[1]:
                ranked.append((prediction["score"], False))
    if count == 0:
        return None
    ranked.sort(key=lambda item: -item[0])
    right = np.cumsum([item[1] for item in ranked])
    recall, precision = right / count, right / np.arange(1, len(ranked) + 1)
    return [precision[recall >= level].max(initial=0) for level in np.linspace(0, 1, 101)]


def literal_mean(truth: list[dict], predictions: list[dict], thresholds: list[float], area: tuple) -> float | None:
    values = []
    for category in (3, 17, 90):
        true, guesses = ([e for e in part if e["category_id"] == category] for part in (truth, predictions))
        values += [literal_ap(true, guesses, threshold, area) for threshold in thresholds]
    values = [value for value in values if value is not None]
    return 100 * float(np.mean(values)) if values else None


@pytest.fixture(scope="module")
def messy(tmp_path_factory) -> tuple[CocoImages, list[dict], Path]:
    """Objects of all sizes, some of them crowds, and detections near them, far from them and repeated."""
    rng = np.random.default_rng(0)
    annotations, predictions = [], []
    for image_id in range(1, 13):
        for _ in range(rng.integers(0, 7)):
            side = rng.choice([12, 50, 130])
            box = [*rng.integers(0, 240 - side, 2).tolist(), *(side + rng.integers(0, 20, 2)).tolist()]
            category, crowd = int(rng.choice([3, 17])), int(rng.random() < 0.2)
            mask = np.zeros((260, 260), np.uint8)
            mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
            form = [box_polygon(*box)]
            if crowd:
                form = coco_mask.encode(np.asfortranarray(mask))
                form = {"size": [260, 260], "counts": form["counts"].decode()}
            annotations.append(
                annotation(len(annotations), image_id, category, box, iscrowd=crowd, segmentation=form)  # ids from 0
            )
            for _ in range(rng.integers(0, 4)):
                near = (np.array(box) * rng.normal(1, 0.06, 4) + rng.normal(0, 1, 4)).clip(1, 240)
                category = int(rng.choice([category, category, category, 90]))
                predictions.append(found(near.tolist(), image_id, category, float(rng.random())))
    for prediction in predictions:
        x, y, w, h = prediction["bbox"]
        ellipse = [(x + w / 2 + w / 2 * np.cos(a), y + h / 2 + h / 2 * np.sin(a)) for a in np.linspace(0, 6.28, 30)]
        rle = coco_mask.frPyObjects([np.ravel(ellipse).tolist()], 260, 260)[0]
        prediction["segmentation"] = {"size": [260, 260], "counts": rle["counts"].decode()}
    folder = tmp_path_factory.mktemp("messy")
    images = load(folder, coco([image(number, 260, 260) for number in range(1, 13)], annotations))
    return images, predictions, folder / "annotations/instances_validation.json"


def test_the_scene_is_messy(messy):
    images, predictions, _ = messy
    assert images.is_crowd.sum() > 3
    assert len(predictions) > 40
    assert len(set(images.labels)) == 2  # of three


def test_boxes_agree_with_a_literal_average_precision(messy):
    images, predictions, file = messy
    result = score_detections(coco_truth(images), predictions, masks=False)
    truth = json.loads(file.read_text())["annotations"]
    all_overlaps = np.linspace(0.5, 0.95, 10).tolist()
    for name, area in SIZES.items():
        expected = literal_mean(truth, predictions, all_overlaps, area)
        assert 1 < expected < 99
        assert getattr(result, f"box_{name}") == pytest.approx(expected, abs=1e-9)
    for name, threshold in (("ap50", 0.5), ("ap75", 0.75)):
        assert getattr(result, f"box_{name}") == pytest.approx(
            literal_mean(truth, predictions, [threshold], SIZES["ap"]), abs=1e-9
        )
    car = [e for e in truth if e["category_id"] == 3], [p for p in predictions if p["category_id"] == 3]
    expected = 100 * np.mean([literal_ap(*car, threshold, SIZES["ap"]) for threshold in all_overlaps])
    assert result.classes[0].box_ap == pytest.approx(expected, abs=1e-9)
    assert [(part.name, part.objects) for part in result.classes] == [
        ("car", sum(not e["iscrowd"] for e in car[0])),
        ("cat", sum(not e["iscrowd"] for e in truth) - sum(not e["iscrowd"] for e in car[0])),
        ("kite", 0),
    ]
    assert result.classes[2].box_ap is None
    assert result.mask_ap is None


def test_boxes_and_masks_agree_with_another_library(messy):
    faster = pytest.importorskip("faster_coco_eval")
    images, predictions, file = messy
    result = score_detections(coco_truth(images), predictions, masks=True)
    raw = json.loads(file.read_text())
    for entry in raw["annotations"]:
        entry["id"] += 1  # like pycocotools, it treats the id 0 as "not found"
    truth = faster.COCO(raw)
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        detections = json.loads(json.dumps(predictions))
        for entry in detections:
            entry.pop(
                "bbox" if kind == "mask" else "segmentation"
            )  # so that sizes are those of masks when masks are evaluated
        evaluation = faster.COCOeval_faster(truth, truth.loadRes(detections), name, print_function=lambda *_: None)
        evaluation.run()
        for place, column in enumerate(("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")):
            value = getattr(result, f"{kind}_{column}")
            assert value == pytest.approx(100 * evaluation.stats[place], abs=1e-6)
            assert 1 < value < 99


def test_precision_recall_curves(messy, tmp_path):
    images, predictions, file = messy
    result = score_detections(coco_truth(images), predictions, masks=True)
    truth = json.loads(file.read_text())["annotations"]
    names = list(images.categories.values())
    write_curves(result.curves, names, tmp_path / "curves.csv")
    draw_curves(result.curves, names, tmp_path / "curves.png")
    rows = list(csv.DictReader((tmp_path / "curves.csv").open()))
    assert {(row["kind"], row["iou"], row["class"]) for row in rows} == {
        (kind, iou, name) for kind in ("box", "mask") for iou in ("0.5", "0.75") for name in ("car", "cat")
    }  # no kites
    for iou in ("0.5", "0.75"):
        car = [row for row in rows if (row["kind"], row["iou"], row["class"]) == ("box", iou, "car")]
        parts = [e for e in truth if e["category_id"] == 3], [p for p in predictions if p["category_id"] == 3]
        expected = literal_curve(*parts, float(iou), SIZES["ap"])
        assert [float(row["recall"]) for row in car] == pytest.approx(np.linspace(0, 1, 101))
        assert [float(row["precision"]) for row in car] == pytest.approx(expected, abs=1e-4)
        # Detections with at least this score, alone, reach the recall.
        reached = [row for row in car if float(row["precision"]) > 0]
        least = float(reached[-1]["score"])
        kept = [p for p in parts[1] if p["score"] >= least - 1e-4]
        assert np.count_nonzero(literal_curve(parts[0], kept, float(iou), SIZES["ap"])) == len(reached)
    assert "curves" not in result.figures()
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 500


# Special cases


def test_perfect_partial_and_no_detections(tmp_path):
    content = coco([image(1), image(2)], [annotation(0, 1, 3, [2, 2, 20, 10]), annotation(1, 2, 17, [5, 5, 9, 9])])
    images = load(tmp_path, content)
    perfect = [
        found([2, 2, 20, 10], segmentation=coco_mask.frPyObjects([box_polygon(2, 2, 20, 10)], 30, 40)[0]),
        found([5, 5, 9, 9], 2, 17, segmentation=coco_mask.frPyObjects([box_polygon(5, 5, 9, 9)], 30, 40)[0]),
    ]
    truth = coco_truth(images)
    for predictions, value in ((perfect, 100.0), ([], 0.0), (perfect[:1], 50.0)):
        result = score_detections(truth, predictions, masks=True)
        for name in ("box_ap", "box_ap75", "mask_ap", "mask_ap_small"):
            assert getattr(result, name) == pytest.approx(value)
        assert result.box_ap_large is None
        assert result.mask_ap_medium is None
        assert result.images == 2
    assert [part.mask_ap for part in result.classes] == [pytest.approx(100), 0, None]


def test_detections_in_a_crowd_are_ignored(tmp_path):
    crowd = annotation(2, 1, 3, [20, 0, 20, 30], iscrowd=1, segmentation={"size": [30, 40], "counts": [600, 600]})
    truth = coco_truth(load(tmp_path, coco([image(1)], [annotation(1, 1, 3, [1, 1, 8, 8]), crowd])))
    good = found([1, 1, 8, 8], score=0.3)
    within = [found([22, 3, 4, 4], score=0.9), found([28, 9, 6, 6], score=0.8)]
    assert score_detections(truth, [good, *within], masks=False).box_ap == pytest.approx(100)
    assert score_detections(truth, [good, found([1, 20, 8, 8], score=0.9)], masks=False).box_ap == pytest.approx(50)


def test_the_size_of_a_mask_is_its_own_area(tmp_path):
    side = 100
    line = [[0, 0, 5, 0, side, side - 5, side, side, side - 5, side, 0, 5]]  # small, in a large box
    area = float(coco_mask.area(coco_mask.frPyObjects(line, side, side)[0]))
    content = coco([image(1, side, side)], [annotation(1, 1, 3, [0, 0, side, side], area=area, segmentation=line)])
    truth = coco_truth(load(tmp_path, content))
    across = [[side - x if place % 2 == 0 else x for place, x in enumerate(line[0])]]
    masks = [coco_mask.frPyObjects(polygon, side, side)[0] for polygon in (across, line)]
    wrong, right = (
        found([0, 0, side, side], score=score, segmentation=mask) for score, mask in zip((0.9, 0.5), masks, strict=True)
    )
    result = score_detections(truth, [wrong, right], masks=True)
    assert area < 32**2
    assert result.mask_ap == pytest.approx(50)
    assert result.mask_ap_small == pytest.approx(50)  # by its box, the wrong one would be large and ignored here


def test_areas_and_crowds_are_optional(tmp_path):
    content = coco([image(1, 200, 200)], [annotation(1, 1, 3, [1, 1, 50, 50])])
    del content["annotations"][0]["area"], content["annotations"][0]["iscrowd"]
    result = score_detections(coco_truth(load(tmp_path, content)), [found([1, 1, 50, 50])], masks=False)
    assert (result.box_ap_small, result.box_ap_medium, result.box_ap_large) == (None, pytest.approx(100), None)


def test_table(tmp_path):
    truth = coco_truth(load(tmp_path, coco([image(1)], [annotation(1, 1, 3, [2, 2, 20, 10])])))
    table = score_detections(truth, [found([2, 2, 20, 10])], masks=False).as_table().splitlines()
    assert table[2] == "| box | 100.00 | 100.00 | 100.00 | 100.00 | - | - |"
    assert table[-3:] == ["| car | 1 | 100.00 | - |", "| cat | 0 | - | - |", "| kite | 0 | - | - |"]


# Evaluation of a detector


class Oracle(nn.Module):
    """Finds the white box of each image of `coco_files`, with the outputs of a torchvision detector."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(len(images))
        outputs = []
        for picture in images:
            white = picture[0] == 1
            rows, columns = torch.where(white)
            found = len(rows) > 0
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if found else [0, 0, 0, 0]
            outputs.append(
                {
                    "boxes": torch.tensor([box]).float()[:found],
                    "labels": torch.tensor([2])[:found],
                    "scores": torch.tensor([0.75])[:found],
                    "masks": (0.2 + 0.6 * white)[None, None][:found],
                }
            )
        return outputs


def seven_images() -> dict:
    sizes = [(40, 30), (50, 20), (30, 30), (40, 30), (64, 48), (20, 20), (33, 31)]
    annotations = [
        annotation(n, 10 * n, 17, [n, 2 * n, 9 - n, 5]) for n in range(1, 7)
    ]  # the seventh image has no objects
    return coco([image(10 * (n + 1), *size) for n, size in enumerate(sizes)], annotations)


def evaluate(folder: Path) -> DetectionResult:
    data = load_detection_data(str(folder), masks=True, split="validation")
    accelerator = Accelerator(cpu=True)
    model = Oracle()
    loader = accelerator.prepare(evaluation_loader(EvaluationDataset(data.validation), batch_size=2, workers=0))
    truth = coco_truth(data.validation)
    file = folder / "predictions.json"
    result = evaluate_detector(
        accelerator, model.train(), loader, truth, data.category_ids, masks=True, predictions_file=file
    )
    assert sum(model.batches) == 7 if accelerator.num_processes == 1 else 4
    return result


@pytest.fixture
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def check(result: DetectionResult, folder: Path) -> None:
    assert result.box_ap == pytest.approx(100)
    assert result.mask_ap == pytest.approx(100)
    assert result.images == 7
    assert result.images_per_second > 0
    predictions = json.loads((folder / "predictions.json").read_text())
    assert [entry["image_id"] for entry in predictions] == [10, 20, 30, 40, 50, 60]  # each once
    assert predictions[1]["bbox"] == [2, 4, 7, 5]
    assert predictions[1]["category_id"] == 17
    assert predictions[1]["score"] == 0.75
    mask = np.zeros((20, 50))
    mask[4:9, 2:9] = 1
    np.testing.assert_array_equal(coco_mask.decode(predictions[1]["segmentation"]), mask)


@pytest.mark.usefixtures("fresh_accelerator")
def test_evaluation_of_a_detector(tmp_path):
    write_dataset(tmp_path, seven_images())
    check(evaluate(tmp_path), tmp_path)


def test_detections_in_half_precision_can_be_stored():
    output = {"boxes": torch.tensor([[1.5, 2, 4, 8]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    output = {name: value.half() if value.is_floating_point() else value for name, value in output.items()}
    assert json.dumps(to_coco_results(5, output, [90], masks=False)) == json.dumps(
        [{"image_id": 5, "category_id": 90, "bbox": [1.5, 2.0, 2.5, 6.0], "score": 0.5}]
    )


def worker(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()}, ACCELERATE_USE_CPU="true")
    result = evaluate(folder)
    (folder / f"rank{rank}.json").write_text(json.dumps(result.figures()))
    torch.distributed.destroy_process_group()


def test_two_processes_count_every_image_once(tmp_path):
    write_dataset(tmp_path, seven_images())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_in_two(worker, tmp_path, port)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    first["classes"] = []
    check(DetectionResult(**first), tmp_path)
