"""Prediction with windows and views, metrics, evaluation of a dataset, and pictures."""

import itertools
import json
import math
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from two_processes import run_in_two

pytest.importorskip("segmentation_models_pytorch", reason="the segmentation library is not installed")
pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from fdconv_zoo.dense import Segmenter
from fdconv_zoo.dense.colours import class_colour
from fdconv_zoo.dense.evaluation import choose_varied, evaluation_loader
from fdconv_zoo.dense.segmentation.classes import IGNORE
from fdconv_zoo.dense.segmentation.dataset import EvaluationDataset
from fdconv_zoo.dense.segmentation.evaluate import evaluate_segmenter
from fdconv_zoo.dense.segmentation.inference import predict, slide
from fdconv_zoo.dense.segmentation.metrics import SegmentationMetrics
from fdconv_zoo.dense.segmentation.pictures import draw_comparison, draw_mask, draw_segmentation
from fdconv_zoo.errors import ConfigError, DataError
from fdconv_zoo.training.confusion import draw_confusion, write_confusion

CLASSES = ["background", "cat", "dog", "horse"]


class Toy(nn.Module):
    """A stand-in for a segmenter: a single convolution."""

    def __init__(self, kernel_size=1):
        super().__init__()
        torch.manual_seed(0)
        self.class_names = CLASSES
        self.convolution = nn.Conv2d(3, len(CLASSES), kernel_size, padding=kernel_size // 2)

    def forward(self, images):
        return self.convolution(images)

    def probabilities(self, scores):
        return scores.softmax(1)


# Windows and views.

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@settings(max_examples=30)
@given(size=sizes, window=sizes, data=st.data())
@torch.no_grad()
def test_windows_pixel_by_pixel(size, window, data):
    stride = tuple(data.draw(st.integers(1, side)) for side in window)
    model = Toy(kernel_size=3)
    images = torch.randn(2, 3, *size)
    ranges = []
    for side, width, step in zip(size, window, stride, strict=True):
        ends, end = [], min(width, side)
        while end < side:
            ends.append(end)
            end += step
        ranges.append([(max(end - width, 0), end) for end in [*ends, side]])
    expected = torch.zeros(2, len(CLASSES), *size)
    for row, column in np.ndindex(*size):
        found = [
            model(images[:, :, top:bottom, left:right])[:, :, row - top, column - left]
            for top, bottom in ranges[0]
            for left, right in ranges[1]
            if top <= row < bottom and left <= column < right
        ]
        expected[:, :, row, column] = sum(found) / len(found)
    torch.testing.assert_close(slide(model, images, window, stride), expected)


@torch.no_grad()
def test_windows_of_a_pixelwise_model():
    model = Toy()
    images = torch.randn(1, 3, 50, 70)
    torch.testing.assert_close(slide(model, images, (32, 20), (21, 7)), model(images))


@pytest.mark.parametrize("stride", [(33, 10), (0, 10), (10, 21)])
def test_strides_that_leave_gaps(stride):
    with pytest.raises(ConfigError, match="must be between 1 and the side of the window"):
        slide(Toy(), torch.zeros(1, 3, 50, 70), (32, 20), stride)


@torch.no_grad()
def test_views_one_by_one():
    model = Toy(kernel_size=3)
    images = torch.randn(2, 3, 20, 30)
    expected = torch.zeros(2, len(CLASSES), 40, 50)
    for height, width in ((10, 15), (20, 30), (35, 52)):
        scaled = F.interpolate(images, (height, width), mode="bilinear")
        for mirrored in (False, True):
            view = torch.from_numpy(scaled.numpy()[..., ::-1].copy()) if mirrored else scaled
            scores = F.interpolate(model(view), (40, 50), mode="bilinear").double()
            probabilities = scores.exp() / scores.exp().sum(1, keepdim=True)
            expected += torch.from_numpy(probabilities.numpy()[..., ::-1].copy()) if mirrored else probabilities
    actual = predict(model, images, (40, 50), scales=(0.5, 1.0, 1.75), flip=True)
    torch.testing.assert_close(actual, expected / 6)


@torch.no_grad()
def test_one_view_equals_the_model():
    model = Toy(kernel_size=3)
    images = torch.randn(2, 3, 20, 30)
    torch.testing.assert_close(predict(model, images), model(images).softmax(1))
    windows = predict(model, images, window=(12, 12))
    torch.testing.assert_close(windows, slide(model, images, (12, 12), (8, 8)).softmax(1))
    assert not torch.allclose(windows, model(images).softmax(1))


# Metrics.


def metrics_pixel_by_pixel(pairs):
    """Return IoU and accuracy of each class, None without pixels, and pixel accuracy."""
    truths, predictions = ({number: set() for number in range(len(CLASSES))} for _ in range(2))
    for image, (prediction, truth) in enumerate(pairs):
        for row, column in np.ndindex(*truth.shape):
            if truth[row, column] != IGNORE:
                truths[int(truth[row, column])].add((image, row, column))
                predictions[int(prediction[row, column])].add((image, row, column))
    iou, accuracy = [], []
    for number in range(len(CLASSES)):
        hits = len(truths[number] & predictions[number])
        either, true = len(truths[number] | predictions[number]), len(truths[number])
        iou.append(100 * hits / either if either else None)
        accuracy.append(100 * hits / true if true else None)
    hits = sum(len(truths[number] & predictions[number]) for number in truths)
    return iou, accuracy, 100 * hits / sum(map(len, truths.values()))


def mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def assert_metrics(result, pairs):
    iou, accuracy, pixel_accuracy = metrics_pixel_by_pixel(pairs)
    assert [part.iou for part in result.classes] == pytest.approx(iou)
    assert [part.accuracy for part in result.classes] == pytest.approx(accuracy)
    assert (result.miou, result.mean_accuracy) == pytest.approx((mean(iou), mean(accuracy)))
    assert result.pixel_accuracy == pytest.approx(pixel_accuracy)
    assert result.images == len(pairs)


def random_pairs(true, predicted, number=3):
    generator = np.random.default_rng(0)
    pairs = []
    for _ in range(number):
        shape = generator.integers(3, 9, 2)
        prediction, truth = generator.choice(predicted, shape), generator.choice(true, shape)
        pairs.append((torch.from_numpy(prediction), torch.from_numpy(truth)))
    return pairs


@pytest.mark.parametrize(
    ("true", "predicted"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 1, 2, 3, IGNORE], [0, 1, 2, 3]),
        ([0, 1, IGNORE], [0, 1, 2]),  # one class only in the prediction, one in neither
        ([0, 3], [1]),  # no pixel is correct
    ],
)
def test_metrics(true, predicted):
    pairs = random_pairs(true, predicted)
    metrics = SegmentationMetrics(CLASSES)
    for prediction, truth in pairs:
        metrics.update(prediction, truth)
    result = metrics.compute()
    assert_metrics(result, pairs)
    assert [part.name for part in result.classes] == CLASSES
    assert [part.pixels for part in result.classes] == [
        sum(int((truth == number).sum()) for _, truth in pairs) for number in range(len(CLASSES))
    ]


