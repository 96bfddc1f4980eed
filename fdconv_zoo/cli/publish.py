"""Publish a model of the index on the Hugging Face Hub: its own weights, or those of a run.

    fdconv-zoo publish resnet50_fdconv.a1_in1k --repo me/resnet50_fdconv.a1_in1k --dry-run made/
    fdconv-zoo publish resnet10s_fdconv.fashion_mnist --run runs/mine/last --repo me/mine --tag v1.0

First log in with `hf auth login`. The command prints "published" only after it downloaded the model and compared it.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import timm

from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import find_entry, read_entry
from fdconv_zoo.publish import Target, describe, make_repository, metadata, publish
from fdconv_zoo.store.build import build_model


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="fdconv-zoo publish", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("entry", help="an entry of the index by name, or its file")
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder with the weights of a run")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="repository; created if it does not exist")
    parser.add_argument("--dry-run", type=Path, metavar="DIR", help="write the files to this folder, do not upload")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--tag", metavar="NAME", help="tag the commit after it is verified")
    parser.add_argument("--force", action="store_true", help="commit to a repository that already has files")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; `argv` is the command line without the program."""
    args = build_parser().parse_args(argv)
    entry = read_entry(args.entry)
    if args.run is None and entry.status == "recipe only":
        raise ConfigError(f"{args.entry} has no weights: use those of a run with --run")
    if args.run is not None:
        model, _ = build_model(str(args.run))
        if model.pretrained_cfg["architecture"] != entry.architecture:
            found = model.pretrained_cfg["architecture"]
            raise ConfigError(f"{args.run} holds a {found}, but {args.entry} is a {entry.architecture}")
    else:
        model = timm.create_model(entry.model, pretrained=True)
    if args.dry_run is not None and args.dry_run.exists() and any(args.dry_run.iterdir()):
        raise ConfigError(f"--dry-run {args.dry_run}: it is not empty; choose a new folder")

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.dry_run or Path(temporary)
        make_repository(model, entry, find_entry(args.entry).stem, args.repo, folder, args.run)
        for name, size in describe(folder):
            print(f"{size:>13,}  {name}")
        print(", ".join(f"{key}: {value}" for key, value in metadata(folder / "model.safetensors").items()))
        if args.dry_run is not None:
            print(f"{folder}: this would be uploaded to {args.repo}")
            return
        target = Target(args.repo, args.private, args.revision, args.create_pr, args.tag, args.force)
        commit = publish(folder, target)
    print(f"published: timm.create_model('hf-hub:{args.repo}@{args.tag or commit}', pretrained=True)")
