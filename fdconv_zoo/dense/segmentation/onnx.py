"""Segmenters as programs in ONNX, for any number of images of one size."""

from copy import deepcopy
from pathlib import Path

import torch

from fdconv_zoo.dense.segmentation.inference import Size
from fdconv_zoo.dense.segmentation.model import Segmenter
from fdconv_zoo.store.files import explaining_write_errors


def export_onnx(model: Segmenter, file: str | Path, image_size: Size) -> None:
    """Write a segmenter as a program in ONNX: ``images`` (B, 3, H, W), normalized, to ``scores`` (B, K, H, W).

    B is left open; H and W cannot be: what they are filled up to, and where a decoder pools, is fixed with the program,
    which would compute something else at other sizes without a word.

    Args:
        model: It is not changed.
        file: To write to.
        image_size: H and W, in pixels.

    Raises:
        WriteError: it could not be written.
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
