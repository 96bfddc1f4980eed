"""Detectors: computation, training, BatchNorm, and saving and loading."""

import json
from copy import deepcopy

import pytest
import timm
import torch
from conftest import randomize
from contract import SMALL, small
from examples import modulators
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2
from torch import nn

pytest.importorskip("torchvision", reason="torchvision is not installed")

from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from fdconv_zoo.dense import Detector
from fdconv_zoo.dense.detection.inference import predict
from fdconv_zoo.dense.detection.onnx import export_onnx
from fdconv_zoo.errors import ConfigError, HubError, WeightsError
from fdconv_zoo.layers import set_path
from fdconv_zoo.layers.ksm import GlobalBranch
from fdconv_zoo.training.norms import RunningNorm, set_norm
from fdconv_zoo.training.tuning import train_mode

CLASSES = ["cat", "dog"]
NAME = "resnet10s_fdconv"
NARROW = dict(channels=(24, 24, 32, 32), num_kernels=4)
HEAD = dict(
    rpn_pre_nms_top_n_train=50,
    rpn_post_nms_top_n_train=20,
    rpn_pre_nms_top_n_test=50,
    rpn_post_nms_top_n_test=20,
    box_score_thresh=0.0,
    box_detections_per_img=10,
)
SIZES = dict(min_size=64, max_size=96)
REPO = "ada/pets"

ONE_STAGE_HEAD = dict(score_thresh=0.0, topk_candidates=50, detections_per_img=10)

both_heads = pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
all_heads = pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn", "retinanet", "fcos"])
one_stage_heads = pytest.mark.parametrize("head", ["retinanet", "fcos"])


def make(head="faster_rcnn", backbone=NAME, **options):
    own = dict(head_args=HEAD, fpn_channels=16) if "rcnn" in head else dict(head_args=ONE_STAGE_HEAD, fpn_channels=64)
    options = dict(backbone_args=NARROW, **own, **SIZES) | options
    return Detector(backbone, CLASSES, head, **options)


def make_random(head="faster_rcnn", seed=0, **options):
    torch.manual_seed(seed)
    return randomize(make(head, **options), std=0.05).eval()


def data():
    """Two images of different sizes; the second has no objects."""
    torch.manual_seed(1)
    images = [torch.rand(3, 64, 80), torch.rand(3, 60, 52)]
    boxes = torch.tensor([[5.0, 5.0, 50.0, 40.0], [30.0, 20.0, 70.0, 60.0]])
    masks = torch.zeros(2, 64, 80, dtype=torch.uint8)
    masks[0, 5:40, 5:50] = masks[1, 20:60, 30:70] = 1
    empty = dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long), masks=masks[:0, :60, :52])
    return images, [dict(boxes=boxes, labels=torch.tensor([1, 2]), masks=masks), empty]


@torch.no_grad()
def detect(model, images=None):
    return model.eval()(images or data()[0])


def assert_equal_detections(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        assert len(one["boxes"])
        assert all(torch.equal(one[key], other[key]) for key in one)


# Computation and training.


class PlainPyramid(nn.Module):
    """A backbone as in torchvision's documentation."""

    def __init__(self):
        super().__init__()
        self.body = timm.create_model(NAME, features_only=True, out_indices=(1, 2, 3, 4), **NARROW)
        self.fpn = FeaturePyramidNetwork([24, 24, 32, 32], 256, LastLevelMaxPool())
        self.out_channels = 256

    def forward(self, x):
        return self.fpn({str(i): feature for i, feature in enumerate(self.body(x))})


@both_heads
def test_equals_plain_torchvision(head):
    """The strides of this backbone are 2, 4, 8 and 16; the pooled level has stride 32."""
    model = make_random(head, fpn_channels=256)
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5)
    network = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}[head]
    by_hand = network(PlainPyramid(), num_classes=3, rpn_anchor_generator=anchors, **SIZES, **HEAD)
    weights = {key.removeprefix("network.").replace("body.model.", "body."): v for key, v in model.state_dict().items()}
    by_hand.load_state_dict(weights)
    assert_equal_detections(detect(model), detect(by_hand))
    losses = []
    for trained in (model, by_hand):
        torch.manual_seed(2)  # boxes are sampled
        losses.append(trained.train()(*data()))
    assert losses[0] == losses[1]
    assert ("loss_mask" in losses[0]) == (head == "mask_rcnn")


