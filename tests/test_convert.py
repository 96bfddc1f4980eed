"""scripts/convert.py and fdconv_zoo.porting: checkpoints of other projects, in their own names and formats.

No checkpoint of the paper's authors is available here. Theirs are imitated: names from their code and OpenMMLab's (the
files are listed with each family in fdconv_zoo/backbones), parameters of single layers from recordings of their code.
"""

import json
import math
import pickle
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from conftest import randomize, relative_error
from run_scripts import load_script
from safetensors.torch import load_file, save_file
from test_reference import RECORDINGS, read
from test_resnet import to_their_names
from timm.models.convnext import checkpoint_filter_fn as filter_of_convnext
from timm.models.swin_transformer import checkpoint_filter_fn as filter_of_swin
from torch import nn
from torchvision.models.convnext import CNBlockConfig

from fdconv_zoo.errors import WeightsError
from fdconv_zoo.store import read_checkpoint

try:
    import fdconv_zoo.porting.convert as convert_module
    from fdconv_zoo.errors import ConfigError, RunFolderError
    from fdconv_zoo.porting import convert_checkpoint
    from fdconv_zoo.porting.naming import order_merged_patch
    from fdconv_zoo.porting.openmmlab import backbone_config
except ImportError:
    pytest.skip("before timm 1.0.26 there are models, but no scripts", allow_module_level=True)

LAYERS = dict(layers=(1, 1, 1, 1), channels=(32, 32, 64, 64))
SWIN = dict(depths=(2, 1, 2, 1), embed_dim=24, num_heads=(1, 2, 2, 4), img_size=64, window_size=2)
CONVNEXT = dict(depths=(1, 1, 2, 1), dims=(24, 32, 40, 48))
VIT = dict(depth=3, embed_dim=48, num_heads=2, img_size=64)
SMALL = {
    "resnet50": LAYERS,
    "swin_tiny_patch4_window7_224": SWIN,
    "convnext_tiny": CONVNEXT,
    "vit_tiny_patch16_224": VIT,
    "deit_tiny_patch16_224": VIT,
}
OURS = {
    "resnet50": "resnet50_fdconv",
    "swin_tiny_patch4_window7_224": "swin_fdconv",
    "convnext_tiny": "convnext_fdconv",
    "vit_tiny_patch16_224": "vit_tiny_patch16_224_fdconv",
    "deit_tiny_patch16_224": "vit_tiny_patch16_224_fdconv",
}
if timm.is_model("vit_small_patch16_dinov3"):
    SMALL["vit_small_patch16_dinov3"] = VIT
    OURS["vit_small_patch16_dinov3"] = "vit_small_patch16_dinov3_fdconv"

# As mmdet 2.x writes it (mmcv's Config.pretty_text), after the authors' mask_rcnn_r50_fpn_1x_coco_adamw_FDConv.py.
CONFIG = """
model = dict(
    type='MaskRCNN',
    backbone=dict(
        type='ResNet_FDConv',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
        need_grad_list=['KSM', 'FBM'],
        conv_cfg=dict(
            type='FDConv',
            kernel_num=64,
            use_fdconv_if_c_gt=16,
            use_fdconv_if_k_in=[1, 3],
            use_fbm_if_k_in=[3],
            use_fbm_for_stride=False,
            temp=None,
            att_multi=2.0,
            param_ratio=1,
            param_reduction=1.0,
            kernel_temp=1.0,
            ksm_only_kernel_att=False,
            use_ksm_local=True,
            ksm_local_act='sigmoid',
            ksm_global_act='sigmoid',
            spatial_freq_decompose=False,
            convert_param=True,
            linear_mode=False,
            fbm_cfg=dict(
                k_list=[2, 4, 8],
                lowfreq_att=False,
                fs_feat='feat',
                act='sigmoid',
                spatial='conv',
                spatial_group=1,
                spatial_kernel=3,
                init='zero'))),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5))
optimizer = dict(type='AdamW', lr=0.0001)
"""


def meta(config=CONFIG):
    """What mmcv's runner and its evaluation hook put there; the score is NumPy's."""
    return {
        "env_info": "sys.platform: linux",
        "mmcv_version": "1.7.1",
        "time": "Sat Mar 22 10:00:00 2025",
        "config": config,
        "epoch": 12,
        "iter": 87964,
        "CLASSES": ("person", "bicycle"),
        "hook_msgs": {"best_score": np.float64(0.424), "best_ckpt": "epoch_12.pth"},
    }


