"""Fetches weights into the Hub client's cache ahead of time."""

from pathlib import Path

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
    with explained(weights.repo_id, weights.revision):
        if weights.with_config:
            _fetch(weights, CONFIG_FILE)
        for name in weights.choices[:-1]:
            try:
                return _fetch(weights, name)
            except LocalEntryNotFoundError:
                raise  # the Hub was not reached, so it may have this file
            except EntryNotFoundError:
                continue
        return _fetch(weights, weights.choices[-1])


def fetch_again(file: CachedFile) -> None:
    """Remove a damaged file from the cache and fetch it again.

    Raises:
        HubError: the file could not be downloaded, or is damaged again. It is no longer in the cache.
    """
    file.remove()
    with explained(file.repo_id, file.commit):
        hf_hub_download(file.repo_id, file.name, revision=file.commit)
    _check([file])


def _fetch(weights: Weights, name: str) -> Path:
    path = Path(hf_hub_download(weights.repo_id, name, revision=weights.revision))
    _check([file for file in cached_files(weights.repo_id) if file.name == name and file.commit in path.parts])
    return path


def _check(arrived: list[CachedFile]) -> None:
    damage = remove_damaged(arrived)
    if damage:
        raise HubError(f"{arrived[0].repo_id}: {damage}")
