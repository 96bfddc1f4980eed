"""An entry of the index, and reading it from its YAML file."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from fdconv_zoo.errors import EntryError

_PACKAGE = Path(__file__).resolve().parents[1]
# The wheel carries the entries inside the package; in the repository they stand beside it.
MODELS = _PACKAGE / "models" if (_PACKAGE / "models").is_dir() else _PACKAGE.parent / "models"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, faster, where PyYAML was built with it
STATUSES = ("converted, not trained", "trained", "recipe only")
TASKS = {"classification": "train", "segmentation": "segment", "detection": "detect"}  # and the scripts that train them


@dataclass(frozen=True)
class Preprocessing:
    """What the model expects of an image.

    Attributes:
        size: Channels, height, width.
        mean: Of the pixels, in 0..1, a channel.
        std: Likewise.
        interpolation: Of resizing.
        crop_pct: The part of the resized image that validation crops out.
    """

    size: list[int]
    mean: list[float]
    std: list[float]
    interpolation: str
    crop_pct: float


@dataclass(frozen=True)
class Costs:
    """Costs of the model and of its plain twin for one image of the preprocessing's size.

    Attributes:
        parameters: With the model's default classes.
        plain_parameters: Of the twin.
        multiply_adds: In inference, with FBM's low-passes and without FFTs; see
            `fdconv_zoo.conversion.costs.count_multiply_adds`.
        plain_multiply_adds: Of the twin.
    """

    parameters: int
    plain_parameters: int
    multiply_adds: int
    plain_multiply_adds: int


@dataclass(frozen=True)
class Result:
    """One figure.

    Attributes:
        dataset: With its split, such as "COCO val2017".
        metric: With its unit, such as "box AP".
        value: The figure.
        setting: What was trained and how, in a few words.
        source: Where the figure comes from: a link to the paper, or the command that measures it.
    """

    dataset: str
    metric: str
    value: float
    setting: str
    source: str


@dataclass(frozen=True)
class Compared:
    """A row of a comparison.

    Attributes:
        model: What is compared.
        parameters: Their number.
        mean: Over the seeds.
        std: Standard deviation of a sample, over the seeds.
        seeds: Their number.
        step_time: Of a training step, as a multiple of the plain model's, in one run.
    """

    model: str
    parameters: int
    mean: float
    std: float
    seeds: int
    step_time: float


@dataclass(frozen=True)
class Comparison:
    """Models trained alike, measured here.

    Attributes:
        dataset: With its split.
        metric: With its unit.
        setting: What all were trained with, in a few words.
        source: The command that makes the table.
        finding: What it shows, in a sentence or two.
        rows: One a model.
    """

    dataset: str
    metric: str
    setting: str
    source: str
    finding: str
    rows: list[Compared]


@dataclass(frozen=True)
class Results:
    """Figures by origin.

    Attributes:
        paper: Reported by the paper, not measured here.
        measured: Measured here.
        comparisons: Measured here, with other models beside it.
    """

    paper: list[Result]
    measured: list[Result]
    comparisons: list[Comparison]


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        model: Its timm name, `architecture` or `architecture.tag`: with a tag where weights exist.
        task: One of `TASKS`.
        description: What it is, in a sentence or two.
        source: Hub id of the weights it starts from; None where there are none.
        hub_id: Hub id under which we have published it; None where we have not.
        license: SPDX identifier of those weights' licence, or of the entry's own.
        status: One of `STATUSES`.
        preprocessing: What it expects of an image.
        costs: Beside the plain twin's.
        results: By origin.
        recipe: Settings of the task's script: its flags, with underscores; None where the entry is weights alone.
    """

    model: str
    task: str
    description: str
    source: str | None
    hub_id: str | None
    license: str
    status: str
    preprocessing: Preprocessing
    costs: Costs
    results: Results
    recipe: dict[str, Any] | None

    @property
    def architecture(self) -> str:
        """The model's name without its tag."""
        return self.model.partition(".")[0]

    @property
    def tag(self) -> str:
        """The tag of the weights; empty where there are none."""
        return self.model.partition(".")[2]


def read_entry(path: str | Path) -> Entry:
    """Read one entry.

    Raises:
        EntryError: no such file, not YAML, an unknown or missing key, or a value of the wrong kind.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise EntryError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise EntryError(f"{path}: not valid YAML: {error}") from error
    try:
        entry = _read(Entry, content, "")
        for key, choices in (("status", STATUSES), ("task", TASKS)):
            if getattr(entry, key) not in choices:
                found = getattr(entry, key)
                raise EntryError(f"{key}: found {found!r}, expected one of {', '.join(map(repr, choices))}")
    except EntryError as error:
        raise EntryError(f"{path}: {error}") from None
    return entry


def read_index(folder: str | Path = MODELS) -> dict[str, Entry]:
    """Read all entries of a folder, by file name without `.yaml`, sorted.

    Raises:
        EntryError: an entry is wrong, or the folder has none.
    """
    paths = {path.stem: path for path in Path(folder).glob("*.yaml")}
    entries = {name: read_entry(paths[name]) for name in sorted(paths)}
    if not entries:
        raise EntryError(f"{folder}: no entries (*.yaml) there")
    return entries


def timm_name(name: str) -> str:
    """The name under which timm knows an entry of the index; any other name is returned as it is."""
    entry = read_index().get(name)
    if entry is None:
        return name
    return f"hf-hub:{entry.hub_id}" if entry.hub_id else entry.model


def _read(kind: Any, value: Any, key: str) -> Any:
    """A YAML value as an instance of the type `kind`; `key` says where it stands, empty for the whole file."""
    place = f"{key}: " if key else ""
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise EntryError(f"{place}expected keys and values, found {value!r:.40}")
        types = get_type_hints(kind)
        for name in value:
            if name not in types:
                raise EntryError(f"{place}unknown key {name!r}; there are {', '.join(types)}")
        for field in fields(kind):
            if field.name not in value:
                raise EntryError(f"{place}the key {field.name!r} is missing")
        return kind(**{n: _read(types[n], item, f"{key}.{n}" if key else n) for n, item in value.items()})
    if get_origin(kind) is list and isinstance(value, list):
        (item_kind,) = get_args(kind)
        return [_read(item_kind, item, f"{key}[{number}]") for number, item in enumerate(value)]
    kinds = [get_origin(option) or option for option in (get_args(kind) if isinstance(kind, UnionType) else (kind,))]
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, tuple(kinds)) or isinstance(value, bool):
        words = {str: "text", int: "a whole number", float: "a number", dict: "keys and values", list: "a list"}
        raise EntryError(f"{place}found {value!r}, expected {' or '.join(words.get(k, 'null') for k in kinds)}")
    return value
