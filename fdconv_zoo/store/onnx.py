"""Exports image models to ONNX, for any batch size and a fixed image size, and checks each exported program."""

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from onnxscript import optimizer
from torch import nn

from fdconv_zoo.errors import MismatchError
from fdconv_zoo.store.files import replacing

LARGEST_DEVIATION = 1e-3  # of the largest value; rounding in float32 causes less than 1e-5
_BATCHES = (1, 3)


def metadata(class_names: Sequence[str], preprocessing: Mapping[str, Any], inputs: str, outputs: str) -> dict[str, str]:
    """Make the metadata to store in a program.

    Args:
        class_names: Names of the classes, in the order of the outputs.
        preprocessing: ``input_size`` (C, H, W), ``mean``, ``std`` and ``interpolation`` of the preprocessing, which is
            not part of the program.
        inputs, outputs: Descriptions of the program's input and output.

    Returns:
        Texts by name: ``class_names`` and ``preprocessing`` as JSON, ``input`` and ``output``.
    """
    return {
        "class_names": json.dumps(list(class_names)),
        "preprocessing": json.dumps(dict(preprocessing)),
        "input": inputs,
        "output": outputs,
    }


def export_onnx(
    model: nn.Module,
    file: Path,
    input_size: Sequence[int],
    described: Mapping[str, str] | None = None,
    *,
    output: str = "logits",
) -> float:
    """Export a model to ONNX, and compare the outputs of the program and the model on the same images.

    The input is ``images`` (B, C, H, W), normalized. B is dynamic.

    Args:
        model: A model that maps images to one tensor, such as a classifier; it is not changed.
        file: Output file; only written if the program computes the same as the model.
        input_size: (C, H, W).
        described: Metadata to store in the program, see `metadata`.
        output: Name of the output.

    Returns:
        The largest deviation of the output, as a fraction of its largest value.

    Raises:
        MismatchError: the program does not compute the same as the model.
        WriteError: the file could not be written.
    """
    model = deepcopy(model).float().cpu().eval()
    program = export_program(
        model,
        (torch.zeros(2, *input_size),),
        dynamic_shapes=({0: "batch"},),
        input_names=["images"],
        output_names=[output],
    )
    program.model.metadata_props.update(described or {})
    return write_checked(file, program.save, lambda written: compare(model, written, input_size))


def export_program(model: nn.Module, inputs: tuple[torch.Tensor, ...], **options: Any) -> torch.onnx.ONNXProgram:
    """Call ``torch.onnx.export`` with ``dynamo=True``, and optimize the program faster.

    Torch's optimizer searches for patterns in a time that grows with the square of the number of nodes. Most of
    FDConv's nodes compute constants, so they are removed first.

    Args:
        model: The model, in eval mode.
        inputs: Example inputs.
        **options: Of ``torch.onnx.export``, such as ``dynamic_shapes``.

    Returns:
        The optimized program.
    """
    program = torch.onnx.export(model, inputs, dynamo=True, optimize=False, verbose=False, **options)
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(program.model)
    program.optimize()
    return program


def write_checked(file: Path, save: Callable[[Path], Any], check: Callable[[Path], float]) -> float:
    """Write a program to a file if it computes the same as the model.

    Args:
        file: Output file.
        save: Writes the program to a path.
        check: Returns how far the program at a path deviates from the model.

    Returns:
        The deviation.

    Raises:
        MismatchError: the program deviates by more than `LARGEST_DEVIATION`.
        WriteError: the file could not be written.
    """
    with replacing(file) as temporary:
        save(temporary)
        deviation = check(temporary)
        if not deviation <= LARGEST_DEVIATION:
            raise MismatchError(
                f"{file}: the ONNX program deviates from the model by {deviation:.1e}, where at most "
                f"{LARGEST_DEVIATION:.0e} can be rounding, so it was not written; try another version of torch or "
                "onnxruntime"
            )
    return deviation


@torch.no_grad()
def compare(model: nn.Module, file: Path, input_size: Sequence[int]) -> float:
    """Run a model and its ONNX program on random images, in batches of several sizes.

    Args:
        model: A model on the CPU, in eval mode.
        file: File of the program.
        input_size: (C, H, W).

    Returns:
        The largest deviation of the output, as a fraction of its largest value.
    """
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    deviations = []
    for count in _BATCHES:
        images = torch.randn(count, *input_size, generator=generator)
        expected = model(images).numpy()
        (found,) = session.run(None, {"images": images.numpy()})
        deviations.append(np.abs(found - expected).max() / np.abs(expected).max().clip(1e-30))
    return float(np.max(deviations))
