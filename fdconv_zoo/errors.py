"""Errors that a user can act on, and helpers that format their messages.

Commands catch `UserError` in one place (`fdconv_zoo.cli.entrance`) and print the message without a traceback.
"""

import re
from collections.abc import Iterable, Sequence

LISTED = 10  # largest number of lines in the list of a message


class UserError(Exception):
    """Base class of errors that the user can fix. The message says what is wrong, and how to fix it."""


class DataError(UserError, ValueError):
    """There is a problem with the user's data."""


class EntryError(UserError, ValueError):
    """A file of the index is not a valid entry; the message names the file and the key."""


class WeightsError(UserError, RuntimeError):
    """A weights file or a model folder is unsafe or damaged, or belongs to another model."""


class HubError(UserError):
    """A request to the Hub failed."""


class PublishError(HubError):
    """A model was not published; the message also says what the Hub holds now."""


class TrainingError(UserError):
    """A run cannot start or continue."""


class ConfigError(TrainingError):
    """A flag or a recipe is wrong, or flags do not fit together."""


class RunFolderError(TrainingError):
    """The output folder holds another run, or files that a run must not touch."""


class WriteError(TrainingError):
    """A file could not be written, most often because the disk is full."""


class NonFiniteError(TrainingError):
    """The loss or the weights became infinite or NaN."""


class MismatchError(UserError, RuntimeError):
    """A model or an exported program does not compute what it should."""


class DiagnosisError(UserError):
    """FDConv does not work in a model. The findings and their remedies have been printed."""


class Terminated(BaseException):
    """SIGTERM asked a run to end. The message says when it ended, and how to continue.

    Like `KeyboardInterrupt`, it is not an `Exception`, so `except Exception` does not catch it.
    """


def without_secrets(text: str) -> str:
    """Remove credentials from the URLs in a text: user names, passwords, and queries, which may contain signatures."""
    text = re.sub(r"(\w://[^\s?]*)\?[^\s)'\"]*", r"\1", text)
    return re.sub(r"(\w://)[^\s/'\"]*@", r"\1", text)


def first_of(names: Iterable[str], limit: int = 5) -> str:
    """Join the first `limit` names with commas, and count the others."""
    names = list(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def listed(lines: Sequence[str]) -> str:
    """Format the first `LISTED` lines as an indented list, and count the others."""
    more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "".join(f"\n  {line}" for line in [*lines[:LISTED], *more])
