"""Detectors as programs in ONNX, for one image of a fixed size.

No exporter of torch (2.15) takes a whole detector. The one that reads programs (``dynamo=True``) stops in torchvision's
heads, where sizes depend on how many boxes non-maximum suppression has left. The one that traces is what torchvision
supports; it stops in FDConv, whose matrices for the inverse transform are made from sizes, which it hides. So each
exports the half that it can: the maps of the image, and the detections on the maps. The two programs become one.
"""

import io
import warnings
from copy import deepcopy
from pathlib import Path

import onnx
import torch
from onnx import compose
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList

from fdconv_zoo.dense.detection.model import Detector
from fdconv_zoo.store.files import explaining_write_errors

_OPSET = 18


class _Maps(nn.Module):
    def __init__(self, network: FasterRCNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        images, _ = self.network.transform([image])
        return tuple(self.network.backbone(images.tensors).values())


class _Detections(nn.Module):
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


@torch.no_grad()
def export_onnx(model: Detector, file: str | Path, image_size: tuple[int, int]) -> None:
    """Write a detector as a program in ONNX.

    Its input is ``image`` (3, H, W), values in 0..1; its outputs are ``boxes`` (N, 4), ``labels`` and ``scores`` (N,),
    and of Mask R-CNN ``masks`` (N, 1, H, W), as the model gives them in evaluation.

    Args:
        model: it is not changed.
        file: to write to.
        image_size: (H, W), in pixels.

    Raises:
        WriteError: it could not be written.
    """
    network = deepcopy(model.network).float().cpu().eval()
    images, _ = network.transform([torch.zeros(3, *image_size)])
    maps = network.backbone(images.tensors)
    names = [f"map_{name}" for name in maps]
    outputs = ["boxes", "labels", "scores"] + ["masks"] * network.roi_heads.has_mask()
    first = torch.onnx.export(
        _Maps(network).eval(),
        (torch.zeros(3, *image_size),),
        dynamo=True,
        opset_version=_OPSET,
        input_names=["image"],
        output_names=names,
        verbose=False,
    ).model_proto
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is the older exporter, and traces
        torch.onnx.export(
            _Detections(network, images, image_size, list(maps)).eval(),
            tuple(maps.values()),
            stream,
            dynamo=False,
            opset_version=_OPSET,
            input_names=names,
            output_names=outputs,
            dynamic_axes={name: {0: "detections"} for name in outputs},
        )
    second = onnx.load_from_string(stream.getvalue())
    _free_loop_lengths(second.graph)
    second = compose.add_prefix(second, "heads/", rename_inputs=False, rename_outputs=False)
    second.ir_version = first.ir_version
    program = compose.merge_models(first, second, io_map=[(name, name) for name in names])
    with explaining_write_errors(Path(file)):
        onnx.save(program, str(file))


def _free_loop_lengths(graph: onnx.GraphProto) -> None:
    """Undo that tracing fixed how many masks the loop that pastes them begins with and has after the first."""
    bodies = [attribute.g for node in graph.node if node.op_type == "Loop" for attribute in node.attribute]
    for value in (value for body in bodies for value in (*body.input, *body.output)):
        for length in value.type.tensor_type.shape.dim[:1]:
            length.Clear()
