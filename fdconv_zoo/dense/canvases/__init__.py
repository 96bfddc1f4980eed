"""Demo data for segmentation and detection: canvases of garments over textures, with exact masks and boxes.

Each canvas is an RGB image of 128x128 pixels. Its background is one material, or two that meet along a smooth border.
A material is a colour with band-passed noise, gratings or plaids of 1/64 to 0.4 cycles per pixel, so that the frequency
of the background differs between images, and often within an image. Up to eight garments lie on it: images of
Fashion-MNIST, 20 to 60 pixels large, mirrored, tilted by up to 20 degrees, in a colour close to the background, dark
on light or light on dark, some with a printed texture. Later garments occlude earlier ones, but never more than 65 % of
one. A light gradient and sensor noise are added. 3 % of the canvases are empty.

Edges are blended; the mask of an object is where it covers at least half of a pixel and is not occluded. A canvas
depends only on the seed, its split and its number, and is the same on every machine.

`canvases_folder` creates the dataset once and returns its folder. `write_canvases` creates one of any size; README.txt
in the folder describes its files. Module `garments` cuts out garments, `textures` and `compose` draw the canvases, and
`write` stores them.
"""

from fdconv_zoo.dense.canvases.cache import FASHION_CANVASES, canvases_folder
from fdconv_zoo.dense.canvases.write import write_canvases

__all__ = ["FASHION_CANVASES", "canvases_folder", "write_canvases"]
