"""The exception that every module of this package raises."""

NAMED = 10  # files, or other things, that a message names


class DataError(ValueError):
    """A problem with the user's data; the message names what is wrong and what to do about it."""


def listed(lines: list[str]) -> str:
    """The first of many lines, each on its own line, and how many more there are."""
    more = [f"... and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
    return "".join(f"\n  {line}" for line in [*lines[:NAMED], *more])