def detector(backbone):
    """A Mask R-CNN of mmdetection around a backbone's parameters."""
    heads = {
        "neck.lateral_convs.0.conv.weight": torch.zeros(2, 2, 1, 1),
        "neck.fpn_convs.0.conv.bias": torch.zeros(2),
        "rpn_head.rpn_conv.weight": torch.zeros(2, 2, 3, 3),
        "roi_head.bbox_head.fc_cls.weight": torch.zeros(81, 2),
        "roi_head.mask_head.convs.0.conv.weight": torch.zeros(2, 2, 3, 3),
    }
    return {f"backbone.{key}": value for key, value in backbone.items()} | heads


def save(path, state_dict, **entries):
    torch.save({"state_dict": state_dict, **entries}, path)
    return path


def backbone_of(model):
    return {key: value for key, value in to_their_names(model).items() if not key.startswith("fc.")}


def plain(name, num_classes=7, **kwargs):
    """A network of timm's with random weights that all matter; no bias or scale is close to its start."""
    return randomize(timm.create_model(name, num_classes=num_classes, **SMALL[name] | kwargs), std=0.1).eval()


def load(folder, **kwargs):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()


@torch.no_grad()
def assert_computes(folder, expected, size=64, **kwargs):
    """What the folder gives timm computes the expected model's logits (or features)."""
    x = torch.randn(2, 3, size, size)
    assert relative_error(load(folder, **kwargs)(x), expected(x)) < 1e-4


# The paper's authors


def test_authors_detector(tmp_path, capsys):
    original = randomize(timm.create_model("resnet50_fdconv", band_mask="reference", **LAYERS), std=0.1).eval()
    theirs = backbone_of(original)
    recorded = {key for path in RECORDINGS for key in read(path)[2]}
    imitated = {match[0] for key in theirs if (match := re.search(r"(dft_weight|KSM_|FBM\.).*$", key))}
    assert imitated == recorded - {"bias"}  # of the layers they recorded, each name and no other

    path = save(tmp_path / "epoch_12.pth", detector(theirs), meta=meta(), optimizer={"state": {}})
    arguments = [str(path), "--model", "resnet50_fdconv", "--output", str(tmp_path / "converted")]
    load_script("convert").main([*arguments, "--model-kwargs", "layers=(1,1,1,1)", "channels=(32,32,64,64)"])
    said = capsys.readouterr().out
    assert "epoch_12.pth: names of the paper's authors" in said
    assert "band_mask='reference'" in said
    assert re.search(r"left +5 tensors, not of the backbone: neck \(2\), rpn_head \(1\), roi_head \(2\)", said)
    assert "no weights: optimizer" in said
    assert "no classifier" in said
    assert f"mapped  {len(theirs)} tensors" in said

    assert {file.name for file in (tmp_path / "converted").iterdir()} == {
        "model.safetensors",
        "config.json",
        "conversion.json",
    }
    config = json.loads((tmp_path / "converted/config.json").read_text())
    assert config["architecture"] == "resnet50_fdconv"
    assert config["model_args"]["band_mask"] == "reference"
    report = json.loads((tmp_path / "converted/conversion.json").read_text())
    assert report["deviation"] == 0.0
    assert len(report["sha256"]) == 64

    # Their groups differ from ours where coefficients share a radius; they come with the weights.
    original.load_state_dict(theirs, strict=False)
    x = torch.randn(2, 3, 80, 96)  # the masks are stretched
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "converted").forward_features(x), original.forward_features(x))
        exact = load(tmp_path / "converted", band_mask="exact").forward_features(x)
    assert relative_error(exact, original.forward_features(x)) > 1e-3

    # Ready for a task of one's own, with a fresh classifier; and as a backbone.
    assert load(tmp_path / "converted", num_classes=5)(x).shape == (2, 5)
    assert len(load(tmp_path / "converted", features_only=True)(x)) == 5


