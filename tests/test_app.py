"""The app of app/: what it computes, and, where gradio is installed, the app itself on loopback."""

import importlib.util
import re
import sys
import warnings
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import randomize
from PIL import Image
from timm.models import save_for_hf

import fdconv_zoo
from fdconv_zoo.analysis.kernels import kernel_movement
from fdconv_zoo.analysis.maps import modulation_maps
from fdconv_zoo.analysis.page import Picture, Table
from fdconv_zoo.errors import ConfigError, DataError, HubError
from fdconv_zoo.index import read_index
from fdconv_zoo.layers import FDConv2d

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "app"
sys.path.append(str(APP))

import checkpoints  # noqa: E402
import looking  # noqa: E402
from checkpoints import PACKAGED, Checkpoints, load_checkpoint, offered_entries  # noqa: E402


@pytest.fixture(scope="module")
def trained():
    return load_checkpoint(PACKAGED, PACKAGED)


@pytest.fixture(scope="module")
def neutral_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "neutral"
    save_for_hf(timm.create_model("resnet10s_fdconv", num_classes=3), str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images of the kinds that people send, by what they are."""
    folder = tmp_path_factory.mktemp("images")
    y, x = np.mgrid[:60, :80]
    colours = np.stack([x * 3, y * 4, (x * y) % 256], -1).astype(np.uint8)
    alpha = np.full((60, 80, 1), 128, np.uint8)
    pictures = {
        "rgb.png": Image.fromarray(colours),
        "grey.png": Image.fromarray(colours[..., 0]),
        "rgba.png": Image.fromarray(np.concatenate([colours, alpha], -1)),
        "cmyk.jpg": Image.fromarray(colours).convert("CMYK"),
        "sixteen.png": Image.fromarray(colours[..., 0].astype(np.uint16) * 257),
        "twelve.png": Image.fromarray(colours[..., 0].astype(np.uint16) * 16),
        "float.tif": Image.fromarray(np.random.default_rng(0).random((9, 9)).astype(np.float32)),
        "large.png": Image.new("1", (10_000, 8_001)),
        "bomb.png": Image.new("1", (16_000, 16_000)),
        "narrow.png": Image.new("L", (3, 49)),
        "icon.ico": Image.fromarray(colours),
    }
    for name, picture in pictures.items():
        picture.save(folder / name)
    (folder / "text.png").write_text("no image")
    content = BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "jpeg")
    (folder / "cut.jpg").write_bytes(content.getvalue()[:900])
    return folder


def read(checkpoint, file):
    return looking.read_upload(file, checkpoint)[0]


def test_images_are_read_as_the_model_takes_them(trained, files):
    image, remarks = looking.read_upload(files / "rgb.png", trained)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(trained.model))
    torch.testing.assert_close(image.pixels[0], transform(Image.open(files / "rgb.png")))
    assert (image.seen.shape, remarks) == ((32, 32, 3), [])
    grey, sixteen = read(trained, files / "grey.png").pixels, read(trained, files / "sixteen.png").pixels
    torch.testing.assert_close(grey, sixteen)
    assert (grey.flatten(2) - grey.flatten(2).mean(2, keepdim=True)).abs().max() > 0.1
    assert read(trained, files / "rgba.png").seen.min() > 0.45  # half of it is the white behind
    assert read(trained, files / "cmyk.jpg").pixels.shape == (1, 3, 32, 32)


def test_dark_16_bit_images_are_explained(trained, files):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (remark,) = looking.read_upload(files / "twelve.png", trained)[1]
    assert re.search("12 bits, multiply them by 16, or save them with 8 bits", remark)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.png", "not an image format that Pillow knows. Open it in an image viewer and save it as PNG or JPEG"),
        ("cut.jpg", "truncated.*save it as PNG or JPEG"),
        ("float.tif", "mode F has no defined range: save it with 8 or 16 bits"),
        ("icon.ico", "format ICO are not read here: save it as PNG or JPEG"),
        ("large.png", "more than 80 million pixels: save it with fewer"),
        ("bomb.png", "more than 80 million pixels: save it with fewer"),
        ("narrow.png", "3 x 49 pixels is more than 16 times as long as it is wide: cut out the part"),
    ],
)
def test_says_what_is_wrong_with_an_image(trained, files, name, message):
    with pytest.raises(DataError, match=message) as caught:
        looking.read_upload(files / name, trained)
    assert str(files) not in str(caught.value)


def test_predictions_are_the_models(trained, files):
    image = read(trained, files / "rgb.png")
    model = timm.create_model(PACKAGED, pretrained=True).eval()
    with torch.no_grad():
        expected = model(image.pixels).softmax(1)[0]
    found = looking.classify(trained, image, 3)
    assert [*found] == [trained.classes[i] for i in expected.argsort(descending=True)[:3]]
    assert [*found.values()] == pytest.approx(expected.sort(descending=True).values[:3].tolist(), rel=1e-4)


def test_pictures_are_of_the_layer_and_the_images(trained, files):
    image, other = (read(trained, files / name) for name in ("rgb.png", "grey.png"))
    layers = looking.band_layers(trained)
    assert layers == [name for name, m in trained.model.named_modules() if isinstance(m, FDConv2d) and m.fbm]
    maps, spectrum = looking.draw_bands(trained, image, layers[3])
    values = modulation_maps(trained.model, image.pixels)[layers[3]][0, 0]
    assert f"{layers[3]}, with" in maps.alt
    assert f"factors {values.min():.3f} to {values.max():.3f}" in maps.alt
    assert layers[3] in spectrum.alt
    movement = kernel_movement(trained.model, image.pixels, other.pixels)
    largest = max(movement, key=movement.get)
    assert f"Most: {largest}, {100 * movement[largest]:.3g} %" in looking.draw_movement(trained, image, other).alt
    table = looking.tabulate_modulators(trained, [image, other])
    assert {row[0] for row in table.rows} == {*movement}


def test_an_untrained_model_computes_the_same_as_its_plain_twin(neutral_folder, files):
    checkpoint = load_checkpoint("mine", str(neutral_folder))
    randomize_norms(checkpoint.model)
    assert looking.is_neutral(checkpoint)
    assert "modulators are untrained" in looking.describe(checkpoint)
    image = read(checkpoint, files / "rgb.png")
    found = looking.compare_with_plain(checkpoint, [image])
    assert "computes the same function" in found.summary
    assert deviation_in(found.summary) < 1e-3  # per cent: rounding
    assert found.prediction == pytest.approx(looking.classify(checkpoint, image), rel=1e-4)
    plain = timm.create_model("resnet10s_fdconv", num_classes=3, fdconv_layers=())
    counts = [f"{sum(p.numel() for p in model.parameters()):,}" for model in (checkpoint.model, plain)]
    assert found.figures.rows[0] == ("parameters", *counts)
    assert not found.layers.rows
    assert looking.is_neutral(checkpoint)  # it is as it was


def test_a_trained_model_is_compared_with_the_nearest_plain_one(trained, files):
    images = [read(trained, files / name) for name in ("rgb.png", "rgba.png")]
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    found = looking.compare_with_plain(trained, images)
    model = timm.create_model(PACKAGED, pretrained=True).eval()
    twin, deviation = fdconv_zoo.approximate_plain(model, [image.pixels for image in images])
    assert deviation_in(found.summary) == pytest.approx(100 * deviation.output, rel=0.05)
    with torch.no_grad():
        probability, index = twin(images[0].pixels).softmax(1)[0].max(0)
    assert next(iter(found.prediction.items())) == (trained.classes[index], pytest.approx(float(probability), rel=1e-3))
    assert [row[0] for row in found.layers.rows] == [*deviation.layers]
    assert [row[0] for row in found.figures.rows] == ["parameters", "time per image", "image", "2nd image"]
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, before[name])


def deviation_in(summary):
    return float(re.search(r"deviate by (\S+) %", summary)[1])


def randomize_norms(model):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            randomize(module)


def test_a_model_without_a_classifier(files, tmp_path):
    save_for_hf(timm.create_model("resnet10s_fdconv", num_classes=0), str(tmp_path / "m"), safe_serialization=True)
    checkpoint = load_checkpoint("m", str(tmp_path / "m"))
    image = read(checkpoint, files / "rgb.png")
    assert looking.classify(checkpoint, image) == {}
    assert "no classifier" in looking.describe(checkpoint)
    found = looking.compare_with_plain(checkpoint, [image])
    assert "features deviate" in found.summary
    assert found.prediction == {}


def test_the_packaged_model_and_all_classifiers_with_weights_are_offered():
    entries = offered_entries()
    assert next(iter(entries)) == PACKAGED
    expected = {entry.model for entry in read_index().values() if entry.task == "classification" and entry.source}
    assert {*entries} == {*expected, PACKAGED}
    assert "resnet50_fdconv.a1_in1k" in entries
    assert all(timm.get_pretrained_cfg(name).has_weights for name in entries)


def test_own_models_come_first_and_by_name_alone(neutral_folder, tmp_path):
    found = Checkpoints([str(neutral_folder)])
    assert found.names[:2] == ["neutral", PACKAGED]
    assert found.load("neutral") is found.load("neutral")
    assert found.load(PACKAGED) is found.load(PACKAGED)
    with pytest.raises(ConfigError, match="no such checkpoint"):
        found.load(str(neutral_folder))  # a visitor cannot name folders
    with pytest.raises(ConfigError, match="same last part"):
        Checkpoints([str(neutral_folder), f"{neutral_folder}/"])
    save_for_hf(timm.create_model("test_resnet"), str(tmp_path / "plain"), safe_serialization=True)
    with pytest.raises(ConfigError, match="no FDConv layers"):
        Checkpoints([str(tmp_path / "plain")])
    with pytest.raises(ConfigError, match="no such folder"):
        Checkpoints(["runs/nothing"])


def test_weights_that_cannot_be_downloaded_say_nothing_of_the_machine(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(checkpoints.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(checkpoints.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(checkpoints.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=f"could not be downloaded .* choose {PACKAGED}") as caught:
        Checkpoints().load("resnet18_fdconv.a1_in1k")
    assert "127.0.0.1" not in str(caught.value)
    assert "127.0.0.1:9 cannot be reached" in caplog.text


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_names_are_no_tags():
    html = looking.render_pictures([Picture(b"png", 'a "b" <i>', "<b>")])
    assert Tags(html).found[2] == ("img", {"src": "data:image/png;base64,cG5n", "alt": 'a "b" <i>'})
    assert "&lt;b&gt;" in html
    tables = looking.render_tables(Table("<u>", ["<i>", "x"], [("<b>", "<s>")]), Table("empty", ["a"], []))
    assert not {"u", "i", "b", "s"} & {tag for tag, _ in Tags(tables).found}
    assert "empty" not in tables


def test_a_space_installs_what_the_package_declares():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {*project["dependencies"], *extras["analysis"], *extras["app"]} - {"fdconv-zoo[analysis]"}
    lines = (APP / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith(("#", "--"))} == declared
    card = yaml.safe_load((APP / "README.md").read_text().split("---")[1])
    assert (card["sdk"], card["app_file"], card["license"]) == ("gradio", "app.py", "apache-2.0")
    low, high = (int(version) for version in re.search(r"gradio>=(\d+)\S*,<(\d+)", " ".join(declared)).groups())
    assert low <= int(card["sdk_version"].split(".")[0]) < high
    assert {*card["models"]} <= {entry.source for entry in offered_entries().values()}


@pytest.fixture(scope="module")
def client(neutral_folder, tmp_path_factory):
    """The app on loopback, and a client of it."""
    pytest.importorskip("gradio")
    from gradio_client import Client

    spec = importlib.util.spec_from_file_location("app_of_fdconv", APP / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    examples = module.write_examples(tmp_path_factory.mktemp("examples"))
    assert len(examples) == 6
    app = module.build(Checkpoints([str(neutral_folder)]), examples)
    _, address, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield Client(address, verbose=False), examples
    app.close()


def test_the_app_shows_what_it_finds(client, trained):
    from gradio_client import handle_file

    remote, examples = client
    image, other = map(handle_file, examples[:2])
    found = remote.predict(PACKAGED, image, other, None, api_name="/look")
    about, layer, prediction, maps, movement, modulators, *twin = found
    assert "340,938 parameters" in about
    assert layer["value"] == "layer1.0.conv1"
    expected = looking.classify(trained, read(trained, examples[0]))
    assert {row["label"]: row["confidence"] for row in prediction["confidences"]} == pytest.approx(expected, rel=1e-3)
    assert [tag for tag, _ in Tags(maps).found].count("img") == 2
    assert "Most: " in movement
    assert "saturated" in modulators
    assert not any(twin)
    shown = remote.predict(PACKAGED, image, "layer3.0.conv2", api_name="/show_layer")
    assert "layer3.0.conv2, with" in shown
    assert "Add a second image" in remote.predict("neutral", image, None, "layer1.0.conv1", api_name="/look")[4]
    summary, _, tables = remote.predict("neutral", image, None, api_name="/compare")
    assert "computes the same function" in summary
    assert "plain twin" in tables


def test_the_app_explains_errors_and_hides_the_machine(client, files, neutral_folder):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    remote, _ = client
    for name, layer, file, message in [
        (PACKAGED, None, "text.png", "not an image format"),
        ("resnet18_fdconv.a1_in1k", None, "rgb.png", "could not be downloaded"),
        (str(neutral_folder), None, "rgb.png", r"choose one of the list|not in the list"),
    ]:
        with pytest.raises(AppError, match=message) as caught:
            remote.predict(name, handle_file(files / file), None, layer, api_name="/look")
        assert "/tmp" not in str(caught.value).replace(str(neutral_folder), "")
    with pytest.raises(AppError, match="no such layer"):
        remote.predict(PACKAGED, handle_file(files / "rgb.png"), "layer9", api_name="/show_layer")
    with pytest.raises(AppError, match="Add an image first"):
        remote.predict(PACKAGED, None, None, api_name="/compare")
