"""The report of `fdconv-zoo visualize`: what FDConv does in a model, for some images, as one HTML file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fdconv_zoo.analysis import kernel_figures as figures
from fdconv_zoo.analysis.kernels import (
    disjoint_kernels,
    group_map,
    kernel_movement,
    kernel_similarity,
    largest_similarity,
    plane_power,
    spatial_response,
)
from fdconv_zoo.analysis.maps import band_names, draw_maps, edge_correlations, mean_correlations, modulation_maps
from fdconv_zoo.analysis.modulators import modulator_statistics
from fdconv_zoo.analysis.observe import find_band_modulations, find_dynamic_layers
from fdconv_zoo.analysis.page import Details, Gallery, Picture, Section, Table, Text, drawn, render_page
from fdconv_zoo.analysis.spectra import BandSpectrum, band_spectra, draw_spectrum
from fdconv_zoo.errors import ConfigError, first_of
from fdconv_zoo.layers import FDConv2d, FDLinear
from fdconv_zoo.layers.modulator_statistics import ModulatorStatistics

Array = NDArray[np.floating]

_MOST_LAYERS = 12  # in a section, unless the user chooses layers
_LONGEST_SIDE = 1024  # of the pictures of images and predictions, in pixels

ABOUT_EDGES = (
    "Frequency Band Modulation (FBM) splits a layer's input into frequency bands and multiplies each with a map. The "
    "table has Spearman's rank correlation of each map with the local gradient energy of the image, from -1 to 1, "
    "averaged over the images. Where it is positive, the band is amplified at edges and texture; where it is negative, "
    "in flat regions. Where there is no number, the map is the same at every pixel: before training, or where the "
    "layer's input is too small to have frequencies in the band. Bands are given in cycles per sample of the layer's "
    "input."
)
ABOUT_MAPS = (
    "Red regions of a map amplify the band, blue ones weaken it. The scale is the layer's own. The spectrum of the "
    "layer's input is averaged over channels, before FBM and after it; dashed lines are the edges of the bands."
)
ABOUT_KERNELS = (
    "A layer learns the Fourier coefficients of one plane, O·a rows by I·b columns, for O output and I input channels "
    "and a x b taps. They are divided into groups by frequency, and each group alone is a kernel. No two kernels share "
    "a frequency, so their cosine similarity is 0, except where the border between two groups cuts a pair of mirrored "
    "coefficients in two. The frequencies are those of the plane, not those of images; what a kernel passes of "
    "an image is its response."
)
ABOUT_MODULATORS = (
    "A modulator multiplies with values between 0 and 2, and 1 changes nothing. Distance is from 1, and variation is "
    "between the images, both as root mean squares. A modulator without variation does the same for every image. "
    "Saturated are values below 0.051 and above 1.949, where less than a tenth of the gradient is left."
)
ABOUT_MOVEMENT = (
    "Each layer assembles a kernel for every image. These are the differences between the kernels of the first two "
    "images, as percentages of the norm of the two kernels' mean. 0 means that the kernel does not depend on the image."
)


@dataclass(frozen=True)
class ReportImage:
    """An image of the report.

    Attributes:
        name: Name of the image.
        pixels: (1, C, H, W), preprocessed for the model.
        seen: (H, W, 3) or (H, W), the same image with values from 0 to 1, to be shown.
        prediction: The model's prediction, in words.
        picture: Picture of the prediction; None: show `seen`.
    """

    name: str
    pixels: Tensor
    seen: Array
    prediction: str
    picture: Image.Image | None = None


def check_layers(model: nn.Module, pattern: str | None) -> None:
    """Check that the model has layers to report on.

    Args:
        model: The model of the report.
        pattern: As in `render_report`.

    Raises:
        ConfigError: the model has no FDConv layers, or the pattern matches none of their names.
    """
    names = [*dict.fromkeys([*find_dynamic_layers(model), *find_band_modulations(model)])]
    if not names:
        raise ConfigError(
            "the model has no FDConv layers, so there is nothing to see; `fdconv-zoo list` prints models that have them"
        )
    if pattern is not None and not any(fnmatchcase(name, pattern) for name in names):
        raise ConfigError(f"--layers {pattern}: no FDConv layer has such a name; they are {first_of(names)}")


def choose_layers(names: Sequence[str], pattern: str | None = None) -> list[str]:
    """Choose representative layers: the first, the middle and the last layer of each stage.

    Args:
        names: Names of layers, in order. Layers of a stage have the same name up to the first number, such as
            ``layer1`` in ``layer1.0.conv1``.
        pattern: A shell pattern (see :mod:`fnmatch`). If given, choose all layers with matching names instead.

    Returns:
        The chosen names, in order; at most 12 without a pattern.
    """
    if pattern is not None:
        return [name for name in names if fnmatchcase(name, pattern)]
    stages: dict[str, list[str]] = {}
    for name in names:
        stages.setdefault(re.findall(r"\D*\d*", name)[0], []).append(name)
    chosen = [stage[place] for stage in stages.values() for place in _spread(len(stage), 3)]
    return [chosen[place] for place in _spread(len(chosen), _MOST_LAYERS)]


def render_report(model: nn.Module, name: str, images: Sequence[ReportImage], pattern: str | None = None) -> str:
    """Render the report as HTML.

    Args:
        model: A model with FDConv layers; it is not changed.
        name: Name of the model.
        images: The images, at least one. Modulators and kernel movement are only reported for two or more.
        pattern: Shell pattern for the names of the layers to draw; None: representative layers, see `choose_layers`.
    """
    layers = find_dynamic_layers(model)
    kernels = choose_layers([*layers], pattern)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    count = f"{len(layers)} FDConv layer{'s' * (len(layers) != 1)}"
    summary = f"{parameters:,} parameters, {count}. The figures are of this model and of the images below alone."
    sections = [
        Section("Images", [Gallery([_image_picture(image) for image in images])]),
        *_band_sections(model, images, pattern),
        Section("Kernels", [Text(ABOUT_KERNELS), *(_kernel_details(name, layers[name]) for name in kernels)]),
    ]
    if len(images) > 1:
        device = next(model.parameters()).device
        rows = modulator_statistics(model, *(image.pixels.to(device) for image in images))
        sections.append(Section("Modulators", [Text(ABOUT_MODULATORS), modulator_table(rows)]))
    if len(images) > 1 and layers:
        sections.append(_movement_section(kernel_movement(model, images[0].pixels, images[1].pixels)))
    return render_page(f"FDConv in {name}", summary, [section for section in sections if len(section.parts) > 0])


def _image_picture(image: ReportImage) -> Picture:
    picture = image.picture or Image.fromarray((255 * image.seen).round().astype(np.uint8))
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    content = BytesIO()
    picture.save(content, format="png")
    return Picture(content.getvalue(), f"The image {image.name}", f"{image.name}\n{image.prediction}")


def _band_sections(model: nn.Module, images: Sequence[ReportImage], pattern: str | None) -> list[Section]:
    bands = {name: band_names(fbm.edges()) for name, fbm in find_band_modulations(model).items()}
    if not bands:
        return [Section("Bands", [Text("No layer of this model has Frequency Band Modulation.")])]
    chosen = choose_layers([*bands], pattern)
    maps = [modulation_maps(model, image.pixels) for image in images]
    spectra = [band_spectra(model, image.pixels, chosen) for image in images]
    correlations: dict[str, list[Array]] = {}
    for image, found in zip(images, maps, strict=True):
        for name, values in found.items():
            correlations.setdefault(name, []).append(edge_correlations(values, image.pixels))
    parts: list[Details] = []
    for name in filter(correlations.__contains__, chosen):
        galleries = []
        for index, image in enumerate(images):
            edges = correlations[name][index][0]
            drawn_maps = map_picture(name, image, maps[index][name][0], bands[name], edges)
            galleries.append(Gallery([drawn_maps, spectrum_picture(name, image, spectra[index][name])]))
        parts.append(Details(name, galleries, is_open=not parts))
    return [
        Section("Bands and edges", [Text(ABOUT_EDGES), *_correlation_tables(bands, mean_correlations(correlations))]),
        Section("Modulation maps and spectra", [Text(ABOUT_MAPS), *parts]),
    ]


def _correlation_tables(bands: Mapping[str, Sequence[str]], means: Mapping[str, Array]) -> list[Table]:
    """One table per set of bands. In most models, all layers have the same bands."""
    tables = []
    for names in dict.fromkeys(tuple(bands[layer]) for layer in means):
        rows = {layer: values for layer, values in means.items() if tuple(bands[layer]) == names}
        values = np.stack([*rows.values()])
        positive = [f"{np.sum(column > 0)} of {np.isfinite(column).sum()}" for column in values.T]
        cells = [(layer, *(_signed(value) for value in row)) for layer, row in rows.items()]
        tables.append(
            Table("Correlation of each band's map with edges", ["layer", *names], [*cells, ("positive in", *positive)])
        )
    return tables


def map_picture(
    name: str, image: ReportImage, maps: Array, bands: Sequence[str], correlations: Sequence[float]
) -> Picture:
    """Draw an image and the maps of a layer.

    Args:
        name: Name of the layer.
        image: The image.
        maps: (M, h, w), the factors of each band.
        bands: Names of the M bands.
        correlations: (M,), the correlation of each map with edges; NaN if undefined.
    """
    ranges = ", ".join(
        f"{band}: factors {values.min():.3f} to {values.max():.3f}, correlation {_signed(correlation) or 'undefined'}"
        for band, values, correlation in zip(bands, maps, correlations, strict=True)
    )
    height, width = maps.shape[1:]
    return drawn(
        draw_maps(image.seen, maps, bands, correlations),
        f"{image.name} beside a map of each band of {name}, with its correlation with edges. {ranges}.",
        f"{image.name}: maps of {height}x{width}",
    )


def spectrum_picture(name: str, image: ReportImage, spectrum: BandSpectrum) -> Picture:
    """Draw the power of the input of the layer `name`, before and after FBM, for an image."""
    gain = spectrum.after[0] / np.maximum(spectrum.before[0], np.finfo(float).tiny)
    return drawn(
        draw_spectrum(spectrum),
        f"Power of the input of {name} over frequency, before and after FBM, for {image.name}. After divided by before "
        f"is between {gain.min():.3f} and {gain.max():.3f}.",
        f"{image.name}: power of the layer's input",
    )


def _kernel_details(name: str, layer: FDConv2d | FDLinear) -> Details:
    kernels = disjoint_kernels(layer)
    count, out_channels, in_channels, *taps = kernels.shape
    similarity = kernel_similarity(kernels)
    edges, power = plane_power(kernels)
    radius = (power * (edges[1:] + edges[:-1]) / 2).sum(1) / np.maximum(power.sum(1), np.finfo(float).tiny)
    largest = largest_similarity(similarity)
    pictures = [
        drawn(
            figures.draw_groups(group_map(layer)),
            f"The {count} groups of coefficients are rings around frequency 0 of the plane, half of which is drawn.",
            "Group of each coefficient",
        ),
        drawn(
            figures.draw_plane_power(edges, power),
            f"Mean frequency of each kernel's power: from {radius.min():.3f} to {radius.max():.3f} cycles per sample.",
            "Power of each kernel over the frequencies of the plane",
        ),
        drawn(
            figures.draw_similarity(similarity),
            f"Matrix of the {count} kernels. The largest value off the diagonal is {largest:.1e}.",
            f"Cosine similarity of the kernels; at most {largest:.1e} off the diagonal",
        ),
    ]
    if max(taps) > 1:
        response = figures.draw_spatial_response(spatial_response(kernels))
        text = "Response to the frequencies of images, horizontal and vertical, in decibels"
        pictures.append(drawn(response, f"{text}, for some of the kernels.", f"{text}: some of the kernels"))
    shape = f"{out_channels} x {in_channels} x {taps[0]} x {taps[1]}"
    return Details(f"{name}: {count} kernels of {shape}", [Gallery(pictures)])


def modulator_table(rows: Sequence[ModulatorStatistics]) -> Table:
    """Make the table of the modulators' statistics."""
    columns = ["layer", "modulator", "distance", "variation", "saturated"]
    cells = [
        (row.layer, row.modulator, f"{row.distance:.3f}", f"{row.variation:.3f}", f"{100 * row.saturated:.1f} %")
        for row in rows
    ]
    return Table("Modulators of each layer", columns, cells)


def movement_picture(movement: Mapping[str, float]) -> Picture:
    """Draw how far the kernel of each layer moves between two images; `movement` must not be empty."""
    least, most = min(movement, key=movement.__getitem__), max(movement, key=movement.__getitem__)
    alt = (
        f"A bar for each layer. Least: {least}, {_percent(movement[least])}. Most: {most}, {_percent(movement[most])}."
    )
    return drawn(figures.draw_movement(movement), alt, "Movement of the kernel of each layer")


def _movement_section(movement: Mapping[str, float]) -> Section:
    rows = [(name, _percent(value)) for name, value in movement.items()]
    table = Table("Movement of each layer's kernel", ["layer", "movement"], rows)
    gallery = Gallery([movement_picture(movement)])
    return Section("Kernel movement", [Text(ABOUT_MOVEMENT), gallery, Details("As a table", [table])])


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _spread(count: int, most: int) -> list[int]:
    """Indices of at most `most` evenly spaced items out of `count`, including the first and the last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(most, count))})


def _signed(value: float) -> str:
    return "" if np.isnan(value) else f"{value:+.2f}"
