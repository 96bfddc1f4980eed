"""Check the entries of models/ against the code, and generate models/README.md and model_cards/ from them.

python scripts/make_index.py                                    check, then write the page and the cards
python scripts/make_index.py --update                           first correct what follows from the code
python scripts/make_index.py --add resnet50_fdconv.tv_in1k      first add entries for weights that timm lists
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import timm
import yaml

import fdconv_zoo  # noqa: F401  registers the models
from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.errors import EntryError
from fdconv_zoo.index import MODELS, Entry, Results, read_index
from fdconv_zoo.index.cards import render_card, with_card
from fdconv_zoo.index.table import render_table
from fdconv_zoo.profiling.expected import expected_facts

CARDS = Path(__file__).resolve().parents[1] / "model_cards"


def main() -> None:
    """Run the script."""
    parser = CommandParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--add", nargs="+", default=[], metavar="MODEL", help="timm names with a tag")
    parser.add_argument("--update", action="store_true", help="correct costs, preprocessing, source and licence")
    args = parser.parse_args()
    for model in args.add:
        add(model)
    for name, entry in read_index().items():
        corrected = replace(entry, **expected_facts(entry.model))
        if corrected != entry and not args.update:
            raise EntryError(f"{MODELS / name}.yaml does not match the code; --update corrects it")
        if corrected != entry:
            write_entry(MODELS / f"{name}.yaml", corrected)
    index = read_index()
    page = MODELS / "README.md"
    page.write_text(render_table(index), encoding="utf-8")
    print(f"{page}: {len(index)} entries")
    print(f"{CARDS}: {write_cards(index)} cards")


def write_cards(index: Mapping[str, Entry]) -> int:
    """Write all cards, remove those of deleted entries, and return the number of cards."""
    cards = {CARDS / f"{name}.md": render_card(entry, name) for name, entry in with_card(index).items()}
    for stale in set(CARDS.glob("*.md")) - set(cards):
        stale.unlink()
    for path, card in cards.items():
        card.save(path)
    return len(cards)


def add(model: str) -> None:
    """Write an entry for weights that the registry lists.

    Raises:
        EntryError: the entry exists, or timm lists no such weights.
    """
    path = MODELS / f"{model}.yaml"
    if path.exists():
        raise EntryError(f"{path} exists")
    if "." not in model or model not in timm.list_pretrained("*_fdconv*"):
        raise EntryError(f"{model}: not in timm.list_pretrained('*_fdconv*'); give a model with a tag")
    facts = expected_facts(model)
    summary = timm.model_entrypoint(model).__doc__.partition("\n")[0]
    description = (
        f"{summary} The weights are those of {facts['source']}, converted "
        "exactly: before fine-tuning the model computes what the plain one computes."
    )
    status = "converted, not trained"
    entry = Entry(
        model,
        "classification",
        description,
        hub_id=None,
        status=status,
        results=Results([], [], []),
        recipe=None,
        **facts,
    )
    write_entry(path, entry)


def write_entry(path: Path, entry: Entry) -> None:
    """Write an entry's YAML file."""
    text = yaml.dump(asdict(entry), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """Writes lists of plain values on one line."""


_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=not any(isinstance(item, dict) for item in items)
    ),
)


if __name__ == "__main__":
    run_command(main)
