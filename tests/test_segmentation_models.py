"""Segmenters: computation, training, backbones, and saving and loading."""

import json
import math
import re
from copy import deepcopy
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomize, relative_error
from contract import SMALL, family, plain_twin, small
from huggingface_hub import HfApi
from safetensors.torch import load_file, save, save_file
from timm.layers import freeze_batch_norm_2d
from timm.optim import create_optimizer_v2
from torch import nn

pytest.importorskip("segmentation_models_pytorch", reason="the segmentation library is not installed")

from fdconv_zoo import FDConv2d
from fdconv_zoo.dense import Segmenter
from fdconv_zoo.dense.segmentation.losses import IGNORE, cross_entropy, dice, focal, lovasz
from fdconv_zoo.dense.segmentation.model import DECODERS
from fdconv_zoo.errors import ConfigError, HubError, WeightsError

CLASSES = ["background", "cat", "dog"]
BACKBONE = dict(stem_pool=True, channels=(24, 24, 32, 32), num_kernels=4)
# Small, to make tests fast.
NARROW = {
    "deeplabv3": dict(decoder_channels=16),
    "deeplabv3plus": dict(decoder_channels=16),
    "fpn": dict(decoder_pyramid_channels=32, decoder_segmentation_channels=32),
    "linknet": {},
    "manet": dict(decoder_channels=(16, 16, 16, 16, 16), decoder_pab_channels=16),
    "mask2former": dict(
        **dict.fromkeys(("hidden_dim", "feature_size", "mask_feature_size"), 32),
        **dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 32),
        **dict(num_attention_heads=2, encoder_layers=1, decoder_layers=2, num_queries=6, train_num_points=64),
    ),
    "pan": dict(decoder_channels=16),
    "pspnet": dict(psp_out_channels=16),
    "segformer": dict(decoder_segmentation_channels=16),
    "unet": dict(decoder_channels=(16, 16, 16, 16, 16)),
    "unetplusplus": dict(decoder_channels=(16, 16, 16, 16, 16)),
    "upernet": dict(decoder_channels=16),
}
REPO = "ada/pets"

every_decoder = pytest.mark.parametrize("decoder", DECODERS)
both_kinds = pytest.mark.parametrize("decoder", ["upernet", "mask2former"])


def make(decoder="fpn", backbone="resnet10s_fdconv", **options):
    options = {"backbone_args": BACKBONE, "decoder_args": NARROW[decoder], **options}
    return Segmenter(backbone, CLASSES, decoder, **options)


def make_random(decoder="fpn", seed=0, **options):
    torch.manual_seed(seed)
    return randomize(make(decoder, **options), std=0.05).eval()


def data(height=64, width=64, number=2):
    torch.manual_seed(1)
    masks = torch.randint(0, 3, (number, height, width))
    masks[torch.rand(masks.shape) < 0.1] = IGNORE
    return torch.randn(number, 3, height, width), masks


# Computation and training.


@every_decoder
def test_trains_and_predicts(decoder):
    model = make(decoder)
    assert any(isinstance(layer, FDConv2d) for layer in model.modules())
    images, masks = data(48, 80)
    losses = model.train()(images, masks)
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.eval()
    with torch.no_grad():
        for size in ((64, 64), (37, 50), (5, 130)):
            scores = model(torch.randn(2, 3, *size))
            assert scores.shape == (2, len(CLASSES), *size)
            assert scores.isfinite().all()


@both_kinds
def test_learns_colours(decoder):
    """Each class has a colour; an ignored corner has none."""
    torch.manual_seed(0)
    model = make(decoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    masks = torch.zeros(2, 32, 32, dtype=torch.long)
    masks[0, :, 16:] = 1
    masks[1, 16:] = 2
    images = F.one_hot(masks, 3).permute(0, 3, 1, 2).float() * 2 - 1
    truth = masks.clone()
    truth[:, :8, :8] = IGNORE
    images[:, :, :8, :8] = 0
    for _ in range(30):
        optimizer.zero_grad()
        sum(model.train()(images, truth).values()).backward()
        optimizer.step()
    for module in model.eval().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()  # the running statistics of two images lag behind the weights
    with torch.no_grad():
        right = model(images).argmax(1) == masks
    assert right[truth != IGNORE].float().mean() > 0.9


def test_padding_is_removed():
    """With the pixels as scores: scores are not shifted, and the padding does not contribute to the loss."""
    model = make()
    model.network._decode = mock.Mock(side_effect=lambda maps, images: images)
    images, masks = data(37, 50)
    assert torch.equal(model(images), images)
    assert model.network._decode.call_args.args[1].shape == (2, 3, 64, 64)
    assert relative_error(model(images, masks)["cross_entropy"], cross_entropy(images, masks)) < 1e-6


@both_kinds
def test_half_precision(decoder):
    model = make(decoder)
    images, masks = data()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images, masks)
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# Losses.


