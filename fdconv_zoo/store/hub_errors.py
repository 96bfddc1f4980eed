"""Errors of the Hub, said in one line with a remedy."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fdconv_zoo.errors import HubError

# All that a request can fail with. The first are the base errors of the client's HTTP library, whichever its version
# uses; a broken connection raises one of them, or an OSError.
REQUEST_ERRORS = (*HfHubHTTPError.__bases__, OSError, EntryNotFoundError, HFValidationError)
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_OFFLINE = "offline mode is on: unset HF_HUB_OFFLINE and try again"


@contextmanager
def explained(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn the client's errors in the block into a `HubError` that names the repository, the reason and a remedy."""
    try:
        yield
    except REQUEST_ERRORS as error:
        raise HubError(f"{repo_id}: {explain(error, revision) or error}") from error


def explain(error: BaseException, revision: str | None = None, cache: str | Path | None = None) -> str | None:
    """The reason and a remedy for an error that a call of the client ended with.

    Args:
        error: of the client, or any other.
        revision: that was asked for; None for the main one.
        cache: the client's folder; by default its own.

    Returns:
        A clause that can follow the repository's name; None for an error that has nothing to do with the Hub.
    """
    cache = cache or constants.HF_HUB_CACHE
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    address = without_signatures(str(getattr(response, "url", "the Hub")))
    repository, _, file = address.partition("/resolve/")
    if isinstance(error, HFValidationError):
        return f"not a name the Hub can have: {_first_line(error)}"
    if isinstance(error, GatedRepoError):
        return f"its owner gives it to those who ask: ask for access on {repository} and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "it does not exist, or is private: check its name, and log in with `hf auth login` and a token that may "
            "read it"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision or 'main'!r}: check its branches and tags"
    if isinstance(error, LocalEntryNotFoundError):
        return f"not in the cache {cache}, and {_OFFLINE if constants.HF_HUB_OFFLINE else _explain_unasked(error)}"
    if isinstance(error, OfflineModeIsEnabled):
        return _OFFLINE
    if isinstance(error, EntryNotFoundError):
        name = file.rpartition("/")[2] or "such file"
        return (
            f"it has no {name} at revision {revision or 'main'!r}: is it a timm model? Those have config.json, and "
            "model.safetensors or pytorch_model.bin"
        )
    if status == 401 and not get_token():
        return "it answers only to those it knows: log in with `hf auth login`"
    if status == 401:
        return "it refused your token as wrong or expired: renew it with `hf auth login`, or `hf auth logout`"
    if status == 403:
        return f"{address} is forbidden: log in with `hf auth login` and a token that may do this, or try again"
    if status is not None:
        return f"{address} answered with status {status}: try again later, or name a mirror with HF_ENDPOINT"
    return _explain_broken(error, cache)


def _explain_unasked(error: LocalEntryNotFoundError) -> str:
    """Why the Hub could not be asked for a file that the cache lacks."""
    cause = error.__cause__ or error
    if getattr(cause, "response", None) is not None:
        return explain(cause)
    line = _first_line(cause)
    return f"{constants.ENDPOINT} cannot be reached: connect and try again, or name a mirror with HF_ENDPOINT ({line})"


def _explain_broken(error: BaseException, cache: str | Path) -> str | None:
    """What the Hub did not answer: the cache, or the connection."""
    number, file = getattr(error, "errno", None), getattr(error, "filename", None)
    if number in _UNWRITABLE or (number and file and Path(cache) in Path(str(file)).parents):
        what = f"{error.strerror}: {file}" if file else error.strerror
        return f"the cache {cache} cannot be written ({what}): make room there, or name another with HF_HUB_CACHE"
    if "Consistency check failed" in str(error):
        return "a file arrived incomplete: try again"
    # A broken connection has no number, but where Python itself says what it is; what has one is of some other file.
    local = (number or isinstance(error, FileNotFoundError)) and not isinstance(error, ConnectionError | TimeoutError)
    if isinstance(error, REQUEST_ERRORS) and not local:
        return f"{constants.ENDPOINT} cannot be reached, or the connection broke: try again ({_first_line(error)})"
    return None


def without_signatures(text: str) -> str:
    """Leave out the queries of addresses: they can hold a signature that opens a private file."""
    return re.sub(r"\?\S*", "", text)


def _first_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
    return without_signatures(line)
