"""Counting launches: against counts by hand, and the backward pass against torch's engine."""

import pytest
import timm
import torch
import torch.nn.functional as F
from contract import each_family, example, images
from torch import Tensor, nn

from fdconv_zoo import FDConv2d, keep_kernels, set_path
from fdconv_zoo.cli import benchmark
from fdconv_zoo.ops import triton_support
from fdconv_zoo.profiling.backward import run_backward
from fdconv_zoo.profiling.launches import count_launches
from fdconv_zoo.profiling.triton_launches import observed_launches

triton = pytest.importorskip("triton")
tl = triton.language


@triton.jit
def double_kernel(x, y, size, BLOCK: tl.constexpr):  # noqa: N803
    """Write twice x to y."""
    places = tl.arange(0, BLOCK)
    tl.store(y + places, 2 * tl.load(x + places, places < size), places < size)


tuned_kernel = triton.autotune([triton.Config({"BLOCK": size}) for size in (64, 128)], key=["size"])(double_kernel)


@torch.library.custom_op("fdconv_zoo::two_for_test_launches", mutates_args=())
def two(x: Tensor) -> Tensor:
    """An operator of two operations and two kernels."""
    y = torch.empty_like(x)
    double_kernel[(1,)](x, y, x.numel(), BLOCK=64)
    tuned_kernel[(1,)](x, y, x.numel())
    return y.add(1).flatten().view(x.shape).mul_(2)


@two.register_fake
def _(x):
    return torch.empty_like(x)


two.register_autograd(lambda ctx, grad: 4 * grad)


@torch.library.triton_op("fdconv_zoo::traced_for_test_launches", mutates_args=())
def traced(x: Tensor) -> Tensor:
    """An operator whose kernel torch.compile sees."""
    y = torch.empty_like(x)
    torch.library.wrap_triton(double_kernel)[(1,)](x, y, x.numel(), BLOCK=64)
    return y


traced.register_autograd(lambda ctx, grad: traced(grad))


class Traced(nn.Module):
    def forward(self, x):
        return traced(x)


class Two(nn.Module):
    def forward(self, x):
        return two(x)


def counted(model, *shape, **options):
    with torch.device("meta"):
        forward, backward = count_launches(model.to("meta"), torch.empty(shape), **options)
    return dict(forward.count), dict(backward.count), forward.total_bytes, backward.total_bytes


def test_a_linear_layer():
    forward, backward, read, read_back = counted(nn.Linear(4, 3), 2, 4)
    assert forward == {"addmm": 1}
    assert read == 4 * (2 * 4 + 3 * 4 + 3 + 2 * 3)
    assert backward == {"mm": 1, "sum": 1}
    assert read_back == 4 * ((2 * 3 + 2 * 4 + 3 * 4) + (2 * 3 + 3))


def test_a_small_network():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False), nn.Flatten()
    )
    forward, backward, *_ = counted(model, 2, 3, 9, 9)
    assert forward == {"convolution": 2, "cudnn_batch_norm": 1, "add_": 1, "relu": 1}
    # The first convolution needs no gradient of the image, and its bias has one of its own.
    assert backward == {"convolution_backward": 2 + 2, "cudnn_batch_norm_backward": 1, "threshold_backward": 1}


def test_half_precision_casts_and_moves_less():
    model = nn.Linear(64, 64, bias=False)
    full, *_ = counted(model, 8, 64, training=False)
    half, nothing, moved, _ = counted(model, 8, 64, dtype=torch.bfloat16, training=False)
    assert full == {"mm": 1}
    assert half == {"mm": 1, "_to_copy": 2}
    assert nothing == {}
    elements = 8 * 64, 64 * 64, 8 * 64
    assert moved == sum(elements) * 2 + sum(elements[:2]) * (4 + 2)
    assert not torch.is_autocast_enabled("cuda")


def test_views_and_what_stays_on_the_cpu_are_free():
    class Views(nn.Module):
        def forward(self, x):
            return torch.zeros(3, device="cpu").sum() * x.view(4, 2).transpose(0, 1).expand(5, 2, 4)

    forward, _, moved, _ = counted(Views(), 2, 4, training=False)
    assert forward == {"mul": 1}
    assert moved == 4 * (1 + 2 * 4 + 5 * 2 * 4)


def test_operators_and_kernels_are_looked_into():
    forward, _, moved, _ = counted(nn.Sequential(nn.ReLU(), Two()), 2, 4, training=False)
    assert forward == {"relu": 1, "double_kernel": 2, "add": 1, "mul_": 1}
    assert moved == 5 * 2 * (4 * 2 * 4)


def test_kernels_that_the_compiler_sees_count_too():
    forward, backward, *_ = counted(nn.Sequential(nn.Linear(4, 4), Traced()), 2, 4)
    assert forward == {"addmm": 1, "double_kernel": 1}
    assert backward == {"double_kernel": 1, "mm": 1, "sum": 1}