def test_losses_pixel_by_pixel():
    logits, masks = data(6, 7)
    logits = 3 * logits
    entropy, count = 0.0, 0
    overlap, size, true = (dict.fromkeys(range(3), 0.0) for _ in range(3))
    for image, row, column in np.ndindex(*masks.shape):
        truth, scores = int(masks[image, row, column]), logits[image, :, row, column].double().tolist()
        if truth == IGNORE:
            continue
        exponentials = [math.exp(score) for score in scores]
        probabilities = [value / sum(exponentials) for value in exponentials]
        entropy -= math.log(probabilities[truth])
        count += 1
        for number in range(3):
            overlap[number] += probabilities[number] * (truth == number)
            size[number] += probabilities[number]
            true[number] += truth == number
    assert cross_entropy(logits, masks).item() == pytest.approx(entropy / count, rel=1e-5)
    expected = sum(1 - 2 * overlap[number] / (size[number] + true[number]) for number in range(3)) / 3
    assert dice(logits, masks).item() == pytest.approx(expected, rel=1e-5)


def test_weights_of_classes_and_hard_pixels():
    logits, masks = data(6, 7)
    weights = torch.tensor([1.0, 0.0, 3.5])
    pixels = [
        (float(-logits[image, :, row, column].log_softmax(0)[truth]), float(weights[truth]))
        for image, row, column in np.ndindex(*masks.shape)
        if (truth := int(masks[image, row, column])) != IGNORE
    ]
    expected = sum(loss * weight for loss, weight in pixels) / sum(weight for _, weight in pixels)
    assert cross_entropy(logits, masks, weights).item() == pytest.approx(expected, rel=1e-5)
    hardest = sorted((loss for loss, _ in pixels), reverse=True)[: round(0.3 * len(pixels))]
    expected = sum(hardest) / len(hardest)
    assert cross_entropy(logits, masks, hard_pixels=0.3).item() == pytest.approx(expected, rel=1e-5)
    worst = sorted(pixels, key=lambda pixel: -pixel[0] * pixel[1])[: round(0.3 * len(pixels))]
    expected = sum(loss * weight for loss, weight in worst) / sum(weight for _, weight in worst)
    assert cross_entropy(logits, masks, weights, 0.3).item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_pixel_by_pixel():
    logits, masks = data(6, 7)
    total = count = 0.0
    for image, row, column in np.ndindex(*masks.shape):
        if (truth := int(masks[image, row, column])) == IGNORE:
            continue
        count += 1
        for number, score in enumerate(logits[image, :, row, column].tolist()):
            right = 1 / (1 + math.exp(-score if number == truth else score))
            total -= (1 - right) ** 2 * math.log(right)
    assert focal(logits, masks).item() == pytest.approx(total / count / 3, rel=1e-4)


def test_lovasz_loss_is_the_mean_jaccard_loss_of_certain_predictions():
    masks = torch.tensor([[[0, 0, 1, 1, 2, IGNORE]]])
    predicted = torch.tensor([[[0, 1, 1, 1, 2, 2]]])
    logits = 100 * torch.nn.functional.one_hot(predicted, 4).permute(0, 3, 1, 2).float()
    assert lovasz(logits, masks).item() == pytest.approx((1 / 2 + 1 / 3 + 0) / 3, rel=1e-4)


def test_weights_of_losses():
    images, masks = data()
    models = [make(ce_weight=ce, dice_weight=dice) for ce, dice in ((1, 1), (0.5, 3), (0, 1), (1, 0))]
    for model in models:
        model.load_state_dict(models[0].state_dict())
    with torch.no_grad():
        one, weighted, only_dice, only_ce = (model.eval()(images, masks) for model in models)
    assert weighted["cross_entropy"] == pytest.approx(0.5 * one["cross_entropy"].item(), rel=1e-5)
    assert weighted["dice"] == pytest.approx(3 * one["dice"].item(), rel=1e-5)
    assert list(only_dice) == ["dice"]
    assert list(only_ce) == ["cross_entropy"]
    everything = {
        "dice_weight": 0.5,
        "focal_weight": 2,
        "lovasz_weight": 0.5,
        "class_weights": [1, 2, 3],
        "hard_pixels": 0.5,
    }
    losses = make(**everything)(images, masks)
    assert list(losses) == ["cross_entropy", "dice", "focal", "lovasz"]
    sum(losses.values()).backward()


