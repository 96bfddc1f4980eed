"""Evaluate image classifiers: top-1, top-5, loss and images per second, for one or several models.

Each model sees the images through its own preprocessing, at its test size if it has one.

    python scripts/validate.py --dataset path/to/images --model runs/mine
    python scripts/validate.py --dataset imagenet-1k --model resnet50.a1_in1k resnet50_fdconv.a1_in1k
    accelerate launch --num_processes 4 scripts/validate.py ...
"""

import calm_threads  # noqa: F401  before torch

from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.validate import main

if __name__ == "__main__":
    run_command(main)