@pytest.mark.parametrize(
    ("recording", "place", "channels", "step"),
    [
        ("conv3_64_64", "layer1.0.conv2", (64, 32, 32, 32), 1),
        ("conv3_48_32_small_map", "layer2.0.conv1", (48, 32, 32, 32), 2),  # 20x28: needs their stretched masks
    ],
)
def test_a_converted_layer_computes_what_the_authors_code_did(recording, place, channels, step, tmp_path):
    config, tensors, params, _ = read(next(path for path in RECORDINGS if path.stem == recording))
    assert not config["train"]
    arguments = dict(layers=(1, 1, 1, 1), channels=channels)
    theirs = backbone_of(timm.create_model("resnet18_fdconv", num_kernels=config["kernel_num"], **arguments))
    theirs |= {f"{place}.{key}": value for key, value in params.items()}
    path = save(tmp_path / "a.pth", detector(theirs), meta=meta())
    conversion = convert_checkpoint(path, "resnet18_fdconv", tmp_path / "out", model_kwargs=arguments)
    assert conversion.model_args.get("num_kernels", 64) == config["kernel_num"]
    layer = load(tmp_path / "out").get_submodule(place)
    assert layer.stride == (step, step)
    every = config["sampled_every"]
    both = math.lcm(step, every)  # positions that the layer gives and the recording has
    y = layer(tensors["input"])[..., :: both // step, :: both // step]
    assert relative_error(y, tensors["output"][..., :: both // every, :: both // every]) < 1e-5


def test_what_the_weights_do_not_tell_comes_from_the_training_configuration(tmp_path):
    original = randomize(
        timm.create_model("resnet50_fdconv", band_mask="reference", temperature=2.0, kernel_temperature=2.0, **LAYERS),
        std=0.1,
    ).eval()
    theirs = backbone_of(original)
    config = CONFIG.replace("kernel_temp=1.0", "kernel_temp=2.0")
    path = save(tmp_path / "a.pth", detector(theirs), meta=meta(config))
    conversion = convert_checkpoint(path, "resnet50_fdconv", tmp_path / "told", model_kwargs=LAYERS)
    assert conversion.model_args["temperature"] == conversion.model_args["kernel_temperature"] == 2.0
    original.load_state_dict(theirs, strict=False)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "told").forward_features(x), original.forward_features(x))

    path = save(tmp_path / "b.pth", detector(theirs))
    conversion = convert_checkpoint(path, "resnet50_fdconv", tmp_path / "untold", model_kwargs=LAYERS)
    assert "temperature" not in conversion.model_args
    assert any("no training configuration" in note for note in conversion.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ksm_global_act='sigmoid'", "ksm_global_act='tanh'"), "ksm_global_act='tanh'"),
        (("act='sigmoid',\n                spatial", "act='softmax',\n                spatial"), "act='softmax'"),
        (("att_multi=2.0", "att_multi=3.0"), "att_multi=3.0"),
        (("style='pytorch'", "style='caffe'"), "style='caffe'"),
    ],
)
def test_refuses_what_no_model_here_computes(change, message, tmp_path):
    assert change[0] in CONFIG
    theirs = backbone_of(timm.create_model("resnet50_fdconv", **LAYERS))
    path = save(tmp_path / "a.pth", detector(theirs), meta=meta(CONFIG.replace(*change)))
    with pytest.raises(WeightsError, match=rf"a\.pth.*{message}"):
        convert_checkpoint(path, "resnet50_fdconv", tmp_path / "out", model_kwargs=LAYERS)
    assert not (tmp_path / "out").exists()


def test_a_configuration_is_parsed_and_never_run():
    assert backbone_config({"config": CONFIG})["conv_cfg"]["fbm_cfg"]["k_list"] == [2, 4, 8]
    code = "model = dict(backbone=dict(depth=__import__('os').abort(), style='caffe'))"
    assert backbone_config({"cfg": code}) == {"depth": None, "style": "caffe"}
    for text in ("model = ", "x = 1", "model = 3", "(" * 10_000, None, b"model = dict()"):
        assert backbone_config({"config": text}) is None


def test_segmentation_strides_are_told(tmp_path):
    config = "model = dict(backbone=dict(type='ResNetV1c', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)))"
    state = {key: value for key, value in plain("resnet50").state_dict().items() if not key.startswith("fc.")}
    path = save(tmp_path / "a.pth", detector(state), meta=meta(config))
    conversion = convert_checkpoint(path, "resnet50_fdconv", tmp_path / "out", model_kwargs=LAYERS)
    assert any("output_stride=8" in note for note in conversion.notes)


