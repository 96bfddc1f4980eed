"""Publishes a model: writes its repository's files, uploads them and verifies the upload."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fdconv_zoo.errors import HubError, PublishError, first_of
from fdconv_zoo.index import Entry
from fdconv_zoo.index.cards import render_card
from fdconv_zoo.store import check_model_folder
from fdconv_zoo.store.export import save_folder
from fdconv_zoo.store.hub_errors import explained
from fdconv_zoo.store.names import CONFIG_FILE, HUB, LOCAL, WEIGHTS_FILE
from fdconv_zoo.version import __version__

CARD_FILE = "README.md"
# Files of a run that are published with its weights.
RUN_RECORDS = ("train_config.yaml", "metrics.jsonl", "curves.png")


@dataclass(frozen=True)
class Target:
    """Destination of an upload.

    Attributes:
        repo_id: ``user/name`` of the repository; created if missing.
        private: Create it as a private repository.
        revision: Branch to commit to; created if missing. Default: the main branch.
        create_pr: Propose the commit as a pull request.
        tag: Tag for the commit, set once it is verified.
        force: Allow committing to a repository that already has files.
    """

    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    tag: str | None = None
    force: bool = False


def make_repository(model: nn.Module, entry: Entry, name: str, repo_id: str, folder: Path, run: Path | None) -> None:
    """Write all files of a model's repository.

    Args:
        model: the model, with the weights to publish.
        entry: its entry in the index.
        name: the entry's name.
        repo_id: the repository, for the card.
        folder: a new folder for the files.
        run: the output folder of the run that trained it; None for converted weights.

    Raises:
        WeightsError: weights are not finite.
    """
    labels = model.pretrained_cfg.get("label_names") or ()
    save_folder(model, folder, model_config={"label_names": list(labels)} if len(labels) == model.num_classes else {})
    provenance = {
        "format": "pt",
        "model": entry.model,
        "status": entry.status,
        "source": entry.source or "random weights",
        "license": entry.license,
        "fdconv_zoo": __version__,
    }
    save_file(load_file(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE, provenance)
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if run is not None:
        trained = json.loads((run / CONFIG_FILE).read_text(encoding="utf-8"))
        config |= {key: trained[key] for key in ("label_names", "pretrained_cfg") if key in trained}
        for record in RUN_RECORDS:
            if (run / record).is_file():
                shutil.copyfile(run / record, folder / record)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    render_card(replace(entry, hub_id=repo_id), name).save(folder / CARD_FILE)
    check_model_folder(folder)


def publish(folder: Path, target: Target) -> str:
    """Upload a folder in a single commit, and verify the result.

    Files are uploaded before the commit that makes them visible, so an interrupted upload publishes nothing; when
    repeated, it skips the files that have arrived. The token is the one stored by huggingface_hub.

    Args:
        folder: written by :func:`make_repository`.
        target: the destination.

    Returns:
        The commit hash.

    Raises:
        PublishError: the upload or its verification failed; says what the Hub holds now.
    """
    api = HfApi(library_name="fdconv-zoo", library_version=__version__)
    with _reporting(target, "nothing was published"):
        _check_free(api, target)
        api.create_repo(target.repo_id, private=target.private, exist_ok=True)
        if target.revision is not None:
            api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=target.repo_id,
            folder_path=folder,
            revision=target.revision,
            create_pr=target.create_pr,
            commit_message="Publish model",
        )
    with _reporting(target, f"commit {commit.oid} was uploaded, but not verified: do not use it"):
        verify_upload(folder, target.repo_id, commit.oid)
        if target.tag is not None:
            api.create_tag(target.repo_id, tag=target.tag, revision=commit.oid, exist_ok=False)
    return commit.oid


def verify_upload(folder: Path, repo_id: str, revision: str) -> None:
    """Download a revision into an empty cache, and compare its files and the model's logits with a folder's.

    Raises:
        PublishError: they differ; names the file.
    """
    with tempfile.TemporaryDirectory() as cache:
        snapshot = Path(snapshot_download(repo_id, revision=revision, cache_dir=cache))
        for path in sorted(folder.iterdir()):
            arrived = snapshot / path.name
            if not arrived.is_file() or arrived.read_bytes() != path.read_bytes():
                raise PublishError(
                    f"{path.name} of {repo_id} at {revision} differs from the uploaded file: publish again"
                )
        local, downloaded = (
            timm.create_model(source, pretrained=True, cache_dir=cache).eval()
            for source in (f"{LOCAL}{folder}", f"{HUB}{repo_id}@{revision}")
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *local.pretrained_cfg["input_size"], generator=generator)
    with torch.inference_mode():
        if not torch.equal(local(images), downloaded(images)):
            raise PublishError(f"{HUB}{repo_id}@{revision} returns other logits than the local model")


def describe(folder: Path) -> list[tuple[str, int]]:
    """List the files to upload, with their sizes in bytes."""
    return [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]


def metadata(path: Path) -> Mapping[str, str]:
    """Read the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _check_free(api: HfApi, target: Target) -> None:
    """Refuse to overwrite a published model unless asked to."""
    try:
        files = api.list_repo_files(target.repo_id)
    except RepositoryNotFoundError:
        return
    taken = [file for file in files if file != ".gitattributes"]
    if taken and not (target.force or target.create_pr):
        raise PublishError(
            f"{target.repo_id} exists and has {first_of(taken, 3)}: choose another name, propose the change with "
            "--create-pr, or overwrite it with --force"
        )


@contextmanager
def _reporting(target: Target, state: str) -> Iterator[None]:
    """Turn errors in the block into a `PublishError` that begins with `state`, what the Hub holds now."""
    try:
        with explained(target.repo_id):
            yield
    except PublishError as error:
        raise PublishError(f"{state}. {error}") from error
    except HubError as error:
        raise PublishError(f"{state}. {error}. When repeated, the upload skips files that have arrived.") from error
