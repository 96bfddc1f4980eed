"""Model cards: up to date, true to the index, and metadata that the Hub's client reads back."""

from dataclasses import replace

import pytest
import timm
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from loopback_hub.cards import LICENSES
from run_scripts import ROOT, load_script

import fdconv_zoo  # noqa: F401
from fdconv_zoo.index import Compared, Comparison, Result, Results, read_index
from fdconv_zoo.index.cards import render_card, with_card
from fdconv_zoo.index.facts import find_measured_data, find_training_data

INDEX = read_index()
CARDS = with_card(INDEX)
CONVERTED, TRAINED = "resnet50_fdconv.a1_in1k", "resnet10s_fdconv.fashion_mnist"


def card_of(name, **changes):
    return render_card(replace(INDEX[name], **changes), name)


def words(card):
    return " ".join(card.text.split())


def test_every_entry_has_a_card_but_further_recipes_of_a_model():
    assert {path.stem for path in (ROOT / "model_cards").glob("*.md")} == set(CARDS)
    without = set(INDEX) - set(CARDS)
    assert all(INDEX[name].recipe and INDEX[name].model in CARDS for name in without)
    assert TRAINED in CARDS
    assert "resnet50_fdconv.a1_in1k.imagenet" in without


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_up_to_date_and_valid(name):
    entry, path = INDEX[name], ROOT / "model_cards" / f"{name}.md"
    card = render_card(entry, name)
    assert path.read_text(encoding="utf-8") == str(card), "run python scripts/make_index.py"

    data = ModelCard.load(path).data
    assert data.to_dict() == card.data.to_dict()
    assert (data.library_name, data.pipeline_tag) == ("timm", "image-classification")
    # The Hub has a list of licences; any other is "other" there, with a name and a link.
    assert data.license == entry.license or (data.license, data.license_name) == ("other", entry.license)
    assert (data.license == "other") == bool(data.license_link) == (entry.license not in LICENSES)
    assert data.base_model == entry.source
    assert {"timm", "fdconv", "image-classification"} <= set(data.tags)
    assert data.datasets, "which data does the tag name?"
    assert [result.metric_value for result in data.eval_results or []] == [r.value for r in entry.results.measured]

    text = words(card)
    assert "{{" not in text
    assert "None" not in text
    assert f'timm.create_model("{entry.model}"' in text
    assert ("Converted, not trained" in text) == (entry.status == "converted, not trained")
    assert all(result.source in text for result in (*entry.results.paper, *entry.results.measured))
    assert "@inproceedings{chen2025fdconv" in text


def test_the_hub_takes_all_cards(hub):
    for name in CARDS:
        ModelCard.load(ROOT / "model_cards" / f"{name}.md").validate()
    assert len(hub.requests) == len(CARDS)
    with pytest.raises(ValueError, match="license"):
        ModelCard("---\nlicense: mine\n---\n").validate()


def test_one_command_writes_the_cards_and_removes_those_of_entries_that_are_gone(tmp_path, monkeypatch):
    make_index = load_script("make_index")
    monkeypatch.setattr(make_index, "CARDS", tmp_path)
    (tmp_path / "gone.md").write_text("")
    assert make_index.write_cards({TRAINED: INDEX[TRAINED]}) == 1
    assert [path.name for path in tmp_path.iterdir()] == [f"{TRAINED}.md"]


def test_converted_is_not_trained():
    text = words(card_of(CONVERTED))
    assert "FDConv's own parameters have not been trained" in text
    assert "Nothing was trained here" in text
    assert "Nothing has been measured here; what the card of [timm/resnet50.a1_in1k]" in text
    assert "these weights were not trained with it" in text  # the recipe
    assert card_of(CONVERTED).data.eval_results is None

    trained = words(card_of(CONVERTED, status="trained"))
    assert "**Trained** as an FDConv network, from the weights of [timm/resnet50.a1_in1k]" in trained
    assert "Nothing" not in trained.partition("## Results")[0]


def test_loads_from_where_it_is_published():
    assert 'timm.create_model("resnet50_fdconv.a1_in1k", pretrained=True)' in words(card_of(CONVERTED))
    published = words(card_of(CONVERTED, hub_id="someone/resnet50_fdconv"))
    assert 'timm.create_model("hf-hub:someone/resnet50_fdconv", pretrained=True)' in published
    recipe = words(card_of(TRAINED, status="recipe only"))
    assert 'timm.create_model("resnet10s_fdconv.fashion_mnist")' in recipe
    assert "A recipe, without weights" in recipe


