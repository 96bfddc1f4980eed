"""Publishes a classifier: writes its repository's files, uploads them and verifies the upload."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import nn

from fdconv_zoo.index import Entry
from fdconv_zoo.index.cards import render_card
from fdconv_zoo.index.run_card import find_origin, render_run_card
from fdconv_zoo.index.run_record import read_run
from fdconv_zoo.store import check_model_folder
from fdconv_zoo.store.export import save_folder
from fdconv_zoo.store.files import write_text
from fdconv_zoo.store.names import CARD_FILE, CONFIG_FILE, HUB, LOCAL, WEIGHTS_FILE
from fdconv_zoo.store.provenance import write_provenance
from fdconv_zoo.store.upload import Target, upload


def make_repository(model: nn.Module, entry: Entry, name: str, repo_id: str, folder: Path) -> None:
    """Write all files of a repository with an entry's own weights.

    Args:
        model: the model, with the weights to publish.
        entry: its entry in the index.
        name: the entry's name.
        repo_id: name of the repository, for the card.
        folder: a new folder for the files.

    Raises:
        WeightsError: weights are not finite.
    """
    labels = model.pretrained_cfg.get("label_names") or ()
    save_folder(model, folder, model_config={"label_names": list(labels)} if len(labels) == model.num_classes else {})
    source = entry.source or "random weights"
    write_provenance(
        folder / WEIGHTS_FILE, model=entry.model, status=entry.status, source=source, license=entry.license
    )
    render_card(replace(entry, hub_id=repo_id), name).save(folder / CARD_FILE)
    check_model_folder(folder)


def make_run_repository(weights: Path, repo_id: str, folder: Path, *, licence: str | None = None) -> None:
    """Write all files of a repository with the model of a run. Everything in them comes from the run itself.

    Args:
        weights: the output folder of a classifier's run, or `last` in it.
        repo_id: name of the repository, for the card.
        folder: a new folder for the files.
        licence: identifier of the licence of the weights, such as "apache-2.0"; None: none is stated.

    Raises:
        PublishError: `weights` is not the folder of a run, or the run's record is damaged.
        WeightsError: the run's configuration or weights are damaged, or weights are not finite.
    """
    run = read_run(weights, "top1")
    check_model_folder(weights)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((weights / CONFIG_FILE).read_text(encoding="utf-8"))
    described = config["pretrained_cfg"]
    # These keys describe the weights that the run started from.
    for key in ("license", "tag", "origin_url", "paper_ids", "paper_name", "notes", "label_names"):
        described.pop(key, None)
    if licence is not None:
        described["license"] = licence
    write_text(folder / CONFIG_FILE, json.dumps({**config, "label_names": run.class_names}, indent=2) + "\n")
    shutil.copyfile(weights / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    known = {"model": config["architecture"], "status": "trained", "source": find_origin(run), "license": licence}
    write_provenance(folder / WEIGHTS_FILE, **known)
    run.copy_to(folder)
    model = timm.create_model(f"{LOCAL}{folder}", pretrained=True)
    render_run_card(
        run,
        repo_id,
        architecture=config["architecture"],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        preprocessing=described,
        licence=licence,
    ).save(folder / CARD_FILE)


def publish(folder: Path, target: Target) -> str:
    """Upload a folder from `make_repository` or `make_run_repository`, see :func:`fdconv_zoo.store.upload.upload`."""
    return upload(folder, target, _logits_are_equal)


def loading_code(folder: Path, repo_id: str, revision: str) -> str:
    """Return the Python code that loads the published model."""
    return f"timm.create_model('{HUB}{repo_id}@{revision}', pretrained=True)"


@torch.inference_mode()
def _logits_are_equal(folder: Path, repo_id: str, revision: str, cache: str) -> bool:
    local, downloaded = (
        timm.create_model(source, pretrained=True, cache_dir=cache).eval()
        for source in (f"{LOCAL}{folder}", f"{HUB}{repo_id}@{revision}")
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *local.pretrained_cfg["input_size"], generator=generator)
    return torch.equal(local(images), downloaded(images))
