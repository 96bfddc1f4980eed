"""Publishing a model: the content of its repository, its upload, and the check that what arrived is what was sent."""

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
from fdconv_zoo.version import __version__

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
# What a run leaves besides its weights.
RUN_RECORDS = ("train_config.yaml", "metrics.jsonl", "curves.png")


@dataclass(frozen=True)
class Target:
    """Where a model goes.

    Attributes:
        repo_id: ``user/name`` of the repository; made where there is none.
        private: Make it private.
        revision: Branch to commit to; made where there is none. None: the main one.
        create_pr: Propose the commit as a pull request.
        tag: Name the commit so, after it was verified.
        force: Commit to a repository that has files already.
    """

    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    tag: str | None = None
    force: bool = False


def make_repository(model: nn.Module, entry: Entry, name: str, repo_id: str, folder: Path, run: Path | None) -> None:
    """Write all that the repository of a model holds.

    Args:
        model: of the entry, with the weights to publish.
        entry, name: of the index.
        repo_id: of the repository to be; for the card.
        folder: a new one.
        run: the output folder of the run that trained it; None for converted weights.

    Raises:
        WeightsError: the weights are not numbers.
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
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, provenance)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if run is not None:
        trained = json.loads((run / CONFIG).read_text(encoding="utf-8"))
        config |= {key: trained[key] for key in ("label_names", "pretrained_cfg") if key in trained}
        for record in RUN_RECORDS:
            if (run / record).is_file():
                shutil.copyfile(run / record, folder / record)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    render_card(replace(entry, hub_id=repo_id), name).save(folder / CARD)
    check_model_folder(folder)


def publish(folder: Path, target: Target) -> str:
    """Upload a folder in a single commit, and verify that what arrived works.

    Files go up before the commit that makes them visible, so that an upload that is cut off leaves no model behind;
    started again, it skips what is there. The token is the one that huggingface_hub keeps.

    Args:
        folder: made by :func:`make_repository`.
        target: where to.

    Returns:
        The commit.

    Raises:
        PublishError: it was not published.
    """
    api = HfApi(library_name="fdconv-zoo", library_version=__version__)
    with _explained(target, "nothing was published"):
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
    with _explained(target, f"commit {commit.oid} is there, but not verified: do not use it"):
        verify(folder, target.repo_id, commit.oid)
        if target.tag is not None:
            api.create_tag(target.repo_id, tag=target.tag, revision=commit.oid, exist_ok=False)
    return commit.oid


def verify(folder: Path, repo_id: str, revision: str) -> None:
    """Download a revision into an empty cache, and compare it with a folder: files, then what the models compute.

    Raises:
        PublishError: they differ; names the file.
    """
    with tempfile.TemporaryDirectory() as cache:
        downloaded = Path(snapshot_download(repo_id, revision=revision, cache_dir=cache))
        for path in sorted(folder.iterdir()):
            arrived = downloaded / path.name
            if not arrived.is_file() or arrived.read_bytes() != path.read_bytes():
                raise PublishError(
                    f"{path.name} of {repo_id} at {revision} is not the file that was sent: publish again"
                )
        sent, arrived = (
            timm.create_model(source, pretrained=True, cache_dir=cache).eval()
            for source in (f"local-dir:{folder}", f"hf-hub:{repo_id}@{revision}")
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *sent.pretrained_cfg["input_size"], generator=generator)
    with torch.inference_mode():
        if not torch.equal(sent(images), arrived(images)):
            raise PublishError(f"hf-hub:{repo_id}@{revision} computes other logits than the local model")


def describe(folder: Path) -> list[tuple[str, int]]:
    """The files to upload, and their bytes."""
    return [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]


def metadata(path: Path) -> Mapping[str, str]:
    """What a safetensors file says of itself."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _check_free(api: HfApi, target: Target) -> None:
    """Refuse to commit over what somebody has published."""
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
def _explained(target: Target, state: str) -> Iterator[None]:
    """Say what the Hub has now when its client fails, and add it to what is found wrong."""
    try:
        with explained(target.repo_id):
            yield
    except PublishError as error:
        raise PublishError(f"{state}. {error}") from error
    except HubError as error:
        raise PublishError(f"{state}. {error}. Started again, it does not send again what arrived.") from error
