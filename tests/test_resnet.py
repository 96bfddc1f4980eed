"""What is ResNet's own: which layers are FDConv, the small ResNet-10, the paper authors' checkpoints."""

import pytest
import timm
import torch
from conftest import randomize
from contract import num_parameters, small

from fdconv_zoo import FDConv2d


def dynamic_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, FDConv2d)}


def test_resnet50_is_the_papers():
    model = timm.create_model("resnet50_fdconv")
    assert num_parameters(model) == 29_204_152
    layers = dynamic_layers(model)
    assert set(layers) == {
        f"layer{stage}.{block}.conv{conv}"
        for stage, blocks in enumerate((3, 4, 6, 3), start=1)
        for block in range(blocks)
        for conv in (1, 2, 3)
    }
    assert all((layer.fbm is not None) is name.endswith("conv2") for name, layer in layers.items())


def test_basic_blocks_have_bands_in_both_convolutions():
    layers = dynamic_layers(small("resnet18_fdconv"))
    assert {name.rpartition(".")[2] for name in layers} == {"conv1", "conv2"}
    assert all(layer.fbm is not None for layer in layers.values())


def test_resnext_keeps_its_groups():
    layers = dynamic_layers(small("resnext50_32x4d_fdconv"))
    assert {layer.groups for name, layer in layers.items() if name.endswith("conv2")} == {32}


def test_narrow_layers_stay_plain():
    layers = dynamic_layers(small("resnet18_fdconv", channels=(16, 17, 24, 32)))
    assert not any(name.startswith("layer1") for name in layers)
    assert "layer2.0.conv1" not in layers  # 16 to 17 channels
    assert {"layer2.0.conv2", "layer3.0.conv1", "layer4.0.conv2"} <= set(layers)


def test_small_model_is_small():
    model = timm.create_model("resnet10s_fdconv")
    assert num_parameters(model) < 1_500_000
    assert model.feature_info[-1]["reduction"] == 16  # half of the others'
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape[2:] == (2, 2)


def test_layer_options_reach_the_layers():
    model = timm.create_model(
        "resnet10s_fdconv", num_kernels=8, ksm_local=False, fbm=False, fdconv_layers=("conv2",), zero_init_last=False
    )
    layers = dynamic_layers(model)
    assert set(layers) == {f"layer{stage}.0.conv2" for stage in (1, 2, 3, 4)}
    assert all(layer.fdw.num_kernels == 8 and layer.fbm is None for layer in layers.values())
    assert all(layer.ksm.local_branch is None for layer in layers.values())
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1 cannot become an FDConv layer: num_kernels is 0"):
        timm.create_model("resnet10s_fdconv", num_kernels=0)
    with pytest.raises(TypeError, match="number_of_kernels"):
        timm.create_model("resnet10s_fdconv", number_of_kernels=8)


def test_layers_are_chosen_by_name():
    layers = dynamic_layers(small("resnet50_fdconv", fdconv_layers=("conv1", "downsample")))
    assert {name.partition(".0.")[2] for name in layers if ".0." in name} == {"conv1", "downsample.0"}
    with pytest.raises(ValueError, match=r"'conv4'.*conv1, conv2, conv3, downsample"):
        small("resnet50_fdconv", fdconv_layers=("conv1", "conv4"))


def to_their_names(model):
    """A model's state dict as the authors' code would have saved it, in an OpenMMLab detector."""
    names = {
        "fdw.spectrum": "dft_weight",
        "ksm.global_branch.reduce": "KSM_Global.fc",
        "ksm.global_branch.norm": "KSM_Global.bn",
        "ksm.global_branch.act": "KSM_Global.relu",
        "ksm.local_branch": "KSM_Local",
    } | {f"ksm.global_branch.{head}": f"KSM_Global.{head}_fc" for head in ("channel", "filter", "spatial", "kernel")}
    theirs = {}
    for key, value in model.state_dict().items():
        if "fbm.attention" in key:
            for band, part in enumerate(value.split(1)):
                theirs[key.replace("fbm.attention", f"FBM.freq_weight_conv_list.{band}")] = part
            continue
        for ours, name in names.items():
            if ours in key:
                key = key.replace(ours, name)
                break
        if key.endswith("dft_weight"):
            value = value[None]
        elif "KSM_Global" in key and value.ndim == 2:
            value = value[..., None, None]
        theirs[key] = value
    return theirs


def test_loads_the_authors_checkpoints(tmp_path):
    model = randomize(timm.create_model("resnet10s_fdconv", num_classes=7), std=0.1).eval()
    theirs = to_their_names(model)
    assert not any("fdw" in key or "ksm" in key or "fbm" in key for key in theirs)
    x = torch.randn(2, 3, 32, 32)

    # A whole model under the same names, as their classification checkpoints.
    torch.save({"state_dict": theirs}, tmp_path / "classifier.pth")
    classifier = timm.create_model("resnet10s_fdconv", num_classes=7, checkpoint_path=str(tmp_path / "classifier.pth"))
    # Their groups differ where coefficients share a radius, so compare with a model that has them.
    model.load_state_dict(classifier.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(classifier.parameters(), model.parameters(), strict=True))
    assert torch.equal(classifier.eval()(x), model(x))

    # A detector: the backbone under a prefix, other parts beside it, no classifier.
    detector = {f"backbone.{key}": value for key, value in theirs.items() if not key.startswith("fc.")}
    detector["rpn_head.rpn_conv.weight"] = torch.zeros(1)
    torch.save({"state_dict": detector, "meta": {}}, tmp_path / "detector.pth")
    overlay = dict(file=str(tmp_path / "detector.pth"))
    features = timm.create_model(
        "resnet10s_fdconv", pretrained=True, features_only=True, out_indices=(2, 4), pretrained_cfg_overlay=overlay
    ).eval()
    expected = model.forward_intermediates(x, indices=(2, 4), intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(features(x), expected, strict=True))
