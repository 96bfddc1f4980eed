"""What is ViT's own: which layers are FDConv, other image sizes, DeiT's and DINOv3's weights, Google's NumPy files."""

import numpy as np
import pytest
import timm
import torch
from conftest import relative_error
from contract import (
    FAMILIES,
    NAMES,
    assert_same,
    example,
    images,
    num_parameters,
    plain_example,
    plain_twin,
    save_weights,
    small,
)
from test_onnx import export_free, needs_exporter, off_neutral, run
from torch import nn
from torch.export import export

from fdconv_zoo import FDConv2d, FDLinear
from fdconv_zoo.layers import BandModulatedConv2d

TINY, DINOV3 = FAMILIES["vit"], "vit_small_patch16_dinov3_fdconv"
BLOCKS = [f"blocks.{block}" for block in range(3)]
needs_dinov3 = pytest.mark.skipif(DINOV3 not in NAMES, reason="this timm has no DINOv3")
each_kind = pytest.mark.parametrize("name", [TINY, pytest.param(DINOV3, marks=needs_dinov3)], ids=["vit", "dinov3"])


def dynamic_layers(model):
    return {name for name, m in model.named_modules() if isinstance(m, FDConv2d | FDLinear | BandModulatedConv2d)}


@each_kind
def test_mlps_are_dynamic(name):
    model = small(name)
    assert dynamic_layers(model) == {f"{block}.mlp.{layer}" for block in BLOCKS for layer in ("fc1", "fc2")}
    assert not any("fbm" in name for name, _ in model.named_parameters())


@each_kind
def test_layers_are_chosen_by_name(name):
    assert dynamic_layers(small(name, fdconv_layers=("mlp.fc2",))) == {f"{block}.mlp.fc2" for block in BLOCKS}
    assert num_parameters(small(name, fdconv_layers=())) == num_parameters(plain_twin(name))
    with pytest.raises(ValueError, match=r"'attn.qkv'.*mlp\.fc1, mlp\.fc2"):
        small(name, fdconv_layers=("attn.qkv",))


@each_kind
def test_layer_options_reach_the_layers(name):
    model = small(name, num_kernels=8, ksm_global=False, temperature=2.0)
    layers = [m for m in model.modules() if isinstance(m, FDLinear)]
    assert all(layer.fdw.num_kernels == 8 and layer.ksm.global_branch is None for layer in layers)


@each_kind
@pytest.mark.parametrize("size", [96, (64, 96), (48, 160)], ids=str)
def test_loads_into_other_sizes_as_the_plain_twin(name, size, tmp_path):
    """Position embeddings are interpolated."""
    args = dict(pretrained=True, pretrained_cfg_overlay=save_weights(plain_example(name), tmp_path), img_size=size)
    model, plain = small(name, **args).eval(), plain_twin(name, **args).eval()
    x = images(size=model.patch_embed.img_size)
    with torch.no_grad():
        assert_same(model(x), plain(x))