def test_metrics_agree_with_another_library():
    scores = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    pairs = random_pairs([0, 1, 2, 3, IGNORE], [0, 1, 2, 3])
    metrics = SegmentationMetrics(CLASSES)
    for pair in pairs:
        metrics.update(*pair)
    result = metrics.compute()
    prediction, truth = (torch.cat([part.flatten() for part in parts]).numpy() for parts in zip(*pairs, strict=True))
    prediction, truth = prediction[truth != IGNORE], truth[truth != IGNORE]
    assert result.miou == pytest.approx(100 * scores.jaccard_score(truth, prediction, average="macro"))
    assert result.pixel_accuracy == pytest.approx(100 * scores.accuracy_score(truth, prediction))
    assert result.mean_accuracy == pytest.approx(100 * scores.balanced_accuracy_score(truth, prediction))


def test_confusion_matrix(tmp_path):
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(torch.tensor([[0, 1, 1, 3, 3]]), torch.tensor([[0, 0, 1, 1, IGNORE]]))
    result = metrics.compute()
    assert result.confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 1], [0] * 4, [0] * 4]
    assert "confusion" not in json.loads(json.dumps(result.figures()))
    write_confusion(result.confusion, CLASSES, tmp_path / "confusion.csv")
    assert (tmp_path / "confusion.csv").read_text().splitlines()[:3] == [
        "truth / prediction,background,cat,dog,horse",
        "background,1,1,0,0",
        "cat,0,1,0,1",
    ]
    many = np.eye(30, dtype=int)
    for matrix, names in ((result.confusion, CLASSES), (many, [f"class {n}" for n in range(30)])):
        draw_confusion(matrix, names, tmp_path / "confusion.png")
        with Image.open(tmp_path / "confusion.png") as picture:
            assert picture.width > 400


