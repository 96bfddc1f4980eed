"""Converts videos: rotates every frame upright and draws it."""

import struct
from collections.abc import Callable
from pathlib import Path

import av
from PIL import Image

from fdconv_zoo.errors import DataError
from fdconv_zoo.store.files import replacing

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")

# The signs of a display matrix, which maps (x, y) to (ax + cy, bx + dy), in the order a, b, c, d.
_UPRIGHT = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,  # Pillow counts counterclockwise
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def convert_video(draw: Callable[[Image.Image], Image.Image], source: Path, target: Path) -> int:
    """Draw a picture of every frame, and write them as a video without sound.

    Args:
        draw: Upright frame -> picture. All pictures must have the same size.
        source: The video.
        target: The new video, in MP4 format.

    Returns:
        The number of frames.

    Raises:
        DataError: the video cannot be read.
    """
    frames = 0
    try:
        with av.open(str(source)) as video, replacing(target) as temporary:
            stream = video.streams.video[0]
            with av.open(str(temporary), "w", format="mp4") as result:
                pictures = result.add_stream("mpeg4", rate=stream.average_rate or 25)
                pictures.bit_rate = 4_000_000
                for frame in video.decode(stream):
                    picture = draw(upright(frame))
                    if frames == 0:  # the encoder needs even sizes
                        size = (picture.width // 2 * 2, picture.height // 2 * 2)
                        pictures.width, pictures.height = size
                    result.mux(pictures.encode(av.VideoFrame.from_image(picture.crop((0, 0, *size)))))
                    frames += 1
                result.mux(pictures.encode())
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{source}: cannot be read as a video ({error}). Repair or remove it.") from error
    return frames


def upright(frame: av.VideoFrame) -> Image.Image:
    """Convert a frame to RGB as players show it: its display matrix can rotate it by quarter turns, or mirror it."""
    image = frame.to_image()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    turn = _UPRIGHT.get(tuple((number > 0) - (number < 0) for number in (a, b, c, d)))
    return image if turn is None else image.transpose(turn)
