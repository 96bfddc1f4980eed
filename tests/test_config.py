"""`config.json` of others: any shape ends in one line that names it, and no model outgrows its weights."""

import copy
import json

import pytest

from fdconv_zoo.cli.predict import load_dense_model
from fdconv_zoo.errors import ConfigError, UserError, WeightsError
from fdconv_zoo.store.build import build_model, resolve_preprocessing
from fdconv_zoo.store.config import limited_by
from fdconv_zoo.store.export import export_model

SMALL = dict(channels=(16, 16, 16, 16), layers=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, arguments = build_model("resnet10s_fdconv", pretrained=False, num_classes=2, model_kwargs=SMALL)
    preprocessing = resolve_preprocessing(model)
    export_model(model, folder, class_names=["a", "b"], preprocessing=preprocessing, model_args=arguments)
    return folder


@pytest.fixture
def config(folder):
    """The content of the folder's config.json, and a function that changes it until the test ends."""
    original = (folder / "config.json").read_text()

    def write(content):
        (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))

    yield json.loads(original), write
    (folder / "config.json").write_text(original)


def places(value, place=()):
    yield place
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*place, key))


def put(value, place, new):
    if not place:
        return new
    changed = copy.deepcopy(value)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return changed


def test_any_value_anywhere_is_used_or_refused_in_words(folder, config):
    original, write = config
    for place in places(original):
        for value in (None, -1, 1e400, "x", [], ["a", None], {"a": 1}, True):
            write(put(original, place, value))
            load_dense_model(str(folder))  # finds that it is another kind of model
            problem = None
            try:
                model, _ = build_model(str(folder))
                resolve_preprocessing(model)
            except UserError as error:
                problem = str(error)
            assert problem is None or ("config.json" in problem and "\n" not in problem), (place, value, problem)


@pytest.mark.parametrize("content", ["", "{", "[]", "1", "null", '"text"', "[" * 100_000, "\x00"])
def test_what_is_not_json_of_a_model_is_refused(folder, config, content):
    config[1](content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        build_model(str(folder))
    assert load_dense_model(str(folder)) is None


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("resnet10s_fdconv", {"layers": [100_000, 1, 1, 1]}),
        ("vit_tiny_patch16_224", {"depth": 100_000}),
        ("vit_tiny_patch16_224", {"embed_dim": 300_000}),
        ("convnext_tiny", {"depths": [3, 3, 10**9, 3]}),
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_model_that_outgrows_its_weights_is_not_built(folder, config, architecture, arguments, pretrained):
    original, write = config
    write({**original, "architecture": architecture, "model_args": arguments})
    with pytest.raises(ConfigError, match=r"far more than|more than any model has"):
        build_model(str(folder), pretrained=pretrained)


def test_models_whose_weights_are_still_on_the_hub_have_a_limit_too(monkeypatch):
    monkeypatch.setattr("fdconv_zoo.store.config._MOST_TENSORS", 20)
    with pytest.raises(ConfigError, match="more than 20 tensors"), limited_by(None):
        build_model("resnet18", pretrained=False)


def test_a_dense_model_that_outgrows_its_weights_is_not_built(tmp_path):
    dense = pytest.importorskip("fdconv_zoo.dense")
    model = dense.Segmenter(
        "resnet10s_fdconv", ["a", "b"], "unet", backbone_args={**SMALL, "stem_pool": True}, pretrained=False
    )
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in (
        ("backbone_args", {"layers": [100_000, 1, 1, 1], "stem_pool": True}),
        ("decoder_args", {"decoder_channels": [10**5] * 5}),
        ("class_names", 5),
        ("backbone", 3),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(WeightsError, match=r"config\.json"):
            dense.Segmenter.from_pretrained(tmp_path)
