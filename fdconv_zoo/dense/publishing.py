"""Publishes a segmenter or a detector of a run: writes its repository's files, uploads and verifies them."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard
from timm.models import split_model_name_tag
from torch import Tensor

from fdconv_zoo.dense.detection.model import Detector
from fdconv_zoo.dense.evaluation import markdown_row
from fdconv_zoo.dense.segmentation.model import Segmenter
from fdconv_zoo.errors import PublishError
from fdconv_zoo.index.run_card import find_origin, find_source, licence_metadata, run_facts
from fdconv_zoo.index.run_record import RunRecord, read_run
from fdconv_zoo.store.config import read_config
from fdconv_zoo.store.names import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from fdconv_zoo.store.provenance import write_provenance
from fdconv_zoo.store.upload import Target, upload

_TEMPLATE = Path(__file__).with_name("run_card_template.md")
_COLUMNS = {  # of the classes in a row of metrics.jsonl
    "name": "class",
    **{"pixels": "pixels", "iou": "IoU %", "accuracy": "accuracy %"},
    **{"objects": "objects", "box_ap": "box AP %", "mask_ap": "mask AP %"},
}


@dataclass(frozen=True)
class _Kind:
    """The differences between runs of segmentation and detection.

    Attributes:
        model: Class of the model.
        command: Command that trains the model.
        metrics: By key in a row of metrics.jsonl: name, and name on the Hub. The first determined the best epoch.
    """

    model: type[Segmenter | Detector]
    command: str
    metrics: Mapping[str, tuple[str, str]]


_KINDS = {  # by a key of the configuration
    "decoder": _Kind(
        Segmenter,
        "segment",
        {
            "miou": ("mIoU", "mean_iou"),
            "mean_accuracy": ("mean accuracy", "mean_accuracy"),
            "pixel_accuracy": ("pixel accuracy", "accuracy"),
        },
    ),
    "head": _Kind(
        Detector,
        "detect",
        {
            "box_ap": ("box AP", "mean_average_precision"),
            "box_ap50": ("box AP50", "mean_average_precision"),
            "mask_ap": ("mask AP", "mean_average_precision"),
            "mask_ap50": ("mask AP50", "mean_average_precision"),
        },
    ),
}


def make_run_repository(weights: Path, repo_id: str, folder: Path, *, licence: str | None = None) -> None:
    """Write all files of the repository of a run, and check that the model loaded from them predicts the same.

    All information in them is from the run itself. They contain none of its images.

    Args:
        weights: Output folder of a run of `fdconv-zoo segment` or `detect`, or `last` in it.
        repo_id: The repository, for the card.
        folder: A new folder for the files.
        licence: Identifier of the licence of the weights, such as "apache-2.0"; None states none.

    Raises:
        PublishError: `weights` is not the folder of a run, the run's record is damaged, or the written model predicts
            differently.
        WeightsError: the run's configuration or weights are damaged, or weights are not finite.
    """
    kind = _kind(weights)
    run = read_run(weights, next(iter(kind.metrics)))
    model = kind.model.from_pretrained(weights)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(weights / name, folder / name)
    known = {"model": model.config["backbone"], "status": "trained", "source": find_origin(run), "license": licence}
    write_provenance(folder / WEIGHTS_FILE, **known)
    run.copy_to(folder)
    render_card(run, model, kind, repo_id, licence).save(folder / CARD_FILE)
    if not _predict_the_same(model, kind.model.from_pretrained(folder)):
        raise PublishError(f"{folder} holds another model than {weights}: publish again")


def publish(folder: Path, target: Target) -> str:
    """Upload a folder of `make_run_repository` and return the commit hash; see `fdconv_zoo.store.upload.upload`."""
    return upload(folder, target, _predictions_are_equal)


def loading_code(folder: Path, repo_id: str, revision: str) -> str:
    """Return the Python code that loads the published model of a folder."""
    return f"{_kind(folder).model.__name__}.from_pretrained({repo_id!r}, revision={revision!r})"


def render_card(
    run: RunRecord, model: Segmenter | Detector, kind: _Kind, repo_id: str, licence: str | None
) -> ModelCard:
    """Render the card of a run: the model's own, with the run's results, training and licence."""
    measured = {key: run.row[key] for key in kind.metrics if run.row.get(key) is not None}
    about = model.generate_model_card(
        repo_id=repo_id,
        dataset=f"the validation images of {run.dataset}",
        metrics={kind.metrics[key][0]: f"{value:.2f} %" for key, value in measured.items()},
        table=_class_table(run.row.get("classes", [])),
    )
    data = about.data
    for key, value in licence_metadata(licence).items():
        setattr(data, key, value)
    data.base_model, data.model_name = find_source(run), repo_id.rpartition("/")[2]
    data.eval_results = [
        EvalResult(
            task_type=data.pipeline_tag,
            dataset_type=run.dataset.lower(),
            dataset_name=run.dataset,
            dataset_split="validation",
            metric_type=kind.metrics[key][1],
            metric_name=f"% {kind.metrics[key][0]}",
            metric_value=value,
        )
        for key, value in measured.items()
    ]
    facts = run_facts(
        run,
        split_model_name_tag(model.config["backbone"])[0],
        metric=next(name for name, _ in kind.metrics.values()),
        licence=licence,
    )
    card = ModelCard.from_template(
        data, template_path=str(_TEMPLATE), about=about.text.strip(), command=kind.command, **facts
    )
    return ModelCard(f"{str(card).rstrip()}\n")


def _class_table(classes: Sequence[Mapping[str, Any]]) -> str:
    keys = [key for key in _COLUMNS if any(entry.get(key) is not None for entry in classes)]
    rows = [[_one_cell(entry.get(key)) for key in keys] for entry in classes]
    return "\n".join(markdown_row(*row) for row in ([_COLUMNS[key] for key in keys], ["---"] * len(keys), *rows))


def _one_cell(value: Any) -> Any:
    return " ".join(value.split()).replace("|", "\\|") if isinstance(value, str) else value


def _kind(folder: Path) -> _Kind:
    config = read_config(folder / CONFIG_FILE)
    found = next((kind for key, kind in _KINDS.items() if key in config), None)
    if found is None:
        raise PublishError(f"{folder} holds neither a segmenter nor a detector: is it the output folder of a run?")
    return found


def _predictions_are_equal(folder: Path, repo_id: str, revision: str, cache: str) -> bool:
    model = _kind(folder).model
    return _predict_the_same(
        model.from_pretrained(folder), model.from_pretrained(repo_id, revision=revision, cache_dir=cache)
    )


def _predict_the_same(one: Segmenter | Detector, other: Segmenter | Detector) -> bool:
    found, expected = _predictions(one), _predictions(other)
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@torch.inference_mode()
def _predictions(model: Segmenter | Detector) -> list[Tensor]:
    """Compute a model's outputs for random images; for detectors also the pyramid, as they may detect nothing."""
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    if isinstance(model, Segmenter):
        return [model(images)]
    objects = [value for found in model(list(images)) for value in found.values()]
    return [*model.network.backbone(images).values(), *objects]
