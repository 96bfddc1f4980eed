"""Exports segmenters to ONNX, for any batch size and a fixed image size."""

from copy import deepcopy
from pathlib import Path

import torch

from fdconv_zoo.dense.segmentation.inference import Size
from fdconv_zoo.dense.segmentation.model import Segmenter
from fdconv_zoo.store.files import explaining_write_errors


def export_onnx(model: Segmenter, file: str | Path, image_size: Size) -> None:
    """Export a segmenter to ONNX.

    The input is ``images`` (B, 3, H, W), normalized; the output is ``scores`` (B, K, H, W). B is dynamic. H and W are
    fixed: the export also fixes the padding and the decoder's pooling windows, which would silently be wrong at other
    sizes.

    Args:
        model: The model; it is not changed.
        file: Output file.
        image_size: Height and width in pixels.

    Raises:
        WriteError: the file could not be written.
    """
    program = torch.onnx.export(
        deepcopy(model).float().cpu().eval(),
        (torch.zeros(2, 3, *image_size),),
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        input_names=["images"],
        output_names=["scores"],
        verbose=False,
    )
    with explaining_write_errors(Path(file)):
        program.save(file)
