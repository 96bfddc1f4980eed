"""Class colours for pictures, the same for masks and boxes."""

import colorsys
from functools import cache

Colour = tuple[int, int, int]


@cache
def class_colour(index: int) -> Colour:
    """Return the fixed colour of a class, in 8-bit RGB: 0 is black, and neighbouring indices have distant hues."""
    if index == 0:
        return (0, 0, 0)
    saturation, value = ((0.9, 0.95), (0.55, 0.95), (0.9, 0.6))[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618 % 1, saturation, value)
    return (round(255 * red), round(255 * green), round(255 * blue))
