"""The sub-commands of `python -m fdconv_zoo`: what there is, its cards, its weights, what it sees."""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from fnmatch import fnmatch

from fdconv_zoo.cli.predict import add_arguments, predict
from fdconv_zoo.errors import HubError
from fdconv_zoo.index import Entry, read_index, timm_name
from fdconv_zoo.index.cards import render_card
from fdconv_zoo.index.table import quantity
from fdconv_zoo.store.fetch import download, fetch_again
from fdconv_zoo.store.find import find_weights
from fdconv_zoo.store.names import HUB
from fdconv_zoo.store.verify import verify


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fdconv-zoo", description="FDConv models: what there is, their weights, predictions.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="all entries with costs, weights and results")
    listing.add_argument("pattern", nargs="?", default="*", help="part of a name, or a pattern such as '*tiny*in22k*'")
    listing.add_argument("--json", action="store_true", help="everything the index holds, as JSON")
    listing.set_defaults(run=list_entries)

    showing = commands.add_parser("show", help="the card of an entry")
    showing.add_argument("name", help="an entry, as `list` prints it")
    showing.set_defaults(run=show)

    fetching = commands.add_parser("download", help="fetch weights into the Hub's cache ahead of time")
    fetching.add_argument("name", help="an entry, a timm name, or hf-hub:REPOSITORY")
    fetching.add_argument("--revision", help="branch, tag or commit of its repository")
    fetching.set_defaults(run=download_weights)

    checking = commands.add_parser("verify", help="hold cached files against the Hub's hashes")
    checking.add_argument("names", nargs="*", metavar="NAME", help="as for download; by default all entries")
    checking.add_argument("--repair", action="store_true", help="remove damaged files and fetch them again")
    checking.set_defaults(run=verify_files)

    predicting = commands.add_parser("predict", help="the classes of image files")
    add_arguments(predicting)
    predicting.set_defaults(run=predict_classes)
    return parser


def list_entries(args: argparse.Namespace) -> None:
    """Print the entries whose names match."""
    pattern = args.pattern if any(sign in args.pattern for sign in "*?[") else f"*{args.pattern}*"
    entries = {name: entry for name, entry in read_index().items() if fnmatch(name, pattern)}
    if args.json:
        print(json.dumps({name: asdict(entry) for name, entry in entries.items()}, indent=2))
        return
    if not entries:
        raise HubError(f"no entry is called like {args.pattern!r}; `list` without a pattern prints all")
    rows = [("entry", "parameters", "multiply-adds", "input", "status", "results")]
    rows += [(name, *_cells(entry)) for name, entry in entries.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show(args: argparse.Namespace) -> None:
    """Print a card, without the part that only the Hub reads."""
    index = read_index()
    if args.name not in index:
        weights = find_weights(args.name)  # an error for what does not exist at all
        raise HubError(f"{args.name}: no entry of the zoo; its card is on the Hub, in {weights.repo_id}")
    print(render_card(index[args.name], args.name).text.strip())


def download_weights(args: argparse.Namespace) -> None:
    """Fetch weights and print where they are."""
    print(download(find_weights(timm_name(args.name), args.revision)))


def verify_files(args: argparse.Namespace) -> None:
    """Print what is known of every cached file; repair the damaged ones if asked to.

    Raises:
        HubError: damaged files are left, or a named model has nothing in the cache.
    """
    index = read_index().values()
    ours = {repo: repo for entry in index for repo in (entry.source, entry.hub_id) if repo}
    named = {name: find_weights(timm_name(name)).repo_id for name in args.names}
    good = damaged = 0
    remarks = set()
    for name, repo_id in (named or ours).items():
        verdicts = list(verify(repo_id))
        if named and not verdicts:
            raise HubError(f"{name}: nothing of {repo_id} is in the cache; `download {name}` fetches it")
        for verdict in verdicts:
            file = verdict.file
            place = f"{file.repo_id}@{file.commit[:8]} {file.name}"
            state = verdict.problem or "good"
            if verdict.problem and args.repair:
                fetch_again(file)
                state = f"{verdict.problem}; fetched again"
            elif verdict.problem:
                damaged += 1
            print(f"{place}: {state}")
            remarks.add(verdict.remark)
            good += not verdict.problem or args.repair
    for remark in sorted(filter(None, remarks)):
        print(remark)
    if damaged:
        raise HubError(f"{damaged} of {good + damaged} files are damaged; --repair fetches them again")
    print(f"{good} files are good" if good else "nothing of the zoo is in the cache")


def predict_classes(args: argparse.Namespace) -> None:
    """Print the likeliest classes of image files."""
    args.model = timm_name(args.model)
    if args.model.startswith(HUB):
        download(find_weights(args.model))  # its errors are the clearer ones
    predict(args)


def _cells(entry: Entry) -> Iterable[str]:
    costs = entry.costs
    yield f"{quantity(costs.parameters)} (+{100 * (costs.parameters / costs.plain_parameters - 1):.0f} %)"
    yield f"{quantity(costs.multiply_adds)} (+{100 * (costs.multiply_adds / costs.plain_multiply_adds - 1):.0f} %)"
    yield "x".join(map(str, entry.preprocessing.size[1:]))
    yield f"published as {entry.hub_id}" if entry.hub_id else entry.status
    paper = [f"{result.value:g} {result.metric} (paper)" for result in entry.results.paper]
    yield ", ".join([*(f"{result.value:g} {result.metric}" for result in entry.results.measured), *paper]) or "-"
