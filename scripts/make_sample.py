"""Regenerate the small image dataset inside the package, `fdconv_zoo/sample`, from the full Fashion-MNIST.

    python scripts/make_sample.py                     # writes train.parquet and validation.parquet
    python scripts/make_sample.py --linear-baseline   # a linear classifier's accuracy on the sample
    python scripts/make_sample.py --full data/fashion_mnist   # all of Fashion-MNIST, for the scripts' --dataset

The source is Debian's package `dataset-fashion-mnist`. The linear baseline needs scikit-learn.
"""

import argparse
import gzip
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SOURCE = Path("/usr/share/datasets/fashion-mnist")
SAMPLE = Path(__file__).resolve().parents[1] / "fdconv_zoo" / "sample"
SEED = 0
# Split of the sample -> (part of Fashion-MNIST, images per class). Validation comes from the official test set, which
# no model trained on the full training set has seen.
SPLITS = {"train": ("train", 350), "validation": ("t10k", 100)}
CLASS_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
FEATURES = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASS_NAMES))


def read_source(part: str, folder: Path = SOURCE) -> tuple[np.ndarray, np.ndarray]:
    """Read images (N, 28, 28) and labels (N,), both uint8, of `part`: "train" (60,000) or "t10k" (10,000)."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    # IDX headers: 4 bytes for the type, then 4 per dimension.
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def choose(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Draw `per_class` examples of every class, seeded with `SEED`, and return their indices in random order."""
    rng = np.random.default_rng(SEED)
    chosen = [rng.choice(np.flatnonzero(labels == label), per_class, replace=False) for label in np.unique(labels)]
    return rng.permutation(np.concatenate(chosen))


def encode_small(pixels: np.ndarray) -> bytes:
    """Encode an image as lossless WebP, about an eighth smaller than PNG at this size, but a hundred times slower."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", lossless=True, quality=100, method=6)
    if not np.array_equal(decode(buffer.getvalue()), pixels):
        raise RuntimeError("the WebP encoder changed an image: this build of Pillow cannot be used here")
    return buffer.getvalue()


def encode_fast(pixels: np.ndarray) -> bytes:
    """Encode an image as PNG."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def decode(encoded: bytes) -> np.ndarray:
    """Decode an image to its pixels (28, 28), uint8; WebP stores grayscale as three equal channels."""
    return np.asarray(Image.open(BytesIO(encoded)).convert("L"))


def build(output: Path) -> None:
    """Write one parquet file per split into `output`."""
    for split, (part, per_class) in SPLITS.items():
        images, labels = read_source(part)
        indices = choose(labels, per_class)
        write_split(output / f"{split}.parquet", images[indices], labels[indices], encode_small)


def build_full(output: Path) -> None:
    """Write all of Fashion-MNIST into `output`: 56,500 images to train on, 3,500 to validate on, 10,000 to test on.

    The validation images are the training images of the sample, so a network trained here has not seen them.
    """
    images, labels = read_source("train")
    held_out = choose(labels, SPLITS["train"][1])
    output.mkdir(parents=True, exist_ok=True)
    write_split(output / "train.parquet", np.delete(images, held_out, axis=0), np.delete(labels, held_out), encode_fast)
    write_split(output / "validation.parquet", images[held_out], labels[held_out], encode_fast)
    write_split(output / "test.parquet", *read_source("t10k"), encode_fast)


def write_split(path: Path, images: np.ndarray, labels: np.ndarray, encode: Callable[[np.ndarray], bytes]) -> None:
    """Write images (N, 28, 28), uint8, and their labels (N,) into a parquet file."""
    columns = {
        "image": [{"bytes": encode(pixels), "path": None} for pixels in images],
        "label": labels.astype(np.int64),
    }
    # The schema's metadata contains the features, with the class names. Dictionaries and statistics of the images would
    # only repeat their bytes.
    table = pa.table(columns, schema=FEATURES.arrow_schema)
    pq.write_table(table, path, compression="zstd", use_dictionary=["label"], write_statistics=False)
    print(f"{path}: {len(labels)} images, {path.stat().st_size:,} bytes")


def linear_baseline(sample: Path) -> None:
    """Print the validation accuracy of logistic regression on raw pixels for several regularization strengths."""
    from sklearn.linear_model import LogisticRegression

    pixels, labels = {}, {}
    for split in SPLITS:
        table = pq.read_table(sample / f"{split}.parquet")
        encoded = table.column("image").combine_chunks().field("bytes").to_pylist()
        pixels[split] = np.stack([decode(image).ravel() for image in encoded]) / 255
        labels[split] = table.column("label").to_numpy()
    for strength in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0):
        model = LogisticRegression(C=strength, max_iter=2000).fit(pixels["train"], labels["train"])
        print(f"C={strength:<6} accuracy {100 * model.score(pixels['validation'], labels['validation']):.1f} %")


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=SAMPLE, help="folder for the two parquet files")
    parser.add_argument("--linear-baseline", action="store_true", help="measure a linear classifier; write no files")
    parser.add_argument("--full", type=Path, metavar="DIR", help="write all of Fashion-MNIST to this folder instead")
    args = parser.parse_args()
    if args.full is not None:
        build_full(args.full)
    elif args.linear_baseline:
        linear_baseline(args.output)
    else:
        build(args.output)


if __name__ == "__main__":
    main()
