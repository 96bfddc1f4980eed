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
import yaml
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fdconv_zoo.errors import HubError, PublishError, first_of
from fdconv_zoo.index import Entry
from fdconv_zoo.index.cards import render_card
from fdconv_zoo.index.run_card import find_source, render_run_card
from fdconv_zoo.index.run_record import FLAGS_FILE, read_run
from fdconv_zoo.store import check_model_folder
from fdconv_zoo.store.export import save_folder
from fdconv_zoo.store.files import write_text
from fdconv_zoo.store.hub_errors import explained
from fdconv_zoo.store.names import CONFIG_FILE, HUB, LOCAL, WEIGHTS_FILE
from fdconv_zoo.version import __version__

CARD_FILE = "README.md"


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


def make_repository(model: nn.Module, entry: Entry, name: str, repo_id: str, folder: Path) -> None:
    """Write all files of the repository of an entry's own weights.

    Args:
        model: the model, with the weights to publish.
        entry: its entry in the index.
        name: the entry's name.
        repo_id: the repository, for the card.
        folder: a new folder for the files.

    Raises:
        WeightsError: weights are not finite.
    """
    labels = model.pretrained_cfg.get("label_names") or ()
    save_folder(model, folder, model_config={"label_names": list(labels)} if len(labels) == model.num_classes else {})
    _write_provenance(folder, model=entry.model, status=entry.status, source=entry.source, license=entry.license)
    render_card(replace(entry, hub_id=repo_id), name).save(folder / CARD_FILE)
    check_model_folder(folder)


def make_run_repository(weights: Path, repo_id: str, folder: Path, *, licence: str | None = None) -> None:
    """Write all files of the repository of a run. All that they say is from the run itself.

    Args:
        weights: the output folder of a classifier's run, or `last` in it.
        repo_id: the repository, for the card.
        folder: a new folder for the files.
        licence: identifier of the licence of the weights, such as "apache-2.0"; None states none.

    Raises:
        PublishError: it is not the folder of a run, or the run's record is damaged.
        WeightsError: the run's configuration or weights are damaged, or weights are not finite.
    """
    run = read_run(weights)
    check_model_folder(weights)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((weights / CONFIG_FILE).read_text(encoding="utf-8"))
    described = config["pretrained_cfg"]
    # What the weights it started from were said to be.
    for key in ("license", "tag", "origin_url", "paper_ids", "paper_name", "notes", "label_names"):
        described.pop(key, None)
    if licence is not None:
        described["license"] = licence
    write_text(folder / CONFIG_FILE, json.dumps({**config, "label_names": run.class_names}, indent=2) + "\n")
    shutil.copyfile(weights / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    source = find_source(run)
    _write_provenance(folder, model=config["architecture"], status="trained", source=source, license=licence)
    write_text(folder / FLAGS_FILE, yaml.safe_dump(dict(run.flags), sort_keys=False, allow_unicode=True))
    for record in run.files:
        shutil.copyfile(record, folder / record.name)
    model = timm.create_model(f"{LOCAL}{folder}", pretrained=True)
    render_run_card(
        run,
        repo_id,
        architecture=config["architecture"],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        preprocessing=described,
        licence=licence,
    ).save(folder / CARD_FILE)


def _write_provenance(folder: Path, **known: str | None) -> None:
    """Write what is known of the weights into their file."""
    known["source"] = known["source"] or "random weights"
    texts = {key: value for key, value in known.items() if value is not None}
    save_file(
        load_file(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE, {"format": "pt", **texts, "fdconv_zoo": __version__}
    )


def publish(folder: Path, target: Target) -> str:
    """Upload a folder in a single commit, and verify the result.

    Files are uploaded before the commit that makes them visible, so an interrupted upload publishes nothing; when
    repeated, it skips the files that have arrived. The token is the one stored by huggingface_hub.

    Args:
        folder: written by :func:`make_repository` or :func:`make_run_repository`.
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
