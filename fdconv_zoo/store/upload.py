"""Uploads the folder of a model to the Hub in one commit, and verifies the result."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

from fdconv_zoo.errors import HubError, PublishError, first_of
from fdconv_zoo.store.hub_errors import explained
from fdconv_zoo.version import __version__

# Called with a folder, repository, revision and cache; whether the models of folder and repository compute the same.
Compare = Callable[[Path, str, str, str], bool]


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


def upload(folder: Path, target: Target, compute_the_same: Compare) -> str:
    """Upload a folder in a single commit, and verify the result.

    Files are uploaded before the commit that makes them visible, so an interrupted upload publishes nothing. If it is
    repeated, files that have arrived are skipped. The token is the one stored by huggingface_hub.

    Args:
        folder: the files, without sub-folders.
        target: the destination.
        compute_the_same: called with the folder, the repository, the revision and a cache; returns whether the models
            in the folder and in the repository compute the same.

    Returns:
        The commit hash.

    Raises:
        PublishError: the upload or its verification failed; the message says what is on the Hub now.
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
        _verify(folder, target.repo_id, commit.oid, compute_the_same)
        if target.tag is not None:
            api.create_tag(target.repo_id, tag=target.tag, revision=commit.oid, exist_ok=False)
    return commit.oid


def describe(folder: Path) -> list[tuple[str, int]]:
    """List the files to upload, with their sizes in bytes."""
    return [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]


def _verify(folder: Path, repo_id: str, revision: str, compute_the_same: Compare) -> None:
    """Download a revision into an empty cache, and compare its files and its model with a folder's.

    Raises:
        PublishError: a file or the model differs.
    """
    with tempfile.TemporaryDirectory() as cache:
        snapshot = Path(snapshot_download(repo_id, revision=revision, cache_dir=cache))
        for path in sorted(folder.iterdir()):
            arrived = snapshot / path.name
            if not arrived.is_file() or arrived.read_bytes() != path.read_bytes():
                raise PublishError(
                    f"{path.name} of {repo_id} at {revision} differs from the uploaded file: publish again"
                )
        if not compute_the_same(folder, repo_id, revision, cache):
            raise PublishError(f"{repo_id} at {revision} computes something else than the local model")


def _check_free(api: HfApi, target: Target) -> None:
    """Check that the repository has no files, unless overwriting them was requested."""
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
    """Turn errors in the block into a `PublishError` that begins with `state`: what is on the Hub now."""
    try:
        with explained(target.repo_id):
            yield
    except PublishError as error:
        raise PublishError(f"{state}. {error}") from error
    except HubError as error:
        raise PublishError(f"{state}. {error}. When repeated, the upload skips files that have arrived.") from error
