"""All commands by name. This module does not import torch, so the list of commands appears at once."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from fdconv_zoo.cli.help_texts import FLAGS, stored_help
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.startup import load_library
from fdconv_zoo.version import __version__


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        module: Module of `fdconv_zoo.cli` with its `main`.
        help: What it does, in one line.
        extra: Extra of the package that installs the libraries it needs; None if it needs none.
    """

    module: str
    help: str
    extra: str | None = None


COMMANDS = {
    "train": Command("train", "Train or fine-tune an image classifier.", "train"),
    "validate": Command("validate", "Evaluate image classifiers.", "train"),
    "segment": Command("segment", "Train or evaluate a network that gives every pixel a class.", "dense"),
    "detect": Command("detect", "Train or evaluate a network that finds objects, their boxes and masks.", "dense"),
    "predict": Command("commands", "Print the classes of images, or draw what is in images and videos."),
    "visualize": Command("visualize", "Write a report on what FDConv does in a model, with pictures.", "analysis"),
    "diagnose": Command(
        "diagnose", "Check a model or a run for the ways in which FDConv fails, with remedies.", "train"
    ),
    "convert": Command("convert", "Convert a weights file of another project into a folder that timm loads."),
    "export": Command("export", "Export a model to ONNX, and check the result.", "export"),
    "publish": Command("publish", "Publish a model on the Hugging Face Hub."),
    "compare": Command("compare", "Train a recipe's model and its twins from several seeds, and compare.", "dense"),
    "benchmark": Command("benchmark", "Measure parameters, multiply-adds, time and memory of models and their twins."),
    "list": Command("commands", "List the entries of the index with costs, weights and results."),
    "show": Command("commands", "Print the card of an entry."),
    "download": Command("commands", "Download weights into the Hub's cache ahead of time."),
    "verify": Command("commands", "Check cached files against the Hub's hashes."),
    "doctor": Command("commands", "Print what FDConv runs on here."),
    "completion": Command("completion", "Print a script that completes commands and flags in a shell.", "completion"),
}


def build_parser(flags: Mapping[str, argparse.ArgumentParser] | None = None) -> argparse.ArgumentParser:
    """Build the parser of the command line.

    Args:
        flags: The parser of each command, by name. Without them, only the name of a command is parsed.
    """
    parser = argparse.ArgumentParser(
        prog="fdconv-zoo",
        description="Train, evaluate, convert and publish models with Frequency Dynamic Convolution.",
        epilog="`fdconv-zoo COMMAND --help` lists the flags of a command. In several processes: accelerate launch -m "
        "fdconv_zoo COMMAND ..., or torchrun -m fdconv_zoo COMMAND ...",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fdconv-zoo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        parents = [flags[name]] if flags and name in flags else []
        commands.add_parser(name, help=command.help, add_help=False, parents=parents)
    return parser


def run(name: str, argv: Sequence[str]) -> None:
    """Run a command.

    Args:
        name: One of `COMMANDS`.
        argv: Flags of the command.

    Raises:
        ConfigError: a library that it needs is not installed.
    """
    command = COMMANDS[name]
    if list(argv) in FLAGS and (text := stored_help(name)) is not None:
        print(text, end="")
        return
    load_library()
    try:
        module = import_module(f"fdconv_zoo.cli.{command.module}")
        module.main([name, *argv] if command.module == "commands" else argv)
    except ModuleNotFoundError as error:
        if command.extra is None or error.name is None or error.name.startswith("fdconv_zoo"):
            raise
        remedy = f"pip install 'fdconv-zoo[{command.extra}]'"
        raise ConfigError(f"fdconv-zoo {name} needs {error.name}: {remedy}") from error
