"""The ResNet entrypoints as users of timm use them. No test needs a network."""

import hashlib
import inspect
import re

import pytest
import timm
import torch
from conftest import randomize, relative_error
from safetensors.torch import save_file
from timm.models import _hub, load_checkpoint, load_state_dict
from timm.models._hub import save_for_hf
from torch import nn

import fdconv_zoo
from fdconv_zoo import FDConv2d

NAMES = ["resnet10s_fdconv", "resnet18_fdconv", "resnet50_fdconv"]
TAGGED = "resnet18_fdconv.a1_in1k"
HUB_ID = "timm/resnet18.a1_in1k"


@pytest.fixture(scope="module")
def plain():
    """A plain timm model that is nowhere neutral: the residual branches start at zero in timm."""
    torch.manual_seed(1)
    return randomize(timm.create_model("resnet18")).eval()


@pytest.fixture(scope="module")
def plain_file(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "model.safetensors"
    save_file(plain.state_dict(), path)
    return path


def same_logits(model, plain, size=64):
    x = torch.randn(2, plain.conv1.in_channels, size, size)
    with torch.no_grad():
        error = relative_error(model.eval()(x), plain(x))
    assert error < 1e-4, error


def test_names_are_registered():
    assert set(NAMES) <= set(timm.list_models("*_fdconv"))
    assert TAGGED in timm.list_pretrained("*_fdconv*")
    assert timm.is_model_pretrained("resnet50_fdconv")
    assert not timm.is_model_pretrained("resnet10s_fdconv")


@pytest.mark.parametrize("name", timm.list_pretrained("resnet*_fdconv*"))
def test_pretrained_tags_point_at_weights_timm_lists(name):
    cfg = timm.get_pretrained_cfg(name)
    twin = timm.get_pretrained_cfg(name.replace("_fdconv", ""))
    assert cfg.hf_hub_id == twin.hf_hub_id
    assert cfg.architecture == name.partition(".")[0]
    for field in ("input_size", "mean", "std", "interpolation", "crop_pct", "test_crop_pct", "num_classes", "license"):
        assert getattr(cfg, field) == getattr(twin, field)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_resnet50_has_the_papers_parameter_count():
    model = timm.create_model("resnet50_fdconv")
    assert num_parameters(model) == 29_204_152
    dynamic = {name for name, layer in model.named_modules() if isinstance(layer, FDConv2d)}
    assert dynamic == {
        f"layer{stage}.{block}.conv{conv}"
        for stage, blocks in enumerate((3, 4, 6, 3), start=1)
        for block in range(blocks)
        for conv in (1, 2, 3)
    }
    assert all(
        (layer.fbm is not None) is name.endswith("conv2") for name, layer in model.named_modules() if name in dynamic
    )


def test_small_model_is_small():
    assert num_parameters(timm.create_model("resnet10s_fdconv")) < 1_500_000


@pytest.mark.parametrize("name", NAMES)
def test_all_parameters_receive_gradients(name):
    model = timm.create_model(name, num_classes=5)
    size = model.pretrained_cfg["input_size"][-1] // 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(2, 3, max(size, 32), max(size, 32))
    for _ in range(2):  # the heads of KSM start at zero and hold back the layers behind them for one step
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


def test_layer_options_reach_the_layers():
    model = timm.create_model(
        "resnet10s_fdconv", num_kernels=8, ksm_local=False, fbm=False, fdconv_layers=("conv2",), zero_init_last=False
    )
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, FDConv2d)}
    assert all(name.endswith("conv2") for name in layers)
    assert all(layer.fdw.num_kernels == 8 and layer.fbm is None for layer in layers.values())
    assert all(layer.ksm.local_branch is None for layer in layers.values())
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1 cannot become an FDConv layer: num_kernels is 0"):
        timm.create_model("resnet10s_fdconv", num_kernels=0)
    with pytest.raises(TypeError, match="number_of_kernels"):
        timm.create_model("resnet10s_fdconv", number_of_kernels=8)


def test_no_fdconv_layers_make_the_plain_twin():
    twin = timm.create_model("resnet50_fdconv", fdconv_layers=())
    assert num_parameters(twin) == num_parameters(timm.create_model("resnet50"))


def test_loads_plain_weights_exactly(plain, plain_file):
    model = timm.create_model(TAGGED, pretrained=True, pretrained_cfg_overlay=dict(file=str(plain_file)))
    same_logits(model, plain)
    same_logits(timm.create_model("resnet18_fdconv", checkpoint_path=str(plain_file)), plain)
    model = timm.create_model("resnet18_fdconv")
    model.load_state_dict(plain.state_dict())
    same_logits(model, plain)