@each_kind
@pytest.mark.parametrize("size", [(96, 128), (32, 48)], ids=str)
def test_dynamic_sizes_as_the_plain_twin(name, size):
    model, plain, x = small(name, dynamic_img_size=True), plain_twin(name, dynamic_img_size=True), images(size=size)
    for net in (model, plain):
        net.load_state_dict(plain_example(name).state_dict())
    with torch.no_grad():
        assert_same(model.eval()(x), plain.eval()(x))
        features = small(name, dynamic_img_size=True, features_only=True).eval()(x)
    assert [tuple(f.shape[2:]) for f in features] == [(size[0] // 16, size[1] // 16)] * 3


@each_kind
def test_input_size_can_be_set(name, tmp_path):
    args = dict(pretrained=True, pretrained_cfg_overlay=save_weights(plain_example(name), tmp_path))
    model, plain = small(name, **args).eval(), plain_twin(name, **args).eval()
    x = images(size=(96, 128))
    for net in (model, plain):
        if name == TINY:
            with pytest.raises(AssertionError, match="height"):
                net(x)
        net.set_input_size((96, 128))
    with torch.no_grad():
        assert_same(model(x), plain(x))


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_deits_weights_are_tags_of_vit(size):
    ours = timm.get_pretrained_cfg(f"vit_{size}_patch16_224_fdconv.deit_fb_in1k")
    plain = timm.get_pretrained_cfg(f"vit_{size}_patch16_224")
    assert ours.hf_hub_id == f"timm/deit_{size}_patch16_224.fb_in1k"
    assert ours.mean != plain.mean  # each tag has its own preprocessing
    models = [timm.create_model(f"{kind}_{size}_patch16_224", depth=1) for kind in ("vit", "deit")]
    assert str(models[0]) == str(models[1])


@needs_dinov3
def test_dinov3_has_features_and_no_classes():
    model = small(DINOV3, num_classes=None)
    assert model.num_classes == 0
    assert timm.get_pretrained_cfg(DINOV3).license == "dinov3-license"
    assert model(images()).shape == (2, model.num_features)


@needs_dinov3
def test_dinov3_exports():
    model, x = example(DINOV3), images()
    program = export(model, (images(),), strict=False)
    with torch.no_grad():
        assert_same(program.module()(x), model(x))


def to_facebooks_names(model: nn.Module) -> dict[str, torch.Tensor]:
    """A plain DINOv3's state dict as Facebook published it; the biases of its attention are zero."""
    theirs = {"mask_token": torch.zeros(1, model.embed_dim), "rope_embed.periods": torch.ones(6)}
    for key, value in model.state_dict().items():
        key = key.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        theirs[key] = value
        if key.endswith("qkv.weight"):
            theirs[key.replace("weight", "bias")] = torch.zeros(len(value))
            theirs[key.replace("weight", "bias_mask")] = torch.ones(len(value))
    return theirs


@needs_dinov3
def test_loads_facebooks_dinov3(tmp_path):
    plain, x = plain_example(DINOV3), images()
    torch.save(to_facebooks_names(plain), tmp_path / "facebook.pth")
    overlay = dict(file=str(tmp_path / "facebook.pth"), num_classes=11)
    model = small(DINOV3, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.no_grad():
        assert_same(model(x), plain(x))


def test_onnx_of_free_batch_and_size(tmp_path):
    needs_exporter()
    model = off_neutral(small(TINY, depth=1, dynamic_img_size=True))
    program = export_free(model, images())
    file = str(tmp_path / "model.onnx")
    program.save(file)
    for batch, size in ((2, (64, 64)), (3, (96, 80)), (1, (32, 112))):
        x = images(batch, size=size)
        with torch.no_grad():
            assert relative_error(run(file, x), model(x)) < 1e-5


def to_googles_names(model: nn.Module) -> dict[str, np.ndarray]:
    """A plain model's weights as in the NumPy files that Google published: kernels are transposed, heads apart."""
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    dim, heads = model.embed_dim, model.blocks[0].attn.num_heads
    theirs = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }

    def add_norm(name: str, key: str) -> None:
        theirs[f"{name}/scale"], theirs[f"{name}/bias"] = state[f"{key}.weight"], state[f"{key}.bias"]

    add_norm("Transformer/encoder_norm", "norm")
    for i in range(len(model.blocks)):
        block, key = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        add_norm(f"{block}/LayerNorm_0", f"{key}.norm1")
        add_norm(f"{block}/LayerNorm_2", f"{key}.norm2")
        weights, biases = state[f"{key}.attn.qkv.weight"], state[f"{key}.attn.qkv.bias"]
        for name, weight, bias in zip(
            ("query", "key", "value"), np.split(weights, 3), np.split(biases, 3), strict=True
        ):
            theirs[f"{attention}/{name}/kernel"] = weight.T.reshape(dim, heads, -1)
            theirs[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        theirs[f"{attention}/out/kernel"] = state[f"{key}.attn.proj.weight"].T.reshape(heads, -1, dim)
        theirs[f"{attention}/out/bias"] = state[f"{key}.attn.proj.bias"]
        for j, layer in enumerate(("fc1", "fc2")):
            theirs[f"{block}/MlpBlock_3/Dense_{j}/kernel"] = state[f"{key}.mlp.{layer}.weight"].T
            theirs[f"{block}/MlpBlock_3/Dense_{j}/bias"] = state[f"{key}.mlp.{layer}.bias"]
    return theirs


def test_loads_googles_numpy_files(tmp_path):
    plain, x = plain_example(TINY), images()
    file = str(tmp_path / "google.npz")
    np.savez(file, **to_googles_names(plain))
    for net in (plain_twin(TINY, checkpoint_path=file), small(TINY, checkpoint_path=file)):
        with torch.no_grad():
            assert_same(net.eval()(x), plain(x))
