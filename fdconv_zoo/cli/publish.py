"""Publish a model on the Hugging Face Hub: an entry of the index with its own weights, or a run.

    fdconv-zoo publish resnet50_fdconv.a1_in1k --repo me/resnet50_fdconv.a1_in1k --dry-run made/
    fdconv-zoo publish --run runs/mine --license mit --repo me/mine --tag v1.0

The card of a run describes its data, classes, figures and flags. Of the paths in them, only the last part is published.
First log in with `hf auth login`. The command prints "published" only after it has downloaded the model and compared it
with the local one.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import timm
from timm.models import split_model_name_tag
from torch import nn

from fdconv_zoo import publish as classifiers
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.cli.predict import is_dense, needing_dense
from fdconv_zoo.errors import ConfigError, HubError
from fdconv_zoo.index import Entry, find_entry, read_entry
from fdconv_zoo.store.config import read_config
from fdconv_zoo.store.names import CONFIG_FILE, WEIGHTS_FILE
from fdconv_zoo.store.provenance import read_provenance
from fdconv_zoo.store.timm_loading import DownloadError
from fdconv_zoo.store.upload import Target, describe


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = CommandParser(prog="fdconv-zoo publish", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "entry", nargs="?", help="an entry of the index by name, or its file; with --run only its architecture counts"
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="output folder of a run, or `last` in it")
    parser.add_argument(
        "--license", metavar="ID", help="of the weights of the run, such as mit; default: none is stated"
    )
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="repository; created if it does not exist")
    parser.add_argument("--dry-run", type=Path, metavar="DIR", help="write the files to this folder, do not upload")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--tag", metavar="NAME", help="tag the commit after it is verified")
    parser.add_argument("--force", action="store_true", help="commit to a repository that already has files")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. `argv` defaults to `sys.argv[1:]`."""
    args = build_parser().parse_args(argv)
    entry = args.entry and read_entry(args.entry)
    publisher = classifiers
    if args.run is not None:
        publisher = find_publisher(args.run, entry and entry.architecture)
    elif entry is None:
        raise ConfigError("name an entry of the index, or a run with --run")
    elif args.license is not None:
        raise ConfigError("--license is for a run: an entry has its own")
    elif entry.status == "recipe only":
        raise ConfigError(f"{args.entry} has no weights: use those of a run with --run")
    if args.dry_run is not None and args.dry_run.exists() and any(args.dry_run.iterdir()):
        raise ConfigError(f"--dry-run {args.dry_run}: it is not empty; choose a new folder")

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.dry_run or Path(temporary)
        if args.run is not None:
            publisher.make_run_repository(args.run, args.repo, folder, licence=args.license)
        else:
            publisher.make_repository(load_entry(entry), entry, find_entry(args.entry).stem, args.repo, folder)
        for name, size in describe(folder):
            print(f"{size:>13,}  {name}")
        print(", ".join(f"{key}: {value}" for key, value in sorted(read_provenance(folder / WEIGHTS_FILE).items())))
        if args.dry_run is not None:
            print(f"{folder}: this would be uploaded to {args.repo}")
            return
        target = Target(args.repo, args.private, args.revision, args.create_pr, args.tag, args.force)
        commit = publisher.publish(folder, target)
        print(f"published: {publisher.loading_code(folder, args.repo, args.tag or commit)}")


def find_publisher(run: Path, architecture: str | None) -> ModuleType:
    """Find the module that publishes the model of a run. If an architecture is named, the model must have it.

    Raises:
        ConfigError: the folder has no model, or one of another architecture, or a library is missing.
        WeightsError: the configuration of the model is damaged.
    """
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError(f"--run {run}: no {CONFIG_FILE} there; is it the output folder of a run?")
    config = read_config(run / CONFIG_FILE)
    found = split_model_name_tag(str(config["backbone"]))[0] if is_dense(config) else config.get("architecture")
    if architecture is not None and found != architecture:
        raise ConfigError(f"{run} holds a {found}, but the entry is a {architecture}")
    if not is_dense(config):
        return classifiers
    with needing_dense(str(run)):
        from fdconv_zoo.dense import publishing
    return publishing


def load_entry(entry: Entry) -> nn.Module:
    """Load an entry's own weights.

    Raises:
        HubError: they could not be downloaded.
    """
    try:
        return timm.create_model(entry.model, pretrained=True)
    except DownloadError as error:
        raise HubError(error.reason) from error
