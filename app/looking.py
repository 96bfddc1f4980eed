"""Analyses models and images for the app, and draws the results. This module does not need gradio."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

import torch
from checkpoints import Checkpoint
from PIL import Image
from torch import Tensor

from fdconv_zoo import approximate_plain, to_plain
from fdconv_zoo.analysis.kernels import kernel_movement
from fdconv_zoo.analysis.maps import band_names, edge_correlations, modulation_maps
from fdconv_zoo.analysis.modulators import modulator_statistics
from fdconv_zoo.analysis.observe import find_band_modulations
from fdconv_zoo.analysis.page import Picture, Table
from fdconv_zoo.analysis.report import ReportImage, map_picture, modulator_table, movement_picture, spectrum_picture
from fdconv_zoo.analysis.spectra import band_spectra
from fdconv_zoo.cli.visualize import as_picture
from fdconv_zoo.conversion.costs import count_parameters
from fdconv_zoo.conversion.plain import is_neutral as layer_is_neutral
from fdconv_zoo.data.image import decode_image, reason
from fdconv_zoo.errors import DataError
from fdconv_zoo.layers.replace import DYNAMIC_KINDS, find_layers
from fdconv_zoo.profiling.timing import forward_step, time_interleaved
from fdconv_zoo.store.build import image_mode

# Common formats of pictures. Some of Pillow's other decoders start programs, or are rarely tested.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_MOST_PIXELS = 80_000_000
_MOST_ELONGATED = 16  # resizing the shorter side of longer images would make them too large
_TOO_LARGE = f"The image has more than {_MOST_PIXELS // 10**6} million pixels: save it with fewer."
_REPEATS = 5  # timings of each model


def read_upload(file: str | Path, checkpoint: Checkpoint) -> tuple[ReportImage, list[str]]:
    """Read an image from an untrusted source, and preprocess it for a model.

    Args:
        file: Path of the image.
        checkpoint: The model.

    Returns:
        The image, and remarks about it for the person who sent it.

    Raises:
        DataError: the file is not an image, or it is damaged, too large or too narrow. The message names the remedy,
            but no file.
    """
    content = Path(file).read_bytes()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Image.open(BytesIO(content)) as image:
                _check_size(*image.size)
                if image.format not in _FORMATS:
                    raise DataError(f"Images in the format {image.format} are not read here: save it as PNG or JPEG.")
            picture = decode_image({"bytes": content}, image_mode(checkpoint.preprocessing))
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(_TOO_LARGE) from None
    except Exception as error:  # Pillow's decoders raise a dozen types of errors
        raise DataError(
            f"This file cannot be read as an image: {reason(error)}. Open it in an image viewer and save it as PNG or "
            "JPEG."
        ) from error
    pixels = checkpoint.transform(picture)[None]
    seen = as_picture(pixels, checkpoint.preprocessing["mean"], checkpoint.preprocessing["std"])
    remarks = [f"{warning.message}." for warning in caught if warning.category is UserWarning]
    return ReportImage("Image", pixels, seen, ""), remarks


def _check_size(width: int, height: int) -> None:
    if width * height > _MOST_PIXELS:
        raise DataError(_TOO_LARGE)
    if max(width, height) > _MOST_ELONGATED * min(width, height):
        raise DataError(
            f"The image of {width:,} x {height:,} pixels is more than {_MOST_ELONGATED} times as long as it is wide: "
            "cut out the part to look at."
        )


@torch.inference_mode()
def classify(checkpoint: Checkpoint, image: ReportImage, most: int = 5) -> dict[str, float]:
    """Return the probabilities of the likeliest classes; empty for a model without a classifier."""
    return _best(checkpoint, checkpoint.model(image.pixels), most)


def describe(checkpoint: Checkpoint) -> str:
    """Say in a few sentences what a model is, as Markdown."""
    parameters = count_parameters(checkpoint.model)
    size = "x".join(map(str, checkpoint.preprocessing["input_size"][1:]))
    text = f"{parameters:,} parameters, images of {size}."
    if is_neutral(checkpoint):
        text += (
            " **Its modulators are untrained.** All factors are exactly 1, so maps are blank, kernels do not move, and "
            "it computes what the plain network does."
        )
    return text if checkpoint.classes else f"{text} It has no classifier, so there is no prediction."


def is_neutral(checkpoint: Checkpoint) -> bool:
    """Whether a plain model computes the same function."""
    return all(map(layer_is_neutral, find_layers(checkpoint.model, DYNAMIC_KINDS)))


def band_layers(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the layers with Frequency Band Modulation (FBM)."""
    return [*find_band_modulations(checkpoint.model)]


def draw_bands(checkpoint: Checkpoint, image: ReportImage, layer: str) -> list[Picture]:
    """Draw the map of each band of a layer beside the image, and the spectra of the layer's input.

    Args:
        checkpoint: The model.
        image: The image.
        layer: One of `band_layers`.
    """
    names = band_names(find_band_modulations(checkpoint.model)[layer].edges())
    maps = modulation_maps(checkpoint.model, image.pixels, [layer])[layer]
    correlations = edge_correlations(maps, image.pixels)[0]
    spectrum = band_spectra(checkpoint.model, image.pixels, [layer])[layer]
    return [map_picture(layer, image, maps[0], names, correlations), spectrum_picture(layer, image, spectrum)]


