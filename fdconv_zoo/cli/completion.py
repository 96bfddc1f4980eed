"""Completion of commands and flags in a shell, by shtab."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

import shtab

from fdconv_zoo.cli import commands, overview
from fdconv_zoo.cli.parser import CommandParser

DESCRIPTION = "Print a script that completes commands, flags and files in a shell."


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = CommandParser(prog="fdconv-zoo completion", description=DESCRIPTION)
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the completion script of a shell. `argv` defaults to `sys.argv[1:]`."""
    print(shtab.complete(build_whole_parser(), build_parser().parse_args(argv).shell))


def build_whole_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands with their flags."""
    parsers = command_parsers()
    for parser in parsers.values():
        for action in parser._actions:
            if action.choices is None and action.nargs != 0:  # shtab completes file names only for marked arguments
                action.complete = shtab.FILE
    return overview.build_parser(parsers)


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """Build the parser of each command whose libraries are installed, by name."""
    parsers = commands.build_parsers()
    for name, command in overview.COMMANDS.items():
        if name not in parsers:
            with suppress(ModuleNotFoundError):
                parsers[name] = import_module(f"fdconv_zoo.cli.{command.module}").build_parser()
    return parsers
