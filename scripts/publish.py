"""Publish a model of the index on the Hugging Face Hub: its own weights, or those of a run."""

import calm_threads  # noqa: F401  before torch

from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.publish import main

if __name__ == "__main__":
    run_command(main)
