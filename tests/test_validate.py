import csv
import json
import re
import shutil

import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from run_scripts import load_script, read_metrics
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


def test_flip_averages_over_mirror_images_and_tables_are_written(folders, tmp_path):
    flags = [*SAMPLE, "--model", str(folders / "gray"), "--json", str(tmp_path / "r.json")]
    validate.main([*flags, "--flip", "--output", str(tmp_path / "out")])
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    data = load_image_data("fashion_mnist_sample", limit=90, split="validation")
    model = timm.create_model(f"local-dir:{folders / 'gray'}", pretrained=True).eval()
    transform = create_transform(**resolve_preprocessing(model))
    images, labels = zip(*ImageDataset(data.validation, transform, mode="L"), strict=True)
    images, labels = torch.stack(images), torch.tensor(labels)
    with torch.no_grad():
        logits = (model(images) + model(images.flip(3))) / 2
    assert result["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    with (tmp_path / "out/confusion.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    matrix = torch.zeros(10, 10, dtype=int).index_put_((labels, logits.argmax(1)), torch.tensor(1), accumulate=True)
    assert [list(map(int, row[1:])) for row in rows] == matrix.tolist()
    assert header[1:] == [row[0] for row in rows] == data.class_names
    assert (tmp_path / "out/classes.csv").is_file()

    with pytest.raises(ConfigError, match=r"classes.csv exists; choose another folder"):
        validate.main([*flags, "--output", str(tmp_path / "out")])
    with pytest.raises(ConfigError, match="--output takes the tables of one model"):
        validate.main([*flags, "--model", "resnet18", "resnet34", "--output", str(tmp_path / "other")])


def test_another_number_of_classes_is_an_error(tmp_path):
    model, arguments = build_model("test_resnet", num_classes=3, pretrained=False)
    preprocessing = resolve_preprocessing(model)
    export_model(model, tmp_path, class_names="abc", preprocessing=preprocessing, model_args=arguments)
    with pytest.raises(ConfigError, match="was trained on 3 classes, but the dataset has 10"):
        validate.main([*SAMPLE, "--model", str(tmp_path)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders of plain colours, without a split for validation."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    for name, colour in (("ant", 0), ("bee", 120), ("cat", 240)):
        (folder / name).mkdir(parents=True)
        for index in range(10):
            Image.new("L", (32, 32), colour + index).save(folder / name / f"{index}.png")
    return folder


def labelling(folder, names: str, home) -> str:
    """Export a model that gives every image of `folder` its class, if the numbers of the classes are these."""
    model, arguments = build_model("test_resnet", num_classes=len(names.split()), pretrained=False, in_chans=1)
    preprocessing = resolve_preprocessing(model, img_size=32)
    export_model(model, home, class_names=names.split(), preprocessing=preprocessing, model_args=arguments)
    return str(home)


def perfect(order: list[int]):
    """A model for `folder`: the brightness of an image is its class, at its place in `order`."""

    def forward(self, images):
        brightness = ((images * 0.5 + 0.5).mean((1, 2, 3)) * 255 / 120).long().clamp(0, 2)
        return F.one_hot(torch.tensor(order)[brightness], self.num_classes).float()

    return forward


@pytest.mark.parametrize(
    ("names", "order", "words"),
    [
        ("ant bee cat", [0, 1, 2], None),
        ("cat ant bee", [1, 2, 0], None),
        ("dog cat bee ant", [3, 2, 1], None),
        ("bee cat dog", [0, 0, 0], "does not know 'ant'"),
        ("Ant bee cat", [0, 1, 2], "'ant' is 'Ant' in the model"),
        ("ant bee", [0, 1, 1], "was trained on 2 classes, but the dataset has 3"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_classes_are_compared_by_name(folder, names, order, words, streaming, tmp_path, monkeypatch):
    home = labelling(folder, names, tmp_path / "model")
    monkeypatch.setattr(timm.models.resnet.ResNet, "forward", perfect(order))
    flags = ["--model", home, "--dataset", str(folder), "--workers", "0", "--json", str(tmp_path / "r.json")]
    flags += ["--streaming", "--validation-split", "train"] * streaming
    if words is not None:
        with pytest.raises(ConfigError, match=words):
            validate.main(flags)
        return
    validate.main(flags)
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert (result["top1"], result["images"]) == (100, 30)


def test_a_model_without_names_is_told(folder, tmp_path, caplog):
    model, arguments = build_model("test_resnet", num_classes=3, pretrained=False)
    export_model(model, tmp_path, class_names=None, preprocessing=resolve_preprocessing(model), model_args=arguments)
    validate.main(["--model", str(tmp_path), "--dataset", str(folder), "--workers", "0"])
    assert "has no class names" in caplog.text


def test_a_run_is_evaluated_on_the_part_that_it_held_out(folder, tmp_path, capsys, monkeypatch):
    photos = shutil.copytree(folder, tmp_path / "photos")
    run = tmp_path / "run"
    flags = ["--dataset", str(photos), "--workers", "0"]
    training = ["--model", "test_resnet", "--no-pretrained", "--img-size", "32", "--epochs", "1", "--seed", "3"]
    training += ["--batch-size", "8"]
    load_script("train").main([*training, *flags, "--validation-fraction", "0.3", "--output", str(run)])
    (row,) = read_metrics(run)
    monkeypatch.chdir(tmp_path)
    results = {}
    for name, more in (("run", []), ("run/last", []), ("run", ["--validation-split", "train"])):
        validate.main(["--model", name, *flags[2:], "--dataset", "photos", *more, "--json", "r.json"])
        (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
        results[name, bool(more)] = result
    assert (row["images"], row["loss"]) == (9, pytest.approx(results["run", False]["loss"], rel=1e-5))
    assert [(result["images"], result["split"]) for result in results.values()] == [
        (9, "the part of train that the run held out"),
        (9, "the part of train that the run held out"),
        (30, "all of train, also the images that the model was trained on"),
    ]
    assert "images: the part of train that the run held out" in capsys.readouterr().out

    validate.main(["--model", "run", *flags[2:], "--dataset", str(folder)])
    assert "images: all of train; the figures mean little if" in capsys.readouterr().out
    (photos / "cat").rename(photos / "elk")
    load_script("train").main(
        ["--model", "run", *training[2:], *flags, "--pretrained", "--output", "other", "--updates-per-epoch", "1"]
    )
    assert "run was trained on other classes: its classifier is reinitialized" in capsys.readouterr().out
    (photos / "elk").rename(photos / "cat")
    shutil.copy(photos / "ant/0.png", photos / "ant/10.png")
    with pytest.raises(ConfigError, match="changed since: 21 images of 3 classes were for training then, 22 of 3"):
        validate.main(["--model", "run", *flags])


def test_an_unknown_name_is_an_error_before_the_data_is_read():
    with pytest.raises(ConfigError, match="no such model"):
        validate.main(["--dataset", "no/such/folder", "--model", "resnet18_fdcnv"])


def test_top5_needs_more_than_five_classes():
    row = {"model": "m", "image_size": "32x32", "loss": 0.5, "top1": 50.0, "top5": None, "images": 4, "split": "test"}
    table = as_table([{**row, "images_per_second": 1.0}])
    assert "top-5 is reported for more than five classes only" in table
    assert table.splitlines()[1].split() == ["m", "32x32", "50.00", "-", "0.5000", "4", "1.0"]
