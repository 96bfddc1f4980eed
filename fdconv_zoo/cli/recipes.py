"""The command line that all training scripts share."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import TASKS, read_entry

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)

RUN_FLAGS = ("config", "output", "resume", "overwrite", "smoke")  # of one start, never of a recipe


class ArgumentParser(argparse.ArgumentParser):
    """A parser with the flags of every training script, that raises `ConfigError` and takes no abbreviations.

    Args:
        description: Of the script.
        task: Of the recipes that it takes.
    """

    def __init__(self, description: str, *, task: str = "classification"):
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        self.task = task
        run = self.add_argument_group("run")
        run.add_argument(
            "--config", metavar="FILE", help="entry of models/; its recipe gives the other flags' defaults"
        )
        run.add_argument("--output", metavar="DIR", help="folder for all the run makes")
        run.add_argument("--resume", action="store_true", help="continue the run in --output, if there is one")
        run.add_argument("--overwrite", action="store_true", help="delete the run in --output, if there is one")
        run.add_argument("--smoke", action="store_true", help="a handful of steps on the packaged sample, as a check")

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, so that the message can say where a wrong value came from."""
        raise ConfigError(message)

    def parse(self, argv: Sequence[str] | None = None, *, smoke: Mapping[str, Any]) -> argparse.Namespace:
        """Parse the command line over the recipe of `--config`, and over `smoke` where `--smoke` is given.

        Args:
            argv: The command line, without the program.
            smoke: Settings of `--smoke`; None brings a flag back to its default.

        Raises:
            ConfigError: an unknown flag or recipe key, or a value of the wrong kind.
            EntryError: the file of `--config` is not a valid entry.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        given = self.parse_args(argv)
        settings: dict[str, Any] = {}
        if given.config is not None:
            entry = read_entry(given.config)
            if entry.recipe is None:
                raise ConfigError(f"{given.config} has no recipe; `python -m fdconv_zoo list --json` shows which have")
            if entry.task != self.task:
                raise ConfigError(f"{given.config} is for scripts/{TASKS[entry.task]}.py: it trains {entry.task}")
            settings = {"model": entry.model, **entry.recipe}
            try:
                self.parse_args(self._as_flags(settings))
            except ConfigError as error:
                raise ConfigError(f"{given.config}: {error}") from None
        if given.smoke:
            settings.update(smoke)
        arguments = self.parse_args([*self._as_flags(settings), *argv])
        if arguments.output is None:
            raise ConfigError("--output DIR is needed: the folder for all the run makes")
        return arguments

    def _as_flags(self, settings: Mapping[str, Any]) -> list[str]:
        known = set(vars(self.parse_args([]))) - {*RUN_FLAGS}
        flags = []
        for key, value in settings.items():
            if key not in known:
                raise ConfigError(
                    f"recipe key {key!r} is not a flag of this script; it takes {', '.join(sorted(known))}"
                )
            flag = "--" + key.replace("_", "-")
            if isinstance(value, bool):
                flags.append(flag if value else "--no-" + flag.removeprefix("--"))
            elif isinstance(value, Mapping):
                flags += [flag, *(f"{name}={item}" for name, item in value.items())]
            elif isinstance(value, list):
                flags += [flag, *map(str, value)]
            elif value is not None:
                flags.append(f"{flag}={value}")
        return flags


def run_script(main: Callable[[], None]) -> None:
    """Run a training script's `main`, see `run_command`."""
    run_command(main, stopped="stopped; --resume continues from the last checkpoint")
