"""Entry point of `fdconv-zoo`, and of `python -m fdconv_zoo`, which launchers such as torchrun use."""

import sys
from collections.abc import Sequence

from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.overview import build_parser, run


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; without one, print the help. `argv` defaults to `sys.argv[1:]`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if not argv:
        parser.print_help()
        return
    name = parser.parse_args(argv[:1]).command
    run_command(run, name, argv[1:])


if __name__ == "__main__":
    main()
