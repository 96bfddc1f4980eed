"""Command line of training: flags override the recipe of an entry, which overrides defaults."""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from timm.utils import ParseKwargs

from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import TASKS, read_entry

RUN_FLAGS = ("config", "output", "resume", "overwrite", "smoke", "evaluate")  # never part of a recipe


class RecipeParser(CommandParser):
    """A parser with the flags that all tasks share. It raises `ConfigError` instead of exiting.

    Args:
        description: Description of the command.
        task: Task of the recipes that it accepts, a key of `TASKS`.
    """

    def __init__(self, description: str, *, task: str = "classification"):
        super().__init__(f"fdconv-zoo {TASKS[task]}", description)
        self.task = task
        run = self.add_argument_group("run")
        run.add_argument("--config", metavar="NAME", help="entry, or its file: its recipe replaces the defaults")
        run.add_argument("--output", metavar="DIR", help="folder for all files of the run")
        run.add_argument("--resume", action="store_true", help="continue the run in --output, if there is one")
        run.add_argument("--overwrite", action="store_true", help="delete the run in --output, if there is one")
        run.add_argument("--smoke", action="store_true", help="check the command: a few steps on a few images")

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, so that the message can say where a wrong value came from."""
        raise ConfigError(message)

    def parse(self, argv: Sequence[str] | None = None, *, smoke: Mapping[str, Any]) -> argparse.Namespace:
        """Parse the command line. Flags override `smoke` if `--smoke` is set, which overrides the recipe of `--config`.

        Args:
            argv: The flags; default: `sys.argv[1:]`.
            smoke: Settings of `--smoke`; None resets a flag to its default.

        Raises:
            ConfigError: an unknown flag or recipe key, a value of the wrong kind, a recipe for another task, or no
                `--output`.
            EntryError: the file of `--config` is not a valid entry.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        given = self.parse_args(argv)
        settings: dict[str, Any] = {}
        if given.config is not None:
            entry = read_entry(given.config)
            if entry.recipe is None:
                raise ConfigError(f"{given.config} has no recipe; `fdconv-zoo list --json` shows which have")
            if entry.task != self.task:
                raise ConfigError(f"{given.config} is a recipe for {entry.task}: use fdconv-zoo {TASKS[entry.task]}")
            settings = {"model": entry.model, **entry.recipe}
            try:
                self.parse_args(self._as_flags(settings))
            except ConfigError as error:
                raise ConfigError(f"{given.config}: {error}") from None
        if given.smoke:
            settings.update(smoke)
        arguments = self.parse_args([*self._as_flags(settings), *argv])
        if arguments.output is None:
            raise ConfigError("--output DIR is required: the folder for all files of the run")
        return arguments

    def _as_flags(self, settings: Mapping[str, Any]) -> list[str]:
        known = set(vars(self.parse_args([]))) - {*RUN_FLAGS}
        flags = []
        for key, value in settings.items():
            if key not in known:
                raise ConfigError(
                    f"recipe key {key!r} is not a flag of this command; its flags are {', '.join(sorted(known))}"
                )
            flag = "--" + key.replace("_", "-")
            if isinstance(value, bool):
                flags.append(flag if value else "--no-" + flag.removeprefix("--"))
            elif isinstance(value, Mapping):
                flags += [flag, *_values(key, (f"{name}={item}" for name, item in value.items()))]
            elif isinstance(value, list):
                flags += [flag, *_values(key, map(str, value))]
            elif value is not None:
                flags.append(f"{flag}={value}")
        return flags


def _values(key: str, texts: Iterable[str]) -> Iterator[str]:
    """Yield the values of a flag. Raise `ConfigError` if one would be parsed as a flag itself."""
    for text in texts:
        if text.startswith("-") and not re.fullmatch(r"-[\d.]+(e[+-]?\d+)?", text):
            raise ConfigError(f"recipe key {key!r}: {text!r} is not a value, but looks like a flag")
        yield text


class _Arguments(ParseKwargs):
    """timm's action for KEY=VALUE, with an error message for values of another form."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        for value in values:
            if not re.fullmatch(r"[^=]+=[^=]*", value):
                parser.error(f"{option_string} {value}: must be KEY=VALUE")
        super().__call__(parser, namespace, values, option_string)


def add_split_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that choose the images to train on and to validate on."""
    group.add_argument("--train-split", metavar="NAME", help="default: train or training, or the only split")
    group.add_argument("--validation-split", metavar="NAME", help="default: validation, val, valid, dev or test")
    group.add_argument(
        "--validation-fraction", type=float, default=0.1, help="part to validate on if there is only one split"
    )
    group.add_argument("--limit", type=int, help="use only N images of each split")


def add_arguments_flag(group: argparse._ArgumentGroup, flag: str, owner: str) -> None:
    """Add a flag that takes any number of KEY=VALUE, the arguments of `owner`."""
    group.add_argument(
        flag, nargs="*", action=_Arguments, default={}, metavar="KEY=VALUE", help=f"arguments of the {owner}"
    )


def add_workers_flag(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flag that sets how many processes read images."""
    workers = min(4, os.cpu_count() or 1)
    group.add_argument("--workers", type=int, default=workers, help="processes that read images, for each process")