def test_parts_the_authors_switched_off(tmp_path):
    arguments = dict(num_kernels=16, ksm_local=False, fbm=False, fdconv_layers=("conv2",), **LAYERS)
    original = randomize(timm.create_model("resnet50_fdconv", **arguments), std=0.1).eval()
    path = save(tmp_path / "a.pth", detector(backbone_of(original)))
    conversion = convert_checkpoint(path, "resnet50_fdconv", tmp_path / "out", model_kwargs=LAYERS)
    found = {key: value for key, value in conversion.model_args.items() if key not in LAYERS}
    assert found == dict(num_kernels=16, ksm_local=False, fbm=False, fdconv_layers=["conv2"], stored_groups=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, value: (name, value.repeat(2, 1, 1, 1) if "dft" in name else value), "only their default layer"),
        (lambda name, value: (name, value.flatten(1, 2) if "dft" in name else value), "only their default layer"),
        (lambda name, value: (name.replace("dft_weight", "weight"), value), "convert_param=False"),
        (lambda name, value: (name.replace("KSM_Local.norm", "KSM_Local.complex_weight"), value), "complex_weight"),
    ],
)
def test_variants_of_the_authors_layer_are_refused(change, message, tmp_path):
    theirs = dict(change(*item) for item in backbone_of(timm.create_model("resnet18_fdconv", **LAYERS)).items())
    path = save(tmp_path / "a.pth", detector(theirs))
    with pytest.raises(WeightsError, match=rf"a\.pth.*{message}"):
        convert_checkpoint(path, "resnet18_fdconv", tmp_path / "out", model_kwargs=LAYERS)


# OpenMMLab


def with_stem(names):
    """timm's names of a deep stem in mmsegmentation's: one Sequential for all of it, the last normalisation too."""
    return {re.sub(r"^conv1\.", "stem.", re.sub(r"^bn1\.", "stem.7.", key)): value for key, value in names.items()}


@pytest.mark.parametrize(("kind", "extra"), [("v1c", {}), ("v1d", dict(avg_down=True))])
def test_openmmlab_resnet_with_a_deep_stem(kind, extra, tmp_path):
    original = plain("resnet50", num_classes=0, stem_type="deep", stem_width=32, **extra)
    theirs = with_stem(original.state_dict())
    path = save(tmp_path / "a.pth", detector(theirs))
    conversion = convert_checkpoint(path, "resnet50_fdconv", tmp_path / "out", model_kwargs=LAYERS)
    assert conversion.model_args == LAYERS | dict(stem_type="deep", stem_width=32) | extra
    assert_computes(tmp_path / "out", original)

    # mmsegmentation's stem, as _make_stem_layer builds it.
    def block(inputs, outputs, stride):
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    stem = nn.Sequential(*block(3, 32, 2), *block(32, 32, 1), *block(32, 64, 1)).eval()
    stem.load_state_dict({key.removeprefix("stem."): value for key, value in theirs.items() if "stem." in key})
    model, x = load(tmp_path / "out"), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(model.act1(model.bn1(model.conv1(x))), stem(x)) < 1e-6


def test_authors_deep_stem_has_fdconv_layers(tmp_path):
    # Their build_conv_layer(conv_cfg) makes the stem's later convolutions FDConv, too.
    arguments = dict(stem_type="deep", stem_width=32, fdconv_layers=("conv1", "conv2", "stem"), **LAYERS)
    original = randomize(timm.create_model("resnet18_fdconv", **arguments), std=0.1)
    theirs = with_stem(backbone_of(original))
    assert {"stem.0.weight", "stem.3.dft_weight", "stem.6.FBM.freq_weight_conv_list.0.weight"} <= set(theirs)
    conversion = convert_checkpoint(
        save(tmp_path / "a.pth", detector(theirs)), "resnet18_fdconv", tmp_path / "out", model_kwargs=LAYERS
    )
    assert conversion.model_args["fdconv_layers"] == ["conv1", "conv2", "stem"]
    assert conversion.deviation == 0.0


class PatchMerging(nn.Module):
    """mmcv's, as its documentation has it: nn.Unfold, then normalise and reduce."""

    def __init__(self, channels):
        super().__init__()
        self.sampler = nn.Unfold(kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x):  # (B, C, H, W) to (B, N, 2C)
        return self.reduction(self.norm(self.sampler(x).transpose(1, 2)))