def test_the_loading_lines_run():
    code = card_of(TRAINED).text.partition("```python\n")[2].partition("```")[0]
    variables = {}
    exec(code, variables)
    assert variables["model"].num_classes == 10
    assert "Resize" in str(variables["transform"])
    preprocessing = words(card_of(CONVERTED)).partition("Preprocessing: ")[2].partition(".")[0]
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=timm.create_model(CONVERTED)))
    assert f"size={transform.transforms[0].size}" == "size=235"
    assert preprocessing.startswith("the shorter side resized to 235 pixels (bicubic), the central 224x224 cropped")


def test_only_what_was_measured_is_our_result():
    paper = [Result("COCO val2017", "box AP", 39.4, "Faster R-CNN", "https://arxiv.org/abs/2503.18783")]
    measured = [
        Result("ImageNet-1k, validation", "% top-1", 79.5, "224x224", "fdconv-zoo validate ..."),
        Result("ImageNet-1k, validation", "% top-5", 94.25, "224x224", "fdconv-zoo validate ..."),
        Result("COCO val2017", "box AP", 38, "Mask R-CNN", "https://example.org/log"),
    ]
    card = card_of(CONVERTED, results=Results(paper, measured, []))
    results = card.data.eval_results
    assert results == [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagenet-1k",
            dataset_name="ImageNet-1k",
            dataset_split="validation",
            metric_type=metric_type,
            metric_name=metric_name,
            metric_value=value,
            metric_args={"setting": "224x224", "command": "fdconv-zoo validate ..."},
        )
        for metric_type, metric_name, value in (("accuracy", "% top-1", 79.5), ("top_5_accuracy", "% top-5", 94.25))
    ] + [
        EvalResult(
            task_type="object-detection",
            dataset_type="detection-datasets/coco",
            dataset_name="COCO val2017",
            metric_type="box AP",
            metric_name="box AP",
            metric_value=38,
            metric_args={"setting": "Mask R-CNN"},
            source_url="https://example.org/log",
        )
    ]
    assert model_index_to_eval_results(eval_results_to_model_index(CONVERTED, results)) == (CONVERTED, results)
    text = words(card)
    assert "| COCO val2017 | 39.4 box AP | Faster R-CNN | https://arxiv.org/abs/2503.18783 |" in text
    assert text.index("Measured here") < text.index("94.25") < text.index("Reported by the paper") < text.index("39.4")
    assert "Nothing has been measured" not in text


def test_licences_and_limits():
    text = words(card_of("resnet50_fdconv.fb_swsl_ig1b_ft_in1k"))
    assert "The weights are under CC-BY-NC-4.0, the licence of [timm/resnet50.fb_swsl_ig1b_ft_in1k]" in text
    assert "Not for commercial use" in text
    assert "Not for commercial use" not in words(card_of(CONVERTED))


def test_data_by_tag():
    def titles(tag):
        return [dataset.title for dataset in find_training_data(tag)]

    assert titles("fb_in22k_ft_in1k") == ["ImageNet-22k", "ImageNet-1k"]
    assert titles("in12k") == ["ImageNet-12k"]
    assert titles("fb_swsl_ig1b_ft_in1k") == ["Instagram images with hashtags (IG-1B)", "ImageNet-1k"]
    assert titles("fashion_mnist_sample") == ["Fashion-MNIST"]
    assert titles("") == []
    assert find_measured_data("ADE20K val").task == "image-segmentation"
    assert find_measured_data("My Data").hub_id == "my data"


def test_a_comparison_is_a_table_of_its_own():
    rows = [Compared("`plain`", 276314, 91.7, 0.125, 3, 1.0), Compared("`ours`", 340938, 91.5, 0.1, 3, 9.96)]
    comparison = Comparison("Fashion-MNIST, test", "% top-1", "4 epochs", "python compare.py", "No better.", rows)
    text = words(card_of(TRAINED, results=Results([], [], [comparison])))
    assert "| `plain` | 276,314 | 91.70 | 0.12 | 3 | 1.0 x |" in text
    assert "| `ours` | 340,938 | 91.50 | 0.10 | 3 | 10.0 x |" in text
    assert "Fashion-MNIST, test, % top-1, compared with models trained in the same way: 4 epochs. No better." in text
    assert "Measured with `python compare.py`" in text
