"""Make the demo data for segmentation and detection: garments over textures, with masks and COCO annotations.

    python scripts/make_canvases.py --output data/canvases
    python scripts/make_canvases.py --output data/more --train 20000 --validation 1000 --seed 1

The scripts' `--dataset fashion_canvases` makes the default set by itself, in the user's cache.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fdconv_zoo.cli.recipes import run_script
from fdconv_zoo.dense.canvases import write_canvases


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--train", type=int, default=1000, metavar="N", help="canvases for training")
    parser.add_argument("--validation", type=int, default=250, metavar="N", help="canvases for validation")
    parser.add_argument("--size", type=int, default=128, metavar="N", help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script; `argv` is the command line without the program."""
    args = build_parser().parse_args(argv)
    write_canvases(args.output, train=args.train, validation=args.validation, size=args.size, seed=args.seed)
    print(f"{args.output}: {args.train} canvases for training, {args.validation} for validation")


if __name__ == "__main__":
    run_script(main)
