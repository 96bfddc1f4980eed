"""Fetches files into the Hub client's cache, and removes them again if they arrive damaged."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from fdconv_zoo.errors import HubError
from fdconv_zoo.store.cache import CachedFile, cached_files, remove_damaged
from fdconv_zoo.store.find import Weights
from fdconv_zoo.store.hub_errors import explained
from fdconv_zoo.store.names import CONFIG_FILE


def download(weights: Weights) -> Path:
    """Fetch weights, and the configuration if timm needs it, unless they are cached; shows the client's progress bar.

    Returns:
        Path of the weights in the cache.

    Raises:
        HubError: a file could not be downloaded, or arrived damaged.
    """
    repo_id, revision = weights.repo_id, weights.revision
    with explained(repo_id, revision):
        if weights.with_config:
            _fetch(repo_id, CONFIG_FILE, revision)
        for name in weights.choices[:-1]:
            try:
                return _fetch(repo_id, name, revision)
            except LocalEntryNotFoundError:
                raise  # the Hub was not reached, so it may have this file
            except EntryNotFoundError:
                continue
        return _fetch(repo_id, weights.choices[-1], revision)


def fetch_again(file: CachedFile) -> None:
    """Remove a damaged file from the cache and fetch it again.

    Raises:
        HubError: the file could not be downloaded, or is damaged again. It is no longer in the cache.
    """
    file.remove()
    fetch_file(file.repo_id, file.name, file.commit)


def fetch_file(repo_id: str, name: str, revision: str | None = None, **options: Any) -> Path:
    """Fetch a file of a repository, unless it is cached.

    Args:
        repo_id: The repository.
        name: Path of the file in the repository.
        revision: Branch, tag or commit. Default: the main branch.
        **options: Passed to ``huggingface_hub.hf_hub_download``, such as ``token``.

    Returns:
        Path of the file in the cache.

    Raises:
        HubError: the file could not be downloaded, or arrived damaged and was removed from the cache.
    """
    with explained(repo_id, revision):
        return _fetch(repo_id, name, revision, **options)


def _fetch(repo_id: str, name: str, revision: str | None, **options: Any) -> Path:
    path = Path(hf_hub_download(repo_id, name, revision=revision, **options))
    cached = cached_files(repo_id, options.get("cache_dir"))
    if damage := remove_damaged(file for file in cached if file.name == name and file.commit in path.parts):
        raise HubError(f"{repo_id}: {damage}")
    return path
