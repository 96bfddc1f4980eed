import csv

import numpy as np
import pytest
from PIL import Image

from fdconv_zoo.training.class_results import class_table, write_class_results
from fdconv_zoo.training.confusion import draw_confusion

scores = pytest.importorskip("sklearn.metrics")
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
PREDICTIONS = np.array([0, 1, 1, 2, 1, 1, 0, 0])
NAMES = ["ant", "bee, big", "cat", "dog"]  # no image is of the last


def test_the_table_of_classes_agrees_with_scikit_learn():
    table = class_table(LABELS, PREDICTIONS, NAMES)
    expected = scores.precision_recall_fscore_support(LABELS, PREDICTIONS, labels=range(4), zero_division=0)
    for row, precision, recall, f1, images in zip(table, *expected, strict=True):
        assert int(row[1]) == images
        figures = [float(cell or 0) for cell in row[3:6]]
        assert figures == pytest.approx([100 * recall, 100 * precision, 100 * f1], abs=0.005)
    assert [row[2] for row in table] == ["1", "2", "0", "0"]
    assert [row[6:] for row in table] == [["bee, big", "2"], ["", ""], ["ant", "2"], ["", ""]]
    assert table[3][3:6] == ["", "", ""]


def test_writes_the_confusion_matrix(tmp_path):
    write_class_results(LABELS, PREDICTIONS, NAMES, tmp_path / "out")
    with (tmp_path / "out/confusion.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [row[0] for row in rows] == NAMES
    matrix = np.array([row[1:] for row in rows], int)
    assert (matrix == scores.confusion_matrix(LABELS, PREDICTIONS, labels=range(4))).all()
    assert (tmp_path / "out/confusion.png").is_file()


def test_many_classes_have_a_table_but_no_matrix(tmp_path):
    write_class_results(LABELS, PREDICTIONS, NAMES, tmp_path)
    write_class_results(LABELS, PREDICTIONS, [f"class {number}" for number in range(20_000)], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["classes.csv"]  # and no old ones remain
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 20_001


def test_long_names_leave_room_for_the_matrix(tmp_path):
    for names in (["cat", r"$\frac$"], ["cat", "a class of a very long name, longer than any other"]):
        draw_confusion(np.diag([9, 9]), names, tmp_path / "confusion.png")
        pixels = np.asarray(Image.open(tmp_path / "confusion.png").convert("RGB")).astype(int)
        assert (abs(pixels - (8, 48, 107)).sum(2) < 9).sum() > 10_000, names  # 100 %, of two cells
