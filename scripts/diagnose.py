"""Check a model, and the run that trained it, for the ways in which FDConv fails.

python scripts/diagnose.py runs/mine photo.jpg holiday/
python scripts/diagnose.py runs/mine --json findings.json
python scripts/diagnose.py resnet10s_fdconv.fashion_mnist --sample 16
"""

import calm_threads  # noqa: F401  before torch

from fdconv_zoo.cli.diagnose import main
from fdconv_zoo.cli.entrance import run_command

if __name__ == "__main__":
    run_command(main)
