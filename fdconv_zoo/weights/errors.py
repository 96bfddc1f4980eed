"""The error of a file that must not, or cannot, become a model's weights."""

from collections.abc import Iterable


class WeightsError(RuntimeError):
    """A weights file or a model folder is unsafe, damaged, or not the model's; the message names file and remedy."""


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few of many names, for a message."""
    names = list(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
