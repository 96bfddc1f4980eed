"""The items of `compare --models`: a model, and its own flags."""

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from fdconv_zoo.errors import ConfigError

# Flags that the command sets for each run, and what to do instead or why.
RESERVED = {
    "--model": "name models with --models",
    "--models": "give it once, with all models",
    "--seed": "give seeds with --seeds",
    "--seeds": "all models have the same seeds",
    "--config": "all models have the same recipe",
    "--output": "each run has a folder of its own in --output",
    "--start-from": "it holds for all models; one may have a --checkpoint of its own",
    "--test-split": "all models are tested on the same images",
    "--test-dataset": "all models are tested on the same images",
    "--resume": "runs that are not done are always continued",
    "--overwrite": "to train anew, delete the run's folder or choose another --output",
    "--smoke": "to try a comparison, make it small, for example with --epochs 1 --updates-per-epoch 2",
    "--evaluate": "the command trains, and then tests",
}
_LONGEST = 120  # characters of a folder's name before the seed; file systems allow 255 bytes


@dataclass(frozen=True)
class Compared:
    """A model of a comparison.

    Attributes:
        text: The item as it was given.
        model: Name of the model.
        flags: The model's own flags, as words.
    """

    text: str
    model: str
    flags: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name for the folders of its runs: the name of the model, then the name and the values of each flag.

        It contains only letters, digits and ``._=+-``. If it had to be changed for that or shortened, it ends with a
        hash of the item, so that it stays unique.
        """
        words = [self.model]
        for flag in self.flags:
            if flag.startswith("--"):
                words.append(flag.removeprefix("--").replace("=", "-", 1))
            else:
                words[-1] += f"-{flag}"
        name = "_".join(words)
        safe = re.sub(r"[^\w.=+-]", "-", name, flags=re.ASCII).lstrip(".-")[:_LONGEST]
        if safe == name:
            return name
        return f"{safe}-{hashlib.sha256(shlex.join([self.model, *self.flags]).encode()).hexdigest()[:8]}"


def parse_compared(texts: Sequence[str]) -> list[Compared]:
    """Parse the items of `--models`.

    Raises:
        ConfigError: an item is empty, occurs twice, has an open quotation mark, or has a flag of `RESERVED`.
    """
    items: dict[str, Compared] = {}
    for text in texts:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ConfigError(f"--models {text!r}: {error}; close the quotation mark") from error
        if not words or words[0].startswith("-"):
            raise ConfigError(f"--models {text!r}: an item begins with the name of a model, its flags follow")
        refuse_reserved(words[1:], f"--models {text!r}: ")
        item = Compared(text, words[0], tuple(words[1:]))
        twin = items.setdefault(item.folder.lower(), item)  # some file systems do not tell a from A
        if twin is not item:
            raise ConfigError(f"--models: {twin.text!r} and {text!r} are the same; leave one of them out")
    return list(items.values())


def refuse_reserved(words: Sequence[str], place: str = "") -> None:
    """Raise `ConfigError` for flags that the command sets itself; `place` begins the message."""
    for word in words:
        flag = word.partition("=")[0]
        if flag in RESERVED:
            raise ConfigError(f"{place}{flag} is not a flag of single runs: {RESERVED[flag]}")
