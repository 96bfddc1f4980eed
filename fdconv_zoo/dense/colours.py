"""The colours of classes in pictures, the same for masks and boxes."""

import colorsys
from functools import cache

Colour = tuple[int, int, int]


@cache
def class_colour(number: int) -> Colour:
    """The colour of a class, always the same, in 8-bit RGB: 0 is black, and near numbers have distant hues."""
    if number == 0:
        return (0, 0, 0)
    saturation, value = ((0.9, 0.95), (0.55, 0.95), (0.9, 0.6))[number % 3]
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618 % 1, saturation, value)
    return (round(255 * red), round(255 * green), round(255 * blue))
