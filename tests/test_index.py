import re

import pytest
import timm
import torch
import yaml
from run_scripts import load_script

import fdconv_zoo  # noqa: F401
from fdconv_zoo.index import MODELS, EntryError, read_entry, read_index
from fdconv_zoo.training.build import check_model_name

ENTRIES = sorted(MODELS.glob("*.yaml"))
GOOD = {
    "model": "resnet18",
    "description": "A model.",
    "weights": None,
    "license": "apache-2.0",
    "status": "recipe only",
    "parameters": 5,
    "recipe": {"epochs": 1},
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.stem)
def test_an_entry_holds_against_the_code(path):
    entry = read_entry(path)
    assert check_model_name(entry.model) == entry.model
    with torch.device("meta"):
        model = timm.create_model(entry.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
    assert model.pretrained_cfg.get("hf_hub_id") == entry.weights
    assert (model.pretrained_cfg.get("license") or entry.license) == entry.license
    assert path.stem.startswith(entry.model.partition(".")[0])

    train = load_script("train")
    arguments = train.build_parser().parse(["--config", str(path), "--output", "runs/any"], smoke={})
    assert {key: getattr(arguments, key) for key in entry.recipe} == entry.recipe
    arguments.dataset = arguments.dataset or "mine"
    train.check_arguments(arguments)


def test_the_index_is_read_from_the_repository():
    index = read_index()
    assert list(index) == [path.stem for path in ENTRIES]
    assert index["resnet50_fdconv.a1_in1k"].parameters == 29_204_152


def test_a_good_entry_is_read(tmp_path):
    entry = read_entry(write(tmp_path / "good.yaml", GOOD))
    assert entry.recipe == {"epochs": 1}
    assert entry.weights is None
    assert list(read_index(tmp_path)) == ["good"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**GOOD, "licence": "mit"}, "unknown key 'licence'; an entry has model, description"),
        ({key: value for key, value in GOOD.items() if key != "status"}, "the key 'status' is missing"),
        ({**GOOD, "parameters": "5M"}, "parameters: found '5M', expected a whole number"),
        ({**GOOD, "parameters": True}, "parameters: found True"),
        ({**GOOD, "weights": 3}, "weights: found 3, expected text or null"),
        ({**GOOD, "recipe": ["epochs"]}, "recipe: found ['epochs'], expected keys and values"),
        ({**GOOD, "status": "done"}, "expected one of 'converted, not trained'"),
        ("- a\n- b\n", "expected keys and values, found list"),
        ("model: [", "not valid YAML"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, content, message):
    path = write(tmp_path / "wrong.yaml", content)
    with pytest.raises(EntryError, match=re.escape(message)) as caught:
        read_entry(path)
    assert str(path) in str(caught.value)


def test_no_file_and_no_entries(tmp_path):
    with pytest.raises(EntryError, match="cannot be read"):
        read_entry(tmp_path / "none.yaml")
    with pytest.raises(EntryError, match="no entries"):
        read_index(tmp_path)
