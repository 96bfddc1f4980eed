"""Steps of real optimizers on FDConv and on the plain layer it stands for: kernels and logits move as they should."""

import pytest
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from fdconv_zoo import FDConv2d, FrequencyBandModulation, KernelSpatialModulation, param_groups
from fdconv_zoo.layers.modulators import find_heads

SHAPES = [(32, 32, 3), (32, 64, 1), (48, 12, 3)]  # out channels, in channels, kernel: three different factors
LR = 1e-3

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def plain(shape, groups=1):
    torch.manual_seed(0)
    out_channels, in_channels, kernel = shape
    return nn.Conv2d(in_channels, out_channels, kernel, groups=groups, bias=False).double()


def kernel_of(layer):
    return layer.weight if isinstance(layer, nn.Conv2d) else layer.fdw()[0]


def train(layer, optimizer, steps=1, draw=torch.randn, **settings):
    """Let an optimizer move a layer along random gradients of its kernel, and return how the kernel has moved."""
    start = kernel_of(layer).detach().clone()
    groups = param_groups(layer, LR, optimizer=optimizer, modulator_lr=0.0, **settings)
    found = create_optimizer_v2(groups, optimizer, lr=LR)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        found.zero_grad()
        gradient = draw(*start.shape, generator=generator, dtype=start.dtype) * 1e-3
        (kernel_of(layer) * gradient).sum().backward()
        found.step()
    return kernel_of(layer).detach() - start


def both(shape, optimizer, groups=1, **settings):
    """How the kernel of the FDConv layer moves, and how that of the plain one."""
    conv = plain(shape, groups)
    return train(FDConv2d.from_conv(conv), optimizer, **settings), train(conv, optimizer, **settings)


def rms(tensor):
    return tensor.square().mean().sqrt().item()


def skip_without(optimizer):
    if optimizer not in list_optimizers():
        pytest.skip(f"this version of timm has no {optimizer}")


@every_shape
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "lion", "nadamw", "rmsprop", "adan", "muon"])
def test_the_kernel_moves_as_far_as_the_plain_one(optimizer, shape):
    skip_without(optimizer)
    ours, theirs = both(shape, optimizer)
    assert rms(ours) == pytest.approx(rms(theirs), rel=0.03)
    if optimizer in ("adamw", "lion"):
        assert rms(theirs) == pytest.approx(LR, rel=0.01)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_kernel_of_a_layer_with_groups_moves_as_far_as_the_plain_one(optimizer):
    ours, theirs = both((32, 64, 3), optimizer, groups=4)
    assert rms(ours) == pytest.approx(rms(theirs), rel=0.03)


@every_shape
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("optimizer", ["momentum", "sgd", "sgdw"])
def test_sgd_moves_every_frequency_of_the_kernel_like_the_plain_one(optimizer, weight_decay, shape):
    """But those of the first column, and of the middle one of an even number: half as far. Momentum is 0.9."""
    ours, theirs = both(shape, optimizer, steps=4, weight_decay=weight_decay)
    out_channels, in_channels, k = shape
    planes = [d.transpose(1, 2).reshape(out_channels * k, in_channels * k) for d in (ours, theirs)]
    ours, theirs = (torch.fft.rfft2(plane) for plane in planes)
    ours, theirs, last = ours[:, 1:-1], theirs[:, 1:-1], (ours[:, [0, -1]], theirs[:, [0, -1]])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)
    if not weight_decay:
        torch.testing.assert_close(2 * last[0], last[1], rtol=1e-6, atol=1e-12)


@every_shape
@pytest.mark.parametrize(
    "optimizer",
    ["adamw", "lion", "adafactor", "muon", "adam", "nadam", "rmsprop", "momentum", "sgd", "sgdw", "adamc", "sgdc"],
)
def test_weight_decay_takes_as_much_off_the_kernel(optimizer, shape):
    skip_without(optimizer)
    start = plain(shape).weight
    taken = []
    for build in (FDConv2d.from_conv, lambda conv: conv):
        moved = [train(build(plain(shape)), optimizer, steps=4, weight_decay=decay) for decay in (0.0, 0.02)]
        taken.append(-((moved[1] - moved[0]) * start).sum().item() / start.square().sum().item())
    assert taken[1] > 1e-6
    # Where the decay goes through Adam's division, it does so as each coefficient's gradients happen to be.
    assert taken[0] == pytest.approx(taken[1], rel=0.12 if optimizer in ("adam", "nadam", "rmsprop") else 0.03)


