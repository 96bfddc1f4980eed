"""The parser of a command's flags."""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help formatter that adds the default of a flag, if it has one, and shows integers as N and floats as X."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = not (action.default is None or action.default is False or action.default == {})
        return super()._get_help_string(action) if has_default else action.help

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return {int: "N", float: "X"}.get(action.type) or super()._get_default_metavar_for_optional(action)


class CommandParser(argparse.ArgumentParser):
    """A parser that accepts no abbreviations, and suggests the nearest flag for an unknown one.

    Args:
        prog: The command, such as `fdconv-zoo export`; by default the name of the script.
        description: What the command does.
        epilog: Text after the flags.
        formatter_class: Formatter of the help.
    """

    def __init__(
        self,
        prog: str | None = None,
        description: str | None = None,
        epilog: str | None = None,
        formatter_class: type[argparse.HelpFormatter] = HelpFormatter,
    ):
        super().__init__(prog, None, description, epilog, formatter_class=formatter_class, allow_abbrev=False)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Parse as argparse does; the error for unknown flags names similar ones."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            near = [name for text in unknown for name in get_close_matches(text.partition("=")[0], known, 1, 0.7)]
            remedy = f"did you mean {', '.join(near)}?" if near else f"`{self.prog} --help` lists the flags"
            self.error(f"unrecognized arguments: {' '.join(unknown)}; {remedy}")
        return parsed
