"""Print the classes of images, or draw what a segmenter or a detector finds in images and videos.

python scripts/predict.py --model runs/mine photo.jpg holiday/
python scripts/predict.py --model resnet50_fdconv.a1_in1k photo.jpg
python scripts/predict.py --model runs/demo --sample 8
python scripts/predict.py --model runs/segment photo.jpg --output seen/
"""

import calm_threads  # noqa: F401  before torch

from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.predict import main

if __name__ == "__main__":
    run_command(main)