@pytest.mark.skipif(triton_support.is_interpreted(), reason="the interpreter stands for a GPU's kernels on a CPU only")
def test_layers_take_the_path_of_a_gpu():
    """Also where there is none: the kernels are chosen, and not executed."""
    forward, backward, *_ = counted(FDConv2d(32, 32, 3), 2, 32, 8, 8)
    assert forward["weigh"] == backward["weigh"] == 1  # to assemble the kernels, and to do so again
    assert forward["predict_hidden"] == forward["predict_heads"] == 1  # KSM, in training too
    assert backward["backward_heads"] == backward["backward_hidden"] == backward["backward_inputs"] == 1
    assert not {"addmm", "mm", "native_layer_norm", "cudnn_batch_norm"} & (forward.keys() | backward.keys())
    layer = FDConv2d(32, 32, 3)
    keep_kernels(layer)
    kept_forward, kept_backward, *_ = counted(layer, 2, 32, 8, 8)
    assert kept_forward == forward
    assert backward.keys() - kept_backward.keys() == {"weigh", "_fft_c2c", "modulate"}  # nothing is assembled again
    assert kept_backward.items() <= backward.items()
    assert triton_support.problem("cuda") is not None or torch.cuda.is_available()


def test_kernels_are_watched_where_they_run():
    seen = []
    with observed_launches(lambda name, tensors: seen.append((name, len(tensors))), execute=False):
        double_kernel[(1,)](torch.ones(3), torch.ones(3), 3, BLOCK=64)
    assert seen == [("double_kernel", 2)]


@pytest.mark.parametrize("path", ["plain", "rebuild"])
def test_counts_follow_from_the_batch_alone_where_images_go_one_by_one(path):
    layer = FDConv2d(16, 16, 3, padding=1, num_kernels=4)
    set_path(layer, path)
    totals = [sum(sum(count.values()) for count in counted(layer, batch, 16, 9, 9)[:2]) for batch in (2, 3, 4)]
    growth = totals[1] - totals[0]
    assert totals[2] - totals[1] == growth
    assert growth == (0 if path == "plain" else 2)  # gradients of spectrum and taps are summed image by image


def test_the_model_is_not_changed():
    model = timm.create_model("resnet10s_fdconv", device="meta")
    before = dict(model.named_parameters())
    count_launches(model, torch.empty(2, 3, 32, 32, device="meta"))
    assert all(before[name] is parameter for name, parameter in model.named_parameters())


@each_family
@pytest.mark.parametrize("autocast", [False, True])
def test_the_backward_pass_is_that_of_the_engine(name, autocast):
    model, x = example(name), images()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    gradient = torch.randn(y.shape).to(y)
    found = run_backward(y, gradient)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(y, parameters, gradient)
    # In half precision gradients depend on the order in which they are summed.
    tolerance = 5e-2 if autocast else 1e-5
    rounding = 1e-2 * max(one.abs().max() for one in expected)
    for parameter, one in zip(parameters, expected, strict=True):
        assert found[parameter].dtype == one.dtype
        assert (found[parameter] - one).abs().max() <= tolerance * (one.abs().max() + rounding)


def test_the_backward_pass_of_one_of_two_outputs():
    x = torch.randn(4, 6, requires_grad=True)
    second = (x * 2).split(3, dim=1)[1]
    gradient = torch.randn(4, 3)
    assert torch.equal(run_backward(second, gradient)[x], F.pad(2 * gradient, (3, 0)))


def test_the_table(tmp_path, capsys):
    file = tmp_path / "launches.csv"
    flags = ["--count-launches", "--models", "resnet10s_fdconv", "--image-size", "32", "--peers", "--csv", str(file)]
    benchmark.main([*flags, "--batch-size", "2", "--path", "rebuild", "--channels-last", "--dtype", "bfloat16"])
    text = capsys.readouterr().out
    rows = [line.split(",") for line in file.read_text().splitlines()]
    assert [row[2] for row in rows[1:3]] == ["resnet10s_fdconv (plain)", "resnet10s_fdconv"]
    assert len(rows) == 3 + len(benchmark.PEERS)
    ratio = float(rows[2][rows[0].index("launches_ratio")])
    assert ratio > 5
    assert f"{ratio:.2f}" in text
    assert "convolution_backward" in text
    for flag in ("--compile", "--count-only"):
        with pytest.raises(benchmark.ConfigError, match="--count-launches"):
            benchmark.main([*flags, flag])


def test_memory_formats_are_kept():
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(x.stride())
            return x + 1

    with torch.device("meta"):
        x = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
        count_launches(Watch(), x, training=False)
    assert seen == [x.stride()]
