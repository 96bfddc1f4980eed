import re
from dataclasses import asdict

import pytest
import timm
import yaml
from run_scripts import load_script

from fdconv_zoo.cli.detect import DetectionTask
from fdconv_zoo.cli.segment import SegmentationTask
from fdconv_zoo.cli.train import ClassificationTask
from fdconv_zoo.errors import EntryError
from fdconv_zoo.index import MODELS, read_entry, read_index
from fdconv_zoo.index.table import render_table
from fdconv_zoo.profiling.expected import expected_facts
from fdconv_zoo.store.build import check_model_name

ENTRIES = sorted(MODELS.glob("*.yaml"))
SHORT_NAMES = ("convnext_fdconv", "swin_fdconv")
RESULT = {"dataset": "COCO val2017", "metric": "box AP", "value": 39, "setting": "1x", "source": "a link"}
COMPARISON = {
    "dataset": "A, test",
    "metric": "% top-1",
    "setting": "4 epochs",
    "source": "a command",
    "finding": "They are equal.",
    "rows": [{"model": "plain", "parameters": 5, "mean": 90.0, "std": 0.1, "seeds": 3, "step_time": 1.0}],
}
GOOD = {
    "model": "resnet18",
    "task": "classification",
    "description": "A model.",
    "source": None,
    "hub_id": None,
    "license": "apache-2.0",
    "status": "recipe only",
    "preprocessing": {
        "size": [3, 8, 8],
        "mean": [0.5, 0.5, 0.5],
        "std": [1, 1, 1],
        "interpolation": "bilinear",
        "crop_pct": 1,
    },
    "costs": {"parameters": 5, "plain_parameters": 4, "multiply_adds": 9, "plain_multiply_adds": 8},
    "results": {"paper": [RESULT], "measured": [], "comparisons": [COMPARISON]},
    "recipe": {"epochs": 1},
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def change(path, value):
    """GOOD with the value at a dotted path changed."""
    content = yaml.safe_load(yaml.safe_dump(GOOD))
    *outer, last = path.split(".")
    place = content
    for key in outer:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    return content


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.stem)
def test_an_entry_matches_the_code(path):
    entry = read_entry(path)
    assert check_model_name(entry.model) == entry.model
    found = {key: getattr(entry, key) for key in expected_facts(entry.model)}
    assert found == expected_facts(entry.model)
    if entry.task == "classification":
        assert (entry.status == "converted, not trained") == (entry.source is not None)
    else:
        assert entry.status == "recipe only"  # a backbone's source is not yet a detector's weights
    assert path.stem.startswith(entry.model)
    if entry.recipe is None:
        assert path.stem == entry.model
        return

    (task,) = [task for task in (ClassificationTask, SegmentationTask, DetectionTask) if task.name == entry.task]
    arguments = task.build_parser().parse(["--config", str(path), "--output", "runs/any"], smoke={})
    assert arguments.model == entry.model
    assert {key: getattr(arguments, key) for key in entry.recipe} == entry.recipe
    arguments.dataset = arguments.dataset or "mine"
    task.check_arguments(arguments)


def test_the_plain_figures_are_those_of_timms_own_models():
    costs = read_index()["resnet50_fdconv.a1_in1k"].costs
    assert costs.parameters == 29_204_152
    assert costs.plain_parameters == 25_557_032
    assert costs.plain_multiply_adds / 1e9 == pytest.approx(4.09, abs=0.005)  # as torchvision documents it
    assert read_index()["swin_tiny_patch4_window7_224_fdconv.ms_in1k"].costs.plain_parameters == 28_288_354
    assert read_index()["convnext_tiny_fdconv.fb_in1k"].costs.plain_parameters == 28_589_128


def test_all_published_weights_have_an_entry():
    tagged = {name for name in timm.list_pretrained("*_fdconv*") if not name.startswith(SHORT_NAMES)}
    assert tagged <= {path.stem for path in ENTRIES}


def test_the_page_of_all_models_is_up_to_date():
    page = (MODELS / "README.md").read_text()
    assert page == render_table(read_index()), "run python scripts/make_index.py"
    for name in timm.list_models("*_fdconv"):
        assert f"`{name}`" in page
    for link in re.findall(r"\]\(([^)]+\.yaml)\)", page):
        assert (MODELS / link).is_file()


def test_an_entry_is_written_as_it_is_read(tmp_path):
    make_index = load_script("make_index")
    for path in ENTRIES:
        entry = read_entry(path)
        make_index.write_entry(tmp_path / path.name, entry)
        assert read_entry(tmp_path / path.name) == entry
        assert (tmp_path / path.name).read_text() == path.read_text(), "keep to what make_index.py writes"


