"""LoRA on FDConv's kernels: a low-rank update of the kernel, checked against the update written out."""

import copy

import pytest
import timm
import torch
from conftest import randomize, relative_error
from torch import nn

from fdconv_zoo import FDConv2d, FDLinear, add_lora, merge_lora

LAYERS = [
    (FDConv2d(6, 10, 3, padding=1, num_kernels=4), torch.randn(3, 6, 7, 5)),
    (FDConv2d(7, 5, 3, padding=1, num_kernels=4), torch.randn(2, 7, 5, 5)),  # an odd number of columns
    (FDConv2d(8, 6, 1, num_kernels=4, groups=2), torch.randn(2, 8, 5, 5)),
    (FDLinear(8, 6, num_kernels=4), torch.randn(2, 9, 8)),
]


def build(layer):
    return randomize(copy.deepcopy(layer)).eval()


@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=["3x3", "odd", "grouped 1x1", "linear"])
def test_the_kernel_gets_a_low_rank_update(layer, x):
    layer = build(layer)
    expected = layer(x)
    before = layer.fdw()[0]
    parameters = add_lora(layer, rank=2, alpha=3.0)
    assert torch.equal(layer(x), expected)
    up, down = parameters[1], parameters[0]
    nn.init.normal_(up)
    out_channels, in_channels, a, b = layer.fdw.kernel_shape
    update = (1.5 * up @ down).view(out_channels, a, in_channels, b).transpose(1, 2)
    assert relative_error(layer.fdw()[0], before + update) < 1e-5
    moved = layer(x)
    assert relative_error(moved, expected) > 1e-2
    merge_lora(layer)
    assert relative_error(layer(x), moved) < 1e-6
    assert set(layer.state_dict()) == set(build(layer).state_dict())


def test_only_the_updates_learn():
    model = randomize(timm.create_model("resnet10s_fdconv", num_classes=3), std=0.1).train()
    before = copy.deepcopy(model.state_dict())
    parameters = add_lora(model, rank=4)
    assert sum(p.numel() for p in parameters) < 0.3 * sum(v.numel() for k, v in before.items() if "spectrum" in k)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    x, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    merge_lora(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], v) for k, v in before.items() if "running" not in k and "spectrum" not in k
               and "num_batches" not in k)  # fmt: skip
    assert any(not torch.equal(after[k], v) for k, v in before.items() if "spectrum" in k)


def test_half_precision_keeps_its_dtype():
    layer = build(LAYERS[0][0]).bfloat16()
    add_lora(layer)
    assert layer.fdw.spectrum.dtype == torch.bfloat16
    assert layer(LAYERS[0][1].bfloat16()).dtype == torch.bfloat16


def test_what_cannot_be_done_is_said():
    with pytest.raises(ValueError, match="no FDConv layers"):
        add_lora(nn.Conv2d(3, 4, 1))
    layer = build(LAYERS[0][0])
    with pytest.raises(ValueError, match="rank is 0"):
        add_lora(layer, rank=0)
    add_lora(layer)
    with pytest.raises(ValueError, match="merge_lora"):
        add_lora(layer)
