"""The page that lists all models: `models/README.md`."""

from collections.abc import Iterable, Mapping
from typing import Any

import timm

from fdconv_zoo.index.entry import TASKS, Entry, Result
from fdconv_zoo.index.family import all_families, find_family

_HEAD = """\
# Models

Each file here is one entry: a model, the weights it starts from, its costs and those of its plain twin, its results
with their sources, and for some a recipe for one of the scripts.

"+" is what FDConv adds to timm's plain model. Multiply-adds are per image in inference: convolutions, matrix
products and attention, the low-passes of FBM among them; FFTs and element-wise work are not counted. Where weights
have several input sizes, they are for the first.

"Converted" weights are the plain model's, converted exactly: before fine-tuning, the model computes what the plain one
computes. `timm.create_model("<model>.<weights>", pretrained=True)` loads them; without a tag, the first in the row.
{short_names} are short for the tiny ones. Each has a card in `model_cards/`, and
`fdconv-zoo list` prints this table.

"""
_RECIPES = """\

## Recipes

On one machine, with all its GPUs, or fewer with `--num_processes`; `--smoke` tries a recipe in a minute on tiny
stand-in data:

    accelerate launch -m fdconv_zoo <command> --config <recipe> --output runs/mine

On two machines with 8 GPUs each and a shared output folder, the first with rank 0 and the second with rank 1:

    accelerate launch --multi_gpu --num_machines 2 --num_processes 16 --machine_rank <rank> --main_process_ip <first> \\
        --main_process_port 29500 -m fdconv_zoo <command> --config <recipe> --output runs/mine

`--batch-size` is per process: keep the number of images per update (with `--grad-accum` on fewer GPUs), or scale `--lr`
with it.

| recipe | command | model | data | epochs | what it is |
| --- | --- | --- | --- | ---: | --- |
"""
_FOOT = """
This page and the cards are generated from the entries: after changing one, run `python scripts/make_index.py`.
"""


def render_table(index: Mapping[str, Entry]) -> str:
    """Render the page as Markdown."""
    rows: dict[str, list[tuple[str, Entry]]] = {}
    for name, entry in index.items():
        rows.setdefault(entry.architecture, []).append((name, entry))
    ordered = sorted(rows.values(), key=_place)
    lines = [
        "| model | parameters | + | multiply-adds | + | input | weights | results |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- | --- |",
        *map(_row, ordered),
    ]
    recipes = [
        f"| [{name}]({name}.yaml) | {TASKS[entry.task]} | `{entry.model}` | {entry.recipe.get('dataset', 'your own')} "
        f"| {entry.recipe.get('epochs', '')} | {' '.join(entry.description.split())} |"
        for name, entry in index.items()
        if entry.recipe
    ]
    short_names = " and ".join(f"`{family.short_name}`" for family in all_families() if family.short_name)
    return (
        _HEAD.format(short_names=short_names) + "\n".join(lines) + "\n" + _RECIPES + "\n".join(recipes) + "\n" + _FOOT
    )


def _row(entries: list[tuple[str, Entry]]) -> str:
    default: Any = timm.get_pretrained_cfg(entries[0][1].architecture)
    entries = sorted(entries, key=lambda named: named[1].tag != default.tag)
    costs = entries[0][1].costs
    sizes = ["x".join(map(str, entry.preprocessing.size[1:])) for _, entry in entries]
    weights = [f"[{entry.tag}]({name}.yaml)" for name, entry in entries if entry.tag and name == entry.model]
    results = [text for _, entry in entries for text in _results(entry)]
    cells = (
        f"`{entries[0][1].architecture}`",
        quantity(costs.parameters),
        more(costs.parameters, costs.plain_parameters),
        quantity(costs.multiply_adds),
        more(costs.multiply_adds, costs.plain_multiply_adds),
        ", ".join(dict.fromkeys(sizes)),
        ", ".join(weights) or "none yet",
        "; ".join(dict.fromkeys(results)),
    )
    return f"| {' | '.join(cells)} |"


def quantity(count: int) -> str:
    """Format a count in millions (M) or billions (G)."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.2f} M"


def more(dynamic: int, plain: int) -> str:
    """Format the increase by FDConv, as a count and a percentage."""
    return f"{quantity(dynamic - plain)}, {100 * (dynamic / plain - 1):.0f} %"


def _results(entry: Entry) -> Iterable[str]:
    def words(result: Result) -> str:
        return f"{result.dataset}: {result.value:g} {result.metric}, {result.setting}"

    for result in entry.results.paper:
        yield f"{words(result)} ([reported by the paper]({result.source}))"
    for result in entry.results.measured:
        yield f"{words(result)} (measured: `{result.source}`)"


def _place(row: list[tuple[str, Entry]]) -> tuple[int, int]:
    """Sort key: by family, then from the smallest to the largest model."""
    entry = row[0][1]
    return find_family(entry.architecture).order, entry.costs.plain_parameters