def test_a_good_entry_is_read(tmp_path):
    entry = read_entry(write(tmp_path / "good.yaml", GOOD))
    assert asdict(entry) == GOOD
    assert (entry.architecture, entry.tag) == ("resnet18", "")
    assert list(read_index(tmp_path)) == ["good"]
    assert read_entry(write(tmp_path / "good.yaml", {**GOOD, "recipe": None})).recipe is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**GOOD, "licence": "mit"}, "unknown key 'licence', expected one of model, task, description"),
        ({key: value for key, value in GOOD.items() if key != "status"}, "the key 'status' is missing"),
        (change("costs.parameters", "5M"), "costs.parameters: found '5M', expected a whole number"),
        (change("costs.parameters", True), "costs.parameters: found True"),
        (change("costs.flops", 1), "costs: unknown key 'flops'"),
        (change("preprocessing.size", [3, 8, "8"]), "preprocessing.size[2]: found '8', expected a whole number"),
        (change("preprocessing.mean", 0.5), "preprocessing.mean: found 0.5, expected a list"),
        (change("results.paper.0.value", "39 AP"), "results.paper[0].value: found '39 AP', expected a number"),
        (change("results.measured", [{"metric": "top-1"}]), "results.measured[0]: the key 'dataset' is missing"),
        (change("source", 3), "source: found 3, expected text or null"),
        (change("recipe", ["epochs"]), "recipe: found ['epochs'], expected keys and values or null"),
        (change("status", "done"), "expected one of 'converted, not trained'"),
        (change("task", "depth"), "expected one of 'classification', 'segmentation', 'detection'"),
        (change("results.comparisons.0.rows.0.std", "none"), "results.comparisons[0].rows[0].std: found 'none'"),
        ("- a\n- b\n", "expected keys and values, found ['a', 'b']"),
        ("model: [", "not valid YAML"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, content, message):
    path = write(tmp_path / "wrong.yaml", content)
    with pytest.raises(EntryError, match=re.escape(message)) as caught:
        read_entry(path)
    assert str(path) in str(caught.value)


def test_an_entry_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18_fdconv.tv_in1k").mkdir()  # such as the folder of a run
    assert read_entry("resnet18_fdconv.tv_in1k") == read_entry(MODELS / "resnet18_fdconv.tv_in1k.yaml")
    write(tmp_path / "mine.yaml", GOOD)
    assert read_entry("mine.yaml").model == GOOD["model"]


def test_no_file_and_no_entries(tmp_path):
    with pytest.raises(EntryError, match=r"none.yaml: neither a file nor an entry of the index; `fdconv-zoo list`"):
        read_entry(tmp_path / "none.yaml")
    with pytest.raises(EntryError, match=r"models/resnet18_fdconv.tv_in1.yaml: .* did you mean resnet18_fdconv"):
        read_entry("models/resnet18_fdconv.tv_in1.yaml")
    with pytest.raises(EntryError, match="no entries"):
        read_index(tmp_path)


def test_a_wrong_figure_is_found_and_corrected(tmp_path, monkeypatch, capsys):
    make_index = load_script("make_index")
    monkeypatch.setattr(make_index, "MODELS", tmp_path)
    monkeypatch.setattr(make_index, "CARDS", tmp_path / "cards")
    monkeypatch.setattr(make_index, "read_index", lambda: read_index(tmp_path))
    name = "resnet10s_fdconv.fashion_mnist"
    text = (MODELS / f"{name}.yaml").read_text()
    (tmp_path / f"{name}.yaml").write_text(text.replace("parameters: 340938", "parameters: 340939", 1))

    monkeypatch.setattr("sys.argv", ["make_index.py"])
    with pytest.raises(EntryError, match=rf"{name}.yaml does not match the code"):
        make_index.main()
    monkeypatch.setattr("sys.argv", ["make_index.py", "--update"])
    make_index.main()
    assert (tmp_path / f"{name}.yaml").read_text() == text
    assert "resnet10s_fdconv" in (tmp_path / "README.md").read_text()
    assert [path.name for path in (tmp_path / "cards").iterdir()] == [f"{name}.md"]

    monkeypatch.setattr("sys.argv", ["make_index.py", "--add", "resnet18_fdconv.nope"])
    with pytest.raises(EntryError, match=r"not in timm.list_pretrained"):
        make_index.main()
    monkeypatch.setattr("sys.argv", ["make_index.py", "--add", "resnet18_fdconv.tv_in1k"])
    make_index.main()
    assert (tmp_path / "resnet18_fdconv.tv_in1k.yaml").read_text() == (
        MODELS / "resnet18_fdconv.tv_in1k.yaml"
    ).read_text()
    with pytest.raises(EntryError, match="exists"):
        make_index.main()
