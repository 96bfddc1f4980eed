"""Exports detectors to ONNX, for one image of a fixed size.

Neither exporter of torch 2.15 supports a whole detector. The newer one (``dynamo=True``) fails in torchvision's heads,
whose sizes depend on the number of boxes after non-maximum suppression. The older one, which traces, is what
torchvision supports; it fails in FDConv, which builds the matrices of its inverse transform from sizes that tracing
hides. So each exports the half that it supports, the feature maps and the heads, and the two graphs are merged.
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

from fdconv_zoo.dense.detection.heads import TWO_STAGES
from fdconv_zoo.dense.detection.model import Detector
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.store.files import explaining_write_errors

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


@torch.no_grad()
def export_onnx(model: Detector, file: str | Path, image_size: tuple[int, int]) -> None:
    """Export a detector to ONNX.

    The input is ``image`` (3, H, W), with values in 0..1. The outputs are those of the model in eval mode: ``boxes``
    (N, 4), ``labels`` and ``scores`` (N,), and for Mask R-CNN ``masks`` (N, 1, H, W).

    Args:
        model: The model; it is not changed.
        file: Output file.
        image_size: Height and width in pixels.

    Raises:
        ConfigError: the detector is not an R-CNN.
        WriteError: the file could not be written.
    """
    if model.config["head"] not in TWO_STAGES:
        raise ConfigError(f"{model.config['head']} cannot be exported to ONNX; {' and '.join(TWO_STAGES)} can")
    network = deepcopy(model.network).float().cpu().eval()
    images, _ = network.transform([torch.zeros(3, *image_size)])
    maps = network.backbone(images.tensors)
    names = [f"map_{name}" for name in maps]
    outputs = ["boxes", "labels", "scores"] + ["masks"] * network.roi_heads.has_mask()
    backbone = torch.onnx.export(
        _FeatureMaps(network).eval(),
        (torch.zeros(3, *image_size),),
        dynamo=True,
        opset_version=_OPSET,
        input_names=["image"],
        output_names=names,
        verbose=False,
    ).model_proto
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the deprecated exporter, and about tracing
        torch.onnx.export(
            _Heads(network, images, image_size, list(maps)).eval(),
            tuple(maps.values()),
            stream,
            dynamo=False,
            opset_version=_OPSET,
            input_names=names,
            output_names=outputs,
            dynamic_axes={name: {0: "detections"} for name in outputs},
        )
    heads = onnx.load_from_string(stream.getvalue())
    _make_loop_lengths_dynamic(heads.graph)
    heads = compose.add_prefix(heads, "heads/", rename_inputs=False, rename_outputs=False)
    heads.ir_version = backbone.ir_version
    program = compose.merge_models(backbone, heads, io_map=[(name, name) for name in names])
    with explaining_write_errors(Path(file)):
        onnx.save(program, str(file))


def _make_loop_lengths_dynamic(graph: onnx.GraphProto) -> None:
    """Clear the traced number of masks in the loop that pastes masks into the image."""
    bodies = [attribute.g for node in graph.node if node.op_type == "Loop" for attribute in node.attribute]
    for value in (value for body in bodies for value in (*body.input, *body.output)):
        for length in value.type.tensor_type.shape.dim[:1]:
            length.Clear()