@every_shape
@pytest.mark.parametrize("optimizer", ["lamb", "lambw", "lars"])
def test_steps_that_are_a_share_of_the_norm_need_no_factor(optimizer, shape):
    ours, theirs = both(shape, optimizer, weight_decay=1e-4)
    assert rms(ours) == pytest.approx(rms(theirs), rel=0.05)


@every_shape
def test_muon_moves_no_direction_of_the_plane_much_further_than_the_others(shape):
    """Of the kernel's plane of O*k rows and I*k columns; Adam does."""
    skip_without("muon")

    def draw(*sizes, **options):  # of a few strong directions and many weak ones
        rows, cols, taps, _ = sizes
        strengths = torch.logspace(0, -2, rows, dtype=options["dtype"])
        parts = torch.randn(rows, rows, **options) * strengths, torch.randn(rows, cols * taps**2, **options)
        return (parts[0] @ parts[1]).view(sizes)

    def spread(movement):
        out_channels, in_channels, k = shape
        values = torch.linalg.svdvals(movement.transpose(1, 2).reshape(out_channels * k, in_channels * k))
        return (values[0] / values.median()).item()

    muon, adam = (both(shape, optimizer, draw=draw) for optimizer in ("muon", "adamw"))
    assert rms(muon[0]) == pytest.approx(rms(muon[1]), rel=0.05)
    assert spread(muon[0]) < 1.8
    assert spread(adam[0]) > 2.1


def step_of_logits(modulator, optimizer, features):
    """How far the first step moves the logits of one place each, on average, in learning rates."""
    outputs = []
    for head in find_heads(modulator):
        head.register_forward_hook(lambda *call: outputs.append(call[-1]))

    def logits():
        outputs.clear()
        modulator(features)
        return torch.cat([at_one_place(output).flatten() for output in outputs])

    found = create_optimizer_v2(param_groups(modulator, LR, optimizer=optimizer), optimizer, lr=LR)
    logits().sum().backward()  # gradients of size 1, so that SGD's steps can be compared
    found.step()
    return -logits().mean().item() / LR


def at_one_place(output):
    """Logits of one pixel; or of the local branch, for each output channel those of one input channel."""
    if isinstance(output, torch.Tensor):
        return output[0, :, 0, 0] if output.ndim == 4 else output[0]
    return (output.taps[:, 0] * output.windows[0, 0]).sum(1)  # as many outputs as inputs


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "momentum"])
def test_a_step_moves_band_weights_alike_whatever_the_number_of_channels(optimizer):
    moved = []
    for channels in (32, 512):
        torch.manual_seed(0)
        moved.append(
            step_of_logits(FrequencyBandModulation(channels), optimizer, torch.randn(1, channels, 8, 8).relu())
        )
    assert moved[1] == pytest.approx(moved[0], rel=0.25)  # of one corner's features
    assert 1 < moved[0] < 2.5


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "momentum"])
@pytest.mark.parametrize("branch", ["global_branch", "local_branch"])
def test_a_step_moves_kernel_modulators_alike_whatever_the_number_of_channels(branch, optimizer):
    moved = []
    for channels in (16, 1024):  # 16 and 64 hidden features, 3 and 7 taps
        torch.manual_seed(0)
        switches = {"global_branch": False, "local_branch": False, branch: True}
        modulator = KernelSpatialModulation(channels, channels, (1, 1), **switches)
        moved.append(step_of_logits(modulator.eval(), optimizer, torch.randn(1, channels)))
    assert moved[1] == pytest.approx(moved[0], rel=0.5)
    assert 0.5 < moved[0] < 3
