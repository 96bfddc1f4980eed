"""Reads one image of any mode as 8-bit RGB or grayscale."""

from io import BytesIO
from pathlib import Path
from typing import Literal

import fsspec
import numpy as np
from PIL import Image, ImageOps

from fdconv_zoo.errors import DataError

Mode = Literal["RGB", "L"]


def open_image(record: dict | None, mode: Mode = "RGB", name: str = "") -> Image.Image:
    """Decodes an image completely, turns it upright by its EXIF tag and converts it to `mode`.

    Transparent pixels are laid over white, as a viewer shows them; 16-bit grayscale is scaled to 8 bits; of an
    animation the first frame counts; CMYK is converted by Pillow, without colour profiles.

    Args:
        record: what a `datasets` image column holds undecoded: `bytes`, or else `path`, a file or an fsspec address.
        mode: "RGB" or "L".
        name: stands in the error message for an image without a path.

    Raises:
        DataError: nothing there, not an image, truncated, or of a mode without a defined 8-bit range.
    """
    try:
        return _decode(record, mode)
    except Exception as error:  # Pillow's decoders fail with a dozen types
        name = (record or {}).get("path") or name or "an image"
        raise DataError(
            f"{name}: cannot be read as an image ({reason(error)}). Repair or remove it, or leave out all such images "
            "with --skip-bad-images."
        ) from error


def reason(error: Exception) -> str:
    """One line on why an image could not be read."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image format that Pillow knows"  # Pillow's own words hold a memory address
    return str(error) or type(error).__name__


def _decode(record: dict | None, mode: Mode) -> Image.Image:
    image = Image.open(BytesIO(read_bytes(record)))
    image.load()  # before this, some formats' mode and transparency are not final
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = _scale_to_8_bit(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def read_bytes(record: dict | None) -> bytes:
    """The encoded image. Raises ValueError for an empty record, and what reading its file may raise."""
    if record is None or (record.get("bytes") is None and not record.get("path")):
        raise ValueError("the record is empty")
    if record.get("bytes") is not None:
        return record["bytes"]
    if "://" not in record["path"]:
        return Path(record["path"]).read_bytes()
    with fsspec.open(record["path"], "rb") as file:  # streamed from the Hub
        return file.read()


def _scale_to_8_bit(image: Image.Image) -> Image.Image:
    """65535 becomes 255: Pillow's own conversions clip, or shift, depending on its version."""
    pixels = np.asarray(image)
    # Some versions of Pillow open 16-bit files as 32-bit "I"; true 32-bit and float images have no agreed white.
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"mode {image.mode} has no defined range: save it with 8 or 16 bits")
    return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))
