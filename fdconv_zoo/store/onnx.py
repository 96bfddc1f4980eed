"""Exports classifiers to ONNX, for any batch size and a fixed image size, and compares the programs with torch."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from fdconv_zoo.errors import MismatchError
from fdconv_zoo.store.files import replacing

_LARGEST_DEVIATION = 1e-3  # of the largest logit; float32 on other kernels deviates by less than 1e-5
_BATCHES = (1, 3)


def export_onnx(
    model: nn.Module, file: Path, input_size: Sequence[int], metadata: Mapping[str, str] | None = None
) -> float:
    """Export a classifier to ONNX, and run the program and the model on the same images.

    The input is ``images`` (B, C, H, W), normalized; the output is ``logits`` (B, K). B is dynamic.

    Args:
        model: The model; it is not changed.
        file: Output file, which appears only when the program computes what the model does.
        input_size: (C, H, W).
        metadata: Texts to store in the program by name.

    Returns:
        The largest deviation of a logit, as a part of the largest logit.

    Raises:
        MismatchError: the program does not compute what the model does.
        WriteError: the file could not be written.
    """
    model = deepcopy(model).float().cpu().eval()
    program = torch.onnx.export(
        model,
        (torch.zeros(2, *input_size),),
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    program.model.metadata_props.update(metadata or {})
    with replacing(file) as temporary:
        program.save(temporary)
        deviation = compare(model, temporary, input_size)
        if not deviation <= _LARGEST_DEVIATION:
            raise MismatchError(
                f"{file}: the ONNX program deviates from the model by {deviation:.1e} of the largest logit, so it was "
                "not written; try another version of torch or onnxruntime"
            )
    return deviation


@torch.no_grad()
def compare(model: nn.Module, file: Path, input_size: Sequence[int]) -> float:
    """Run a model and its ONNX program on random images, in batches of several sizes.

    Args:
        model: On the CPU, in eval mode.
        file: Of the program.
        input_size: (C, H, W).

    Returns:
        The largest deviation of a logit, as a part of the largest logit.
    """
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    deviations = []
    for count in _BATCHES:
        images = torch.randn(count, *input_size, generator=generator)
        expected = model(images).numpy()
        (logits,) = session.run(None, {"images": images.numpy()})
        deviations.append(np.abs(logits - expected).max() / np.abs(expected).max().clip(1e-30))
    return float(np.max(deviations))
