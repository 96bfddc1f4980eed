"""Convert a weights file of the paper's authors, OpenMMLab, torchvision or timm into a folder that timm loads.

    fdconv-zoo convert mask_rcnn_fdconv.pth --model resnet50_fdconv --output converted/
    fdconv-zoo convert upernet_swin_tiny.pth --model swin_fdconv --output converted/

The folder is created only if the result, loaded through timm, computes the same as the network of the weights file.
Then `timm.create_model("local-dir:converted", pretrained=True)` loads it.
"""

import argparse
from collections.abc import Sequence

from timm.utils import ParseKwargs

from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.porting import convert_checkpoint


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the flags."""
    parser = CommandParser(prog="fdconv-zoo convert", description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", help="weights file, safetensors or .pth; no code in it is run")
    parser.add_argument("--model", required=True, help="timm name of the model; its tag selects the preprocessing")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE", help="arguments of the model"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier conversion")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. `argv` defaults to `sys.argv[1:]`."""
    args = build_parser().parse_args(argv)
    conversion = convert_checkpoint(
        args.checkpoint, args.model, args.output, model_kwargs=args.model_kwargs, overwrite=args.overwrite
    )
    print(conversion.describe())
    print(f"wrote {args.output}")
