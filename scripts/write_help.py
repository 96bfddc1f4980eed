"""Write the texts of `fdconv-zoo COMMAND --help`, which the command shows without building its flags."""

import os

from fdconv_zoo.cli.completion import command_parsers
from fdconv_zoo.cli.help_texts import FOLDER

COLUMNS = "100"


def format_helps() -> dict[str, str]:
    """Format the help of each command, by name."""
    os.environ["COLUMNS"] = COLUMNS
    return {name: parser.format_help() for name, parser in command_parsers().items()}


def main() -> None:
    """Run the script."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in format_helps().items():
        (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
