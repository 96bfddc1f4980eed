"""Write the solar cells of the package `elpv-dataset` as a dataset for `fdconv-zoo train --dataset`.

    pip install --no-deps elpv-dataset
    python scripts/make_solar_cells.py --output data/solar_cells

The images are licensed under CC BY-NC-SA 4.0: name their authors, and do not use them commercially. Do not add them to
a repository under another licence.
"""

import argparse
import importlib.util
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets

from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.errors import DataError
from fdconv_zoo.store.files import replacing

PACKAGE = "elpv_dataset"
NUM_CELLS = 2624
CLASS_NAMES = ["functional", "defective"]
FEATURES = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASS_NAMES))

# The package lists its cells module by module, and cells of a module look alike, so modules are not divided. These are
# the first and the last cell of each module, counted from 1; all other cells are for training.
# docs/evidence/solar_cells.md describes how the modules were found and drawn.
SPLITS = {
    "test": [
        *[(1, 60), (121, 180), (181, 240), (901, 960), (1315, 1374)],
        *[(1615, 1674), (2085, 2144), (2397, 2444), (2565, 2624)],
    ],
    "validation": [
        *[(481, 540), (541, 600), (781, 840), (841, 900), (1021, 1080)],
        *[(1495, 1554), (1555, 1614), (2337, 2396), (2445, 2504)],
    ],
}
README = """Cells of solar modules in electroluminescence, from the Python package elpv-dataset
(https://github.com/zae-bayern/elpv-dataset), by S. Deitsch and others: doi.org/10.1016/j.solener.2019.02.067.
Licence: CC BY-NC-SA 4.0, https://creativecommons.org/licenses/by-nc-sa/4.0/. Written by scripts/make_solar_cells.py.
"""


def find_source() -> Path:
    """Find the folder of the installed package's data: `labels.csv` and `images`.

    Raises:
        DataError: the package is not installed.
    """
    package = importlib.util.find_spec(PACKAGE)
    if package is None:
        raise DataError("the images come from another package: pip install --no-deps elpv-dataset")
    return Path(package.origin).parent / "data"


def read_labels(source: Path) -> list[tuple[Path, int, str]]:
    """Read the file, the class and the type of module ("mono" or "poly") of every cell, in the package's order.

    Two experts gave each cell a probability that it is defective: 0, 1/3, 2/3 or 1. The class is the likelier one.

    Raises:
        DataError: the package does not have the number of cells that `SPLITS` is made for.
    """
    rows = [line.split() for line in (source / "labels.csv").read_text(encoding="utf-8").splitlines()]
    if len(rows) != NUM_CELLS:
        raise DataError(
            f"{source / 'labels.csv'} has {len(rows)} cells, and the split is for {NUM_CELLS:,}: "
            "pip install --no-deps elpv-dataset==1.0.0.post1"
        )
    return [(source / name, int(float(probability) > 0.5), kind) for name, probability, kind in rows]


def divide(cells: Sequence[tuple[Path, int, str]]) -> dict[str, list[tuple[Path, int, str]]]:
    """Divide the cells into training, validation and test, by modules."""
    split_of = {
        number: split
        for split, modules in SPLITS.items()
        for first, last in modules
        for number in range(first, last + 1)
    }
    divided = {"train": [], "validation": [], "test": []}
    for number, cell in enumerate(cells, start=1):
        divided[split_of.get(number, "train")].append(cell)
    return divided


def write(source: Path, output: Path) -> None:
    """Write one parquet file per split, with the package's own PNG files, and print what is in them.

    Raises:
        DataError: the folder is not empty, or the package has another number of cells.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise DataError(f"--output {output} exists and is not an empty folder: remove it, or choose another folder")
    divided = divide(read_labels(source))
    with replacing(output) as temporary:
        temporary.mkdir()
        for split, cells in divided.items():
            columns = {
                "image": [{"bytes": path.read_bytes(), "path": None} for path, _, _ in cells],
                "label": [label for _, label, _ in cells],
            }
            datasets.Dataset.from_dict(columns, features=FEATURES).to_parquet(temporary / f"{split}.parquet")
            counts = Counter((kind, CLASS_NAMES[label]) for _, label, kind in cells)
            print(f"{split}: {len(cells)} cells; " + ", ".join(f"{n} {' '.join(k)}" for k, n in sorted(counts.items())))
        (temporary / "README.txt").write_text(README, encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of this script's flags."""
    parser = CommandParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to create")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script. `argv` defaults to `sys.argv[1:]`."""
    args = build_parser().parse_args(argv)
    write(find_source(), args.output)


if __name__ == "__main__":
    run_command(main)
