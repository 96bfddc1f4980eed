"""Measure the costs of models and their plain twins: parameters, multiply-adds, time and memory."""

import calm_threads  # noqa: F401  before torch

from fdconv_zoo.cli.benchmark import main
from fdconv_zoo.cli.entrance import run_command

if __name__ == "__main__":
    run_command(main)
