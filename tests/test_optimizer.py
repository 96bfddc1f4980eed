import argparse

import pytest
import timm
import torch

from fdconv_zoo import FDConv2d
from fdconv_zoo.layers import FrequencyBandModulation
from fdconv_zoo.training.flags import add_optimization_flags
from fdconv_zoo.training.optimizer import build_optimizer, build_scheduler, learning_rate


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_optimization_flags(parser)
    return parser.parse_args(flags)


def rate_of(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> float:
    (rate,) = [
        group["lr"] for group in optimizer.param_groups if any(parameter is member for member in group["params"])
    ]
    return rate


@pytest.mark.parametrize("layer_decay", [None, "0.5"])
def test_spectra_and_modulators_have_learning_rates_of_their_own(layer_decay):
    model = timm.create_model("resnet10s_fdconv")
    flags = ["--lr", "0.1", *(["--layer-decay", layer_decay] if layer_decay else [])]
    plain = build_optimizer(parse(*flags, "--spectrum-lr", "1", "--modulator-lr", "1"), model)
    scaled = build_optimizer(parse(*flags, "--spectrum-lr", "4", "--modulator-lr", "0.1"), model)
    for update in (0, 3, 150):
        for optimizer in (plain, scaled):
            build_scheduler(parse(*flags), optimizer, updates_per_epoch=10).step_update(update)
        assert learning_rate(scaled) == pytest.approx(rate_of(plain, model.fc.bias))
        for name, parameter in model.named_parameters():
            factor = 4 if name.endswith("spectrum") else 0.1 if ".ksm." in name or ".fbm." in name else 1
            assert rate_of(scaled, parameter) == pytest.approx(factor * rate_of(plain, parameter)), name
    decays = [
        {id(p): group["weight_decay"] for group in o.param_groups for p in group["params"]} for o in (plain, scaled)
    ]
    assert decays[0] == decays[1]


@pytest.mark.parametrize(("kernel", "factor"), [(3, 4.24), (1, 1.41)])
def test_how_much_less_a_spectrum_moves_a_kernel(kernel, factor):
    """A step of Adam's size in every number, with signs drawn at random, on a square layer."""
    conv = torch.nn.Conv2d(64, 64, kernel, bias=False)
    layer = FDConv2d.from_conv(conv, fbm=False)
    x = torch.randn(4, 64, 8, 8)
    with torch.no_grad():
        before = layer(x), conv(x)
        for parameter in (layer.fdw.spectrum, conv.weight):
            parameter += 1e-4 * torch.randn_like(parameter).sign()
        moved = [
            (module(x) - start).square().mean().sqrt() for module, start in zip((layer, conv), before, strict=True)
        ]
    assert (moved[1] / moved[0]).item() == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize(("factor", "low", "high"), [("1", 1.4, 1.7), ("0.1", 1.03, 1.1)])
def test_how_far_a_step_carries_a_band_weight(factor, low, high):
    """One step of AdamW at 0.006, on what 64 rectified channels hold, towards weights of 1.2."""
    torch.manual_seed(0)
    fbm = FrequencyBandModulation(64)
    x = torch.randn(4, 64, 16, 16).relu()
    flags = parse("--lr", "0.006", "--modulator-lr", factor, "--warmup-epochs", "0")
    optimizer = build_optimizer(flags, fbm)
    build_scheduler(flags, optimizer, updates_per_epoch=10).step_update(0)
    (fbm(x) - 1.2 * x).square().mean().backward()
    optimizer.step()
    weights = 2 * torch.sigmoid(fbm.attention(x))
    assert low < weights.mean() < high
