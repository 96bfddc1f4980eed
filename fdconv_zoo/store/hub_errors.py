"""Explains errors of the Hub in one line, with a remedy."""

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

from fdconv_zoo.errors import HubError, without_secrets
from fdconv_zoo.store.names import CONFIG_FILE, HUB_WEIGHTS_FILES

# All errors that a request can raise. The first are the base errors of the HTTP library that this version of the client
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
        raise HubError(f"{repo_id}: {explain(error, revision) or without_signatures(str(error))}") from error


def explain(error: BaseException, revision: str | None = None, cache: str | Path | None = None) -> str | None:
    """Explain an error that a call of the client raised.

    Args:
        error: any exception.
        revision: the requested revision; None for the main branch.
        cache: the client's cache. Default: the client's setting.

    Returns:
        The reason and a remedy, as text after the repository's name; None if the error is unrelated to the Hub.
    """
    cache = cache or constants.HF_HUB_CACHE
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    address = without_signatures(str(getattr(response, "url", "the Hub")))
    repository, _, file = address.partition("/resolve/")
    if isinstance(error, HFValidationError):
        return f"not a valid name on the Hub: {_first_line(error)}"
    if isinstance(error, GatedRepoError):
        return f"its owner restricts access: ask for access on {repository} and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "it does not exist, or is private: check its name, and log in with `hf auth login` and a token that may "
            "read it"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision or 'main'!r}: check its branches and tags"
    if isinstance(error, LocalEntryNotFoundError):
        return f"not in the cache {cache}, and {_OFFLINE if constants.HF_HUB_OFFLINE else _explain_unreached(error)}"
    if isinstance(error, OfflineModeIsEnabled):
        return _OFFLINE
    if isinstance(error, EntryNotFoundError):
        name = file.rpartition("/")[2] or "such file"
        return (
            f"it has no {name} at revision {revision or 'main'!r}: is it a timm model? Those have {CONFIG_FILE}, and "
            f"{' or '.join(HUB_WEIGHTS_FILES)}"
        )
    if status == 401 and not get_token():
        return "it requires a login: log in with `hf auth login`"
    if status == 401:
        return (
            "it rejected your token as invalid or expired: renew it with `hf auth login`, or remove it with "
            "`hf auth logout`"
        )
    if status == 403:
        return f"{address} is forbidden: log in with `hf auth login` and a token that may do this, or try again"
    if status is not None:
        return f"{address} answered with status {status}: try again later, or set HF_ENDPOINT to a mirror"
    return _explain_broken(error, cache)


def _explain_unreached(error: LocalEntryNotFoundError) -> str:
    """Explain why a file that is not in the cache could not be requested from the Hub."""
    cause = error.__cause__ or error
    if getattr(cause, "response", None) is not None:
        return explain(cause)
    line = _first_line(cause)
    return f"{_endpoint()} cannot be reached: connect and try again, or set HF_ENDPOINT to a mirror ({line})"


def _explain_broken(error: BaseException, cache: str | Path) -> str | None:
    """Explain an error that is not a response of the Hub: the cache or the connection failed."""
    number, file = getattr(error, "errno", None), getattr(error, "filename", None)
    if number in _UNWRITABLE or (number and file and Path(cache) in Path(str(file)).parents):
        what = f"{error.strerror}: {file}" if file else error.strerror
        return f"the cache {cache} cannot be written ({what}): make room there, or set HF_HUB_CACHE to another folder"
    if "Consistency check failed" in str(error):
        return "a file arrived incomplete: try again"
    # An OSError with a number is about another file, unless its class is that of a connection error.
    local = (number or isinstance(error, FileNotFoundError)) and not isinstance(error, ConnectionError | TimeoutError)
    if isinstance(error, REQUEST_ERRORS) and not local:
        return f"{_endpoint()} cannot be reached, or the connection broke: try again ({_first_line(error)})"
    return None


def _endpoint() -> str:
    return without_secrets(constants.ENDPOINT)


def without_signatures(text: str) -> str:
    """Remove passwords and queries, which may contain signatures, from the URLs in a text."""
    return re.sub(r"\?\S*", "", without_secrets(text))


def _first_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
    return without_signatures(line)
