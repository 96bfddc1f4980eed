"""Looks at all images and masks of a split, once."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from datasets import Features, Sequence, Value
from PIL import Image

from fdconv_zoo.data.image import open_image, read_bytes, reason
from fdconv_zoo.dense.segmentation.references import References, open_mask
from fdconv_zoo.errors import DataError

PROBLEMS = ("image", "mask", "size")

_PAIRS_PER_PROCESS = 500  # fewer are not worth starting another process for
_ORIENTATION = 0x0112  # of EXIF: 1 is upright, 2 to 8 turn or mirror
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # chunks that may hold one
_FEATURES = Features(
    {problem: Value("string") for problem in PROBLEMS}
    | {"ambiguous": Value("bool"), "values": Sequence(Value("uint8"))}
)


@dataclass(frozen=True, eq=False)
class Findings:
    """What is known of a split after looking at all of it.

    Attributes:
        references: its N images and masks.
        problems: of each "image", each "mask" and its "size", in words; empty where there is none.
        ambiguous: positions of masks that fit their image both before and after its EXIF tag turns it.
        present: which values each mask has, bool (N, 256).
    """

    references: References
    problems: dict[str, list[str]]
    ambiguous: np.ndarray
    present: np.ndarray


def look_at(references: References, num_workers: int) -> Findings:
    """Decodes every mask, and every image unless the file's own checksums vouch for it.

    `datasets` shows the progress and remembers the result for the next run.

    Args:
        references: images and masks of one split.
        num_workers: processes to decode with.
    """
    part = references.source.select(references.rows)
    processes = min(num_workers, len(part) // _PAIRS_PER_PROCESS)
    found = part.map(
        _look_at_pair,
        input_columns=["image", "mask"],
        remove_columns=part.column_names,
        features=_FEATURES,
        num_proc=processes if processes > 1 else None,
        desc=f"Checking {references.split} masks",
    )[:]
    present = np.zeros((len(part), 256), bool)
    for row, values in zip(present, found["values"], strict=True):
        row[values] = True
    return Findings(
        references, {problem: found[problem] for problem in PROBLEMS}, np.flatnonzero(found["ambiguous"]), present
    )


def _look_at_pair(image: dict | None, mask: dict | None) -> dict:
    found = dict.fromkeys(PROBLEMS, "") | {"ambiguous": False, "values": []}
    stored = upright = None
    try:
        stored, upright, turned = _look_at_image(image)
    except Exception as error:  # Pillow's decoders fail with a dozen types
        found["image"] = reason(error.__cause__ if isinstance(error, DataError) else error)
    try:
        values = open_mask(mask)
    except Exception as error:
        found["mask"] = reason(error)
        return found
    found["values"] = np.flatnonzero(Image.fromarray(values).histogram()).tolist()
    size = values.shape[::-1]
    if upright is not None and size != upright:
        hint = " (it fits the image before its EXIF tag turns it upright)" if size == stored else ""
        found["size"] = f"{size[0]}x{size[1]}, but the image {upright[0]}x{upright[1]}{hint}"
    elif upright is not None:
        found["ambiguous"] = turned and size == stored
    return found


def _look_at_image(record: dict | None) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """Width and height as stored, and upright, and whether an EXIF tag turns or mirrors the image."""
    content = read_bytes(record)
    image = Image.open(BytesIO(content))
    stored = image.size
    if (
        image.format == "PNG"
        and image.mode in ("L", "P", "RGB", "RGBA")
        and not any(chunk in content for chunk in _PNG_ORIENTATION)
    ):
        image.verify()  # checksums only: on photographs of two megapixels 60 times faster than decoding
        return stored, stored, False
    turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    return stored, open_image({"bytes": content}).size, turned
