"""The zoo's index: one YAML file an entry in `models/`, read and checked."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

MODELS = Path(__file__).resolve().parent.parent / "models"
STATUSES = ("converted, not trained", "trained", "recipe only")


class EntryError(ValueError):
    """An index file is not a valid entry; the message names the file and the key."""


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        model: Its timm name, with a tag where weights exist.
        description: What it is, in a sentence or two.
        weights: Hub id of the weights it starts from; None where there are none.
        license: SPDX identifier of those weights' licence, or of the entry's own.
        status: One of `STATUSES`.
        parameters: Number of parameters with the model's default classes.
        recipe: Settings of the training script: its flags, with underscores.
    """

    model: str
    description: str
    weights: str | None
    license: str
    status: str
    parameters: int
    recipe: dict[str, Any]


_TYPES = {
    "model": str,
    "description": str,
    "weights": (str, type(None)),
    "license": str,
    "status": str,
    "parameters": int,
    "recipe": dict,
}


def read_entry(path: str | Path) -> Entry:
    """Read one entry.

    Raises:
        EntryError: no such file, not YAML, an unknown or missing key, or a value of the wrong kind.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EntryError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise EntryError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise EntryError(f"{path}: expected keys and values, found {type(content).__name__}")
    names = [field.name for field in fields(Entry)]
    for key in content:
        if key not in names:
            raise EntryError(f"{path}: unknown key {key!r}; an entry has {', '.join(names)}")
    for name in names:
        if name not in content:
            raise EntryError(f"{path}: the key {name!r} is missing")
        value = content[name]
        if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
            raise EntryError(f"{path}: {name}: found {value!r}, expected {_expected(name)}")
    if content["status"] not in STATUSES:
        raise EntryError(
            f"{path}: status: found {content['status']!r}, expected one of {', '.join(map(repr, STATUSES))}"
        )
    return Entry(**content)


def read_index(folder: str | Path = MODELS) -> dict[str, Entry]:
    """Read all entries of a folder, by file name without `.yaml`, sorted.

    The default folder exists in the repository; it is not part of the installed package.

    Raises:
        EntryError: an entry is wrong, or the folder has none.
    """
    entries = {path.stem: read_entry(path) for path in sorted(Path(folder).glob("*.yaml"))}
    if not entries:
        raise EntryError(f"{folder}: no entries (*.yaml) there")
    return entries


def _expected(name: str) -> str:
    kinds = _TYPES[name] if isinstance(_TYPES[name], tuple) else (_TYPES[name],)
    words = {str: "text", int: "a whole number", dict: "keys and values", type(None): "null"}
    return " or ".join(words[kind] for kind in kinds)
