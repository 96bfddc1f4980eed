"""Exports detectors to ONNX, for one image of a fixed size.

Neither exporter of torch 2.15 supports a whole detector. The newer one (``dynamo=True``) fails in torchvision's heads,
whose sizes depend on the number of boxes after non-maximum suppression. The older one, which traces, is what
torchvision supports; it fails in FDConv, which builds the matrices of its inverse transform from sizes that tracing
hides. Therefore each exporter exports the part that it supports, the feature maps or the heads, and the two graphs are
merged.
"""

import io
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import compose, helper
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList

from fdconv_zoo.dense.detection.heads import TWO_STAGES
from fdconv_zoo.dense.detection.model import Detector
from fdconv_zoo.dense.detection.onnx_check import compare, random_images, telling_threshold
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.onnx import export_program, metadata, write_checked

_OPSET = 18


class _FeatureMaps(nn.Module):
    def __init__(self, network: FasterRCNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        images, _ = self.network.transform([image])
        return tuple(self.network.backbone(images.tensors).values())


class _Heads(nn.Module):
    def __init__(self, network: FasterRCNN, images: ImageList, image_size: tuple[int, int], names: list[str]) -> None:
        super().__init__()
        self.network = network
        self.images = images
        self.image_size = image_size
        self.names = names

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        features = dict(zip(self.names, maps, strict=True))
        proposals, _ = self.network.rpn(self.images, features)
        detections, _ = self.network.roi_heads(features, proposals, self.images.image_sizes)
        detections = self.network.transform.postprocess(detections, self.images.image_sizes, [self.image_size])
        return tuple(detections[0].values())


def check_exportable(model: Detector) -> None:
    """Raise `ConfigError` if a detector is of a kind that cannot be exported."""
    if model.config["head"] not in TWO_STAGES:
        raise ConfigError(f"{model.config['head']} cannot be exported to ONNX; {' and '.join(TWO_STAGES)} can")


def export_onnx(model: Detector, file: str | Path, image_size: tuple[int, int]) -> float:
    """Export a detector to ONNX, and compare the outputs of the program with those of the model.

    The input is ``image`` (3, H, W), with values in 0..1. The outputs are those of the model in eval mode: ``boxes``
    (N, 4), ``labels`` and ``scores`` (N,), and for Mask R-CNN ``masks`` (N, 1, H, W). Class names and preprocessing are
    stored in the program.

    Args:
        model: The model; it is not changed.
        file: Output file. It is written only if the outputs of the program match those of the model.
        image_size: Height and width in pixels.

    Returns:
        The deviation that 95 % of the objects in random images do not exceed: of scores relative to the largest score,
        of boxes relative to the image's longer side, or of mask values.

    Raises:
        ConfigError: the detector is not an R-CNN.
        MismatchError: the outputs of the program differ from those of the model.
        WriteError: the file could not be written.
    """
    check_exportable(model)
    network = deepcopy(model.network).float().cpu().eval()
    sample, _ = network.transform([torch.zeros(3, *image_size)])
    with torch.no_grad():
        maps = network.backbone(sample.tensors)
    backbone = _export_backbone(network, [f"map_{name}" for name in maps], image_size)
    program = _merge(backbone, _export_heads(_Heads(network, sample, image_size, list(maps)), maps))
    helper.set_model_props(program, _describe(model, image_size))

    images = random_images(image_size, sample.image_sizes[0])
    found = []
    sensitive = deepcopy(network)
    sensitive.roi_heads.score_thresh = telling_threshold(network, images)
    if sensitive.roi_heads.score_thresh < network.roi_heads.score_thresh:  # the program's is constant
        twin = _merge(backbone, _export_heads(_Heads(sensitive, sample, image_size, list(maps)), maps))
        found.append(compare(sensitive, twin.SerializeToString(), images))
    return write_checked(
        Path(file),
        lambda path: onnx.save(program, str(path)),
        lambda path: float(np.max([*found, compare(network, path, images)])),
    )


def _describe(model: Detector, image_size: tuple[int, int]) -> dict[str, str]:
    preprocessing = {  # mean and std have no effect, because the program contains those of the model
        "input_size": (3, *image_size),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "interpolation": "bilinear",
    }
    return metadata(
        model.class_names,
        preprocessing,
        "image (3, H, W), float32: RGB in 0..1; the program normalizes and resizes it",
        "boxes (N, 4): left, top, right and bottom in pixels; labels (N,): 1 is the first of class_names; scores (N,)"
        + "; masks (N, 1, H, W): in 0..1" * model.has_masks,
    )


def _export_backbone(network: FasterRCNN, names: list[str], image_size: tuple[int, int]) -> onnx.ModelProto:
    return export_program(
        _FeatureMaps(network).eval(),
        (torch.zeros(3, *image_size),),
        opset_version=_OPSET,
        input_names=["image"],
        output_names=names,
    ).model_proto


@torch.no_grad()
def _export_heads(heads: _Heads, maps: Mapping[str, Tensor]) -> onnx.ModelProto:
    outputs = ["boxes", "labels", "scores"] + ["masks"] * heads.network.roi_heads.has_mask()
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the deprecated exporter, and about tracing
        torch.onnx.export(
            heads.eval(),
            tuple(maps.values()),
            stream,
            dynamo=False,
            opset_version=_OPSET,
            input_names=[f"map_{name}" for name in maps],
            output_names=outputs,
            dynamic_axes={name: {0: "detections"} for name in outputs},
        )
    return onnx.load_from_string(stream.getvalue())


def _merge(backbone: onnx.ModelProto, heads: onnx.ModelProto) -> onnx.ModelProto:
    _make_loop_lengths_dynamic(heads.graph)
    names = [output.name for output in backbone.graph.output]
    heads = compose.add_prefix(heads, "heads/", rename_inputs=False, rename_outputs=False)
    heads.ir_version = backbone.ir_version
    return compose.merge_models(backbone, heads, io_map=[(name, name) for name in names])


def _make_loop_lengths_dynamic(graph: onnx.GraphProto) -> None:
    """Clear the traced number of masks in the loop that pastes masks into the image."""
    bodies = [attribute.g for node in graph.node if node.op_type == "Loop" for attribute in node.attribute]
    for value in (value for body in bodies for value in (*body.input, *body.output)):
        for length in value.type.tensor_type.shape.dim[:1]:
            length.Clear()
