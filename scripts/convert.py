"""Convert a weights file of the paper's authors, OpenMMLab, torchvision or timm into a folder that timm loads."""

import calm_threads  # noqa: F401  before torch

from fdconv_zoo.cli.convert import main
from fdconv_zoo.cli.entrance import run_command

if __name__ == "__main__":
    run_command(main)