class PlainLaterPyramid(nn.Module):
    """The last three maps, and two more, as in torchvision's own one-stage detectors."""

    def __init__(self):
        super().__init__()
        self.body = timm.create_model(NAME, features_only=True, out_indices=(2, 3, 4), **NARROW)
        self.fpn = FeaturePyramidNetwork([24, 32, 32], 256, LastLevelP6P7(256, 256))
        self.out_channels = 256

    def forward(self, x):
        return self.fpn({str(i): feature for i, feature in enumerate(self.body(x))})


@one_stage_heads
def test_equals_plain_torchvision_of_one_stage(head):
    """Strides 4 to 64. torchvision's label 0 is the first class."""
    model = make_random(head, fpn_channels=256)
    if head == "retinanet":
        sizes = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in (16, 32, 64, 128, 256))
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    else:
        anchors = AnchorGenerator(((4,), (8,), (16,), (32,), (64,)), ((1.0,),) * 5)
    network = {"retinanet": RetinaNet, "fcos": FCOS}[head]
    by_hand = network(PlainLaterPyramid(), num_classes=2, anchor_generator=anchors, **SIZES, **ONE_STAGE_HEAD)
    weights = {key.removeprefix("network.").replace("body.model.", "body."): v for key, v in model.state_dict().items()}
    by_hand.load_state_dict(weights)
    expected = detect(by_hand)
    for objects in expected:
        objects["labels"] += 1
    assert_equal_detections(detect(model), expected)
    images, targets = data()
    shifted = [{**target, "labels": target["labels"] - 1} for target in targets]
    assert model.train()(images, targets) == by_hand.train()(images, shifted)
    assert targets[0]["labels"].tolist() == [1, 2]  # not changed


@pytest.mark.parametrize("channels", [16, 32])
def test_the_heads_are_as_wide_as_the_pyramid(channels):
    heads = make("mask_rcnn", fpn_channels=channels).network.roi_heads
    layers = [layer for layer in heads.mask_head.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.weight.shape for layer in layers] == [(channels, channels, 3, 3)] * 4
    assert heads.mask_predictor.conv5_mask.weight.shape == (channels, channels, 2, 2)
    assert heads.box_head.fc7.weight.shape == (4 * channels, 4 * channels)


@all_heads
@pytest.mark.parametrize("first", [0, 1], ids=["objects", "no_objects"])
def test_trains(head, first):
    """Every parameter has a gradient, as distributed training requires, even for images without objects."""
    model = make_random(head).train()
    losses = model(*(part[first:] for part in data()))
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    heads = [gradients[name] for name in modulators(model) if "filter" in name or "attention" in name]
    assert heads
    assert all(gradient.any() for gradient in heads)


