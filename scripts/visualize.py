"""Write a report on what FDConv does in a model, for some images: one HTML file.

python scripts/visualize.py --model resnet10s_fdconv.fashion_mnist --sample 2 --output report.html
python scripts/visualize.py --model runs/mine photo.jpg other.jpg --output report.html
python scripts/visualize.py --model runs/segment photo.jpg --output report.html
"""

import calm_threads  # noqa: F401  before torch

from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.visualize import main

if __name__ == "__main__":
    run_command(main)
