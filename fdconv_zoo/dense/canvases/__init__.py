"""Demo data for segmentation and detection: canvases of garments over textures, with exact masks and boxes.

Each canvas is an RGB image of 128x128 pixels. Its background is one material, or two that meet along a smooth border;
a material is a colour with band-passed noise, gratings or plaids of 1/64 to 0.4 cycles a pixel, so that what
there is to ignore lies at another frequency in every image, and often in every part of one. On it lie up to eight
garments, real images of Fashion-MNIST drawn 20 to 60 pixels large, mirrored, tilted up to 20 degrees, in a colour near
that of what is behind them, dark on light or light on dark, some with a printed texture. Later ones hide parts of
earlier ones, but never more than 65 % of one. Light falls from one side, and a sensor adds noise. 3 % of canvases
are empty.

Edges are blended; an object's mask is where it covers at least half of a pixel and nothing lies over it. A canvas
depends on the seed, its split and its number only, and is the same on every machine.

`canvases_folder` makes the set once and returns its folder, `write_canvases` makes one of any size; the folder's
README.txt says what lies where. The modules: `garments` cuts out, `textures` and `compose` draw, `write` stores.
"""

from fdconv_zoo.dense.canvases.cache import FASHION_CANVASES, canvases_folder
from fdconv_zoo.dense.canvases.write import write_canvases

__all__ = ["FASHION_CANVASES", "canvases_folder", "write_canvases"]
