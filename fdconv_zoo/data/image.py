"""Reads an image of any mode as 8-bit RGB or grayscale."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Literal

import fsspec
import numpy as np
from PIL import Image, ImageOps

from fdconv_zoo.errors import DataError

Mode = Literal["RGB", "L"]

_SKIP = "Repair or remove it, or skip such images with --skip-bad-images."
_SENSOR_BITS = (8, 10, 12, 14)  # of sensors whose values are often stored in 16 bits unscaled


def open_image(record: dict | None, mode: Mode = "RGB", name: str = "", *, remedy: str = _SKIP) -> Image.Image:
    """Decode an image as `decode_image` does, with an error message that names it.

    Args:
        record, mode: As in `decode_image`.
        name: Name of the image in the error message, if it has no path.
        remedy: What the user can do about an unreadable image, at the end of the error message.

    Raises:
        DataError: the record is empty, not an image, truncated, or of a mode without a defined 8-bit range.
    """
    try:
        return decode_image(record, mode)
    except Exception as error:  # Pillow's decoders raise a dozen types
        name = (record or {}).get("path") or name or "an image"
        raise DataError(f"{name}: cannot be read as an image ({reason(error)}). {remedy}") from error


def reason(error: Exception) -> str:
    """Return one line that says why an image could not be read."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image format that Pillow knows"  # Pillow's own message contains a memory address
    return str(error) or type(error).__name__


def decode_image(record: dict | None, mode: Mode = "RGB", *, upright: bool = True) -> Image.Image:
    """Decode an image completely, and convert it to `mode`.

    Transparent pixels are composited over white, as viewers do. 16-bit grayscale is scaled to 8 bits, with a warning if
    its values seem to have fewer bits. The first frame of an animation is used. CMYK is converted by Pillow, without
    colour profiles.

    Args:
        record: Undecoded item of a `datasets` image column: `bytes`, or else `path`, a file or an fsspec URL.
        mode: "RGB" or "L".
        upright: Rotate the image upright by its EXIF tag.

    Raises:
        Exception: Pillow or the file system cannot read the image; the type varies.
    """
    image = Image.open(BytesIO(read_bytes(record)))
    bits = 12 if raw_mode(image) == "I;12" else 16  # packed samples of TIFF, which Pillow does not scale
    image.load()  # some formats set mode and transparency only when decoded
    if upright:
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = _scale_to_8_bit(image, bits)
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


def raw_mode(image: Image.Image) -> str | None:
    """Return Pillow's raw mode of an image that is not loaded yet, such as "L;4" for 4 bits; None if it has none."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else None


def _scale_to_8_bit(image: Image.Image, bits: int) -> Image.Image:
    """Scale 0..2**bits - 1 to 0..255. Pillow's own conversions clip or shift, depending on its version."""
    pixels = np.asarray(image)
    # Some versions of Pillow open 16-bit files as 32-bit "I"; true 32-bit and float images have no agreed white value.
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"mode {image.mode} has no defined range: save it with 8 or 16 bits")
    if bits == 16:
        _warn_of_few_levels(int(pixels.max()))
    white = 2**bits - 1
    return Image.fromarray(((pixels.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8))


def _warn_of_few_levels(largest: int) -> None:
    """Warn if no pixel of a 16-bit image exceeds the range of a camera or a scanner with fewer bits."""
    bits = next((bits for bits in _SENSOR_BITS if largest < 2**bits), None)
    if largest and bits:
        # The text does not name the image, so that Python shows it only once.
        warnings.warn(
            f"a 16-bit image has no value above {2**bits - 1}, but white is 65535, so only "
            f"{2 ** max(bits - 8, 0) + 1} of 256 grey levels remain. If the data have {bits} bits, multiply them by "
            f"{2 ** (16 - bits)}, or save them with 8 bits",
            stacklevel=2,
        )
