"""Train a network that gives every pixel a class, on any backbone of timm, FDConv or not; or evaluate one.

The backbone starts from its published weights; with --no-pretrained, from random ones.

    python scripts/segment.py --model resnet50_fdconv --dataset path/to/images_and_masks --output runs/mine
    python scripts/segment.py --config models/resnet50_fdconv.upernet_ade20k.yaml --output runs/ade20k
    accelerate launch --num_processes 4 --mixed_precision bf16 scripts/segment.py ...         (GPUs)
    python scripts/segment.py --evaluate runs/mine --dataset path/to/images_and_masks --scales 0.75 1 1.25 --flip \\
        --output results/mine

README.md describes the files in --output.
"""

import calm_threads  # noqa: F401  before torch

from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.segment import main

if __name__ == "__main__":
    run_command(main)
