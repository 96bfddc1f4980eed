"""The public names as typed code uses them: mypy checks this file in `make lint`, pytest runs it."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import fdconv_zoo
from fdconv_zoo import (
    FDConv2d,
    FDLinear,
    FourierDisjointWeight,
    FrequencyBandModulation,
    KernelSpatialModulation,
    approximate_plain,
    convert_model,
    param_groups,
    plan_conversion,
    set_path,
    to_plain,
)
from fdconv_zoo.conversion import ConversionPlan, Deviation


def test_layers_of_plain_ones() -> None:
    layer: FDConv2d = FDConv2d.from_conv(nn.Conv2d(32, 32, 3, padding=1), num_kernels=4)
    y: Tensor = layer(torch.randn(2, 32, 8, 8))
    assert y.shape == (2, 32, 8, 8)
    assert_type(layer.forward(torch.randn(2, 32, 8, 8)), Tensor)
    assert_type(layer.train(), FDConv2d)
    tokens: FDLinear = FDLinear.from_linear(nn.Linear(32, 48))
    assert_type(tokens.forward(torch.randn(2, 5, 32)), Tensor)
    layers: list[FDConv2d | FDLinear] = [layer, tokens]
    assert [each.fdw.num_kernels for each in layers] == [4, 64]


def test_parts() -> None:
    layer = FDConv2d(32, 32, kernel_size=3, padding="same", padding_mode="reflect", num_kernels=4)
    assert_type(layer.fdw, FourierDisjointWeight)
    assert_type(layer.ksm, KernelSpatialModulation)
    assert_type(layer.fbm, FrequencyBandModulation | None)
    assert_type(layer.bias, Tensor | None)
    assert_type(layer.kernel_size, tuple[int, int])
    assert_type(layer.fdw.forward(), Tensor)
    assert layer.fdw.forward(mix=False).kernel_shape == (32, 32, 3, 3)
    kernel = layer.ksm.forward(torch.randn(2, 32)).kernel
    assert_type(kernel, Tensor | None)


def test_conversion() -> None:
    images = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3))
    assert_type(plan_conversion(model, example=images), ConversionPlan)
    model = nn.Sequential(convert_model(model, include=["1"], types=nn.Conv2d, example=images, num_kernels=4))
    plain, deviation = approximate_plain(model, images)
    assert_type(plain, nn.Module)
    assert_type(deviation, Deviation)
    assert_type(to_plain(plain), nn.Module)


def test_training() -> None:
    model: nn.Module = timm.create_model("resnet10s_fdconv", num_classes=3)
    groups = param_groups(model, lr=1e-3, weight_decay=0.05, spectrum_lr="auto", modulator_lr=0.1)
    assert_type(groups, list[dict[str, Any]])
    torch.optim.AdamW(groups)
    fdconv_zoo.keep_kernels(model)
    set_path(model, "plain")
    adapters: list[nn.Parameter] = fdconv_zoo.add_lora(model, rank=2)
    assert adapters
    fdconv_zoo.merge_lora(model)
    assert_type(fdconv_zoo.script_model(model.eval()), torch.jit.ScriptModule)
    assert_type(fdconv_zoo.from_reference(model.state_dict()), dict[str, Tensor])


def test_what_the_types_refuse() -> None:
    """mypy reports an ignored error that is none."""
    layer = FDConv2d(16, 16, 1)
    with pytest.raises(ValueError, match="path"):
        set_path(layer, "fast")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        FDConv2d.from_conv(nn.Linear(16, 16))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="band_mask"):
        FDConv2d(32, 32, 3, band_mask="blurred")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="padding is"):
        FDConv2d(32, 32, 3, padding=(1, 1, 1))  # type: ignore[arg-type]


def test_dense_models_have_their_types() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    from fdconv_zoo.dense import Segmenter

    model = Segmenter("resnet10s_fdconv", ["background", "cat"], "fpn", backbone_args={"stem_pool": True})
    assert_type(model.class_names, list[str])
    assert_type(model.backbone.model.training, bool)
    assert_type(model.no_weight_decay(), set[str])
