"""What counters of multiply-adds read for FDConv models, beside the plain twin.

What each can know, and what it reads for one image of 224x224, in G multiply-adds:

====================================  ========  ===============  ==========================  ==================
counter                               resnet18  resnet18_fdconv  after set_path(m, "plain")  sees
====================================  ========  ===============  ==========================  ==================
conversion.costs.count_multiply_adds  1.81      2.05             2.05                        operators
torch's FlopCounterMode               1.81      2.05             2.05                        operators
fvcore's FlopCountAnalysis            1.82      2.13             2.13                        a traced program
ptflops, backend "aten"               1.81      see below        2.05                        torch's operators
ptflops, backend "pytorch"            1.83      0.2 to 0.4       0.2                         known modules
torchinfo                             1.81      unrelated        unrelated                   modules' weights
thop                                  1.82      0.2              0.2                         known modules
====================================  ========  ===============  ==========================  ==================

Those that see known modules miss every kernel that is made per image: they read less than a tenth of the truth, on any
path, and must not be published. ptflops' "aten" counts no operators but torch's own: it needs ``set_path(m, "plain")``.
"""

import copy

import pytest
import timm
import torch
from contract import FAMILIES, SIZE, example, images, plain_example
from torch.utils.flop_counter import FlopCounterMode

from fdconv_zoo import FDConv2d, FDLinear, set_path
from fdconv_zoo.conversion.costs import count_multiply_adds

PATHS = [None, "rebuild", "plain"]
NAMES = ["resnet10s_fdconv", *FAMILIES.values()]
AGREE = 1e-6
MODES = [torch.no_grad, torch.inference_mode, torch.enable_grad]
every_model = pytest.mark.parametrize("name", NAMES)