def test_the_auxiliary_head_adds_its_loss_on_the_third_stage_and_nothing_to_the_scores(tmp_path):
    model = make_random("upernet", auxiliary_weight=0.25, dice_weight=0.5)
    images, masks = data()
    with torch.no_grad():
        losses, scores = model(images, masks), model(images)
        third = model.backbone.model.forward_intermediates(images, indices=[-2], intermediates_only=True)[0]
        head = model.network.auxiliary_head  # as mmsegmentation's FCNHead with one convolution
        assert [type(layer) for layer in head] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout, nn.Conv2d]
        logits = F.interpolate(head(third), (64, 64), mode="bilinear")
    expected = 0.25 * (cross_entropy(logits, masks) + 0.5 * dice(logits, masks))
    assert list(losses) == ["cross_entropy", "dice", "auxiliary"]
    assert losses["auxiliary"].item() == pytest.approx(expected.item(), rel=1e-4)

    sum(model.train()(images, masks).values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())  # as several processes need
    model.eval().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    loaded = Segmenter.from_pretrained(tmp_path)
    assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())
    without = make("upernet", dice_weight=0.5).eval()
    kept = {key: value for key, value in model.state_dict().items() if "auxiliary" not in key}
    assert len(kept) < len(weights)
    without.load_state_dict(kept)
    with torch.no_grad():
        assert torch.equal(without(images), loaded(images))
        assert scores.shape == loaded(images).shape


@both_kinds
def test_all_ignored(decoder):
    weights = {"dice_weight": 1.0, "focal_weight": 1.0, "lovasz_weight": 1.0, "hard_pixels": 0.5}
    weights["auxiliary_weight"] = 0.4
    model = make(decoder, **(weights if decoder == "upernet" else {}))
    images, masks = data()
    losses = model(images, torch.full_like(masks, IGNORE))
    assert [loss.item() for loss in losses.values()] == [0] * len(losses)
    sum(losses.values()).backward()
    assert all((parameter.grad == 0).all() for parameter in model.parameters())  # not None: processes reduce them


@both_kinds
def test_an_ignored_image_does_not_contribute(decoder):
    model = make_random(decoder)
    images, masks = data()
    masks[0] = IGNORE
    losses = []
    for batch in ((images, masks), (images[1:], masks[1:])):
        torch.manual_seed(0)  # Mask2Former samples points
        losses.append(model(*batch))
    for name, loss in losses[0].items():
        assert loss.item() == pytest.approx(losses[1][name].item(), rel=1e-4)


def test_masks_of_mask2former():
    """One mask for each class in an image, without ignored pixels."""
    model = make("mask2former")
    images, masks = data()
    masks[1][masks[1] == 1] = 2
    inner = model.network.model
    with mock.patch.object(inner, "get_loss_dict", wraps=inner.get_loss_dict) as get_loss_dict:
        losses = model(images, masks)
    arguments = get_loss_dict.call_args.kwargs
    assert [labels.tolist() for labels in arguments["class_labels"]] == [[0, 1, 2], [0, 2]]
    for mask, labels, parts in zip(masks, arguments["class_labels"], arguments["mask_labels"], strict=True):
        for label, part in zip(labels, parts, strict=True):
            assert torch.equal(part.bool(), mask == label)
    torch.manual_seed(0)
    total = sum(model.eval()(images, masks).values())
    torch.manual_seed(0)
    expected = inner(images, mask_labels=arguments["mask_labels"], class_labels=arguments["class_labels"]).loss
    assert set(losses) == {"cross_entropy", "mask", "dice"}
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


@torch.no_grad()
def test_scores_of_mask2former_query_by_query():
    model = make_random("mask2former")
    images, _ = data()
    outputs = model.network.model(images)
    expected = torch.zeros(2, 3, 64, 64)
    for image, query, number in np.ndindex(2, 6, 3):
        logits = outputs.class_queries_logits[image, query]
        mask = outputs.masks_queries_logits[image, query][None, None]
        probability = logits[number].exp() / logits.exp().sum()
        expected[image, number] += probability * F.interpolate(mask, (64, 64), mode="bilinear")[0, 0].sigmoid()
    assert relative_error(model(images), expected) < 1e-5