def test_learns():
    """Overfits two squares at fixed positions."""
    torch.manual_seed(0)
    model = make(head_args=HEAD | dict(box_score_thresh=0.5), fpn_channels=64)
    image, target = torch.zeros(3, 64, 64), dict(labels=torch.tensor([1, 2]))
    image[0, 8:28, 8:28] = image[1, 30:60, 24:54] = 1
    target["boxes"] = torch.tensor([[8.0, 8.0, 28.0, 28.0], [24.0, 30.0, 54.0, 60.0]])
    set_norm(model.backbone, "frozen")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    train_mode(model)
    for _ in range(40):
        loss = sum(model([image], [target]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = detect(model, [image])[0]
    assert found["labels"].sort().values.tolist() == [1, 2]
    assert box_iou(found["boxes"][found["labels"].argsort()], target["boxes"]).diagonal().min() > 0.6


@pytest.mark.parametrize(
    ("name", "arguments", "first_stride", "is_dynamic"),
    [
        ("swin_fdconv", SMALL["swin"] | dict(depths=(1, 1, 1, 1)), 4, True),
        ("convnext_atto_fdconv", SMALL["convnext"] | dict(depths=(1, 1, 1, 1)), 4, True),
        (
            "resnet50_fdconv.a1_in1k",
            dict(layers=(1,) * 4, channels=(8, 8, 8, 24), fbm=False, drop_path_rate=0.1),
            4,
            True,
        ),
        ("resnet10s_fdconv", dict(fdconv_layers=()), 2, False),
        ("test_resnet", {}, 4, False),
    ],
)
def test_backbones(name, arguments, first_stride, is_dynamic):
    model = make(backbone=name, backbone_args=arguments)
    strides = [first_stride << level for level in range(5)]
    assert model.config["anchor_sizes"] == [8 * stride for stride in strides]
    features = model.network.backbone(torch.rand(2, 3, 64, 128)).values()
    assert [tuple(map.shape) for map in features] == [(2, 16, 64 // stride, 128 // stride) for stride in strides]
    sum(model.train()(*data()).values()).backward()
    assert bool(modulators(model)) == is_dynamic
    assert all(found["boxes"].isfinite().all() for found in detect(model))


def test_half_precision():
    model = make_random("mask_rcnn")
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(*data())
        found = detect(model)[0]
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    # Coordinates have more than the 8 bits of bfloat16, whose steps at 1000 pixels are 4.
    assert not torch.equal(found["boxes"], found["boxes"].bfloat16().float())
    boxes = torch.rand(100, 4) + torch.tensor([700.0, 800.0, 900.0, 1000.0])
    for stage in (model.network.rpn, model.network.roi_heads):
        same = stage.box_coder.decode(torch.zeros(100, 4, dtype=torch.bfloat16), [boxes])[:, 0]
        assert torch.allclose(same, boxes, atol=1e-3)


# Views.


def mirrored(objects, width):
    """The objects of a mirrored image, seen in the image."""
    moved = {**objects, "boxes": torch.tensor([[width - c, b, width - a, d] for a, b, c, d in objects["boxes"]])}
    if "masks" in objects:
        moved["masks"] = torch.from_numpy(objects["masks"].numpy()[..., ::-1].copy())
    return moved


def best_of(views, most, overlap):
    """The objects of all views without those that overlap a better one of their class, one by one."""
    everything = [
        {key: values[i] for key, values in view.items()} for view in views for i in range(len(view["labels"]))
    ]
    kept = []
    for one in sorted(everything, key=lambda item: -item["scores"].item()):
        rivals = [other["boxes"] for other in kept if other["labels"] == one["labels"]]
        if not any(box_iou(box[None], one["boxes"][None]).item() > overlap for box in rivals):  # NaN of empty boxes
            kept.append(one)
    return {key: torch.stack([item[key] for item in kept[:most]]) for key in kept[0]}


@pytest.mark.parametrize("head", ["mask_rcnn", "retinanet"])
@torch.no_grad()
def test_views_one_by_one(head):
    model = make_random(head)
    images, _ = data()
    larger = make_random(head, min_size=96, max_size=144)
    views = []
    for sized in (model, larger):
        views.append(sized(images))
        views.append([mirrored(*pair) for pair in zip(sized([i.flip(-1) for i in images]), (80, 52), strict=True)])
    expected = [best_of(of_image, most=10, overlap=0.5) for of_image in zip(*views, strict=True)]
    before = model.network.transform
    actual = predict(model, images, scales=(1.0, 1.5), flip=True)
    assert_equal_detections(actual, expected)
    assert model.network.transform is before
    scores = [view["scores"].tolist() for view in (*views[0], *actual)]
    assert scores[:2] != scores[2:]
    assert_equal_detections(predict(model, images), views[0])


@torch.no_grad()
def test_views_without_objects():
    model = make_random("mask_rcnn")
    model.network.roi_heads.score_thresh = 1.0
    for found, image in zip(predict(model, data()[0], scales=(1.0, 0.5), flip=True), data()[0], strict=True):
        assert {key: len(value) for key, value in found.items()} == dict.fromkeys(
            ("boxes", "labels", "scores", "masks"), 0
        )
        assert found["masks"].shape == (0, 1, *image.shape[1:])


def test_weights_of_a_file(tmp_path):
    trained = randomize(timm.create_model(NAME, num_classes=7, **NARROW))
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    body = make(pretrained=tmp_path / "model.safetensors").backbone.model
    assert len(body.state_dict()) > 50
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in body.state_dict().items())


@one_stage_heads
def test_one_stage_in_half_precision(head, tmp_path):
    model = make_random(head)
    images, targets = data()
    with torch.autocast("cpu", torch.bfloat16):
        found, losses = model(images), model.train()(images, targets)
    assert all(objects["boxes"].dtype == objects["scores"].dtype == torch.float32 for objects in found)
    assert all(set(objects["labels"].tolist()) <= {1, 2} for objects in found)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    with pytest.raises(ConfigError, match=f"{head} cannot be exported to ONNX; faster_rcnn and mask_rcnn can"):
        export_onnx(model, tmp_path / "model.onnx", (64, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(head="yolo"), "head yolo: no such head; choose one of faster_rcnn, mask_rcnn, retinanet, fcos"),
        (dict(head="fcos", anchor_sizes=[8] * 5), "fcos has no anchors"),
        (dict(head="fcos", fpn_channels=48), "fpn_channels 48: fcos needs 64, 96 or another multiple of 32"),
        (dict(head="fcos", fpn_channels=32), "fpn_channels 32: fcos needs 64"),
        (dict(head="retinanet", head_args=HEAD), "head_args .*: no such argument"),
        (dict(backbone="resnet51_fdconv"), "resnet51_fdconv: no such model; did you mean .*resnet50_fdconv"),
        (dict(backbone="test_vit", backbone_args={}), "its maps have strides .*choose another"),
        (dict(anchor_sizes=[8, 16]), r"anchor_sizes \[8, 16\]: expected 5 sizes, one per level"),
        (dict(head_args=dict(box_score_tresh=0.1)), "head_args box_score_tresh: .*did you mean box_score_thresh"),
        (dict(head_args=dict(min_size=3)), "head_args min_size: "),
        (dict(backbone_args=dict(blocks=3)), "cannot be built with .*blocks"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)
    with pytest.raises(ConfigError, match="no classes"):
        Detector(NAME, [])


@pytest.mark.parametrize("name", ["resnet50_fdconv", "swin_tiny_patch4_window7_224_fdconv"])
def test_layer_decay(name):
    """The same as for the timm model, with everything after the backbone in place of the classifier."""
    classifier = small(name)
    arguments = SMALL["resnet" if "resnet" in name else "swin"]
    model = Detector(name, CLASSES, backbone_args=arguments, fpn_channels=16, head_args=HEAD)
    classifier_rates, rates = (lr_scales(each) for each in (classifier, model))
    prefix = "network.backbone.body.model."
    for key, rate in rates.items():
        assert rate == (classifier_rates[key.removeprefix(prefix)] if key.startswith(prefix) else (1.0, rate[1]))
    assert len({rate for rate, _ in rates.values()}) > 4


def lr_scales(model):
    """Return each parameter's learning rate factor and weight decay."""
    groups = create_optimizer_v2(model, "sgd", lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
    by_id = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: by_id[id(parameter)] for name, parameter in model.named_parameters()}


# BatchNorm in training.


def ksm_norms(model):
    return {f"{name}.norm": module.norm for name, module in model.named_modules() if isinstance(module, GlobalBranch)}


def other_norms(model):
    own = ksm_norms(model)
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and n not in own}


def test_frozen_norms_do_not_change():
    model = make_random()
    set_norm(model.backbone, "frozen")
    before = deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    train_mode(model)
    sum(model(*data()).values()).backward()
    optimizer.step()
    after = model.state_dict()
    assert len(other_norms(model)) > 8
    for name in other_norms(model):
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(after[f"{name}.{part}"], before[f"{name}.{part}"])
    for name in ksm_norms(model):
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert not torch.equal(after[f"{name}.{part}"], before[f"{name}.{part}"])


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_running_norm_averages_all_batches(batch):
    norm = RunningNorm(4).double()
    x = 3 * torch.randn(36, 4, 2, 2, dtype=torch.float64) - 5
    for images in x.split(batch):
        norm(images)
    assert torch.allclose(norm.running_mean, x.mean((0, 2, 3)))
    assert torch.allclose(norm.running_var, x.var((0, 2, 3), unbiased=False))
    for _ in range(400):  # and forgets old batches
        norm(x + 10)
    assert torch.allclose(norm.running_mean, x.mean((0, 2, 3)) + 10, atol=0.5)


def test_running_norm_equals_its_batch_norm():
    plain = randomize(nn.BatchNorm2d(4))
    norm = RunningNorm.from_batch_norm(deepcopy(plain))
    x = torch.randn(5, 4, 1, 1)
    assert torch.equal(norm.eval()(x), plain.eval()(x))
    norm.train()(x)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm.eval()(x), plain(x))
    # In training, the output of an image does not depend on the others once the statistics have converged.
    norm.momentum = 0.0
    norm.num_batches_tracked.fill_(10**9)
    assert torch.allclose(norm.train()(x)[:1], norm(x[:1]))


def test_two_forward_passes_before_a_gradient():
    norm = RunningNorm(4)
    x = torch.randn(2, 4, 1, 1, requires_grad=True)
    (norm(x) + norm(2 * x)).square().sum().backward()
    assert x.grad.isfinite().all()


def test_one_image_trains():
    model = make()
    set_norm(model.backbone, "frozen")
    train_mode(model)
    images, targets = data()
    sum(model(images[:1], targets[:1]).values()).backward()
    assert all(norm.running_mean.any() for norm in ksm_norms(model).values())


def test_frozen_weights_are_saved_unchanged(tmp_path):
    model = make_random()
    set_norm(model.backbone, "frozen")
    train_mode(model)
    model(*data())
    model.save_pretrained(tmp_path)
    loaded = Detector.from_pretrained(tmp_path)
    for detector in (model, loaded):  # the native path sums otherwise where norms are not frozen
        set_path(detector, "rebuild")
    assert_equal_detections(detect(loaded), detect(model))


def test_synchronized_norms():
    model = make_random().train()
    expected = deepcopy(model)
    set_norm(model, "sync")
    norms = [*ksm_norms(model).values(), *other_norms(model).values()]
    assert len(norms) > 16
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    images = torch.rand(2, 3, 64, 64)
    for one, other in zip(model.backbone(images), expected.backbone(images), strict=True):
        assert torch.allclose(one, other)
    assert model.state_dict().keys() == expected.state_dict().keys()


def test_unsupported_norms(tmp_path):
    with pytest.raises(ConfigError, match="norm group: no such choice; there are batch, frozen, sync"):
        set_norm(nn.BatchNorm2d(3), "group")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(ConfigError, match="needs GPUs"):
            set_norm(nn.BatchNorm2d(3), "sync")
    finally:
        torch.distributed.destroy_process_group()


# Saving and loading.


@all_heads
def test_saved_to_a_folder(head, tmp_path):
    sizes = {} if head == "fcos" else {"anchor_sizes": [12, 24, 48, 96, 192]}
    model = make_random(head, mean=[0.1, 0.2, 0.3], **sizes)
    model.save_pretrained(tmp_path)
    loaded = Detector.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.config == json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(model.config))
    assert "pretrained" not in loaded.config
    assert loaded.class_names == CLASSES
    assert_equal_detections(detect(loaded), detect(model))
    card = (tmp_path / "README.md").read_text()
    assert "1. cat\n2. dog" in card
    assert ("masks" in card) == (head == "mask_rcnn")


def test_pushed_to_the_hub(hub, tmp_path):
    hub.log_in(hub.add_user("ada"))
    first, second = make_random(seed=0), make_random(seed=1)
    first.push_to_hub(REPO, private=True)
    commit = HfApi().model_info(REPO).sha
    second.push_to_hub(REPO)
    assert_equal_detections(detect(Detector.from_pretrained(REPO, revision=commit)), detect(first))
    assert_equal_detections(detect(Detector.from_pretrained(REPO)), detect(second))
    info = HfApi().model_info(REPO)
    assert info.private
    assert not any("timm/" in request.path for request in hub.requests)  # the backbone's weights are not requested
    hub.log_out()
    with pytest.raises(HubError, match="does not exist, or is private"):
        Detector.from_pretrained(REPO, cache_dir=tmp_path)


def drop_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "rpn" not in k}, folder / "model.safetensors")


def more_classes(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(class_names=["cat", "dog", "cow"])))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_tensor, "model.safetensors does not fit Detector: .* missing: network.rpn"),
        (more_classes, "size mismatch for network.roi_heads.box_predictor"),
        (lambda folder: (folder / "config.json").write_text('{"architecture": "resnet18"}'), "not describe a Detector"),
        (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
    ],
)
def test_damaged_folders(tmp_path, damage, message):
    make().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(WeightsError, match=message):
        Detector.from_pretrained(tmp_path)
