"""The lists of a COCO annotation file, read column by column; every message names file and entries."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fdconv_zoo.errors import LISTED, DataError, first_of


def load_lists(file: Path) -> dict[str, list]:
    """The lists of an annotation file by name. Raises DataError where it is not json, or they are not there."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Check the path.") from error
    except ValueError as error:
        raise DataError(f"{file}: not valid json ({error}). Repair it, or fetch it again.") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise DataError(f"{file}: not COCO's format, which has the three lists {', '.join(lists)}. Export it as such.")
    return content


@dataclass(frozen=True)
class Entries:
    """One list of an annotation file. All that reads raises DataError for entries that are not as they should be.

    Args:
        file: for the messages.
        name: of the list.
        entries: its objects.
    """

    file: Path
    name: str
    entries: list[dict]

    def __post_init__(self) -> None:
        self._refuse([type(entry) is not dict for entry in self.entries], "are no objects {...}")

    def column(
        self, key: str, valid: Callable[[Any], bool], wanted: str, dtype: Any, missing: Any = None
    ) -> np.ndarray:
        """The values under `key`; `missing` stands for those not there."""
        values = [entry.get(key, missing) for entry in self.entries]
        self._refuse([not valid(value) for value in values], f"have no {key!r} that is {wanted}")
        return np.array(values, dtype)

    def ids(self) -> np.ndarray:
        """All ids; each may occur once."""
        ids = self.column("id", _is_integer, "an integer", np.int64)
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            repeated = first_of(map(str, values[counts > 1]), LISTED)
            raise DataError(
                f"{self.file}: ids that occur more than once in {self.name!r}: {repeated}. Number the entries anew."
            )
        return ids

    def references(self, key: str, known: np.ndarray) -> np.ndarray:
        """The places that the ids under `key` have among the `known` ones, which are sorted."""
        ids = self.column(key, _is_integer, "an integer", np.int64)
        self._refuse(~np.isin(ids, known), f"refer with {key!r} to what the file does not list")
        return np.searchsorted(known, ids)

    def _refuse(self, bad: list[bool] | np.ndarray, problem: str) -> None:
        places = np.flatnonzero(bad)
        if len(places):
            raise DataError(
                f"{self.file}: {len(places)} entries of {self.name!r} {problem}: "
                f"{first_of(map(self._describe, places), LISTED)}. Repair or remove them."
            )

    def _describe(self, place: int) -> str:
        entry = self.entries[place]
        return f"id {entry['id']}" if isinstance(entry, dict) and "id" in entry else f"number {place} of the list"


def _is_integer(value: Any) -> bool:
    return type(value) is int


def is_size(value: Any) -> bool:
    """Whether it is a positive integer."""
    return type(value) is int and value > 0


def is_text(value: Any) -> bool:
    """Whether it is a text with something in it."""
    return isinstance(value, str) and value != ""


def is_number(value: Any) -> bool:
    """Whether it is a number."""
    return type(value) in (int, float)


def is_flag(value: Any) -> bool:
    """Whether it is 0 or 1."""
    return value in (0, 1)


def is_box(value: Any) -> bool:
    """Whether it is four finite numbers."""
    return (
        isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) and math.isfinite(v) for v in value)
    )
