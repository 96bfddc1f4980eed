"""Inspects all images and masks of a split."""

from dataclasses import dataclass
from functools import cached_property
from io import BytesIO

import numpy as np
from datasets import Features, Sequence, Value
from PIL import Image

from fdconv_zoo.data.image import open_image, read_bytes, reason
from fdconv_zoo.dense.segmentation.mask_file import open_mask
from fdconv_zoo.dense.segmentation.pairs import ImageMaskPairs
from fdconv_zoo.errors import DataError

PROBLEMS = ("image", "mask", "size")

_PAIRS_PER_PROCESS = 500  # starting a process does not pay off for fewer
_ORIENTATION = 0x0112  # EXIF tag: 1 is upright, 2 to 8 rotate or mirror
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # chunks that may contain the tag
_FEATURES = Features(
    {problem: Value("string") for problem in PROBLEMS}
    | {"ambiguous": Value("bool"), "values": Sequence(Value("uint8")), "pixels": Sequence(Value("int64"))}
)


@dataclass(frozen=True, eq=False)
class Findings:
    """Results of inspecting a split.

    Attributes:
        pairs: The N images and masks.
        problems: For "image", "mask" and "size", a message for each of the N pairs; empty if there is no problem.
        ambiguous: Indices of images whose mask fits both before and after the EXIF tag rotates them.
        pixels: How many pixels of each mask have each value, int32 (N, 256).
    """

    pairs: ImageMaskPairs
    problems: dict[str, list[str]]
    ambiguous: np.ndarray
    pixels: np.ndarray

    @cached_property
    def present(self) -> np.ndarray:
        """Which values occur in each mask, bool (N, 256)."""
        return self.pixels > 0


def inspect_pairs(pairs: ImageMaskPairs, num_workers: int) -> Findings:
    """Decode every mask, and every image without checksums that could be verified instead.

    `datasets` shows the progress and caches the result for the next run.

    Args:
        pairs: Images and masks of one split.
        num_workers: Processes to decode with.
    """
    part = pairs.source.select(pairs.rows)
    processes = min(num_workers, len(part) // _PAIRS_PER_PROCESS)
    found = part.map(
        _inspect_pair,
        input_columns=["image", "mask"],
        remove_columns=part.column_names,
        features=_FEATURES,
        num_proc=processes if processes > 1 else None,
        desc=f"Checking {pairs.split} masks",
    )[:]
    pixels = np.zeros((len(part), 256), np.int32)
    for row, values, counts in zip(pixels, found["values"], found["pixels"], strict=True):
        row[values] = counts
    return Findings(
        pairs, {problem: found[problem] for problem in PROBLEMS}, np.flatnonzero(found["ambiguous"]), pixels
    )


def _inspect_pair(image: dict | None, mask: dict | None) -> dict:
    found = dict.fromkeys(PROBLEMS, "") | {"ambiguous": False, "values": [], "pixels": []}
    stored = upright = None
    try:
        stored, upright, rotated = _image_sizes(image)
    except Exception as error:  # Pillow's decoders raise a dozen types
        found["image"] = reason(error.__cause__ if isinstance(error, DataError) else error)
    try:
        values = open_mask(mask)
    except Exception as error:
        found["mask"] = reason(error)
        return found
    counts = np.array(Image.fromarray(values).histogram())
    found["values"], found["pixels"] = np.flatnonzero(counts).tolist(), counts[counts > 0].tolist()
    size = values.shape[::-1]
    if upright is not None and size != upright:
        hint = " (it fits the image before its EXIF tag rotates it upright)" if size == stored else ""
        found["size"] = f"{size[0]}x{size[1]}, but the image is {upright[0]}x{upright[1]}{hint}"
    elif upright is not None:
        found["ambiguous"] = rotated and size == stored
    return found


def _image_sizes(record: dict | None) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """Return width and height as stored and upright, and whether an EXIF tag rotates or mirrors the image."""
    content = read_bytes(record)
    image = Image.open(BytesIO(content))
    stored = image.size
    if (
        image.format == "PNG"
        and image.mode in ("L", "P", "RGB", "RGBA")
        and not any(chunk in content for chunk in _PNG_ORIENTATION)
    ):
        image.verify()  # checksums only: 60 times faster than decoding photographs of two megapixels
        return stored, stored, False
    rotated = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    return stored, open_image({"bytes": content}).size, rotated