def draw_movement(checkpoint: Checkpoint, image: ReportImage, other: ReportImage) -> Picture:
    """Draw how far the kernel of each layer moves between two images."""
    return movement_picture(kernel_movement(checkpoint.model, image.pixels, other.pixels))


def tabulate_modulators(checkpoint: Checkpoint, images: Sequence[ReportImage]) -> Table:
    """Make the table of what the modulators do with some images."""
    return modulator_table(modulator_statistics(checkpoint.model, *(image.pixels for image in images)))


@dataclass(frozen=True)
class TwinComparison:
    """Comparison of a model with the plain one that computes the same function, or approximates it.

    Attributes:
        summary: How close the plain model is, in words.
        prediction: Probabilities of the plain model's likeliest classes for the first image.
        figures: Costs and predictions of both models.
        layers: Deviation of each layer's output; empty if both models compute the same.
    """

    summary: str
    prediction: dict[str, float]
    figures: Table
    layers: Table


@torch.no_grad()
def compare_with_plain(checkpoint: Checkpoint, images: Sequence[ReportImage]) -> TwinComparison:
    """Compare a model with its plain twin.

    While the modulators are untrained, the twin computes the same function. Otherwise its kernels are the means of
    the kernels that the model assembles for these images.

    Args:
        checkpoint: The model, which is not changed.
        images: One image or more.
    """
    model, batches = checkpoint.model, [image.pixels for image in images]
    deviations: dict[str, float] = {}
    if is_neutral(checkpoint):
        twin = to_plain(copy.deepcopy(model))
        summary = "The modulators are untrained, so the plain twin computes the same function."
    else:
        twin, found = approximate_plain(copy.deepcopy(model), batches)
        deviations = found.layers
        summary = (
            "The plain twin has one kernel in each layer: the mean of those that the model assembles for "
            + ("the two images. " if len(images) > 1 else "this image, so only frequency bands are lost. ")
            + "For other images it deviates more."
        )
    expected, actual = ([network(pixels) for pixels in batches] for network in (model, twin))
    what = "logits" if checkpoint.classes else "features"
    summary += f" Its {what} deviate by {_percent(_relative_error(actual, expected))} (root mean square). "
    summary += f"Times are the median of {_REPEATS}, on this machine now."

    steps = [forward_step(network, batches[0], torch.float32) for network in (model, twin)]
    times = [f"{1000 * median:.1f} ms" for median, _ in time_interleaved(steps, _REPEATS, batches[0].device)]
    rows = [
        ("parameters", f"{count_parameters(model):,}", f"{count_parameters(twin):,}"),
        ("time per image", *times),
    ]
    if checkpoint.classes:
        for place, *logits in zip(("image", "2nd image"), expected, actual, strict=False):
            rows.append((place, *(_first(checkpoint, values) for values in logits)))
    return TwinComparison(
        summary,
        _best(checkpoint, actual[0], 5),
        Table("Both models", ["", "FDConv", "plain twin"], rows),
        Table(
            "Deviation of each layer's output",
            ["layer", "deviation"],
            [(name, _percent(value)) for name, value in deviations.items()],
        ),
    )


def render_pictures(pictures: Sequence[Picture]) -> str:
    """Render pictures as HTML, with alternative texts for screen readers."""
    figures = (
        f'<figure><img src="{picture.uri}" alt="{escape(picture.alt)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in pictures
    )
    return f'<div class="pictures">{"".join(figures)}</div>'


def render_tables(*tables: Table) -> str:
    """Render tables as HTML, without those that are empty."""
    return "".join(map(_render_table, filter(lambda table: table.rows, tables)))


def _render_table(table: Table) -> str:
    columns = "".join(f'<th scope="col">{escape(title)}</th>' for title in table.columns)
    rows = (
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in others)}</tr>'
        for first, *others in table.rows
    )
    content = (
        f"<caption>{escape(table.caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody>"
    )
    return f'<div class="table" tabindex="0"><table>{content}</table></div>'  # focusable, to scroll it by keyboard


def _best(checkpoint: Checkpoint, logits: Tensor, most: int) -> dict[str, float]:
    if not checkpoint.classes:
        return {}
    best = logits[0].float().softmax(0).topk(min(most, len(checkpoint.classes)))
    return {
        checkpoint.classes[index]: probability
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    }


def _first(checkpoint: Checkpoint, logits: Tensor) -> str:
    ((name, probability),) = _best(checkpoint, logits, 1).items()
    return f"{name} {_percent(probability)}"


def _relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Root mean square of the difference, as a fraction of the root mean square of `expected`."""
    difference = sum(float((a - b).square().sum()) for a, b in zip(actual, expected, strict=True))
    return (difference / sum(float(b.square().sum()) for b in expected)) ** 0.5


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.1f} %"
