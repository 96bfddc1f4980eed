"""Train a recipe's model and its twins with other convolutions from several seeds, and compare them."""

import calm_threads  # noqa: F401  before torch

from fdconv_zoo.cli.compare import main
from fdconv_zoo.cli.entrance import run_command

if __name__ == "__main__":
    run_command(main)
