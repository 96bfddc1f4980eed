"""Reads the lists of a COCO annotation file column by column, with messages that name the file and the entries."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fdconv_zoo.errors import LISTED, DataError, first_of

_INTEGER = "an integer between -2**63 and 2**63"


def load_lists(file: Path) -> dict[str, list]:
    """Return the lists of an annotation file by name. Raises DataError if it is not JSON, or a list is missing."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Check the path.") from error
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error}). Repair it, or download it again.") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise DataError(
            f"{file}: not in COCO's format, which has the lists {', '.join(lists)}. Export it in that format."
        )
    return content


@dataclass(frozen=True)
class Entries:
    """One list of an annotation file. All methods raise DataError for invalid entries.

    Args:
        file: The annotation file, for messages.
        name: Name of the list.
        entries: The entries of the list.
    """

    file: Path
    name: str
    entries: list[dict]

    def __post_init__(self) -> None:
        self._raise_if_any([type(entry) is not dict for entry in self.entries], "are not objects {...}")

    def column(
        self, key: str, is_valid: Callable[[Any], bool], expected: str, dtype: Any, missing: Any = None
    ) -> np.ndarray:
        """Return the values under `key`, with `missing` for entries that do not have it."""
        values = [entry.get(key, missing) for entry in self.entries]
        self._raise_if_any([not is_valid(value) for value in values], f"have no valid {key!r} ({expected})")
        return np.array(values, dtype)

    def ids(self) -> np.ndarray:
        """Return all ids, which must be unique."""
        ids = self.column("id", _is_integer, _INTEGER, np.int64)
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            repeated = first_of(map(str, values[counts > 1]), LISTED)
            raise DataError(f"{self.file}: ids that occur more than once in {self.name!r}: {repeated}. Use unique ids.")
        return ids

    def references(self, key: str, known: np.ndarray) -> np.ndarray:
        """Return the positions of the ids under `key` in `known`, which is sorted."""
        ids = self.column(key, _is_integer, _INTEGER, np.int64)
        self._raise_if_any(~np.isin(ids, known), f"refer with {key!r} to an id that the file does not list")
        return np.searchsorted(known, ids)

    def _raise_if_any(self, bad: list[bool] | np.ndarray, problem: str) -> None:
        indices = np.flatnonzero(bad)
        if len(indices):
            raise DataError(
                f"{self.file}: {len(indices)} entries of {self.name!r} {problem}: "
                f"{first_of(map(self._describe, indices), LISTED)}. Repair or remove them."
            )

    def _describe(self, index: int) -> str:
        entry = self.entries[index]
        return f"id {entry['id']}" if isinstance(entry, dict) and "id" in entry else f"index {index}"


def _is_integer(value: Any) -> bool:
    return type(value) is int and -(2**63) < value < 2**63


def is_size(value: Any) -> bool:
    """Return whether the value is a positive integer, small enough for a side of an image."""
    return type(value) is int and 0 < value < 2**31


def is_string(value: Any) -> bool:
    """Return whether the value is a non-empty string without lone surrogates, which JSON can contain."""
    return isinstance(value, str) and value != "" and not any("\ud800" <= character <= "\udfff" for character in value)


def is_number(value: Any) -> bool:
    """Return whether the value is a number, possibly infinite, and not an integer beyond the range of floats."""
    return type(value) is float or (type(value) is int and abs(value) < 2**1023)


def is_flag(value: Any) -> bool:
    """Return whether the value is 0 or 1."""
    return value in (0, 1)


def is_box(value: Any) -> bool:
    """Return whether the value is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(is_number(v) and math.isfinite(v) for v in value)
