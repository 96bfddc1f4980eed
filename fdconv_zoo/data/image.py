"""Reads an image of any mode as 8-bit RGB or grayscale."""

from io import BytesIO
from pathlib import Path
from typing import Literal

import fsspec
import numpy as np
from PIL import Image, ImageOps

from fdconv_zoo.errors import DataError

Mode = Literal["RGB", "L"]


def open_image(record: dict | None, mode: Mode = "RGB", name: str = "") -> Image.Image:
    """Decode a whole image, rotate it upright by its EXIF tag and convert it to `mode`.

    Transparent pixels are composited over white, as viewers do. 16-bit grayscale is scaled to 8 bits. Of an animation,
    the first frame is used. CMYK is converted by Pillow, without colour profiles.

    Args:
        record: Undecoded item of a `datasets` image column: `bytes`, or else `path`, a file or an fsspec URL.
        mode: "RGB" or "L".
        name: Name of the image in the error message, if it has no path.

    Raises:
        DataError: the record is empty, not an image, truncated, or of a mode without a defined 8-bit range.
    """
    try:
        return _decode(record, mode)
    except Exception as error:  # Pillow's decoders fail with a dozen types
        name = (record or {}).get("path") or name or "an image"
        raise DataError(
            f"{name}: cannot be read as an image ({reason(error)}). Repair or remove it, or skip such images with "
            "--skip-bad-images."
        ) from error


def reason(error: Exception) -> str:
    """Return one line that says why an image could not be read."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image format that Pillow knows"  # Pillow's own message contains a memory address
    return str(error) or type(error).__name__


def _decode(record: dict | None, mode: Mode) -> Image.Image:
    image = Image.open(BytesIO(read_bytes(record)))
    image.load()  # some formats set mode and transparency only when decoded
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = _scale_to_8_bit(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def read_bytes(record: dict | None) -> bytes:
    """Return the encoded image. Raises ValueError for an empty record, and any error of reading its file."""
    if record is None or (record.get("bytes") is None and not record.get("path")):
        raise ValueError("the record is empty")
    if record.get("bytes") is not None:
        return record["bytes"]
    if "://" not in record["path"]:
        path = Path(record["path"])
        if path.exists() and not path.is_file():
            raise ValueError("not a file")  # a device or a pipe could be read for ever
        return path.read_bytes()
    with fsspec.open(record["path"], "rb") as file:  # streamed from the Hub
        return file.read()


def _scale_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255. Pillow's own conversions clip or shift, depending on its version."""
    pixels = np.asarray(image)
    # Some versions of Pillow open 16-bit files as 32-bit "I"; true 32-bit and float images have no agreed white value.
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"mode {image.mode} has no defined range: save it with 8 or 16 bits")
    return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))
