"""One canvas: garments pasted over a background, each knowing exactly which pixels of it are seen."""

from dataclasses import dataclass

import numpy as np

from fdconv_zoo.dense.canvases.garments import Garments
from fdconv_zoo.dense.canvases.textures import background, texture

EMPTY = 0.03  # of the canvases hold no garment
MOST = 8  # garments on a canvas
SIDES = (20 / 128, 60 / 128)  # of a garment's image, in sides of the canvas
MARGIN = 0.3  # of a garment's side: how near the edge its centre may be; the rest is cut off
TILT = np.deg2rad(20)
MIN_VISIBLE = 0.35  # of its own pixels: a garment that would hide another further is not placed

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Canvas:
    """An image and what is in it.

    Attributes:
        image: (H, W, 3) uint8.
        instances: (H, W) uint8, 0 for background, i + 1 where object i is seen; every object is seen somewhere.
        categories: (N,) uint8, of the objects: 1 + the label of Fashion-MNIST.
    """

    image: np.ndarray
    instances: np.ndarray
    categories: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """(H, W) uint8, 0 for background, else the category of the object that is seen."""
        return np.concatenate([np.zeros(1, np.uint8), self.categories])[self.instances]


@dataclass(frozen=True)
class Pose:
    """Where a garment's image lies: centre (row, column) and side in pixels, tilt in radians, mirrored or not."""

    row: float
    column: float
    side: float
    tilt: float
    mirrored: bool


def compose(garments: Garments, rng: np.random.Generator, size: int) -> Canvas:
    """Draw a background and up to `MOST` garments over it, later ones over earlier ones.

    Args:
        garments: What to choose from.
        rng: Source of all that is random.
        size: Side of the canvas in pixels.
    """
    image = background(rng, size)
    instances = np.zeros((size, size), np.uint8)
    areas, categories = [], []
    for _ in range(0 if rng.random() < EMPTY else rng.integers(1, MOST + 1)):
        chosen = rng.integers(len(garments))
        pixels, mask = garments[chosen]
        window, gray, alpha = cut_out(pixels, mask, draw_pose(rng, size), size)
        seen = alpha >= 0.5
        colour = dye(rng, gray - pixels[mask].mean(), around=image[window].mean(axis=(0, 1)))
        hidden = np.bincount(instances[window][seen], minlength=len(areas) + 1)[1:]
        visible = np.bincount(instances.ravel(), minlength=len(areas) + 1)[1:] - hidden
        if np.any(visible < MIN_VISIBLE * np.array(areas)):
            continue
        image[window] += alpha[..., None] * (colour - image[window])
        areas.append(seen.sum())
        categories.append(1 + garments.labels[chosen])
        instances[window][seen] = len(areas)
    return Canvas(expose(rng, image), instances, np.array(categories, np.uint8))


def draw_pose(rng: np.random.Generator, size: int) -> Pose:
    """A garment's place: sizes evenly over the octaves, so that small ones are as common as large ones."""
    side = size * SIDES[0] * (SIDES[1] / SIDES[0]) ** rng.random()
    row, column = rng.uniform(MARGIN * side, size - MARGIN * side, 2)
    return Pose(row, column, side, rng.uniform(-TILT, TILT), bool(rng.integers(2)))


def cut_out(pixels: np.ndarray, mask: np.ndarray, pose: Pose, size: int) -> tuple[Window, np.ndarray, np.ndarray]:
    """A garment as it lies on the canvas; resampled here and not by a library, so that versions of it cannot differ.

    Args:
        pixels: (S, S) gray values.
        mask: (S, S) bool.
        pose: Where it lies.
        size: Side of the canvas in pixels.

    Returns:
        The part of the canvas it may cover, (rows, columns); there its gray values and its opacity in 0..1, whose edge
        is about one pixel wide.
    """
    reach = pose.side * np.sqrt(0.5)
    rows, columns = (
        slice(max(0, int(centre - reach)), min(size, int(centre + reach) + 1)) for centre in (pose.row, pose.column)
    )
    # Pixel (r, c) covers r..r+1, c..c+1: its middle is turned back into the garment's image.
    down = np.arange(rows.start, rows.stop)[:, None] + 0.5 - pose.row
    right = np.arange(columns.start, columns.stop)[None] + 0.5 - pose.column
    zoom = len(pixels) / pose.side
    cos, sin = zoom * np.cos(pose.tilt), zoom * np.sin(pose.tilt)
    across = (cos * right + sin * down) * (-1 if pose.mirrored else 1)
    place = (len(pixels) - 1) / 2 + np.stack([cos * down - sin * right, across])
    cover, gray = bilinear(np.stack([mask, pixels * mask]), *place)
    gray /= np.maximum(cover, 1e-6)  # the mean of the garment's own pixels: the black around would fringe its edge
    return (rows, columns), gray, np.clip(0.5 + (cover - 0.5) / min(zoom, 1), 0, 1)


def bilinear(planes: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Values between the pixels of `planes` (P, H, W), which sit at whole coordinates; 0 around them: (P, h, w)."""
    padded = np.pad(planes, ((0, 0), (1, 1), (1, 1)))
    height, width = padded.shape[1:]
    rows, columns = np.clip(rows + 1, 0, height - 1), np.clip(columns + 1, 0, width - 1)
    top, left = np.minimum(rows.astype(int), height - 2), np.minimum(columns.astype(int), width - 2)
    y, x = rows - top, columns - left
    above = (1 - x) * padded[:, top, left] + x * padded[:, top, left + 1]
    below = (1 - x) * padded[:, top + 1, left] + x * padded[:, top + 1, left + 1]
    return (1 - y) * above + y * below


def dye(rng: np.random.Generator, gray: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Colour a garment, dark on light or light on dark; on most a texture is printed.

    Args:
        rng: Source of the colours.
        gray: (h, w), the garment's own values around 0.
        around: (3,), the mean colour behind it: its own is drawn near that, so that colour alone seldom tells it.

    Returns:
        (h, w, 3), about 0..1.
    """
    height, width = gray.shape
    tint = np.clip(around + rng.uniform(-0.3, 0.3, 3), 0.1, 0.9)
    contrast = rng.uniform(0.35, 0.9) * rng.choice((-1, 1)) * rng.uniform(0.6, 1, 3)
    amount = max(0, rng.uniform(-0.06, 0.1)) * rng.uniform(0.3, 1.2, 3)
    printed = texture(rng, max(height, width))[:height, :width]
    return tint + contrast * gray[..., None] + amount * printed[..., None]


def expose(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Light falling from one side, and the noise of a sensor: (H, W, 3), uint8."""
    size = len(image)
    slope = np.linspace(-1, 1, size)
    light = 1 + rng.uniform(-0.15, 0.15) * slope[:, None] + rng.uniform(-0.15, 0.15) * slope[None]
    noise = rng.uniform(0, 0.06) * (rng.random(image.shape) - 0.5) * 2
    return np.round(255 * np.clip(image * light[..., None] + noise, 0, 1)).astype(np.uint8)