def test_merged_patches_are_put_in_order():
    theirs = randomize(PatchMerging(6))
    ours = timm.models.swin_transformer.PatchMerging(6)
    ours.load_state_dict({key: order_merged_patch(value) for key, value in theirs.state_dict().items()})
    x = torch.randn(2, 6, 8, 10)
    assert relative_error(ours(x.permute(0, 2, 3, 1)).flatten(1, 2), theirs(x)) < 1e-6


def unfolded(tensor):
    """The way back, by asking nn.Unfold where it puts each element of a patch."""
    channels = tensor.shape[-1] // 4
    patch = torch.empty(2, 2, channels, dtype=torch.long)
    for row in range(2):
        for column in range(2):  # Swin's order: columns outermost, then rows, then channels
            patch[row, column] = (2 * column + row) * channels + torch.arange(channels)
    order = F.unfold(patch.permute(2, 0, 1)[None].double(), 2).flatten().long()
    return tensor[..., order]


def swin_in_openmmlab(state):
    theirs = {}
    for key, value in state.items():
        if match := re.match(r"layers\.(\d)\.downsample\.(.*)", key):
            key, value = f"stages.{int(match[1]) - 1}.downsample.{match[2]}", unfolded(value)
        key = key.replace("patch_embed.proj", "patch_embed.projection").replace("layers.", "stages.")
        key = (
            key.replace("attn.", "attn.w_msa.").replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
        )
        theirs[re.sub(r"^norm\.", "norm3.", key)] = value
    index = {
        re.sub("qkv.weight", "relative_position_index", key): torch.zeros(4, 4) for key in theirs if "qkv.w" in key
    }
    return theirs | index


def test_openmmlab_swin(tmp_path):
    original = plain("swin_tiny_patch4_window7_224")
    backbone = {key: value for key, value in original.state_dict().items() if not key.startswith("head.")}
    theirs = swin_in_openmmlab(backbone)
    names = {"patch_embed.projection.weight", "stages.0.blocks.1.attn.w_msa.relative_position_bias_table"}
    names |= {"stages.2.blocks.0.ffn.layers.0.0.bias", "stages.2.blocks.1.ffn.layers.1.weight", "norm3.bias"}
    assert names | {"stages.0.downsample.reduction.weight", "stages.2.downsample.norm.bias"} <= set(theirs)
    norms = {f"norm{stage}.{kind}": torch.ones(2) for stage in range(3) for kind in ("weight", "bias")}
    path = save(tmp_path / "a.pth", detector(theirs | norms))
    conversion = convert_checkpoint(path, "swin_fdconv", tmp_path / "out", model_kwargs=SWIN)
    assert sum(conversion.mapped.values()) == len(backbone)
    left = {part for part, _, reason in conversion.left if "dense head" in reason}
    assert left == {"backbone.norm0", "backbone.norm1", "backbone.norm2"}
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(load(tmp_path / "out").forward_features(x), original.forward_features(x)) < 1e-4

    # mmpretrain's classifier has a prefix of its own, and the names of its classes.
    head = {key: value for key, value in original.state_dict().items() if key.startswith("head.")}
    state = {f"backbone.{key}": value for key, value in theirs.items()} | head
    classes = {"dataset_meta": {"classes": [f"class {i}" for i in range(7)]}}
    convert_checkpoint(
        save(tmp_path / "b.pth", state, meta=classes), "swin_fdconv", tmp_path / "classifier", model_kwargs=SWIN
    )
    assert_computes(tmp_path / "classifier", original)
    assert load(tmp_path / "classifier").pretrained_cfg["label_names"][6] == "class 6"


@pytest.mark.parametrize("linear", [True, False])
def test_openmmlab_convnext(linear, tmp_path):
    original = plain("convnext_tiny")
    theirs = {}
    for key, value in original.state_dict().items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample", r"downsample_layers.\1", key).replace(".blocks", "")
        key = key.replace("conv_dw", "depthwise_conv").replace("mlp.fc", "pointwise_conv")
        if "pointwise" in key and value.ndim == 2 and not linear:
            value = value[..., None, None]
        key = re.sub(r"^head\.norm\.", "norm3.", key)
        theirs[key if key.startswith("head.fc.") else f"backbone.{key}"] = value
    assert {"backbone.downsample_layers.2.1.weight", "backbone.stages.2.1.pointwise_conv1.bias"} <= set(theirs)
    assert {"backbone.stages.0.0.gamma", "backbone.norm3.weight", "head.fc.bias"} <= set(theirs)
    path = save(tmp_path / "a.pth", theirs | {"backbone.norm0.weight": torch.ones(2)}, meta={})
    conversion = convert_checkpoint(path, "convnext_fdconv", tmp_path / "out", model_kwargs=CONVNEXT)
    assert conversion.num_classes == 7
    assert [left[:2] for left in conversion.left] == [("backbone.norm0", 1)]
    assert_computes(tmp_path / "out", original)


