"""Model cards: for each entry of the index, the page that is published with its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fdconv_zoo.index import Entry, Result
from fdconv_zoo.index.facts import Dataset, find_licence, find_measured_data, find_training_data
from fdconv_zoo.index.family import find_family
from fdconv_zoo.index.table import more, quantity

_TEMPLATE = Path(__file__).with_name("card_template.md")
_CITATIONS = Path(__file__).with_name("citations.bib")
_METRICS = {"% top-1": "accuracy", "% top-5": "top_5_accuracy"}  # our metrics, and the Hub's names for them


def render_card(entry: Entry, name: str) -> ModelCard:
    """Render the card of an entry.

    Args:
        entry: Entry of the index. For the card of a new repository, pass ``dataclasses.replace(entry, hub_id=...)``.
        name: The file's name in `models/`, without `.yaml`.
    """
    costs, preprocessing, family = entry.costs, entry.preprocessing, find_family(entry.architecture)
    data = find_training_data(entry.tag or str((entry.recipe or {}).get("dataset", "")))
    size = "x".join(map(str, preprocessing.size[1:]))
    card = ModelCard.from_template(
        card_metadata(entry, name),
        template_path=str(_TEMPLATE),
        name=name,
        description=_one_line(entry.description),
        status=_status(entry),
        load=_load(entry),
        family=family,
        size=size,
        costs=[
            ("parameters", *_row(costs.parameters, costs.plain_parameters)),
            ("multiply-adds", *_row(costs.multiply_adds, costs.plain_multiply_adds)),
        ],
        preprocessing=(
            f"the shorter side resized to {int(preprocessing.size[1] / preprocessing.crop_pct)} pixels "
            f"({preprocessing.interpolation}), the central {size} cropped, pixels in 0..1 normalized with the mean "
            f"{preprocessing.mean} and the standard deviation {preprocessing.std}"
        ),
        data=_data(entry, data),
        recipe_status=_recipe_status(entry, name),
        recipe=entry.recipe and yaml.safe_dump(entry.recipe, sort_keys=False).strip(),
        measured=entry.results.measured,
        comparisons=entry.results.comparisons,
        paper=entry.results.paper,
        same_results=_same_results(entry),
        limits=_limits(entry, data),
        licence=_licence(entry),
        citations=citations(family.citation),
    )
    return ModelCard(f"{str(card).rstrip()}\n")  # the template engine drops the final newline


def card_metadata(entry: Entry, name: str) -> ModelCardData:
    """Return the metadata of a card for the Hub. Results of the paper are left out: they are not this model's."""
    data = find_training_data(entry.tag or str((entry.recipe or {}).get("dataset", "")))
    results = [_eval_result(result) for result in entry.results.measured]
    licence_link = find_licence(entry.license).link
    return ModelCardData(
        license="other" if licence_link else entry.license,
        license_name=entry.license if licence_link else None,
        license_link=licence_link,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["timm", "image-classification", "fdconv", "dynamic-convolution", find_family(entry.architecture).tag],
        base_model=entry.source,
        datasets=[dataset.hub_id for dataset in data if dataset.hub_id] or None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def with_card(index: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the entries that have a card. Other recipes for a model that has an entry under its own name have none."""
    return {name: entry for name, entry in index.items() if name == entry.model or entry.model not in index}


def _eval_result(result: Result) -> EvalResult:
    title, _, split = result.dataset.partition(", ")
    dataset = find_measured_data(title)
    is_link = result.source.startswith("https://")
    return EvalResult(
        task_type=dataset.task,
        dataset_type=dataset.hub_id or title.lower(),
        dataset_name=title,
        dataset_split=split or None,
        metric_type=_METRICS.get(result.metric, result.metric),
        metric_name=result.metric,
        metric_value=result.value,
        # A source must be a link; a command is stored with the arguments of the metric.
        metric_args={"setting": result.setting} | ({} if is_link else {"command": result.source}),
        source_url=result.source if is_link else None,
    )


def _load(entry: Entry) -> str:
    """The arguments of `timm.create_model` that load the model."""
    if entry.hub_id:
        return f'"hf-hub:{entry.hub_id}", pretrained=True'
    return f'"{entry.model}"' + (", pretrained=True" if entry.status != "recipe only" else "")


def _status(entry: Entry) -> str:
    if entry.status == "trained":
        start = f"the weights of {_source(entry)}, converted" if entry.source else "random weights"
        return f"**Trained** as an FDConv network, from {start}."
    if entry.status == "recipe only":
        return "**A recipe, without weights.** The model is built with random weights, ready to train."
    return (
        f"**Converted, not trained.** These are the weights of {_source(entry)}. FDConv's own parameters have not "
        "been trained: every modulator starts at exactly 1, so the model computes what the plain one computes, up "
        "to float rounding, and takes longer. It is a start for fine-tuning, not an improvement by itself."
    )


def _data(entry: Entry, data: list[Dataset]) -> str:
    titles = ", then ".join(dataset.title for dataset in data)
    if entry.status == "converted, not trained":
        known = f" on {titles}" if titles else ""
        return f"{_source(entry)} was trained{known} by its authors, as a plain network. Nothing was trained here."
    return f"Data: {titles or 'see the recipe'}."


def _recipe_status(entry: Entry, name: str) -> str:
    command = f"`accelerate launch -m fdconv_zoo train --config {name} --output runs/mine`"
    if entry.status == "trained":
        return f"Trained by {command}."
    if entry.status == "recipe only":
        return f"{command} trains it."
    return f"{command} fine-tunes it; these weights were not trained with it."


def _same_results(entry: Entry) -> str:
    if entry.status != "converted, not trained":
        return ""
    return f"; what the card of {_source(entry)} reports holds for this model too: it computes the same function"


def _limits(entry: Entry, data: list[Dataset]) -> list[str]:
    limits = []
    if entry.status == "converted, not trained":
        limits.append(
            "For fine-tuning on your images, and as a backbone for dense prediction, for which FDConv is designed."
        )
        limits.append("To classify without fine-tuning, use the plain model: it gives the same answers in less time.")
    elif entry.status == "recipe only":
        limits.append("For training from random weights.")
    else:
        limits.append("For images like those it was trained on, and for fine-tuning.")
    limits.append("Each image gets kernels of its own: `docs/performance.md` of fdconv-zoo has the costs.")
    limits += dict.fromkeys(dataset.remark for dataset in data)
    if "-nc-" in entry.license:
        limits.append("Not for commercial use, see the licence.")
    return limits


def _licence(entry: Entry) -> str:
    known = find_licence(entry.license)
    licence = f"[{known.title}]({known.link})" if known.link else known.title
    if entry.status == "recipe only":
        return f"This recipe is under {licence}."
    return f"The weights are under {licence}" + (f", the licence of {_source(entry)}." if entry.source else ".")


def citations(of_the_family: str | None) -> str:
    """Return the citations of FDConv, the family and timm in BibTeX; only timm for a model not of our families."""
    fdconv, timm = _CITATIONS.read_text(encoding="utf-8").strip().split("\n\n")
    return "\n\n".join((fdconv, of_the_family.strip(), timm)) if of_the_family else timm


def _row(dynamic: int, plain: int) -> tuple[Any, ...]:
    return quantity(dynamic), quantity(plain), more(dynamic, plain)


def _source(entry: Entry) -> str:
    return f"[{entry.source}](https://huggingface.co/{entry.source})"


def _one_line(text: str) -> str:
    return " ".join(text.split())
