"""What a user does with images of their own, from a folder to a model that others load: the commands of the README."""

import csv
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from run_scripts import read_metrics
from timm.data import create_transform, resolve_data_config

from fdconv_zoo.__main__ import main

CLASSES = {"moss": (40, 160, 60), "rust": (180, 80, 30), "slate": (70, 80, 100)}
PLACES = ("north/wall", "north/roof", "south")
EACH = 8


@pytest.fixture
def photos(tmp_path):
    """Images in nested folders of places; their classes are in a file beside them."""
    random, rows = np.random.default_rng(0), []
    for number in range(EACH * len(CLASSES)):
        name = list(CLASSES)[number % len(CLASSES)]
        file = tmp_path / "photos" / PLACES[number % 5 % 3] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.array(CLASSES[name]) + random.integers(-30, 30, (40, 48, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        rows.append([file.relative_to(tmp_path / "photos").as_posix(), name])
    with (tmp_path / "photos/metadata.csv").open("w", newline="") as listing:
        csv.writer(listing).writerows([["file_name", "label"], *rows])
    return tmp_path / "photos", dict(rows)


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.usefixtures("datasets_cache", "on_one_cpu_thread")
def test_from_a_folder_of_images_to_a_model_that_others_load(photos, hub, tmp_path, capsys):
    hub.log_in(hub.add_user("ada"))
    folder, labels = photos
    run = tmp_path / "run"
    size = ("--img-size", "32", "--batch-size", "8", "--workers", "0")
    rates = ("--epochs", "3", "--lr", "0.01", "--warmup-epochs", "0", "--no-pretrained", "--aa", "none")
    main(["train", "--model", "resnet10s_fdconv", "--dataset", str(folder), "--output", str(run), *size, *rates])

    classes = read_rows(run / "classes.csv")
    assert [row["class"] for row in classes] == sorted(CLASSES)
    best = max(read_metrics(run), key=lambda row: row["top1"])
    assert sum(int(row["images"]) for row in classes) == best["images"]
    assert 100 * sum(int(row["right"]) for row in classes) / best["images"] == pytest.approx(best["top1"])
    confusion = [[int(cell) for cell in list(row.values())[1:]] for row in read_rows(run / "confusion.csv")]
    assert [row[number] for number, row in enumerate(confusion)] == [int(row["right"]) for row in classes]
    assert Image.open(run / "confusion.png").width > 100

    capsys.readouterr()
    main(["validate", "--model", str(run), "--dataset", str(folder), "--workers", "0"])
    assert f"{best['top1']:.2f}" in capsys.readouterr().out  # on the images that were held out

    main(["predict", "--model", str(run), str(folder), "--csv", str(tmp_path / "own.csv")])
    own = read_rows(tmp_path / "own.csv")
    assert {Path(row["file"]).relative_to(folder).as_posix() for row in own} == set(labels)
    for row in own:
        probabilities = [float(row[f"probability of {name}"]) for name in sorted(CLASSES)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == sorted(CLASSES)[int(np.argmax(probabilities))]

    main(["publish", "--run", str(run), "--repo", "ada/stones", "--license", "mit"])
    assert f"{best['top1']:.2f}" in ModelCard.load("ada/stones").text

    model = timm.create_model("hf-hub:ada/stones", pretrained=True, cache_dir=str(tmp_path / "elsewhere")).eval()
    assert model.pretrained_cfg["label_names"] == sorted(CLASSES)
    image = Image.open(own[0]["file"]).convert("RGB")
    transform = create_transform(**resolve_data_config({}, model=model, use_test_size=True))
    with torch.no_grad():
        found = model(transform(image)[None]).softmax(1)[0]
    assert found.tolist() == pytest.approx([float(own[0][f"probability of {name}"]) for name in sorted(CLASSES)])