def test_openmmlab_vit(tmp_path):
    original = plain("vit_tiny_patch16_224")
    theirs = {}
    for key, value in original.state_dict().items():
        key = re.sub(r"^norm\.", "ln1.", key).replace("blocks.", "layers.").replace(".norm", ".ln")
        key = key.replace("patch_embed.proj", "patch_embed.projection")
        key = key.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
        theirs[f"head.layers.{key}" if key.startswith("head.") else f"backbone.{key}"] = value
    assert {"backbone.layers.0.ln1.weight", "backbone.ln1.bias", "backbone.layers.2.ffn.layers.1.bias"} <= set(theirs)
    assert {"backbone.cls_token", "backbone.layers.1.attn.qkv.weight", "head.layers.head.weight"} <= set(theirs)
    path = save(tmp_path / "a.pth", theirs, meta={})
    conversion = convert_checkpoint(path, "vit_tiny_patch16_224_fdconv", tmp_path / "out", model_kwargs=VIT)
    assert conversion.library == "OpenMMLab"
    assert conversion.num_classes == 7
    assert_computes(tmp_path / "out", original)


# torchvision's own networks as oracles; Facebook's and Microsoft's names through timm's own filters


def torchvision_models():
    def resnet():
        model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)
        return model, "resnet18_fdconv", dict(layers=(1, 1, 1, 1))

    def swin():
        model = torchvision.models.SwinTransformer(
            [4, 4], 24, [2, 2, 4, 2], [1, 2, 2, 4], [2, 2], num_classes=7, stochastic_depth_prob=0
        )
        return model, "swin_fdconv", SWIN | dict(depths=(2, 2, 4, 2))

    def convnext():
        dims = CONVNEXT["dims"]
        widths_and_depths = dims, (*dims[1:], None), CONVNEXT["depths"]
        blocks = [CNBlockConfig(*widths, depth) for *widths, depth in zip(*widths_and_depths, strict=True)]
        return torchvision.models.ConvNeXt(blocks, num_classes=7), "convnext_fdconv", CONVNEXT

    def vit():
        model = torchvision.models.VisionTransformer(64, 16, 3, 2, 48, 192, num_classes=7)
        return model, "vit_tiny_patch16_224_fdconv", VIT

    return resnet, swin, convnext, vit


@pytest.mark.parametrize(
    ("make", "suffix"),
    list(zip(torchvision_models(), (".pth", ".safetensors", ".pth", ".pth"), strict=True)),
    ids=["resnet", "swin", "convnext", "vit"],
)
def test_torchvision(make, suffix, tmp_path):
    original, name, arguments = make()
    randomize(original, std=0.1).eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(original.state_dict(), path)
    else:
        save_file(original.state_dict(), path)
    conversion = convert_checkpoint(path, name, tmp_path / "out", model_kwargs=arguments)
    assert "torchvision" in conversion.library
    assert 0 < conversion.deviation < 1e-5
    assert_computes(tmp_path / "out", original)


def facebook_names(state):
    theirs = {}
    for key, value in state.items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample", r"downsample_layers.\1", key).replace(".blocks", "")
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        theirs[key.replace("head.norm.", "norm.").replace("head.fc.", "head.")] = value
    return theirs


def microsoft_names(state):
    theirs = {re.sub(r"^head\.fc\.", "head.", key): value for key, value in state.items() if "downsample" not in key}
    for key, value in state.items():
        if match := re.match(r"layers\.(\d)\.(downsample.*)", key):
            theirs[f"layers.{int(match[1]) - 1}.{match[2]}"] = value
    return theirs


