"""Check and measure FDConv on a GPU, in ten minutes, with one command.

Writes DIR/report.md and DIR/report.json after each section: the machine; correctness of layers and models on every
path, against the plain path in float64 on a CPU; time and memory beside plain timm and other dynamic convolutions;
the launches of a training step; ways to convolve each image with its own kernel; the tests that need a GPU; and with
--fashion-mnist, in the remaining time, training of ResNet-18 and its plain twin. A failure is recorded, and does not
stop the rest.

    PYTHONPATH=. python3 scripts/gpu_report.py --out report
    PYTHONPATH=. python3 scripts/gpu_report.py --out report --minutes 12 --fashion-mnist FOLDER
    PYTHONPATH=. python3 scripts/gpu_report.py --out report --small    # on any machine, to see that it runs
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from fdconv_zoo import ops
from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.profiling.gpu_report import SECTIONS, Settings, write_report
from fdconv_zoo.profiling.gpu_report.suite import find_tests
from fdconv_zoo.profiling.peers import PEERS, replace_layers

ROOT = Path(__file__).resolve().parent.parent


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of this script's flags."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    paths = get_args(ops.Path)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    parser.add_argument("--minutes", type=float, default=8, metavar="N", help="for all sections (default: 8)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument("--paths", nargs="+", choices=paths, help="of FDConv layers (default: those that differ there)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda, with --small cuda if available")
    parser.add_argument("--small", action="store_true", help="tiny models and sizes")
    parser.add_argument("--tests", nargs="*", metavar="TEST", help="tests to run (default: those that need a GPU)")
    parser.add_argument("--fashion-mnist", type=Path, metavar="DIR", help="folder with the four idx files")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script. `argv` defaults to `sys.argv[1:]`."""
    args = build_parser().parse_args(argv)
    has_gpu = torch.cuda.is_available()
    if (args.device == "cuda" or (args.device is None and not args.small)) and not has_gpu:
        raise ConfigError("torch finds no CUDA device; use --small --device cpu to see that the report runs")
    if args.fashion_mnist is not None and not args.fashion_mnist.is_dir():
        raise ConfigError(f"--fashion-mnist {args.fashion_mnist}: no such folder")
    device = args.device or ("cuda" if has_gpu else "cpu")
    # On a GPU, the path "native" falls back to "rebuild".
    paths = args.paths or [path for path in get_args(ops.Path) if device == "cpu" or path != "native"]
    settings = Settings(
        device=device,
        small=args.small,
        paths=tuple(paths),
        peers=PEERS,
        replace_layers=replace_layers,
        root=ROOT,
        tests=find_tests(ROOT) if args.tests is None else tuple(args.tests),
        fashion_mnist=args.fashion_mnist,
    )
    wanted = set(args.sections) - (set() if args.fashion_mnist else {"learning"})
    sections = {name: section for name, section in SECTIONS.items() if name in wanted}
    write_report(settings, args.out, 60 * args.minutes, sections)
    print(f"wrote {args.out / 'report.md'} and {args.out / 'report.json'}")


if __name__ == "__main__":
    run_command(main)
