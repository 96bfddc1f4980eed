"""Cached files held against the Hub's hashes."""

from collections.abc import Iterator
from dataclasses import dataclass

from huggingface_hub import HfApi

from fdconv_zoo.store.cache import CachedFile, cached_files
from fdconv_zoo.store.hub_errors import REQUEST_ERRORS, explain


@dataclass(frozen=True)
class Verdict:
    """What is known of a cached file.

    Attributes:
        file: The file.
        problem: What is wrong with it; empty for a good one.
        remark: Why less is known than could be; empty where the Hub was asked.
    """

    file: CachedFile
    problem: str
    remark: str


def verify(repo_id: str) -> Iterator[Verdict]:
    """Check all cached files of a repository.

    The Hub says what a revision's files must be. Where it cannot be asked, the cache's own names do: a blob is named by
    the hash that the Hub gave when it was fetched.
    """
    hashes: dict[str, dict[str, str]] = {}
    remarks: dict[str, str] = {}
    for file in cached_files(repo_id):
        if file.commit not in hashes:
            try:
                hashes[file.commit] = _hub_hashes(repo_id, file.commit)
            except REQUEST_ERRORS as error:
                hashes[file.commit] = {}
                remarks[file.commit] = f"not held against the Hub: {explain(error, file.commit) or error}"
        known, remark = hashes[file.commit], remarks.get(file.commit, "")
        expected = known.get(file.name) or file.blob_hash
        if not file.path.exists():
            problem = "its content is missing"
        elif known and file.name not in known:
            problem = "the Hub has no such file in this revision"
        elif expected is None:
            problem = ""  # a cache without links: only the Hub could say
        else:
            problem = "" if file.has_hash(expected) else "its content is not what the Hub holds"
        yield Verdict(file, problem, remark)


def _hub_hashes(repo_id: str, commit: str) -> dict[str, str]:
    """By file: the SHA-256 of large ones, else Git's hash."""
    info = HfApi().model_info(repo_id, revision=commit, files_metadata=True)
    return {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings}
