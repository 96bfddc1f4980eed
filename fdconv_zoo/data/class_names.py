"""Compares names of classes: within a dataset, and between a model and a dataset."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from fdconv_zoo.errors import ConfigError, DataError, first_of


def check_spelling(names: Sequence[str]) -> None:
    """Raise DataError if names differ only in case or blanks: they are probably one class, spelt in several ways.

    Single letters may differ in case, as in datasets of characters.
    """
    spellings = defaultdict(list)
    for name in names:
        spellings[_normal(name)].append(name)
    same = [group for key, group in spellings.items() if len(group) > 1 and not all(len(name) == 1 for name in group)]
    if same:
        listing = first_of(" and ".join(map(repr, group)) for group in same)
        raise DataError(f"Classes that differ only in case or blanks: {listing}. Spell each class in one way.")


def _normal(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def match_classes(model: str, trained: Sequence[str], names: Sequence[str]) -> list[int]:
    """Match the classes of a dataset to those of a model, by name.

    Args:
        model: Name of the model, for the message.
        trained: Classes of the model, in the order of their indices.
        names: Classes of the dataset.

    Returns:
        The model's index of each class of the dataset.

    Raises:
        ConfigError: the model does not have a class of the dataset.
    """
    numbers = {name: number for number, name in enumerate(trained)}
    if unknown := [name for name in names if name not in numbers]:
        similar = {_normal(name): name for name in trained}
        pairs = [f"{name!r} is {similar[_normal(name)]!r} in the model" for name in unknown if _normal(name) in similar]
        raise ConfigError(
            f"{model} was trained on {len(trained)} classes, but the dataset has {len(names)}, of which the model does "
            f"not know {first_of(map(repr, unknown))}"
            + (f" ({first_of(pairs)})" if pairs else "")
            + ". Use it with a dataset of its classes, spelt alike, or choose another model"
        )
    return [numbers[name] for name in names]
