"""Train or fine-tune an image classifier: any timm model, FDConv or not, on any labelled images.

It starts from the model's published weights; with --no-pretrained, from random ones.

    python scripts/train.py --model resnet50_fdconv --dataset path/to/images --output runs/mine
    python scripts/train.py --config models/resnet10s_fdconv.fashion_mnist.demo.yaml --output runs/demo
    accelerate launch --num_processes 4 --mixed_precision bf16 scripts/train.py ...         (GPUs)
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 scripts/train.py ...               (processes on a CPU)

With several machines, --output must be a folder that all of them can write to. README.md describes its files.
"""

import calm_threads  # noqa: F401  before torch

from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.train import main

if __name__ == "__main__":
    run_command(main)