# Backbones.


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18_fdconv", SMALL["resnet"]),
        ("convnext_atto_fdconv", SMALL["convnext"]),
        ("swin_fdconv", dict(depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 2, 4, 8))),
        ("resnet18", dict(channels=(8, 8, 16, 16))),
        ("mobilenetv3_small_050", {}),
    ],
)
@both_kinds
def test_backbones(decoder, name, arguments):
    model = make(decoder, name, backbone_args={**arguments, "drop_path_rate": 0.1})
    images, masks = data(40, 72)
    sum(model.train()(images, masks).values()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    with torch.no_grad():
        assert model.eval()(images).shape == (2, 3, 40, 72)


@timm.models.register_model
def plain_resnet10s(pretrained=False, **kwargs):
    """A model registered by a user, without a default configuration."""
    return timm.create_model("resnet10s_fdconv", fdconv_layers=(), pretrained=pretrained, **kwargs)


def test_backbones_registered_elsewhere():
    model = make("unet", "plain_resnet10s")
    assert not any(isinstance(layer, FDConv2d) for layer in model.modules())
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_arguments_reach_the_backbone():
    model = make(backbone_args={**BACKBONE, "fbm": False, "ksm_local": False})
    layers = [layer for layer in model.modules() if isinstance(layer, FDConv2d)]
    assert layers
    assert all(layer.fbm is None and layer.ksm.local_branch is None for layer in layers)


def test_mask2former_keeps_the_initialization_of_the_backbone():
    """By default, transformers initializes all weights itself: modulators would not start neutral."""
    torch.manual_seed(0)
    expected = timm.create_model("resnet10s_fdconv", num_classes=0, **BACKBONE).state_dict()
    torch.manual_seed(0)
    own = make("mask2former").backbone.model.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in own.items())


# Pretrained weights.


def test_published_weights(hub, tmp_path):
    """A saved model does not need the published weights again."""
    torch.manual_seed(0)
    plain = plain_twin("resnet18_fdconv", full_size=True).eval()
    hub.add_repo("timm/resnet18.a1_in1k", {"model.safetensors": save(plain.state_dict())})
    model = make("linknet", "resnet18_fdconv.a1_in1k", backbone_args={}, pretrained=True).eval()
    images, _ = data()
    with torch.no_grad():
        expected = plain.forward_intermediates(images, intermediates_only=True)[-1]
        assert relative_error(model.backbone(images)[-1], expected) < 1e-4
    assert model.mean == list(plain.pretrained_cfg["mean"])

    model.save_pretrained(tmp_path)
    assert "pretrained" not in json.loads((tmp_path / "config.json").read_text())
    requests = len(hub.requests)
    assert requests
    loaded = Segmenter.from_pretrained(tmp_path)
    assert len(hub.requests) == requests
    assert torch.equal(loaded.backbone.model.bn1.weight, plain.bn1.weight)


def test_packaged_weights():
    model = make("linknet", "resnet10s_fdconv.fashion_mnist", backbone_args={"stem_pool": True}, pretrained=True)
    published = load_file(timm.get_pretrained_cfg("resnet10s_fdconv.fashion_mnist").file)
    own = model.backbone.model.state_dict()
    assert own
    assert all(torch.equal(tensor, published[name]) for name, tensor in own.items())


