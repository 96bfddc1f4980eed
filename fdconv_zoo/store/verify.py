"""Verifies cached files against the Hub's hashes."""

from collections.abc import Iterator
from dataclasses import dataclass

from huggingface_hub import HfApi

from fdconv_zoo.store.cache import CachedFile, cached_files
from fdconv_zoo.store.hub_errors import REQUEST_ERRORS, explain


@dataclass(frozen=True)
class Verdict:
    """Result of verifying a cached file.

    Attributes:
        file: The file.
        problem: What is wrong with the file; empty if nothing is.
        remark: Why the Hub's hashes could not be used; empty if they were.
    """

    file: CachedFile
    problem: str
    remark: str


def verify(repo_id: str) -> Iterator[Verdict]:
    """Verify all cached files of a repository.

    Files are checked against the hashes that the Hub lists for their revision. If the Hub cannot be reached, they are
    checked against the names of their blobs: the hashes that the Hub reported when the files were fetched.
    """
    hashes: dict[str, dict[str, str]] = {}
    remarks: dict[str, str] = {}
    for file in cached_files(repo_id):
        if file.commit not in hashes:
            try:
                hashes[file.commit] = _hub_hashes(repo_id, file.commit)
            except REQUEST_ERRORS as error:
                hashes[file.commit] = {}
                remarks[file.commit] = f"not checked against the Hub: {explain(error, file.commit) or error}"
        known, remark = hashes[file.commit], remarks.get(file.commit, "")
        expected = known.get(file.name) or file.blob_hash
        if not file.path.exists():
            problem = "its content is missing"
        elif known and file.name not in known:
            problem = "the Hub has no such file in this revision"
        elif expected is None:
            problem = ""  # a cache without links: only the Hub knows
        else:
            problem = "" if file.has_hash(expected) else "its content differs from the Hub's"
        yield Verdict(file, problem, remark)


def _hub_hashes(repo_id: str, commit: str) -> dict[str, str]:
    """Return the hash of each file in a revision: SHA-256 for large files, otherwise Git's SHA-1."""
    info = HfApi().model_info(repo_id, revision=commit, files_metadata=True)
    return {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings}
