"""Model cards of runs, made from the files that the runs have written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fdconv_zoo.index.cards import citations
from fdconv_zoo.index.facts import find_licence
from fdconv_zoo.index.family import Family, find_family
from fdconv_zoo.index.run_record import RunRecord

_TEMPLATE = Path(__file__).with_name("run_card_template.md")
_SHOWN = 100  # largest number of classes that a card lists


def render_run_card(
    run: RunRecord,
    repo_id: str,
    *,
    architecture: str,
    parameters: int,
    preprocessing: Mapping[str, Any],
    licence: str | None,
) -> ModelCard:
    """Render the card of a run.

    Args:
        run: The record of the run.
        repo_id: Repository of the card.
        architecture: timm's name of the model, without a tag.
        parameters: Number of parameters.
        preprocessing: The `pretrained_cfg` in the model's ``config.json``.
        licence: Identifier of the licence under which the weights are published; None if not stated.
    """
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=run.dataset.lower(),
            dataset_name=run.dataset,
            dataset_split="validation",
            metric_type="accuracy",
            metric_name="% top-1",
            metric_value=run.row["top1"],
        )
    ]
    family, name = _family(architecture), repo_id.rpartition("/")[2]
    tags = ["timm", "image-classification", *(("fdconv", "dynamic-convolution", family.tag) if family else ())]
    data = ModelCardData(
        **licence_metadata(licence),
        library_name="timm",
        pipeline_tag="image-classification",
        tags=tags,
        base_model=find_source(run),
        model_name=name,
        eval_results=results,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        name=name,
        repo_id=repo_id,
        architecture=architecture,
        class_names=[" ".join(class_name.split()) for class_name in run.class_names],
        shown=_SHOWN,
        family=family,
        parameters=parameters,
        size="x".join(map(str, preprocessing["input_size"][1:])),
        preprocessing=preprocessing,
        **run_facts(run, architecture, metric="top-1", licence=licence),
    )
    return ModelCard(f"{str(card).rstrip()}\n")


def licence_metadata(licence: str | None) -> dict[str, Any]:
    """Return the entries of a card's metadata for the licence with this identifier."""
    link = licence and find_licence(licence).link
    return {
        "license": "other" if link else licence,
        "license_name": licence if link else None,
        "license_link": link,
    }


def run_facts(run: RunRecord, architecture: str, *, metric: str, licence: str | None) -> dict[str, Any]:
    """Return the values that the card templates of all kinds of runs use.

    Args:
        run: The record of the run.
        architecture: timm's name of the model or its backbone, without a tag.
        metric: The metric that chose the best epoch, in words.
        licence: As in `render_run_card`.
    """
    family, source = _family(architecture), find_source(run)
    known = find_licence(licence) if licence else None
    title = None if known is None else f"[{known.title}]({known.link})" if known.link else known.title
    return {
        "version": (run.flags.get("versions") or {}).get("fdconv_zoo", "of an unknown version"),
        "dataset": run.dataset,
        "train_images": run.flags.get("num_train_images"),
        "images": run.row["images"],
        "start": f"the weights of [{source}](https://huggingface.co/{source})" if source else find_origin(run),
        "recipe": yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True).strip(),
        "row": run.row,
        "chosen": (
            "These are the weights of the last epoch."
            if run.is_last
            else f"The epoch is the one with the best {metric} on these images, so on others expect less."
        ),
        "licence": _licence(run, source, title),
        "citations": citations(family.citation if family else None),
    }


def find_source(run: RunRecord) -> str | None:
    """Return the Hub repository whose weights the run started from; None if there is none, or it is unknown."""
    flags = run.flags
    if flags.get("smoke") or flags.get("checkpoint") or not flags.get("pretrained"):
        return None
    model = str(flags["model"])
    if model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:").partition("@")[0]
    config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    return (config and config.hf_hub_id) or None


def find_origin(run: RunRecord) -> str:
    """Return what the run started from, in words: a Hub repository, a file, a model's weights, or random weights."""
    flags = run.flags
    if source := find_source(run):
        return source
    if flags.get("checkpoint") and not flags.get("smoke"):
        return "the weights of a file"
    if flags.get("pretrained") and not flags.get("smoke"):
        return f"the weights of {flags['model']}"
    return "random weights"


def _licence(run: RunRecord, source: str | None, given: str | None) -> str:
    words = f"The weights are under {given}." if given else "The publisher has stated no licence for these weights."
    config = timm.get_pretrained_cfg(str(run.flags["model"])) if source and timm.is_model(run.flags["model"]) else None
    if config and config.license:
        words += f" Those that the run started from are under {find_licence(config.license).title}."
    return words


def _family(architecture: str) -> Family | None:
    try:
        return find_family(architecture)
    except KeyError:
        return None  # one of timm's own models
