import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import timm
import torch
from examples import run_examples
from PIL import Image
from run_scripts import load_script
from torch import nn

from fdconv_zoo.analysis.maps import edge_correlations, modulation_maps
from fdconv_zoo.analysis.page import Details, Gallery, Picture, Section, Table, Text, render_page
from fdconv_zoo.analysis.report import ReportImage, choose_layers, render_report
from fdconv_zoo.cli import visualize
from fdconv_zoo.cli.ranges import RANGES, check_ranges
from fdconv_zoo.data import SAMPLE, load_image_data, open_image
from fdconv_zoo.errors import ConfigError, DataError
from fdconv_zoo.layers import FDConv2d, FDLinear

MODEL = "resnet10s_fdconv.fashion_mnist"


class Page(HTMLParser):
    """What a browser finds in a page."""

    VOID = ("meta", "img", "br", "hr")

    def __init__(self, html):
        super().__init__()
        self.tags, self.stack, self.texts = [], [], []
        self.feed(html)
        assert not self.stack, "tags that are not closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.stack) and data.strip():
            self.texts.append(data.strip())

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def check_page(html):
    """Check that a page needs nothing but itself, and can be used without a mouse and without sight."""
    page = Page(html)
    assert not page.named("script")
    assert not page.named("link")
    assert not re.search(r"https?:|@import|url\(", html)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    for picture in page.named("img"):
        head, _, content = picture["src"].partition(",")
        assert head == "data:image/png;base64"
        Image.open(BytesIO(base64.b64decode(content))).verify()
        assert picture["alt"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {link["href"].removeprefix("#") for link in page.named("a")} <= set(ids)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")
    assert page.named("html") == [{"lang": "en"}]
    return page


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, record in enumerate(load_image_data(SAMPLE, split="validation", limit=2).validation):
        open_image(record["image"]).save(folder / f"<b>{i}&.png")
    return folder


@pytest.fixture(scope="module")
def report(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "report.html"
    flags = ["--model", MODEL, str(images), "--output", str(output), "--layers", "layer1.0.conv1", "--device", "cpu"]
    load_script("visualize").main(flags)
    return output.read_text(encoding="utf-8")


def test_the_report_is_one_file_that_needs_nothing_else(report):
    page = check_page(report)
    titles = ["Images", "Bands and edges", "Modulation maps and spectra", "Kernels", "Kernel movement"]
    assert [text for text in page.texts if text in titles] == titles * 2  # contents, and the sections themselves
    assert len(page.named("details")) == 3  # maps and kernels of one layer, and the movements as a table
    assert len(page.named("img")) == 2 + 2 * 2 + 4 + 1
    assert "<b>0&.png\n" in "".join(page.texts)  # shown, not taken for a tag
    assert "<b>" not in report


def test_the_report_has_predictions_and_correlations_of_the_model(report, images):
    model = timm.create_model(MODEL, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    pixels = torch.stack([transform(Image.open(file).convert("RGB")) for file in sorted(images.iterdir())])
    names = load_image_data(SAMPLE, split="validation", limit=1).class_names
    texts = " ".join(Page(report).texts)
    with torch.no_grad():
        for probability, index in zip(*model(pixels).softmax(1).max(1), strict=True):
            assert f"{names[index]} {100 * probability:.1f} %" in texts
    values = edge_correlations(modulation_maps(model, pixels)["layer2.0.conv1"], pixels).mean(0)
    cells = "".join(f"<td>{value:+.2f}</td>" for value in values)
    assert f'<th scope="row">layer2.0.conv1</th>{cells}' in report


@pytest.fixture
def rendered(monkeypatch):
    """What reports are made of, instead of reports."""
    calls = []

    def render(*arguments):
        calls.append(arguments)
        return "a report"

    monkeypatch.setattr(visualize, "render_report", render)
    return calls


def test_nothing_is_overwritten_without_a_flag(rendered, images, tmp_path):
    output = tmp_path / "report.html"
    output.write_text("mine")
    flags = ["--model", MODEL, str(images), "--output", str(output), "--device", "cpu"]
    with pytest.raises(ConfigError, match=r"report.html exists: choose another file, or replace .* with --overwrite"):
        visualize.main(flags)
    with pytest.raises(ConfigError, match="exists"):
        visualize.main([*flags, "--output", str(tmp_path), "--overwrite"])  # a folder
    assert (output.read_text(), rendered) == ("mine", [])
    visualize.main([*flags, "--overwrite"])
    assert output.read_text() == "a report"


def test_images_that_cannot_be_read_are_named_when_the_others_are_done(rendered, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    flags = ["--model", MODEL, "--output", str(tmp_path / "r.html"), "--device", "cpu", str(tmp_path / "broken.png")]
    with pytest.raises(DataError, match=r"no image could be read:\n .*broken.png"):
        visualize.main(flags)
    assert not (tmp_path / "r.html").exists()
    with pytest.raises(DataError, match=r"1 files were left out:\n .*broken.png"):
        visualize.main([*flags, str(images)])
    assert (tmp_path / "r.html").read_text() == "a report"
    ((model, name, read, pattern),) = rendered
    assert (name, [image.name for image in read], pattern) == (MODEL, ["<b>0&.png", "<b>1&.png"], None)
    for image in read:  # the picture is what the model saw, with its normalization undone
        for channel, (mean, std) in enumerate(
            zip(*(model.pretrained_cfg[key] for key in ("mean", "std")), strict=True)
        ):
            np.testing.assert_allclose(image.seen[..., channel], image.pixels[0, channel] * std + mean, atol=1e-6)
        assert 0 <= image.seen.min() < image.seen.max() <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--sample", "1", "--layers", "nope*"],
            r"--layers nope\*: no FDConv layer .*; they are layer1.0.conv1, .*more",
        ),
        ([], "no images: name image files or folders, or use --sample N"),
        (["--sample", "0"], "--sample 0: must be at least 1"),
        (["--sample", "1", "--model", "test_resnet", "--no-pretrained"], "no FDConv layers.*`fdconv-zoo list`"),
        (["--sample", "1", "--model", "resnet18_fdconf"], "did you mean resnet18_fdconv"),
    ],
)
def test_says_what_is_wrong(tmp_path, flags, message):
    with pytest.raises(ConfigError, match=message):
        visualize.main(["--model", MODEL, "--output", str(tmp_path / "r.html"), *flags])
    assert not (tmp_path / "r.html").exists()


def test_flags_that_are_numbers_have_ranges():
    actions = visualize.build_parser()._actions
    assert {action.dest for action in actions if action.type in (int, float)} <= RANGES.keys()
    check_ranges(visualize.build_parser().parse_args(["--model", "m", "--output", "o"]))


def test_layers_are_chosen_from_every_stage():
    names = [f"layer{stage}.{block}.conv{i}" for stage in (1, 2) for block in range(4) for i in (1, 2)]
    first, second = names[:8], names[8:]
    assert choose_layers(names) == [first[0], first[4], first[7], second[0], second[4], second[7]]
    assert choose_layers(names[:2]) == names[:2]
    blocks = [f"blocks.{block}.mlp.fc{i}" for block in range(24) for i in (1, 2)]
    chosen = choose_layers(blocks)
    assert len(chosen) == 12
    assert (chosen[0], chosen[-1]) == (blocks[0], blocks[-1])
    assert choose_layers(names, "layer2.*.conv1") == second[::2]
    assert choose_layers([]) == []


def make_image(name, *shape):
    pixels = torch.randn(1, *shape)
    return ReportImage(name, pixels, np.random.default_rng(0).random((*shape[1:], 3)), "a cat")


def test_models_without_bands_and_images_of_two_sizes():
    model = nn.Sequential(FDConv2d(20, 24, 1, num_kernels=4), nn.Flatten(2)).eval()
    page = check_page(render_report(model, "mine", [make_image("a", 20, 5, 5), make_image("b", 20, 6, 4)]))
    assert "No layer of this model has Frequency Band Modulation." in page.texts
    assert "Kernel movement" in page.texts
    assert "0: 4 kernels of 24 x 20 x 1 x 1" in page.texts


def test_pictures_of_gray_images_have_no_channels():
    pixels = torch.tensor([[[[-1.0, 0.0], [0.5, 9.0]]]])
    np.testing.assert_allclose(visualize.as_picture(pixels, [0.5], [0.2]), [[0.3, 0.5], [0.6, 1]], atol=1e-6)


def test_a_single_layer_and_tokens():
    layer = FDLinear(5, 7, num_kernels=1)
    page = check_page(render_report(nn.Sequential(layer).eval(), "mine", [make_image("a", 3, 5, 5)]))
    assert "0: 1 kernels of 7 x 5 x 1 x 1" in page.texts
    assert "Kernel movement" not in page.texts  # there is one image only


def test_a_segmenter_is_seen_through_its_backbone(rendered, tmp_path):
    from fdconv_zoo.dense import Segmenter

    model = Segmenter("resnet10s_fdconv", ["floor", "wall"], "fpn", backbone_args={"stem_pool": True})
    model.save_pretrained(tmp_path / "model")
    picture = tmp_path / "a.png"
    Image.effect_noise((40, 40), 80).save(picture)
    flags = ["--model", str(tmp_path / "model"), str(picture), "--device", "cpu"]
    visualize.main([*flags, "--output", str(tmp_path / "r.html")])
    ((backbone, _, (image,), _),) = rendered
    assert image.name == "a.png"
    assert re.fullmatch(r"(floor|wall) [\d.]+ %.*", image.prediction)
    assert image.picture.size == (40, 40)
    assert image.pixels.shape[2:] == image.seen.shape[:2]
    features = model.eval().backbone(image.pixels)
    for found, expected in zip(backbone(image.pixels), features, strict=True):
        torch.testing.assert_close(found, expected)
    assert not backbone._forward_pre_hooks
    with pytest.raises(ConfigError, match="--no-pretrained is for classifiers"):
        visualize.main([*flags, "--output", str(tmp_path / "other.html"), "--no-pretrained"])


def test_a_table_section_is_one_line():
    table = Table("Modulators", ["layer", "distance"], [["<a>", "0.5"]])
    picture = Picture(b"png", 'a "picture"', "below")
    parts = [Text("5 < 6"), table, Details("more", [Gallery([picture])])]
    html = render_page("title", "caf\udce9", [Section("Modulators", parts)])
    assert "&lt;a&gt;" in html
    assert "5 &lt; 6" in html
    assert 'alt="a &#34;picture&#34;"' in html
    assert r"caf\udce9" in html
    assert "<details>" in html
    assert "<details open>" in render_page("t", "s", [Section("a", [Details("b", [], is_open=True)])])
    assert base64.b64encode(b"png").decode() in html


def test_the_examples_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    headings = ["See what FDConv does in a model", "Where bands are amplified", "Spectra before and after FBM"]
    for heading in [*headings, "The kernels of a layer", "How kernels follow the image"]:
        scope = run_examples("analysis.md", heading, **scope)
    pictures = ["filters", "groups", "maps", "movement", "power", "response", "similarity", "spectrum"]
    assert {file.stem for file in tmp_path.glob("*.png")} == set(pictures)
    assert scope["points"].shape == (4, 32, 2)
    assert scope["gain"].shape == (2, 9)
    assert [*scope["movement"]] == [*scope["maps"]]
