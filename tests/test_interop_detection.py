"""torchvision's detectors on our backbones."""

import pytest
import torch
from examples import modulators, open_residual_branches, run_examples

pytest.importorskip("torchvision", reason="torchvision, which has the detectors, is not installed")

HEADING = "Detection: torchvision"


@pytest.fixture(scope="module")
def scope():
    torch.manual_seed(0)
    return run_examples("guides/other_libraries.md", HEADING)


def assert_trains(detector, images, targets):
    open_residual_branches(detector)
    losses = detector.train()(images, targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    gradients = {name: parameter.grad for name, parameter in modulators(detector).items()}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    heads = [gradient for name, gradient in gradients.items() if name.endswith(("filter.bias", "attention.bias"))]
    assert heads
    assert all(gradient.any() for gradient in heads)
    return losses


def test_faster_rcnn(scope):
    assert all(torch.isfinite(loss) for loss in scope["losses"].values())
    assert_trains(scope["detector"], scope["images"], scope["targets"])
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in scope["backbone"].body.modules())
    for detected in scope["detections"]:
        assert detected["boxes"].shape == (len(detected["labels"]), 4)
        assert torch.isfinite(detected["boxes"]).all()


def test_mask_rcnn(scope):
    from torchvision.models.detection import MaskRCNN

    backbone = scope["BackboneWithFPN"]("resnet18_fdconv", out_channels=32)
    detector = MaskRCNN(
        backbone, num_classes=4, min_size=64, max_size=96, box_score_thresh=0.0, box_detections_per_img=3
    )
    targets = []
    for image, target in zip(scope["images"], scope["targets"], strict=True):
        mask = torch.zeros(1, *image.shape[1:], dtype=torch.uint8)
        mask[:, 5:40, 5:50] = 1
        targets.append({**target, "masks": mask})
    assert "loss_mask" in assert_trains(detector, scope["images"], targets)
    with torch.no_grad():
        for image, detected in zip(scope["images"], detector.eval()(scope["images"]), strict=True):
            assert len(detected["boxes"]) == 3
            assert detected["masks"].shape == (3, 1, *image.shape[1:])