def test_weights_of_a_file(tmp_path):
    classifier = randomize(timm.create_model("resnet10s_fdconv", num_classes=7, **BACKBONE))
    save_file(classifier.state_dict(), tmp_path / "model.safetensors")
    model = make(pretrained=tmp_path / "model.safetensors")
    expected = classifier.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.backbone.model.state_dict().items())
    other = {name: tensor for name, tensor in expected.items() if not name.startswith("layer1.0.conv1.fbm")}
    save_file(other, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors does not fit ResNetFDConv: 2 missing: .*fbm"):
        make(pretrained=tmp_path / "model.safetensors")


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(decoder="unet3"), r"decoder unet3: no such decoder; choose one of deeplabv3, .*upernet, mask2former"),
        (dict(backbone="resnet50_fdcon"), "backbone resnet50_fdcon: no such model; did you mean resnet50_fdconv"),
        (dict(backbone="resnet50_fdconv.mine"), "resnet50_fdconv has no weights tagged mine; its tags are a1_in1k, "),
        (
            dict(backbone_args=dict(kernels=4)),
            "resnet10s_fdconv cannot be built .* unexpected keyword argument 'kernels'",
        ),
        (dict(backbone_args=dict(fdconv_layers=["x"])), "fdconv_layers names 'x'"),
        (dict(backbone_args=dict(pretrained=True)), "backbone_args pretrained: set automatically; remove it"),
        (
            dict(backbone_args=dict(stem_pool=False)),
            r"its maps have strides 2, 2, 4, 8, 16, but the decoder needs 2, 4",
        ),
        (dict(decoder_args=dict(width=4)), "decoder_args width: upernet accepts .*decoder_channels"),
        (dict(decoder_args=dict(classes=4)), "decoder_args classes: upernet accepts"),
        (dict(decoder_args=dict(encoder_depth=2)), "decoder upernet cannot be built .*depth"),
        (
            dict(decoder="mask2former", decoder_args=dict(queries=4)),
            "decoder_args queries: mask2former accepts .*num_quer",
        ),
        (dict(decoder="mask2former", decoder_args=dict(num_queries="4")), "mask2former cannot be built .*num_queries"),
        (dict(decoder="mask2former", dice_weight=1.0), "mask2former: set the weights of its losses in decoder_args"),
        (dict(ce_weight=0.0), "there is no loss to train with"),
        (dict(class_weights=[1.0]), r"class_weights \[1.0\]: must be 3 numbers"),
        (dict(class_weights=[1.0, -1.0, 1.0]), "class_weights .* at least 0"),
        (dict(hard_pixels=0.0), "hard_pixels 0.0: must be above 0"),
        (dict(ce_weight=0.0, dice_weight=1.0, hard_pixels=0.5), "belong to the cross-entropy"),
        (dict(decoder="mask2former", class_weights=[1.0, 1.0, 1.0]), "mask2former: set the weights of its losses"),
        (dict(decoder="mask2former", auxiliary_weight=0.4), "mask2former: has losses after each of its layers"),
        (
            dict(
                decoder="unet",
                backbone="test_convnext",
                backbone_args={},
                decoder_args=dict(encoder_depth=2, decoder_channels=(8, 8)),
                auxiliary_weight=0.4,
            ),
            "auxiliary_weight: the decoder takes one map; leave it out",
        ),
        (dict(class_names=["one"]), "1 classes: segmentation supports 2 to 254"),
        (dict(decoder="deeplabv3", backbone="swin_fdconv", backbone_args={}), "unexpected keyword .*output_stride"),
        (dict(pretrained="none.safetensors"), r"none\.safetensors cannot be read"),
        (dict(pretrained=True), "resnet10s_fdconv cannot be built .*: Error.* size mismatch for layer1"),
    ],
)
def test_errors(options, message):
    options = {"backbone": "resnet10s_fdconv", "class_names": CLASSES, "backbone_args": BACKBONE, **options}
    with pytest.raises(ConfigError, match=message):
        Segmenter(**options)


def test_batches_of_one():
    images, masks = data(number=1)
    make("mask2former")(images, masks)
    with pytest.raises(ConfigError, match="at least two images per batch to train: raise --batch-size"):
        make("upernet")(images, masks)


# Parameter groups.


@pytest.mark.parametrize("name", ["resnet18_fdconv", "convnext_atto_fdconv", "swin_fdconv"])
@both_kinds
def test_layer_decay(decoder, name):
    arguments = {key: value for key, value in SMALL[family(name)].items() if key != "img_size"}
    model = make(decoder, name, backbone_args=arguments)
    groups = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    named = {key: scales[id(parameter)] for key, parameter in model.named_parameters()}
    inside = {id(parameter) for parameter in model.backbone.model.parameters()}
    outside = {scales[key] for key in scales if key not in inside}
    assert outside == {1.0}
    assert max(scales[key] for key in inside) == 0.5
    # The factors of the timm model are proportional.
    alone = small(name)
    for group in create_optimizer_v2(alone, "adamw", lr=1.0, layer_decay=0.5).param_groups:
        for parameter in group["params"]:
            scales[id(parameter)] = group["lr_scale"]
    expected = {key: scales[id(parameter)] for key, parameter in alone.named_parameters()}
    by_id = {id(parameter): key for key, parameter in model.named_parameters()}
    pairs = [(named[by_id[id(own)]], expected[key]) for key, own in model.backbone.model.named_parameters()]
    assert len({mine / theirs for mine, theirs in pairs}) == 1
    assert len(set(pairs)) > 3
    for key, parameter in model.named_parameters():
        if "relative_position_bias_table" in key or "queries" in key:
            assert decays[id(parameter)] == 0


