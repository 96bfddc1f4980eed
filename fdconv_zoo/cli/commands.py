"""The small commands: list, show, download, verify, predict and doctor."""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatch

import timm

from fdconv_zoo.cli import doctor
from fdconv_zoo.cli.overview import COMMANDS
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.cli.predict import DESCRIPTION, add_arguments, predict
from fdconv_zoo.errors import HubError
from fdconv_zoo.index import Entry, read_index, timm_name
from fdconv_zoo.index.cards import render_card
from fdconv_zoo.index.table import quantity
from fdconv_zoo.store.fetch import download, fetch_again
from fdconv_zoo.store.find import find_weights
from fdconv_zoo.store.names import HUB
from fdconv_zoo.store.verify import verify


def build_parsers() -> dict[str, argparse.ArgumentParser]:
    """Build the parser of each command, by name."""
    parsers = {}

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str | None = None) -> argparse.ArgumentParser:
        text = text or COMMANDS[name].help
        parsers[name] = CommandParser(prog=f"fdconv-zoo {name}", description=text)
        parsers[name].set_defaults(run=run)
        return parsers[name]

    listing = add("list", list_entries)
    listing.add_argument("pattern", nargs="?", default="*", help="part of a name, or a pattern such as '*tiny*in22k*'")
    listing.add_argument("--json", action="store_true", help="print the whole index as JSON")

    showing = add("show", show)
    showing.add_argument("name", help="an entry, as `list` prints it")

    fetching = add("download", download_weights)
    fetching.add_argument("name", help="an entry, a timm name, or hf-hub:REPOSITORY")
    fetching.add_argument("--revision", help="branch, tag or commit of the repository")

    checking = add("verify", verify_files)
    checking.add_argument("names", nargs="*", metavar="NAME", help="as for download; default: all entries")
    checking.add_argument("--repair", action="store_true", help="remove damaged files and download them again")

    add_arguments(add("predict", predict_images, DESCRIPTION))

    diagnosing = add("doctor", diagnose, doctor.DESCRIPTION)
    diagnosing.add_argument("--json", action="store_true", help="print JSON")
    return parsers


def main(argv: Sequence[str]) -> None:
    """Run one of the commands. `argv` has its name, then its flags."""
    name, *flags = argv
    args = build_parsers()[name].parse_args(flags)
    args.run(args)


def list_entries(args: argparse.Namespace) -> None:
    """Print the entries whose names match a pattern.

    Raises:
        HubError: no entry matches.
    """
    pattern = args.pattern if any(sign in args.pattern for sign in "*?[") else f"*{args.pattern}*"
    entries = {name: entry for name, entry in read_index().items() if fnmatch(name, pattern)}
    if args.json:
        print(json.dumps({name: asdict(entry) for name, entry in entries.items()}, indent=2))
        return
    if not entries:
        raise HubError(f"no entry matches {args.pattern!r}; `list` without a pattern prints all")
    rows = [("entry", "parameters", "multiply-adds", "input", "status", "results")]
    rows += [(name, *_cells(entry)) for name, entry in entries.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show(args: argparse.Namespace) -> None:
    """Print the card of an entry, without the metadata for the Hub.

    Raises:
        HubError: the name is not an entry.
    """
    index = read_index()
    name = _entry_of(args.name, index)
    if name is None:
        weights = find_weights(args.name)  # raises for a name that does not exist at all
        raise HubError(f"{args.name} is not an entry of the zoo; its card is on the Hub, in {weights.repo_id}")
    print(render_card(index[name], name).text.strip())


def _entry_of(name: str, index: Mapping[str, Entry]) -> str | None:
    """Find the entry of a timm name: that of its tag or, without a tag, of the weights that timm loads by default."""
    if name in index or not timm.is_model(name):
        return name if name in index else None
    config = timm.get_pretrained_cfg(name)
    named = {config.architecture, f"{config.architecture}.{config.tag}"} if config else {name}
    return next((entry for entry in sorted(named, reverse=True) if entry in index), None)


def download_weights(args: argparse.Namespace) -> None:
    """Download weights and print their path."""
    print(download(find_weights(timm_name(args.name), args.revision)))


def verify_files(args: argparse.Namespace) -> None:
    """Print the state of every cached file, and repair the damaged ones with `--repair`.

    Raises:
        HubError: damaged files remain, or a named model has no file in the cache.
    """
    index = read_index().values()
    ours = {repo: repo for entry in index for repo in (entry.source, entry.hub_id) if repo}
    named = {name: find_weights(timm_name(name)).repo_id for name in args.names}
    good = damaged = 0
    remarks = set()
    for name, repo_id in (named or ours).items():
        verdicts = list(verify(repo_id))
        if named and not verdicts:
            raise HubError(f"{name}: no file of {repo_id} is in the cache; get it with `download {name}`")
        for verdict in verdicts:
            file = verdict.file
            place = f"{file.repo_id}@{file.commit[:8]} {file.name}"
            state = verdict.problem or "good"
            if verdict.problem and args.repair:
                fetch_again(file)
                state = f"{verdict.problem}; downloaded again"
            elif verdict.problem:
                damaged += 1
            print(f"{place}: {state}")
            remarks.add(verdict.remark)
            good += not verdict.problem or args.repair
    for remark in sorted(filter(None, remarks)):
        print(remark)
    if damaged:
        raise HubError(f"{damaged} of {good + damaged} files are damaged; --repair downloads them again")
    print(f"{good} files are good" if good else "no file of the zoo is in the cache")


def predict_images(args: argparse.Namespace) -> None:
    """Print the classes of images, or draw what is in them. The model may be an entry."""
    args.model = timm_name(args.model)
    if args.model.startswith(HUB):
        download(find_weights(args.model))  # its errors are clearer than those of loading
    predict(args)


def diagnose(args: argparse.Namespace) -> None:
    """Print the report of `doctor.diagnose`, as text or JSON."""
    found = doctor.diagnose()
    if args.json:
        print(json.dumps(found, indent=2))
        return
    width = max(map(len, found))
    for name, text in found.items():
        print(f"{name:{width}}  {text}")


def _cells(entry: Entry) -> Iterable[str]:
    costs = entry.costs
    yield f"{quantity(costs.parameters)} (+{100 * (costs.parameters / costs.plain_parameters - 1):.0f} %)"
    yield f"{quantity(costs.multiply_adds)} (+{100 * (costs.multiply_adds / costs.plain_multiply_adds - 1):.0f} %)"
    yield "x".join(map(str, entry.preprocessing.size[1:]))
    yield f"published as {entry.hub_id}" if entry.hub_id else entry.status
    paper = [f"{result.value:g} {result.metric} (paper)" for result in entry.results.paper]
    yield ", ".join([*(f"{result.value:g} {result.metric}" for result in entry.results.measured), *paper]) or "-"
