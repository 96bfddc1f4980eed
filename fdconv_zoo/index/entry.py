"""Entries of the index, read from their YAML files."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from fdconv_zoo.errors import EntryError

_PACKAGE = Path(__file__).resolve().parents[1]
# In the wheel, the entries are inside the package; in the repository, next to it.
MODELS = _PACKAGE / "models" if (_PACKAGE / "models").is_dir() else _PACKAGE.parent / "models"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # faster, if PyYAML was built with it
STATUSES = ("converted, not trained", "trained", "recipe only")
TASKS = {"classification": "train", "segmentation": "segment", "detection": "detect"}  # and their commands


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of the model's input.

    Attributes:
        size: Channels, height, width.
        mean: Mean per channel, for pixels in 0..1.
        std: Standard deviation per channel.
        interpolation: Interpolation for resizing.
        crop_pct: Side of the center crop in validation, as a fraction of the side of the resized image.
    """

    size: list[int]
    mean: list[float]
    std: list[float]
    interpolation: str
    crop_pct: float


@dataclass(frozen=True)
class Costs:
    """Costs of the model and of timm's plain model, for one image of the preprocessing's size.

    Attributes:
        parameters: Number of parameters, with the default number of classes.
        plain_parameters: The same for the plain model.
        multiply_adds: Multiply-adds in inference, with FBM's low-passes and without FFTs; see
            `fdconv_zoo.conversion.costs.count_multiply_adds`.
        plain_multiply_adds: The same for the plain model.
    """

    parameters: int
    plain_parameters: int
    multiply_adds: int
    plain_multiply_adds: int


@dataclass(frozen=True)
class Result:
    """A single result.

    Attributes:
        dataset: Dataset and split, such as "COCO val2017".
        metric: Metric with its unit, such as "box AP".
        value: Value of the metric.
        setting: Short description of the model and its training.
        source: Link to the paper, or the command that measures the value.
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
        model: Name of the model or variant.
        parameters: Number of parameters.
        mean: Mean over the seeds.
        std: Sample standard deviation over the seeds.
        seeds: Number of seeds.
        step_time: Time of a training step as a multiple of the plain model's, in one run.
    """

    model: str
    parameters: int
    mean: float
    std: float
    seeds: int
    step_time: float


@dataclass(frozen=True)
class Comparison:
    """A comparison of models trained in the same way, measured here.

    Attributes:
        dataset: Dataset and split.
        metric: Metric with its unit.
        setting: Short description of the training, which is the same for all models.
        source: The command that produces the table.
        finding: The conclusion, in a sentence or two.
        rows: One per model.
    """

    dataset: str
    metric: str
    setting: str
    source: str
    finding: str
    rows: list[Compared]


@dataclass(frozen=True)
class Results:
    """Results by origin.

    Attributes:
        paper: Results that the paper reports, not measured here.
        measured: Results measured here.
        comparisons: Comparisons with other models, measured here.
    """

    paper: list[Result]
    measured: list[Result]
    comparisons: list[Comparison]


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        model: Name in timm: `architecture.tag`, or `architecture` if there are no weights.
        task: One of `TASKS`.
        description: Description in a sentence or two.
        source: Hub id of the weights that the model starts from; None if there are none.
        hub_id: Hub id under which this project published the model; None if it is not published.
        license: SPDX identifier of the licence of the source weights, or of the entry's own weights or recipe.
        status: One of `STATUSES`.
        preprocessing: Preprocessing of the model's input.
        costs: Costs of the model and of timm's plain model.
        results: Results by origin.
        recipe: Flags of the task's command, with underscores; None if the entry is only weights.
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
        """The tag of the weights; empty if there are none."""
        return self.model.partition(".")[2]

    @property
    def loads_from(self) -> str:
        """The name by which timm loads the model: its repository if this project published it, else its own name."""
        return f"hf-hub:{self.hub_id}" if self.hub_id else self.model


def find_entry(name: str | Path) -> Path:
    """Find the file of an entry.

    Args:
        name: Name of an entry of the index, as `fdconv-zoo list` prints it, or a path of a file.

    Raises:
        EntryError: there is no such entry and no such file.
    """
    path, known = Path(name), MODELS / f"{name}.yaml"
    if path.is_file():
        return path
    if known.parent == MODELS and known.is_file():
        return known
    entries = [entry.stem for entry in MODELS.glob("*.yaml")]
    similar = difflib.get_close_matches(path.name.removesuffix(".yaml"), entries)
    remedy = f"did you mean {', '.join(similar)}?" if similar else "`fdconv-zoo list` prints the entries"
    raise EntryError(f"{name}: neither a file nor an entry of the index; {remedy}")


def read_entry(name: str | Path) -> Entry:
    """Read one entry.

    Args:
        name: As for `find_entry`.

    Raises:
        EntryError: there is no such entry, it is not YAML, a key is unknown or missing, or a value is invalid.
    """
    path = find_entry(name)
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
    """Read all entries of a folder.

    Returns:
        The entries by file name without `.yaml`, sorted by name.

    Raises:
        EntryError: an entry is invalid, or the folder has none.
    """
    paths = {path.stem: path for path in Path(folder).glob("*.yaml")}
    entries = {name: read_entry(paths[name]) for name in sorted(paths)}
    if not entries:
        raise EntryError(f"{folder}: no entries (*.yaml) there")
    return entries


def timm_name(name: str) -> str:
    """Return timm's name of an entry of the index; other names are returned unchanged."""
    entry = read_index().get(name)
    return name if entry is None else entry.loads_from


def _read(kind: Any, value: Any, key: str) -> Any:
    """Convert a YAML value to the type `kind`; `key` is its place in the file, empty for the whole file."""
    place = f"{key}: " if key else ""
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise EntryError(f"{place}expected keys and values, found {value!r:.40}")
        types = get_type_hints(kind)
        for name in value:
            if name not in types:
                raise EntryError(f"{place}unknown key {name!r}, expected one of {', '.join(types)}")
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
