"""segmentation_models_pytorch takes our encoders as it takes timm's plain ones."""

import pytest
import torch
from conftest import randomize, relative_error
from examples import run_examples

from fdconv_zoo import FDConv2d

smp = pytest.importorskip("segmentation_models_pytorch", reason="the segmentation library is not installed")

RESNET = ("resnet18_fdconv", "resnet18", {})
CONVNEXT = ("convnext_atto_fdconv", "convnext_atto", dict(depths=(1, 1, 1, 1), dims=(24, 32, 40, 48)))
SWIN = (
    "swin_fdconv",
    "swin_tiny_patch4_window7_224",
    dict(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=2, img_size=64),
)


def assert_every_parameter_learns(model, loss):
    loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_examples():
    scope = run_examples("guides/other_libraries.md", "Segmentation: segmentation_models_pytorch")
    for name in ("masks", "deeplab_masks", "upernet_masks"):
        assert scope[name].shape == (2, 3, 64, 64)
        assert torch.isfinite(scope[name]).all()
    assert any(isinstance(layer, FDConv2d) for layer in scope["model"].modules())
    model, plain = scope["model"].eval(), scope["plain"].eval()
    with torch.no_grad():
        assert relative_error(model(scope["images"]), plain(scope["images"])) < 1e-4


@pytest.mark.parametrize(
    ("decoder", "encoder", "options"),
    [
        ("Unet", RESNET, {}),
        ("UPerNet", RESNET, {}),
        ("FPN", RESNET, {}),
        ("DeepLabV3Plus", RESNET, {}),
        ("DeepLabV3Plus", RESNET, dict(encoder_output_stride=8)),
        ("Unet", CONVNEXT, {}),
        ("UPerNet", CONVNEXT, {}),
        ("FPN", CONVNEXT, {}),
        ("DeepLabV3Plus", CONVNEXT, {}),
        ("Unet", SWIN, {}),
        ("UPerNet", SWIN, {}),
        ("FPN", SWIN, {}),
    ],
)
def test_loads_the_plain_network_and_learns(decoder, encoder, options):
    name, twin, reduced = encoder
    make = getattr(smp, decoder)
    plain = randomize(make(f"tu-{twin}", encoder_weights=None, classes=3, **options, **reduced), std=0.1).eval()
    model = make(f"tu-{name}", encoder_weights=None, classes=3, **options, **reduced).eval()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(model(x), plain(x)) < 1e-4
        features = model.encoder(x)
        assert [feature.shape for feature in features] == [feature.shape for feature in plain.encoder(x)]
        assert [feature.shape[1] for feature in features] == model.encoder.out_channels
    assert_every_parameter_learns(model, model.train()(x).square().mean())
