"""Reads mask files: the stored values, not the grey levels to which an image library converts them."""

import re
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from fdconv_zoo.data.image import raw_mode, read_bytes

_LOSSLESS = ("BMP", "DIB", "GIF", "IM", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF")
_LOSSLESS_IN_TIFF = (
    *("raw", "tiff_ccitt", "group3", "group4", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "tiff_raw_16"),
    *("packbits", "lzma", "zstd"),
)


def open_mask(record: dict | None) -> np.ndarray:
    """Decode a mask: its stored grayscale values or palette indices, uint8 (H, W).

    Args:
        record: Undecoded item of a `datasets` image column: `bytes`, or else `path`.

    Raises:
        ValueError: the mask is not grayscale or palette with at most 8 bits, or its compression may have changed
            values.
        Exception: Pillow or the file system cannot read the file.
    """
    mask = Image.open(BytesIO(read_bytes(record)))
    compression = mask.info.get("compression", "raw") if mask.format == "TIFF" else None
    if mask.format not in _LOSSLESS or (compression and compression not in _LOSSLESS_IN_TIFF):
        within = f" with {compression} compression" if compression else ""
        raise ValueError(f"a {mask.format} file{within}, whose compression may change class indices")
    if mask.mode not in ("1", "L", "P"):
        raise ValueError(f"mode {mask.mode}, not 8-bit grayscale or palette")
    largest = _largest_stored(mask)
    mask.load()
    ImageOps.exif_transpose(mask, in_place=True)  # as for images
    values = np.asarray(mask).astype(np.uint8)
    return values if largest == 255 else np.rint(values * (largest / 255)).astype(np.uint8)


def _largest_stored(mask: Image.Image) -> int:
    """Return the stored value that Pillow reads as 255. If it is smaller, Pillow has scaled the values to 0..255."""
    stored = raw_mode(mask)
    if mask.mode != "L" or stored is None:
        return 255
    if re.fullmatch(r"L(;[24])?;?I.*", stored):
        raise ValueError("a TIFF file in which 0 is white, so that readers differ in its values")
    if bits := re.fullmatch(r"L;([24])R?", stored):
        return 2 ** int(bits[1]) - 1
    if mask.tile[0][0] in ("ppm", "ppm_plain"):
        return mask.tile[0][3][1]
    return 255