@pytest.mark.parametrize(
    ("name", "rename", "timm_filter"),
    [
        ("convnext_tiny", facebook_names, filter_of_convnext),
        ("swin_tiny_patch4_window7_224", microsoft_names, filter_of_swin),
    ],
    ids=["facebook", "microsoft"],
)
def test_original_names(name, rename, timm_filter, tmp_path):
    original = plain(name)
    theirs = rename(original.state_dict())
    read_by_timm = timm_filter(dict(theirs), original)
    assert read_by_timm.keys() == original.state_dict().keys() != theirs.keys()
    torch.save({"model": theirs}, tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", OURS[name], tmp_path / "out", model_kwargs=SMALL[name])
    assert_computes(tmp_path / "out", original)


@pytest.mark.parametrize("name", SMALL)
def test_timm(name, tmp_path):
    original = plain(name)
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    conversion = convert_checkpoint(
        tmp_path / "model.safetensors", OURS[name], tmp_path / "out", model_kwargs=SMALL[name]
    )
    assert "timm" in conversion.library
    assert conversion.left == ()
    assert_computes(tmp_path / "out", original)
    # And ours, trained: the modulators are taken over, not started anew.
    trained = randomize(load(tmp_path / "out"), std=0.1)
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "trained.pth")
    conversion = convert_checkpoint(tmp_path / "trained.pth", OURS[name], tmp_path / "2", model_kwargs=SMALL[name])
    assert "in memory" in conversion.compared_with
    assert_computes(tmp_path / "2", trained)


def test_a_tag_chooses_the_preprocessing(tmp_path):
    torch.save(plain("resnet50").state_dict(), tmp_path / "a.pth")
    for tag, interpolation in (("a1_in1k", "bicubic"), ("tv_in1k", "bilinear")):
        convert_checkpoint(tmp_path / "a.pth", f"resnet50_fdconv.{tag}", tmp_path / tag, model_kwargs=LAYERS)
        assert load(tmp_path / tag).pretrained_cfg["interpolation"] == interpolation