def test_loads_plain_weights_from_the_hub_cache(plain, plain_file, tmp_path):
    """The layout of huggingface_hub's cache, as a download would leave it."""
    commit = hashlib.sha1(b"commit").hexdigest()
    repo = tmp_path / f"models--{HUB_ID.replace('/', '--')}"
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit / "model.safetensors").write_bytes(plain_file.read_bytes())
    same_logits(timm.create_model(TAGGED, pretrained=True, cache_dir=str(tmp_path)), plain)


@pytest.mark.parametrize("name", [TAGGED, "resnet50_fdconv"])
def test_offline_without_a_cached_file_says_what_to_do(name, tmp_path):
    hub_id = timm.get_pretrained_cfg(name).hf_hub_id
    with pytest.raises(RuntimeError, match=rf"{re.escape(hub_id)}.*pretrained_cfg_overlay=dict\(file="):
        timm.create_model(name, pretrained=True, cache_dir=str(tmp_path))


def test_loads_its_own_checkpoints(plain, tmp_path):
    model = randomize(timm.create_model("resnet18_fdconv", num_classes=7), std=0.1).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    x = torch.randn(2, 3, 64, 64)
    overlay = dict(file=str(tmp_path / "model.safetensors"), num_classes=7)
    for again in (
        timm.create_model("resnet18_fdconv", pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay),
        timm.create_model("resnet18_fdconv", num_classes=7, checkpoint_path=str(tmp_path / "model.safetensors")),
    ):
        assert torch.equal(again.eval()(x), model(x))


@pytest.mark.skipif(not hasattr(_hub, "load_model_config_from_path"), reason="this timm has no local-dir source")
def test_loads_from_a_local_folder(tmp_path):
    model = randomize(timm.create_model("resnet10s_fdconv", num_classes=7, num_kernels=16), std=0.1).eval()
    save_for_hf(model, tmp_path, model_args=dict(num_kernels=16), safe_serialization=True)
    x = torch.randn(2, 3, 32, 32)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(again.eval()(x), model(x))


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


@pytest.mark.skipif(
    inspect.signature(load_state_dict).parameters["weights_only"].default is False,
    reason="this timm unpickles whatever it is given",
)
def test_refuses_checkpoints_that_run_code(tmp_path):
    class Exploit:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"state_dict": Exploit()}, tmp_path / "model.pth")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        timm.create_model("resnet10s_fdconv", checkpoint_path=str(tmp_path / "model.pth"))


def test_new_classifier_and_input_channels(plain, plain_file):
    overlay = dict(file=str(plain_file))
    model = timm.create_model(TAGGED, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7)
    assert model.fc.out_features == 7
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(model.eval().forward_features(x), plain.forward_features(x)) < 1e-4

    for in_chans in (1, 4):
        model = timm.create_model(TAGGED, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=in_chans)
        twin = timm.create_model("resnet18.a1_in1k", pretrained=True, pretrained_cfg_overlay=overlay, in_chans=in_chans)
        same_logits(model, twin.eval())

    assert timm.create_model("resnet18_fdconv", num_classes=0)(x).shape == (2, 512)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3, 4), (2, 4)])
def test_features_only(name, out_indices):
    model = timm.create_model(name, features_only=True, out_indices=out_indices).eval()
    with torch.no_grad():
        features = model(torch.randn(1, 3, 64, 64))
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    assert [64 // f.shape[-1] for f in features] == model.feature_info.reduction()


@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_dilates(plain, plain_file, output_stride):
    args = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(plain_file)), output_stride=output_stride)
    model, twin = timm.create_model(TAGGED, **args), timm.create_model("resnet18.a1_in1k", **args).eval()
    same_logits(model, twin)
    assert model.forward_features(torch.randn(1, 3, 64, 64)).shape[-1] == 64 // output_stride


def test_drop_path_and_grad_checkpointing():
    model = timm.create_model("resnet10s_fdconv", drop_path_rate=0.5)
    x = torch.randn(4, 3, 32, 32)
    assert any(isinstance(layer, timm.layers.DropPath) for layer in model.modules())

    model = randomize(timm.create_model("resnet10s_fdconv"), std=0.1).eval()
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_group_matcher_covers_fdconv_parameters():
    model = timm.create_model("resnet10s_fdconv")
    groups = timm.models.group_parameters(model, model.group_matcher(), return_values=False)
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_timm_reads_our_checkpoint_with_its_own_helper(plain, plain_file):
    model = timm.create_model("resnet18_fdconv")
    load_checkpoint(model, str(plain_file))
    same_logits(model, plain)


def test_ema_and_freezing_tools_see_the_layers():
    model = randomize(timm.create_model("resnet10s_fdconv"))
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    ema.update(model)
    x = torch.randn(2, 3, 32, 32)
    assert relative_error(ema.module.eval()(x), model.eval()(x)) < 1e-5
    timm.layers.freeze_batch_norm_2d(model)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert torch.isfinite(model.train()(x)).all()


def test_version_is_exposed():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", fdconv_zoo.__version__)
