"""Exports segmenters to ONNX, for any batch size and a fixed image size."""

from pathlib import Path

from fdconv_zoo.dense.segmentation.inference import Size
from fdconv_zoo.dense.segmentation.model import Segmenter
from fdconv_zoo.store import onnx


def export_onnx(model: Segmenter, file: str | Path, image_size: Size) -> float:
    """Export a segmenter to ONNX, and compare the outputs of the program with those of the model.

    The input is ``images`` (B, 3, H, W), normalized; the output is ``scores`` (B, K, H, W). B is dynamic. H and W are
    fixed, because the padding and the decoder's pooling windows are fixed, too, and would silently be wrong at other
    sizes. Class names and preprocessing are stored in the program.

    Args:
        model: The model; it is not changed.
        file: Output file. It is written only if the outputs of the program match those of the model.
        image_size: Height and width in pixels.

    Returns:
        The largest deviation of a score, relative to the largest score.

    Raises:
        MismatchError: the outputs of the program differ from those of the model.
        WriteError: the file could not be written.
    """
    size = (3, *image_size)
    preprocessing = {"input_size": size, "mean": model.mean, "std": model.std, "interpolation": "bilinear"}
    described = onnx.metadata(
        model.class_names,
        preprocessing,
        "images (B, 3, H, W), float32: RGB in 0..1, from which mean is subtracted before it is divided by std",
        "scores (B, K, H, W), float32: the class of a pixel is the one with the largest score",
    )
    return onnx.export_onnx(model, Path(file), size, described, output="scores")
