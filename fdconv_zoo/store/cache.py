"""Files in the Hub client's cache, and their hashes."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name


@dataclass(frozen=True)
class CachedFile:
    """A cached file of a repository.

    Attributes:
        repo_id: The repository.
        commit: Commit hash of its revision.
        name: Path of the file in the repository.
        path: Path of the file in the cache, usually a link to a blob that is named by its hash.
    """

    repo_id: str
    commit: str
    name: str
    path: Path

    @property
    def blob(self) -> Path | None:
        """The blob that the link points to; None if the path is not a link or points outside the repository's blobs."""
        if not self.path.is_symlink():
            return None
        blobs = self.path.parents[self.name.count("/") + 2] / "blobs"
        target = Path(os.path.normpath(self.path.parent / os.readlink(self.path)))
        return target if target.parent == Path(os.path.normpath(blobs)) else None

    @property
    def blob_hash(self) -> str | None:
        """The hash that the Hub reported when the file was fetched; None if the cache does not contain it."""
        blob = self.blob
        return blob.name if blob and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name) else None

    def has_hash(self, expected: str) -> bool:
        """Whether the content has this hash: a SHA-256 for large files, otherwise Git's SHA-1 of the blob."""
        if not self.path.is_file():
            return False
        digest = hashlib.sha256()
        if len(expected) == 40:
            digest = hashlib.sha1(f"blob {self.path.stat().st_size}\0".encode(), usedforsecurity=False)
        return hash_file(self.path, digest) == expected

    def remove(self) -> None:
        """Remove the file and its blob from the cache, so that the client fetches it again."""
        blob = self.blob
        self.path.unlink(missing_ok=True)
        if blob:
            blob.unlink(missing_ok=True)


def hash_file(path: Path, digest: "hashlib._Hash") -> str:
    """Hash a file with `digest`, and return the hexadecimal value."""
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def cached_files(repo_id: str, cache: str | Path | None = None) -> Iterator[CachedFile]:
    """Yield all files of a repository's cached revisions, broken links included.

    Args:
        repo_id: The repository.
        cache: The cache folder. Default: the client's setting.
    """
    folder = Path(cache or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
    snapshots = folder / "snapshots"
    for path in sorted(snapshots.rglob("*")):
        if path.is_symlink() or path.is_file():
            commit, *parts = path.relative_to(snapshots).parts
            yield CachedFile(repo_id, commit, "/".join(parts), path)


def remove_damaged(files: Iterable[CachedFile]) -> str:
    """Remove files that arrived damaged from the cache; the client itself only compares sizes.

    Returns:
        A message with the removed files and what to do; empty if no file is damaged.
    """
    damaged = [file for file in files if file.blob_hash and not file.has_hash(file.blob_hash)]
    for file in damaged:
        file.remove()
    names = ", ".join(file.name for file in damaged)
    return f"{names} arrived damaged and was removed from the cache: try again" if damaged else ""
