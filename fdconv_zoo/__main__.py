"""The command line: `python -m fdconv_zoo`, installed as `fdconv-zoo`."""

from collections.abc import Sequence

from fdconv_zoo.cli.commands import build_parser
from fdconv_zoo.cli.entrance import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Run a sub-command."""
    args = build_parser().parse_args(argv)
    run_command(args.run, args)


if __name__ == "__main__":
    main()
