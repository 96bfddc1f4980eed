"""Train a network that finds objects, their boxes and masks, on any backbone of timm, FDConv or not; or evaluate one.

The backbone starts from its published weights; with --no-pretrained, from random ones.

    python scripts/detect.py --model resnet50_fdconv --dataset path/to/coco --output runs/mine
    python scripts/detect.py --config models/resnet50_fdconv.mask_rcnn_coco.yaml --output runs/coco
    accelerate launch --num_processes 8 --mixed_precision bf16 scripts/detect.py ...         (GPUs)
    python scripts/detect.py --evaluate runs/mine --dataset path/to/coco --output results/mine

README.md describes the files in --output.
"""

import calm_threads  # noqa: F401  before torch

from fdconv_zoo.cli.detect import main
from fdconv_zoo.cli.entrance import run_command

if __name__ == "__main__":
    run_command(main)
