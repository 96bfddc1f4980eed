"""Backgrounds of known spatial frequency: band-passed noise, gratings and plaids in random colours."""

import numpy as np

# Cycles per pixel: from two periods over a canvas of 128 pixels to nearly the Nyquist frequency.
LOWEST, HIGHEST = 1 / 64, 0.4


def band_noise(rng: np.random.Generator, size: int, frequency: float) -> np.ndarray:
    """Draw isotropic white noise in one octave around `frequency`.

    Args:
        rng: Random generator.
        size: Side in pixels.
        frequency: Centre of the band, in cycles per pixel.

    Returns:
        Noise of mean 0 and standard deviation 1, (size, size).
    """
    spectrum = np.fft.rfft2(rng.random((size, size)))
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    # The grid has no frequency between 0 and 1 / size; a band below it would be empty.
    low = max(frequency / np.sqrt(2), 0.5 / size)
    noise = np.fft.irfft2(spectrum * ((radius >= low) & (radius <= max(2 * low, 1.5 / size))), s=(size, size))
    return noise / noise.std()


def grating(rng: np.random.Generator, size: int, frequency: float) -> np.ndarray:
    """Draw a sine wave (`frequency` in cycles per pixel) of random direction and phase: (size, size), std about 1."""
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    axis = 2 * np.pi * frequency * np.arange(size)
    down, right = np.sin(angle) * axis + phase, np.cos(angle) * axis
    # sin(a + b) = sin(a) cos(b) + cos(a) sin(b)
    return np.sqrt(2) * (np.outer(np.sin(down), np.cos(right)) + np.outer(np.cos(down), np.sin(right)))


def plaid(rng: np.random.Generator, size: int, frequency: float) -> np.ndarray:
    """Draw two gratings of `frequency` in different directions: (size, size), std about 1."""
    return (grating(rng, size, frequency) + grating(rng, size, frequency)) / np.sqrt(2)


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw one of the textures above, with a frequency uniform over octaves: (size, size), std about 1."""
    frequency = LOWEST * (HIGHEST / LOWEST) ** rng.random()
    kind = (band_noise, band_noise, grating, plaid)[rng.integers(4)]
    return kind(rng, size, frequency)


def material(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a colour with one or two coloured textures: (size, size, 3), about 0..1."""
    image = np.tile(rng.uniform(0.25, 0.75, 3), (size, size, 1))
    for _ in range(rng.integers(1, 3)):
        image += rng.uniform(0.05, 0.16) * texture(rng, size)[..., None] * rng.uniform(0.3, 1.2, 3)
    return image


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw one material, or two that meet along a smooth border: (size, size, 3), about 0..1."""
    image = material(rng, size)
    if rng.random() < 0.5:
        second = np.clip(0.5 + 4 * band_noise(rng, size, LOWEST), 0, 1)[..., None]
        image = (1 - second) * image + second * material(rng, size)
    return image
