"""Errors that a user can act on, and how their messages name many things.

Commands catch `UserError` in one place (`fdconv_zoo.cli.entrance`) and print the message without a traceback.
"""

import re
from collections.abc import Iterable, Sequence

LISTED = 10  # lines that a message lists


class UserError(Exception):
    """Base class: something the user can mend. The message names what is wrong and the remedy."""


class DataError(UserError, ValueError):
    """The user's data have a problem."""


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
    """A model does not compute what it should: its measured costs would mean nothing."""


class DiagnosisError(UserError):
    """FDConv does not work in a model; what was found, with its remedy, is printed."""


class Terminated(BaseException):
    """SIGTERM asked a run to end. The message says when, and how to continue.

    As `KeyboardInterrupt`, it passes handlers of errors.
    """


def without_secrets(text: str) -> str:
    """Remove from the URLs in a text what gives access: names with passwords, and queries, which may be signatures."""
    text = re.sub(r"(\w://[^\s?]*)\?[^\s)'\"]*", r"\1", text)
    return re.sub(r"(\w://)[^\s/'\"]*@", r"\1", text)


def first_of(names: Iterable[str], limit: int = 5) -> str:
    """Join the first few of many names on one line, and count the others."""
    names = list(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def listed(lines: Sequence[str]) -> str:
    """Put the first of many lines on lines of their own, and count the others."""
    more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "".join(f"\n  {line}" for line in [*lines[:LISTED], *more])