def test_copies_are_independent():
    model = make_random("upernet")
    copy = deepcopy(model)
    images, _ = data()
    assert torch.equal(copy(images), model(images))
    assert copy.config == model.config
    next(copy.parameters()).data.zero_()
    assert next(model.parameters()).any()


# Saving and loading.


@every_decoder
def test_saved_to_a_folder(decoder, tmp_path):
    options = {} if decoder == "mask2former" else dict(ce_weight=0.5, dice_weight=2.0)
    model = make_random(decoder, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7], **options)
    model.save_pretrained(tmp_path)
    loaded = Segmenter.from_pretrained(tmp_path)
    assert not loaded.training
    assert (loaded.class_names, loaded.mean, loaded.std) == (CLASSES, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    assert loaded.config == json.loads(json.dumps(model.config))
    images, _ = data(48, 50)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("change", [freeze_batch_norm_2d, nn.SyncBatchNorm.convert_sync_batchnorm])
def test_saved_with_converted_norms(change, tmp_path):
    model = make_random()
    images, _ = data()
    with torch.no_grad():
        expected = model(images)
        change(model.backbone)
        model.save_pretrained(tmp_path)
        assert relative_error(Segmenter.from_pretrained(tmp_path)(images), expected) < 1e-6


def test_pushed_to_the_hub(hub, tmp_path):
    hub.log_in(hub.add_user("ada"))
    first, second = make_random(seed=0), make_random(seed=1)
    first.push_to_hub(REPO, private=True, model_card_kwargs={"metrics": {"mean IoU": "41.5 %"}, "dataset": "pets"})
    HfApi().create_tag(REPO, tag="v1")
    second.push_to_hub(REPO)
    images, _ = data()
    with torch.no_grad():
        assert torch.equal(Segmenter.from_pretrained(REPO)(images), second(images))
        assert torch.equal(Segmenter.from_pretrained(REPO, revision="v1")(images), first(images))
    with hub.offline(), torch.no_grad():
        assert torch.equal(Segmenter.from_pretrained(REPO, revision="v1")(images), first(images))

    assert {name.rpartition("/")[2] for name in hub.cached()} == {"config.json", "model.safetensors"}
    text = Path(HfApi().hf_hub_download(REPO, "README.md", revision="v1")).read_text(encoding="utf-8")
    assert all(part in text for part in ("# ada/pets", "2. dog", "| mean IoU | 41.5 % |", "On pets:", "library_name"))
    scope = {"images": images}
    exec(re.search("```python\n(.*?)```", text, re.DOTALL)[1], scope)  # the code in our own card
    assert torch.equal(scope["classes"], second(images).argmax(1))

    hub.log_out()
    with pytest.raises(HubError, match=r"ada/pets: .*private"):
        Segmenter.from_pretrained(REPO, revision="main", cache_dir=tmp_path)
    with pytest.raises(HubError, match="ada/weeds: it does not exist"):
        Segmenter.from_pretrained("ada/weeds")


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json cannot be read.*folder is complete"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "does not contain the arguments of a model"),
        (
            lambda folder: (folder / "config.json").write_text('{"architecture": "resnet18"}'),
            "not describe a Segmenter",
        ),
        (lambda folder: edit_config(folder, colour=1), "does not describe a Segmenter: .*'colour'.*newer version"),
        (lambda folder: edit_config(folder, backbone="resnet10s_new"), "no such model.*registered with timm"),
        (lambda folder: edit_config(folder, class_names=["a", "b"]), "does not fit Segmenter: .*size mismatch"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 9), r"model\.safetensors is damaged"),
        (lambda folder: edit_weights(folder, lambda tensors: tensors.popitem()), "does not fit Segmenter: 1 missing"),
        (lambda folder: edit_weights(folder, lambda t: t.update(x=torch.ones(1))), "1 unexpected: x"),
        (
            lambda folder: edit_weights(folder, lambda t: t.update(x=torch.full((1,), math.nan))),
            "NaN or infinite, in x",
        ),
    ],
)
def test_damaged_folders(tmp_path, damage, message):
    make().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(WeightsError, match=message):
        Segmenter.from_pretrained(tmp_path)