def test_pictures_show_all_classes():
    present = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]], bool)
    assert choose_varied(present, 2) == [2, 3]
    assert choose_varied(present, 3) == [0, 2, 3]
    assert choose_varied(present, 9) == [0, 1, 2, 3, 4]


def test_table():
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 0, IGNORE]]))
    assert metrics.compute().as_table().splitlines() == [
        "| class | pixels | IoU | accuracy |",
        "| --- | ---: | ---: | ---: |",
        "| background | 3 | 66.67 | 66.67 |",
        "| cat | 0 | 0.00 | - |",
        "| dog | 0 | - | - |",
        "| horse | 0 | - | - |",
        "| mean | 3 | 33.33 | 66.67 |",
    ]


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ([[0, 4]], [[0, 0]], "the prediction has class indices from 0 to 4, but there are 4 classes"),
        ([[0, 0]], [[7, IGNORE]], "the truth has class indices from 7 to 7"),
        ([[0, -1]], [[0, 0]], "the prediction has class indices from -1"),
        ([[0, 0]], [[0], [0]], r"the prediction has shape \(1, 2\), but the truth \(2, 1\)"),
    ],
)
def test_invalid_class_indices(prediction, truth, message):
    with pytest.raises(ValueError, match=message):
        SegmentationMetrics(CLASSES).update(torch.tensor(prediction), torch.tensor(truth))


def test_everything_is_ignored():
    metrics = SegmentationMetrics(CLASSES)
    metrics.update(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), IGNORE))
    with pytest.raises(DataError, match=r"Every pixel .* is ignored"):
        metrics.compute()


# Evaluation of a dataset.


def make_pairs():
    """Seven images of different sizes, and their masks."""
    generator = np.random.default_rng(0)
    pairs = []
    for number in range(7):
        shape = (10 + number, 24 - 2 * number)
        image = Image.fromarray(generator.integers(0, 256, (*shape, 3), np.uint8))
        pairs.append((image, generator.choice(np.array([0, 1, 2, 3, IGNORE], np.uint8), shape)))
    return pairs


def make_dataset(short_side=None):
    return EvaluationDataset(make_pairs(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), short_side=short_side)


@torch.no_grad()
def predicted_pairs(model, dataset, **options):
    return [
        (predict(model, image[None], mask.shape, **options)[0].argmax(0), mask)
        for image, mask, _ in (dataset[index] for index in range(len(dataset)))
    ]


def evaluate(batch_size, short_side=None, model=None, **options):
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(evaluation_loader(make_dataset(short_side), batch_size, workers=0))
    return evaluate_segmenter(accelerator, model or Toy(3).train(), loader, **options)


