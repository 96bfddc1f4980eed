"""Name the classes of images: files, folders, or some of the images that ship with the package.

python scripts/predict.py --model runs/mine photo.jpg holiday/
python scripts/predict.py --model resnet50_fdconv.a1_in1k photo.jpg
python scripts/predict.py --model runs/demo --sample 8
"""

import argparse
from collections.abc import Sequence

import fdconv_zoo  # noqa: F401 - registers the models
from fdconv_zoo.cli.predict import add_arguments, predict
from fdconv_zoo.cli.recipes import run_script


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script; `argv` is the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add_arguments(parser)
    predict(parser.parse_args(argv))


if __name__ == "__main__":
    run_script(main)
