"""Generate the demo data for segmentation and detection: garments over textures, with masks and COCO annotations.

    python scripts/make_canvases.py --output data/canvases
    python scripts/make_canvases.py --output data/more --train 20000 --validation 1000 --seed 1

With `--dataset fashion_canvases`, segment.py and detect.py generate the default set themselves, in the user's cache.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.dense.canvases import write_canvases


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of this script's flags."""
    parser = CommandParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--train", type=int, default=1000, help="canvases for training")
    parser.add_argument("--validation", type=int, default=250, help="canvases for validation")
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other canvases")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script. `argv` defaults to `sys.argv[1:]`."""
    args = build_parser().parse_args(argv)
    write_canvases(args.output, train=args.train, validation=args.validation, size=args.size, seed=args.seed)
    print(f"{args.output}: {args.train} canvases for training, {args.validation} for validation")


if __name__ == "__main__":
    run_command(main)