def test_half_precision_becomes_single(tmp_path):
    original = plain("resnet50").half()
    torch.save(original.state_dict(), tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", "resnet50_fdconv", tmp_path / "out", model_kwargs=LAYERS)
    assert {value.dtype for key, value in load_file(tmp_path / "out/model.safetensors").items()} == {
        torch.float32,
        torch.int64,
    }
    assert_computes(tmp_path / "out", original.float())


# What OpenMMLab keeps beside weights


def test_logs_of_mmengine_are_passed_over(tmp_path, monkeypatch):
    # mmengine/logging/history_buffer.py: two arrays, and methods of the class, which are pickled through getattr.
    module = types.ModuleType("mmengine.logging.history_buffer")
    source = """
class HistoryBuffer:
    def __init__(self, array):
        self._log_history, self._count_history, self.max_length = array, array, 1000000
        self._statistics_methods = {"min": HistoryBuffer.min}
    def min(self): ...
"""
    exec(source, module.__dict__)
    module.HistoryBuffer.__module__ = module.__name__
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    history = module.HistoryBuffer(np.array([0.5, 0.25]))
    hub = {"log_scalars": {"train/loss": history}, "runtime_info": {"best": np.float64(0.4)}, "resumed_keys": {}}
    path = save(tmp_path / "a.pth", {"w": torch.ones(2)}, meta={"epoch": 12}, message_hub=hub)
    monkeypatch.undo()

    allowed = torch.serialization.get_safe_globals()
    with pytest.raises(pickle.UnpicklingError, match="HistoryBuffer"):
        torch.load(path, weights_only=True)
    checkpoint = read_checkpoint(path)
    assert torch.equal(checkpoint.tensors["w"], torch.ones(2))
    assert checkpoint.meta == {"epoch": 12}
    assert checkpoint.other_entries == ("message_hub",)
    assert set(torch.serialization.get_safe_globals()) == set(allowed)  # for this file only


# Refusals


@pytest.fixture
def checkpoint(tmp_path):
    state = plain("resnet50").state_dict()

    def write(**changes):
        path = tmp_path / "a.pth"
        torch.save({key: value for key, value in (state | changes).items() if value is not None}, path)
        return path

    return write


def refused(error, message, path, name="resnet50_fdconv", output="out", **kwargs):
    folder = path.parent / output
    before = sorted(folder.iterdir()) if folder.is_dir() else None
    with pytest.raises(error, match=message):
        convert_checkpoint(path, name, folder, **dict(model_kwargs=LAYERS) | kwargs)
    assert (sorted(folder.iterdir()) if folder.is_dir() else None) == before
    assert not list(path.parent.glob(".writing-*"))


def test_weights_that_do_not_fit_are_named(checkpoint):
    key = "layer2.0.conv2.weight"
    refused(WeightsError, rf"a\.pth .*1 missing: {key}", checkpoint(**{key: None}))
    refused(WeightsError, rf"size mismatch for {key}.*\[3\]", checkpoint(**{key: torch.ones(3)}))
    extra = {"layer1.0.se.fc1.weight": torch.ones(3)}
    refused(WeightsError, r"1 unexpected: layer1\.0\.se\.fc1\.weight", checkpoint(**extra))
    refused(WeightsError, "layer3.0.conv1", checkpoint(), model_kwargs={**LAYERS, "channels": (32, 32, 32, 64)})
    refused(WeightsError, "fc.bias", checkpoint(**{"fc.bias": None}))


def test_weights_that_are_no_numbers_are_named(checkpoint):
    bad = torch.full((7,), torch.nan)
    refused(WeightsError, r"a\.pth.*NaN or infinite, in fc\.bias", checkpoint(**{"fc.bias": bad}))
    refused(WeightsError, r"a\.pth.*NaN or infinite, in fc\.bias", checkpoint(**{"fc.bias": 1 / torch.zeros(7)}))


def test_only_a_missing_classifier_is_no_error(checkpoint):
    conversion = convert_checkpoint(
        path := checkpoint(**{"fc.weight": None, "fc.bias": None}),
        "resnet50_fdconv",
        path.parent / "out",
        model_kwargs=LAYERS,
    )
    assert conversion.num_classes == 0
    assert load(path.parent / "out").get_classifier() is not None


def test_other_models_and_names_are_refused(checkpoint):
    refused(
        WeightsError, "none of the known names of a Swin Transformer's", checkpoint(), "swin_fdconv", model_kwargs={}
    )
    refused(ConfigError, "no such model", checkpoint(), "resnet50_fdcov")
    refused(
        ConfigError,
        "these families only: ResNet, ResNeXt, Wide ResNet, ConvNeXt, Swin Transformer, Vision",
        checkpoint(),
        "mobilenetv3_small_050",
        model_kwargs={},
    )
    refused(ConfigError, "cannot be built", checkpoint(), model_kwargs=dict(kernels=3))
    refused(WeightsError, "No such file", checkpoint().with_name("b.pth"))
    both = {"backbone.conv1.weight": torch.ones(1), "backbone.layer1.0.conv1.weight": torch.ones(1)}
    both |= {"backbone.stem.0.weight": torch.ones(1), "backbone.conv1.0.weight": torch.ones(1)}
    refused(WeightsError, r"two tensors for conv1\.0\.weight", save(checkpoint(), both))


def test_nothing_is_overwritten_silently(checkpoint):
    path = checkpoint()
    folder = path.parent / "out"
    folder.mkdir()
    refused(RunFolderError, "exists already.*--overwrite", path)
    convert_checkpoint(path, "resnet50_fdconv", folder, model_kwargs=LAYERS, overwrite=True)
    refused(RunFolderError, "exists already", path)
    # A conversion that fails leaves the one before it.
    refused(WeightsError, "NaN", checkpoint(**{"fc.bias": torch.full((7,), torch.nan)}), overwrite=True)
    assert load(folder)
    convert_checkpoint(checkpoint(), "resnet50_fdconv", folder, model_kwargs=LAYERS, overwrite=True)
    (folder / "notes.txt").write_text("mine")
    refused(RunFolderError, "other files than a conversion's", path, overwrite=True)


def test_a_result_that_deviates_is_no_result(checkpoint, monkeypatch):
    def write_wrongly(model, folder, **kwargs):
        with torch.no_grad():
            next(layer for name, layer in model.named_modules() if name == "layer3.0.conv1").fdw.spectrum.mul_(1.01)
        export_model(model, folder, **kwargs)

    export_model = convert_module.export_model
    monkeypatch.setattr(convert_module, "export_model", write_wrongly)
    refused(WeightsError, "deviates by .*Nothing was written", checkpoint())


def test_the_script_says_what_is_wrong_in_one_line(checkpoint, capsys):
    convert = load_script("convert")
    path = checkpoint(**{"layer1.0.bn1.weight": None})
    with pytest.raises(SystemExit):
        convert.run_command(
            lambda: convert.main([str(path), "--model", "resnet50_fdconv", "--output", str(path.parent / "out")])
        )
    assert capsys.readouterr().err.startswith(f"error: {path} does not fit")
    assert not Path(path.parent / "out").exists()
