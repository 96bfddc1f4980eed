"""Convert a checkpoint of the paper's authors, OpenMMLab, torchvision or timm into a folder that timm loads.

    python scripts/convert.py mask_rcnn_fdconv.pth --model resnet50_fdconv --output converted/
    python scripts/convert.py upernet_swin_tiny.pth --model swin_fdconv --output converted/

The result is loaded again through timm and compared with the checkpoint's network before the folder gets its name:
`timm.create_model("local-dir:converted", pretrained=True)` then builds it.
"""

import argparse
from collections.abc import Sequence

from timm.utils import ParseKwargs

from fdconv_zoo.cli.recipes import run_script
from fdconv_zoo.porting import convert_checkpoint


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("checkpoint", help="safetensors, or .pth; nothing in it is run")
    parser.add_argument("--model", required=True, help="timm name of the model; its tag chooses the preprocessing")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE", help="further arguments of it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier conversion")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script; `argv` is the command line without the program."""
    args = build_parser().parse_args(argv)
    conversion = convert_checkpoint(
        args.checkpoint, args.model, args.output, model_kwargs=args.model_kwargs, overwrite=args.overwrite
    )
    print(conversion.describe())
    print(f"written {args.output}")


if __name__ == "__main__":
    run_script(main)