def count(model, x, mode=torch.no_grad):
    with mode(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def count_backward(model, x):
    y = model(x).square().sum()
    with FlopCounterMode(display=False) as counter:
        y.backward()
    return counter.get_total_flops() // 2


def on_path(model, path):
    model = copy.deepcopy(model)
    set_path(model, path)
    return model


LAYERS = {
    "3x3": (FDConv2d(32, 48, 3, padding=1), 32 * 48 * 9 * 12 * 10),
    "3x3 on a large map": (FDConv2d(32, 16, 3, padding=1, fbm=False), 32 * 16 * 9 * 12 * 10),
    "1x1": (FDConv2d(32, 48, 1, num_kernels=16), 32 * 48 * 12 * 10),
    "stride": (FDConv2d(32, 48, 3, stride=2, padding=1), 32 * 48 * 9 * 6 * 5),
    "depthwise": (FDConv2d(32, 32, 3, padding=1, groups=32), 32 * 9 * 12 * 10),
    "no branch": (FDConv2d(32, 48, 3, padding=1, ksm_global=False, ksm_local=False, fbm=False), 32 * 48 * 9 * 12 * 10),
    "linear": (FDLinear(32, 48, num_kernels=16), 32 * 48 * 12 * 10),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, batch):
    """At least the plain layer's products, on every path and in every mode."""
    layer, plain = LAYERS[name]
    layer.eval()
    x = torch.randn(batch, 12, 10, 32) if isinstance(layer, FDLinear) else torch.randn(batch, 32, 12, 10)
    found = {(path, mode.__name__): count(on_path(layer, path), x, mode) for path in PATHS for mode in MODES}
    expected = found["plain", "enable_grad"]
    for where, counted in found.items():
        assert counted >= batch * plain, where
        assert abs(counted - expected) <= AGREE * expected, where
    backward = {path: count_backward(on_path(layer, path), x.requires_grad_()) for path in PATHS}
    for path, counted in backward.items():
        assert counted >= 2 * batch * plain, path
        assert counted <= 2 * backward["plain"], path  # kernels and bands that are rebuilt are counted again


def test_a_layer_without_modulators_costs_what_the_plain_one_does():
    layer, plain = LAYERS["no branch"]
    for path in PATHS:
        for mode in MODES:
            assert count(on_path(layer, path), torch.randn(2, 32, 12, 10), mode) == 2 * plain


@every_model
def test_models(name):
    model, x = example(name), images()
    plain = count(plain_example(name), x)
    cases = [*((None, mode) for mode in MODES), ("rebuild", torch.enable_grad), ("plain", torch.enable_grad)]
    found = {(path, mode.__name__): count(on_path(model, path), x, mode) for path, mode in cases}
    expected = found["plain", "enable_grad"]
    for where, counted in found.items():
        assert counted >= plain, where
        assert abs(counted - expected) <= AGREE * expected, where


@every_model
def test_backward_of_models(name):
    plain = count_backward(plain_example(name), images())
    found = {path: count_backward(on_path(example(name), path), images()) for path in PATHS}
    for path, counted in found.items():
        assert counted >= plain, path
        assert counted <= 1.5 * found["plain"], path


@every_model
def test_training_mode_is_counted_alike(name):
    model = copy.deepcopy(example(name)).train()
    found = {path: count(on_path(model, path), images(), torch.enable_grad) for path in (None, "plain")}
    plain = count(plain_example(name), images())
    for path, counted in found.items():
        assert counted >= plain, path
        assert abs(counted - found["plain"]) <= AGREE * found["plain"], path


@every_model
def test_models_without_memory_are_counted_alike(name):
    x = images()

    def gap(model, mode):
        return count(copy.deepcopy(model).to("meta"), x.to("meta"), mode) - count(model, x, mode)

    for mode in (torch.no_grad, torch.enable_grad):
        # torch does not count the attention of a CPU, in plain models either.
        assert gap(example(name), mode) == gap(plain_example(name), mode), mode


@every_model
def test_our_own_count_agrees(name):
    model, x = example(name), images(1)
    total, without_low_passes = count_multiply_adds(copy.deepcopy(model), x)
    plain = count_multiply_adds(copy.deepcopy(plain_example(name)), x)[0]
    assert plain <= without_low_passes <= total
    assert abs(total - count(on_path(model, "plain"), x)) <= AGREE * total


@pytest.mark.parametrize("name", ["resnet10s_fdconv", FAMILIES["swin"]])
def test_fvcore(name):
    """Traces the model, which takes the plain path by itself."""
    fvcore = pytest.importorskip("fvcore.nn")

    def read(model):
        analysis = fvcore.FlopCountAnalysis(copy.deepcopy(model), images(1))
        return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none").total()

    found = read(example(name))
    assert found >= read(plain_example(name))
    assert abs(found - count(on_path(example(name), "plain"), images(1))) <= 0.15 * found


def ptflops_of(model, backend):
    ptflops = pytest.importorskip("ptflops")
    return ptflops.get_model_complexity_info(
        copy.deepcopy(model),
        (3, SIZE, SIZE),
        backend=backend,
        as_strings=False,
        print_per_layer_stat=False,
        verbose=False,
    )


@every_model
def test_ptflops_that_counts_operators_is_right_on_the_plain_path(name):
    macs, parameters = ptflops_of(on_path(example(name), "plain"), "aten")
    assert macs >= ptflops_of(plain_example(name), "aten")[0]
    assert abs(macs - count(on_path(example(name), "plain"), images(1))) <= 0.05 * macs
    assert parameters == sum(parameter.numel() for parameter in example(name).parameters())


def read_ptflops(model):
    return ptflops_of(model, "pytorch")[0]


def read_torchinfo(model):
    torchinfo = pytest.importorskip("torchinfo")
    summary = torchinfo.summary(copy.deepcopy(model), input_size=(1, 3, SIZE, SIZE), verbose=0)
    assert summary.total_params == sum(parameter.numel() for parameter in model.parameters())
    return summary.total_mult_adds


def read_thop(model):
    thop = pytest.importorskip("thop")
    return thop.profile(copy.deepcopy(model), (images(1),), verbose=False)[0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("read", [read_ptflops, read_thop], ids=lambda read: read.__name__)
def test_counters_of_known_modules_run_and_miss_the_kernels(read, path):
    """They cannot know; should one of them learn to, the table above and the documentation want a new line."""
    model, x = on_path(example(FAMILIES["resnet"]), path), images(1)
    with torch.no_grad():
        expected = model(x)
        assert 0 < read(model) < read(plain_example(FAMILIES["resnet"]))
        assert torch.equal(model(x), expected)


def test_the_table_above():
    """The figures for resnet18 that papers print."""
    x = torch.randn(1, 3, 224, 224)
    plain, model = timm.create_model("resnet18").eval(), timm.create_model("resnet18_fdconv").eval()
    assert round(count(plain, x) / 1e9, 2) == 1.81
    assert 2.0 < count_multiply_adds(model, x)[0] / 1e9 < 2.2
    assert 2.0 < count(model, x, torch.enable_grad) / 1e9 < 2.2
