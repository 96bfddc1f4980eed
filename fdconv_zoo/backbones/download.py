"""Downloads of pretrained weights: errors that say what happened and what to do, and no damaged file in the cache."""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from timm.models import PretrainedCfg

# What huggingface_hub speaks HTTP with, from version 0.x to 2.x; its errors pass through when a connection breaks.
_HTTP_LIBRARIES = ("requests", "urllib3", "httpx", "httpx2")
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the files timm asks a repository for


@contextmanager
def checked_download(variant: str, cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> Iterator[None]:
    """Watch over loading weights that may come from the Hub.

    The client compares a file's size with what was announced, not its hash. A file that arrives in the block is held
    against its hash here, once, and taken out of the cache again if it differs.

    Args:
        variant: the architecture's name.
        cfg: where its weights come from.
        cache_dir: of the client; by default its own.

    Raises:
        RuntimeError: the weights cannot be had from the Hub; names the repository, the reason, and what can be done.
    """
    if not _comes_from_hub(cfg):
        yield
        return
    folder = Path(cache_dir or constants.HF_HUB_CACHE)
    known = _cached_files(cfg, folder)
    try:
        yield
    except Exception as error:
        reason = _explain(error, cfg, folder)
        damaged = [file for file in _cached_files(cfg, folder) - known if not _is_whole(file)]
        if damaged:
            reason = _remove(damaged, folder)
        if reason is None:
            raise
        raise RuntimeError(_message(variant, cfg, reason, error)) from error
    damaged = [file for file in _cached_files(cfg, folder) - known if not _is_whole(file)]
    if damaged:
        raise RuntimeError(_message(variant, cfg, _remove(damaged, folder)))


def _comes_from_hub(cfg: PretrainedCfg) -> bool:
    """Whether timm looks at the Hub: an own file or state dict goes before, unless the Hub was asked for by name."""
    return bool(cfg.hf_hub_id) and (cfg.source == "hf-hub" or not (cfg.file or cfg.state_dict))


def _explain(error: Exception, cfg: PretrainedCfg, folder: Path) -> str | None:
    """Why a repository's weights did not arrive, as a relative clause and a remedy; None for other errors."""
    repo, _, revision = cfg.hf_hub_id.partition("@")
    if isinstance(error, GatedRepoError):
        return (
            f"which its owner gives to those who ask: ask for access on {constants.ENDPOINT}/{repo} and log in with "
            f"`hf auth login`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            "which does not exist, or is private: check its name, and log in with `hf auth login` and a token that may "
            "read it"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"which has no revision {revision or 'main'!r}: check its branches and tags"
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return f"which is not in the cache {folder}, and offline mode is on: unset HF_HUB_OFFLINE and try again"
        cause = _without_query(str(error.__cause__ or error))
        return f"which can neither be reached nor found in the cache: connect and try again ({cause})"
    if isinstance(error, EntryNotFoundError):
        names = cfg.hf_hub_filename or " or ".join(_WEIGHTS)
        return f"which gave out no {names} at revision {revision or 'main'!r}: check what is in it, and try again"
    if isinstance(error, HfHubHTTPError):
        if error.response is not None and error.response.status_code == 401:
            return "which refused your token as wrong or expired: renew it with `hf auth login`, or `hf auth logout`"
        return "which answered with an error: try again later"
    if type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES:
        return "to which the connection broke: try again"
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return f"and the cache {folder} cannot be written ({error.strerror}): make room there, or set HF_HUB_CACHE"
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return "from which they arrived incomplete: try again"
    return None


def _message(variant: str, cfg: PretrainedCfg, reason: str, error: Exception | None = None) -> str:
    details = f" ({type(error).__name__}: {_without_query(str(error))})" if error else ""
    return (
        f"The pretrained weights of {variant} come from the Hugging Face repository {cfg.hf_hub_id!r}, {reason}; "
        f"or get its weights file by other means and pass pretrained_cfg_overlay=dict(file='path/to/model.safetensors')"
        f"; or start from random weights with pretrained=False.{details}"
    )


def _without_query(text: str) -> str:
    """Leave out what follows the question mark of addresses: there stand signatures that open a private file."""
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\")]*", r"\1", text)


def _cached_files(cfg: PretrainedCfg, folder: Path) -> set[Path]:
    repo, _, revision = cfg.hf_hub_id.partition("@")
    names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else _WEIGHTS
    found = {try_to_load_from_cache(repo, name, cache_dir=folder, revision=revision or None) for name in names}
    return {Path(file) for file in found if isinstance(file, str)}


def _is_whole(file: Path) -> bool:
    """Whether a large file of the cache has the hash that its content is named by; True where nothing is known."""
    blob = Path(os.readlink(file)).name if file.is_symlink() else ""
    if not re.fullmatch("[0-9a-f]{64}", blob):
        return True
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == blob


def _remove(damaged: list[Path], folder: Path) -> str:
    for file in damaged:
        file.resolve().unlink(missing_ok=True)
        file.unlink()
    return f"from which they arrived damaged, so they were removed from the cache {folder} again: try again"
