"""Errors of the Hub, said in one line with a remedy."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
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

# All that a request can fail with. The first are the base errors of the client's HTTP library, whichever its version
# uses; a broken connection raises one of them, or an OSError.
REQUEST_ERRORS = (*HfHubHTTPError.__bases__, OSError, EntryNotFoundError)


class HubError(Exception):
    """Something cannot be had from the Hub; the message says why and what to do."""


@contextmanager
def explained(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn the client's errors in the block into a `HubError` that names the repository, the reason and a remedy."""
    try:
        yield
    except (*REQUEST_ERRORS, HFValidationError) as error:
        raise HubError(f"{repo_id}: {explain(error, revision)}") from error


def explain(error: BaseException, revision: str | None = None) -> str:
    """The reason and a remedy for an error that a call of the client ended with."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HFValidationError):
        return f"not a name the Hub can have: {_first_line(error)}"
    if isinstance(error, GatedRepoError):
        return f"its owner asks for consent: give it on {constants.ENDPOINT}, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            "no such repository, or a private one, or a token that is wrong or has expired: check the name; log in "
            "with `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}: see its branches and tags on {constants.ENDPOINT}"
    if isinstance(error, OfflineModeIsEnabled) or (constants.HF_HUB_OFFLINE and isinstance(error, ConnectionError)):
        return "the Hub may not be asked while HF_HUB_OFFLINE is set: unset it"
    if isinstance(error, LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return "not in the cache, and the Hub may not be asked while HF_HUB_OFFLINE is set: unset it"
        return f"not in the cache, and {_unreachable(error.__cause__)}"
    if isinstance(error, EntryNotFoundError):
        return "it has no such file: is it a timm model?"
    if isinstance(error, HfHubHTTPError):
        return _unreachable(error)
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        return f"{error.strerror}: {error.filename}; HF_HUB_CACHE can name another folder for the cache"
    if "Consistency check failed" in str(error):
        return "a file arrived incomplete: try again"
    return _unreachable(error)


def _unreachable(error: BaseException | None) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    answer = f"it answered with status {status}" if status else _first_line(error) if error else "no answer"
    return f"{constants.ENDPOINT} cannot be reached ({answer}): try again, or name a mirror with HF_ENDPOINT"


def _first_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
    return re.sub(r"\?\S*", "", line)  # the query of an address can hold a signature that opens a private file