@pytest.mark.parametrize(
    "options",
    [{}, dict(short_side=32), dict(window=(8, 8), stride=(5, 5)), dict(scales=(0.75, 1.5), flip=True, short_side=16)],
)
def test_evaluation(options):
    result = evaluate(3, **options)
    short_side = options.pop("short_side", None)
    assert_metrics(result, predicted_pairs(Toy(3), make_dataset(short_side), **options))
    assert result.images_per_second > 0


def test_evaluation_of_a_segmenter():
    arguments = dict(stem_pool=True, channels=(8, 8, 8, 24))
    model = Segmenter("resnet10s_fdconv", CLASSES, "linknet", backbone_args=arguments).train()
    options = dict(window=(16, 16), flip=True)
    result = evaluate(3, model=model, **options)
    assert not model.training
    assert_metrics(result, predicted_pairs(model, make_dataset(), **options))


def worker(rank, folder):
    torch.set_num_threads(1)
    os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")} | {"WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # unused, but required
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = [evaluate(batch_size) for batch_size in (2, 8)]  # the second has more batch positions than images
    torch.save([(result.miou, result.pixel_accuracy, result.images) for result in results], f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_count_every_image_once(tmp_path):
    run_in_two(worker, str(tmp_path))
    iou, _, pixel_accuracy = metrics_pixel_by_pixel(predicted_pairs(Toy(3), make_dataset()))
    for rank in range(2):
        for result in torch.load(tmp_path / f"rank{rank}.pt", weights_only=True):
            assert result == pytest.approx((mean(iou), pixel_accuracy, 7))


# Pictures.


def test_colours_are_distinct():
    colours = [class_colour(number) for number in range(20)]
    assert colours[0] == (0, 0, 0)
    assert min(math.dist(one, other) for one, other in itertools.combinations(colours, 2)) > 40


def test_pictures_of_masks():
    mask = np.array([[0, 1, 2], [3, 1, IGNORE]])
    picture = np.asarray(draw_mask(mask))
    assert picture.reshape(-1, 3)[:-1].tolist() == [list(class_colour(number)) for number in (0, 1, 2, 3, 1)]
    hatched = np.asarray(draw_mask(np.full((20, 20), IGNORE)))
    assert len(np.unique(hatched.reshape(-1, 3), axis=0)) == 2
    assert (hatched.min(2) == hatched.max(2)).all()
    image = Image.fromarray(np.full((2, 3, 3), 200, np.uint8))
    assert np.array_equal(np.asarray(draw_segmentation(image, mask, 0.0)), np.asarray(image))
    assert np.array_equal(np.asarray(draw_segmentation(image, mask, 1.0))[0], picture[0])


@pytest.mark.parametrize("has_truth", [True, False])
def test_comparison(has_truth):
    """Areas by colour: of a red image, a truth and a prediction of one class each, and their legend."""
    image = Image.new("RGB", (30, 20), "red")
    truth = np.full((40, 60), 1) if has_truth else None  # masks may have another size than images
    grid = np.asarray(draw_comparison([(image, truth, np.full((20, 30), 3))] * 2, CLASSES))

    def area(colour):
        return int((grid == colour).all(2).sum())

    panel = 192 * 288
    assert 2 * panel <= area([255, 0, 0]) <= 2 * panel + 10
    for number, expected in ((1, 2 * has_truth), (3, 2)):
        spare = area(class_colour(number)) - expected * panel
        assert 100 < spare < 300 if expected else spare == 0  # the square in the legend
    assert not area(class_colour(2))
    with_iou = draw_comparison([(image, truth, np.full((20, 30), 3))], CLASSES, iou=[None, 40.0, None, 61.5])
    assert np.asarray(with_iou).shape[1] == grid.shape[1]
    assert (np.asarray(with_iou)[-30:] < 100).all(2).sum() > (grid[-30:] < 100).all(2).sum()  # more text
