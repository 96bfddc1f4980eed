"""The entrypoints small enough to test every one, their plain twins from timm, and files of plain weights."""

from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from conftest import randomize, relative_error
from safetensors.torch import save_file
from torch import nn

import fdconv_zoo  # noqa: F401  registers the entrypoints

NAMES = timm.list_models("*_fdconv*")
FAMILIES = {  # one entrypoint of each, for what does not depend on the architecture's details
    "resnet": "resnet50_fdconv",
    "convnext": "convnext_tiny_fdconv",
    "swin": "swin_tiny_patch4_window7_224_fdconv",
    "vit": "vit_tiny_patch16_224_fdconv",
}
SIZE = 64

every_model = pytest.mark.parametrize("name", NAMES)
each_family = pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)

SMALL = {
    "resnet": dict(layers=(1, 1, 2, 1), channels=(32, 48, 64, 96)),
    "convnext": dict(depths=(1, 1, 2, 1), dims=(24, 32, 40, 48)),
    "swin": dict(depths=(2, 1, 2, 1), embed_dim=24, img_size=SIZE),
    "vit": dict(depth=3, embed_dim=48, num_heads=2, img_size=SIZE),
}
# With few FDConv layers, of every kind: tracing takes seconds for each. Stages of 16 or fewer channels are plain, and
# so is the second layer of an MLP.
_IN_MLP = dict(fdconv_layers=("mlp.fc1",))
FEW_LAYERS = {
    "resnet": dict(layers=(1, 1, 1, 1), channels=(8, 8, 8, 24)),
    "convnext": dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 24), ls_init_value=None, **_IN_MLP),
    "swin": dict(embed_dim=24, depths=(2,), num_heads=(2,), **_IN_MLP),
    "vit": dict(depth=1, **_IN_MLP),
}
_PLAIN_NAMES = {"convnext_fdconv": "convnext_tiny", "swin_fdconv": "swin_tiny_patch4_window7_224"}


def family(name: str) -> str:
    """The file in fdconv_zoo/backbones that an entrypoint stands in."""
    return timm.model_entrypoint(name.partition(".")[0]).__module__.rpartition(".")[2]


def plain_name(name: str) -> str:
    """timm's architecture, with the tag if the name has one; only resnet10s is none of timm's."""
    architecture, dot, tag = name.partition(".")
    if tag.startswith("deit_"):  # weights of ViT that timm lists under a name of their own
        architecture, tag = architecture.replace("vit_", "deit_"), tag.removeprefix("deit_")
    return _PLAIN_NAMES.get(architecture, architecture.replace("_fdconv", "")) + dot + tag


def small(name: str, **kwargs) -> nn.Module:
    """A fresh model of an entrypoint, with few and narrow blocks."""
    return timm.create_model(name, **SMALL[family(name)] | dict(num_classes=11) | kwargs)


def plain_twin(name: str, full_size: bool = False, **kwargs) -> nn.Module:
    """timm's model that an entrypoint starts from; as narrow as :func:`small` makes it, or whole."""
    args = {} if full_size else SMALL[family(name)] | dict(num_classes=11)
    if not name.startswith("resnet10s"):
        return timm.create_model(plain_name(name), **args | kwargs)
    args = dict(layers=(1, 1, 1, 1), channels=(32, 48, 64, 96), num_classes=10) | args
    model = timm.create_model("resnet18", stem_type="deep", stem_width=16, **args | kwargs)
    model.maxpool = nn.Identity()
    for stage in model.feature_info[1:]:
        stage["reduction"] //= 2
    return model


@cache
def example(name: str) -> nn.Module:
    """A small model in eval mode that is nowhere neutral; tests that change it work on a copy."""
    torch.manual_seed(1)
    return settle(randomize(small(name), std=0.1))


@cache
def traced_example(name: str) -> nn.Module:
    """:func:`example` with few layers, for what takes seconds a layer."""
    torch.manual_seed(1)
    return settle(randomize(small(name, **FEW_LAYERS[family(name)]), std=0.1))


@cache
def plain_example(name: str) -> nn.Module:
    """:func:`example` of the plain twin."""
    torch.manual_seed(2)
    return settle(randomize(plain_twin(name), std=0.1))


def settle(model: nn.Module) -> nn.Module:
    """Fit the blocks' running statistics to what passes: features that grow with depth would amplify rounding."""
    norms = [m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and "ksm" not in name]
    model.eval()
    with torch.no_grad():
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        model(images(4))
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()


def save_weights(model: nn.Module, folder: Path) -> dict:
    """Write a model's weights; returns the overlay of a pretrained configuration that loads them."""
    save_file(model.state_dict(), folder / "model.safetensors")
    # Without custom_load timm reads the file itself; its plain ViTs expect NumPy files of Google's.
    return dict(file=str(folder / "model.safetensors"), num_classes=model.num_classes, custom_load=False)


def images(batch: int = 2, channels: int = 3, size: tuple[int, int] = (SIZE, SIZE)) -> torch.Tensor:
    return torch.randn(batch, channels, *size)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def assert_same(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    """Equal to rounding, and not everything is zero."""
    assert actual.shape == expected.shape
    assert torch.isfinite(expected).all()
    assert expected.abs().max() > 0
    error = relative_error(actual.detach(), expected.detach())
    assert error < tolerance, error
