"""Composes a canvas: garments pasted over a background, with exact masks of their visible pixels."""

from dataclasses import dataclass

import numpy as np

from fdconv_zoo.dense.canvases.garments import Garments
from fdconv_zoo.dense.canvases.textures import background, texture

EMPTY_SHARE = 0.03  # share of canvases without garments
MAX_GARMENTS = 8
SIDES = (20 / 128, 60 / 128)  # smallest and largest side of a garment's image, in sides of the canvas
MARGIN = 0.3  # smallest distance of a garment's centre from the border, in sides of the garment
MAX_TILT = np.deg2rad(20)
MIN_VISIBLE = 0.35  # share of a garment's pixels; garments that would leave less of another visible are not placed

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Canvas:
    """An image and its objects.

    Attributes:
        image: RGB image, uint8 (H, W, 3).
        instances: 0 for background, i + 1 where object i is visible, uint8 (H, W). Every object is visible.
        categories: Categories of the N objects: 1 + the label of Fashion-MNIST, uint8 (N,).
    """

    image: np.ndarray
    instances: np.ndarray
    categories: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """0 for background, otherwise the category of the visible object, uint8 (H, W)."""
        return np.concatenate([np.zeros(1, np.uint8), self.categories])[self.instances]


@dataclass(frozen=True)
class Pose:
    """Position of a garment's image: centre (row, column) and side in pixels, tilt in radians, mirrored or not."""

    row: float
    column: float
    side: float
    tilt: float
    mirrored: bool


def compose(garments: Garments, rng: np.random.Generator, size: int) -> Canvas:
    """Draw a background and up to `MAX_GARMENTS` garments, later ones over earlier ones.

    Args:
        garments: Garments to choose from.
        rng: Random generator.
        size: Side of the canvas in pixels.
    """
    image = background(rng, size)
    instances = np.zeros((size, size), np.uint8)
    areas, categories = [], []
    for _ in range(0 if rng.random() < EMPTY_SHARE else rng.integers(1, MAX_GARMENTS + 1)):
        chosen = rng.integers(len(garments))
        pixels, mask = garments[chosen]
        window, gray, alpha = cut_out(pixels, mask, draw_pose(rng, size), size)
        covered = alpha >= 0.5
        colour = dye(rng, gray - pixels[mask].mean(), around=image[window].mean(axis=(0, 1)))
        hidden = np.bincount(instances[window][covered], minlength=len(areas) + 1)[1:]
        visible = np.bincount(instances.ravel(), minlength=len(areas) + 1)[1:] - hidden
        if np.any(visible < MIN_VISIBLE * np.array(areas)):
            continue
        image[window] += alpha[..., None] * (colour - image[window])
        areas.append(covered.sum())
        categories.append(1 + garments.labels[chosen])
        instances[window][covered] = len(areas)
    return Canvas(expose(rng, image), instances, np.array(categories, np.uint8))


def draw_pose(rng: np.random.Generator, size: int) -> Pose:
    """Draw a pose. Sizes are uniform over octaves, so that small garments are as common as large ones."""
    side = size * SIDES[0] * (SIDES[1] / SIDES[0]) ** rng.random()
    row, column = rng.uniform(MARGIN * side, size - MARGIN * side, 2)
    return Pose(row, column, side, rng.uniform(-MAX_TILT, MAX_TILT), bool(rng.integers(2)))


def cut_out(pixels: np.ndarray, mask: np.ndarray, pose: Pose, size: int) -> tuple[Window, np.ndarray, np.ndarray]:
    """Resample a garment to its pose. No library is used, so that the pixels do not depend on its version.

    Args:
        pixels: Gray values (S, S).
        mask: Mask of the garment, bool (S, S).
        pose: Position of the garment.
        size: Side of the canvas in pixels.

    Returns:
        The window (rows, columns) of the canvas that the garment may cover, and within it the gray values and the
        opacity in 0..1, whose edge is about one pixel wide.
    """
    reach = pose.side * np.sqrt(0.5)
    rows, columns = (
        slice(max(0, int(centre - reach)), min(size, int(centre + reach) + 1)) for centre in (pose.row, pose.column)
    )
    # Pixel (r, c) covers r..r+1, c..c+1: rotate its centre back into the garment's image.
    down = np.arange(rows.start, rows.stop)[:, None] + 0.5 - pose.row
    right = np.arange(columns.start, columns.stop)[None] + 0.5 - pose.column
    zoom = len(pixels) / pose.side
    cos, sin = zoom * np.cos(pose.tilt), zoom * np.sin(pose.tilt)
    across = (cos * right + sin * down) * (-1 if pose.mirrored else 1)
    position = (len(pixels) - 1) / 2 + np.stack([cos * down - sin * right, across])
    cover, gray = bilinear(np.stack([mask, pixels * mask]), *position)
    gray /= np.maximum(cover, 1e-6)  # only the garment's own pixels: the black around them would darken its edge
    return (rows, columns), gray, np.clip(0.5 + (cover - 0.5) / min(zoom, 1), 0, 1)


def bilinear(planes: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Interpolate `planes` (P, H, W) at fractional coordinates (h, w), with 0 outside; returns (P, h, w)."""
    padded = np.pad(planes, ((0, 0), (1, 1), (1, 1)))
    height, width = padded.shape[1:]
    rows, columns = np.clip(rows + 1, 0, height - 1), np.clip(columns + 1, 0, width - 1)
    top, left = np.minimum(rows.astype(int), height - 2), np.minimum(columns.astype(int), width - 2)
    y, x = rows - top, columns - left
    above = (1 - x) * padded[:, top, left] + x * padded[:, top, left + 1]
    below = (1 - x) * padded[:, top + 1, left] + x * padded[:, top + 1, left + 1]
    return (1 - y) * above + y * below


def dye(rng: np.random.Generator, gray: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Colour a garment, dark on light or light on dark, and print a texture on most.

    Args:
        rng: Random generator.
        gray: Gray values of the garment, centred at 0, (h, w).
        around: Mean colour of the background, (3,). The garment's colour is close to it, so that colour alone rarely
            identifies the garment.

    Returns:
        RGB values of about 0..1, (h, w, 3).
    """
    height, width = gray.shape
    tint = np.clip(around + rng.uniform(-0.3, 0.3, 3), 0.1, 0.9)
    contrast = rng.uniform(0.35, 0.9) * rng.choice((-1, 1)) * rng.uniform(0.6, 1, 3)
    amount = max(0, rng.uniform(-0.06, 0.1)) * rng.uniform(0.3, 1.2, 3)
    printed = texture(rng, max(height, width))[:height, :width]
    return tint + contrast * gray[..., None] + amount * printed[..., None]


def expose(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add a light gradient and sensor noise; returns uint8 (H, W, 3)."""
    size = len(image)
    slope = np.linspace(-1, 1, size)
    light = 1 + rng.uniform(-0.15, 0.15) * slope[:, None] + rng.uniform(-0.15, 0.15) * slope[None]
    noise = rng.uniform(0, 0.06) * (rng.random(image.shape) - 0.5) * 2
    return np.round(255 * np.clip(image * light[..., None] + noise, 0, 1)).astype(np.uint8)
