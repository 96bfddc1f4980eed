"""Weights fetched into the Hub's cache ahead of time."""

from pathlib import Path

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
    with explained(weights.repo_id, weights.revision):
        if weights.with_config:
            _fetch(weights, CONFIG)
        for name in weights.choices[:-1]:
            try:
                return _fetch(weights, name)
            except LocalEntryNotFoundError:
                raise  # the Hub was not reached: it may have this one
            except EntryNotFoundError:
                continue
        return _fetch(weights, weights.choices[-1])


def fetch_again(file: CachedFile) -> None:
    """Remove a damaged file from the cache and fetch it anew.

    Raises:
        HubError: it cannot be had, or is damaged again; either way it is not in the cache any more.
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
