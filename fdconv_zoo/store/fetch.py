"""Files fetched into the Hub's cache, and out of it again if they arrive damaged."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from fdconv_zoo.errors import HubError
from fdconv_zoo.store.cache import CachedFile, cached_files, remove_damaged
from fdconv_zoo.store.find import CONFIG, Weights
from fdconv_zoo.store.hub_errors import explained


def download(weights: Weights) -> Path:
    """Fetch weights, and the configuration where timm needs it; the client shows its progress bar.

    Returns:
        The weights' path in the cache; what is there already is not fetched again.

    Raises:
        HubError: they cannot be had, or arrived damaged.
    """
    repo_id, revision = weights.repo_id, weights.revision
    with explained(repo_id, revision):
        if weights.with_config:
            _fetch(repo_id, CONFIG, revision)
        for name in weights.choices[:-1]:
            try:
                return _fetch(repo_id, name, revision)
            except LocalEntryNotFoundError:
                raise  # the Hub was not reached: it may have this one
            except EntryNotFoundError:
                continue
        return _fetch(repo_id, weights.choices[-1], revision)


def fetch_again(file: CachedFile) -> None:
    """Remove a damaged file from the cache and fetch it anew.

    Raises:
        HubError: it cannot be had, or is damaged again; either way it is not in the cache any more.
    """
    file.remove()
    fetch_file(file.repo_id, file.name, file.commit)


def fetch_file(repo_id: str, name: str, revision: str | None = None, **options: Any) -> Path:
    """Fetch a file of a repository; what is in the cache already is not fetched again.

    Args:
        repo_id: The repository.
        name: The file's path in it.
        revision: Branch, tag or commit; None for the main branch.
        **options: Of ``huggingface_hub.hf_hub_download``, such as ``token``.

    Returns:
        The file's path in the cache.

    Raises:
        HubError: it could not be downloaded, or arrived damaged and is not in the cache any more.
    """
    with explained(repo_id, revision):
        return _fetch(repo_id, name, revision, **options)


def _fetch(repo_id: str, name: str, revision: str | None, **options: Any) -> Path:
    path = Path(hf_hub_download(repo_id, name, revision=revision, **options))
    cached = cached_files(repo_id, options.get("cache_dir"))
    if damage := remove_damaged(file for file in cached if file.name == name and file.commit in path.parts):
        raise HubError(f"{repo_id}: {damage}")
    return path
