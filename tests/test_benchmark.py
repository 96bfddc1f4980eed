"""Benchmarks: counts, checks and the table, but no times."""

import copy
import csv
import dataclasses
import gc
import weakref
from typing import get_args

import pytest
import timm
import torch
from conftest import relative_error
from matplotlib.figure import Figure
from torch import nn

import fdconv_zoo
from fdconv_zoo import FDConv2d, ops, profiling
from fdconv_zoo.cli import benchmark
from fdconv_zoo.errors import MismatchError
from fdconv_zoo.profiling import timing
from fdconv_zoo.profiling.checks import randomize_constants
from fdconv_zoo.profiling.graphs import capture, graphable_step
from fdconv_zoo.profiling.picture import draw_ratios

SMALL = "resnet10s_fdconv"


@pytest.fixture(autouse=True)
def on_one_cpu_thread():
    """On a shared machine, small models spend most of their time waiting for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_counts_of_a_known_model():
    model = timm.create_model("resnet18")
    assert profiling.count_parameters(model) == 11_689_512
    counts = profiling.count_multiply_adds(model, torch.randn(1, 3, 224, 224))
    assert 1.81e9 < counts[0] == counts[1] < 1.82e9


def test_elementwise_operations_of_fdconv_are_not_counted():
    conv = nn.Conv2d(24, 32, 3, padding=1)
    x = torch.randn(1, 24, 10, 10)
    plain = profiling.count_multiply_adds(conv, x)
    assert plain == (24 * 32 * 9 * 100,) * 2
    layer = FDConv2d.from_conv(conv, ksm_global=False, ksm_local=False, fbm=False)
    assert profiling.count_multiply_adds(layer, x) == plain


def test_low_passes_are_counted_separately():
    layer = FDConv2d(24, 32, 3, padding=1, ksm_global=False, ksm_local=False)
    everything, without = profiling.count_multiply_adds(layer, torch.randn(1, 24, 10, 10))
    assert without == (24 * 32 + 24 * 3) * 9 * 100  # the convolution and the bands' attention
    assert everything > without


class SavesTwoStorages(nn.Module):
    """Keeps x, and y three times, as well as a parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("offset", torch.ones(6))

    def forward(self, x):
        y = (x * self.scale).exp()  # keeps x and the parameter, then y
        return y[:, :3] * y[:, 3:] * self.offset[:3]  # keeps two views of y, then the buffer


def test_saved_bytes_count_each_storage_once_and_no_weights():
    x = torch.randn(4, 6)
    assert profiling.bytes_saved_for_backward(SavesTwoStorages(), x) == (4 * 6 + 4 * 6) * 4
    assert profiling.bytes_saved_for_backward(nn.Linear(6, 3), x) == x.nbytes
    frozen = nn.Linear(6, 3).requires_grad_(False)
    assert profiling.bytes_saved_for_backward(frozen, x) == 0


def test_saved_bytes_of_a_loss():
    x, target = torch.randn(4, 6), torch.randn(4, 3)
    saved = profiling.bytes_saved_for_backward(
        nn.Linear(6, 3), (x, target), lambda model, x, target: ((model(x) - target) ** 2).sum()
    )
    assert saved == x.nbytes + target.nbytes  # the layer's input, and what is squared


def test_saved_bytes_leave_no_graph_behind():
    model = nn.Sequential(nn.Linear(6, 3), nn.Sigmoid())  # which keeps its own result
    kept = []
    model.register_forward_hook(lambda module, inputs, output: kept.append(weakref.ref(output)))
    profiling.bytes_saved_for_backward(model, torch.randn(4, 6))
    gc.collect()
    assert kept[0]() is None


@pytest.mark.gpu
def test_peak_bytes_exclude_other_models():
    model, x = nn.Linear(512, 512, device="cuda"), torch.randn(256, 512, device="cuda")
    step = timing.training_step(model, x, torch.float32)
    step()
    alone = profiling.peak_bytes_of_step(model, x, step)
    other = torch.empty(10_000_000, device="cuda")
    assert alone == profiling.peak_bytes_of_step(model, x, step)
    own = sum(parameter.nbytes for parameter in model.parameters())
    assert 2 * own + x.nbytes <= alone < other.nbytes  # with gradients


@pytest.mark.gpu
def test_steps_replayed_from_cuda_graphs():
    models = {"one": timm.create_model("test_resnet"), "two": timm.create_model(SMALL)}
    for model in models.values():
        randomize_constants(model.cuda())
    found = profiling.profile(models, torch.randn(2, 3, 32, 32, device="cuda"), cuda_graphs=True, repeats=2)
    assert all(costs.forward_seconds > 0 and costs.train_seconds > 0 for costs in found.values())


@pytest.mark.gpu
def test_a_captured_step_is_the_step():
    weight, x = (torch.randn(3, 3, device="cuda") for _ in range(2))
    replay, y = capture(lambda: x @ weight)
    x.normal_()
    replay()
    assert torch.equal(y, x @ weight)


@pytest.mark.parametrize("training", [False, True])
def test_a_step_for_capture_is_a_step_of_sgd(training):
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    before = copy.deepcopy(model)
    result = graphable_step(model, x, torch.float32, training=training)()
    assert model.training is training
    if not training:
        assert torch.equal(result, model(x))
        assert not result.requires_grad
    with torch.no_grad():
        moved = before.bias - model.bias
    assert moved.abs().max() <= 2e-9
    assert all(parameter.grad is None for parameter in model.parameters())


def test_timed_steps_are_interleaved():
    calls = []
    steps = [lambda: calls.append("A"), lambda: calls.append("B")]
    times = profiling.time_interleaved(steps, repeats=1, device=torch.device("cpu"))
    assert "".join(calls) == "AB" * (timing.WARM_UP + 1)
    assert all(median >= 0 and iqr == 0 for median, iqr in times)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("resnet18_fdconv", "resnet18"),
        ("resnet18_fdconv.a1_in1k", "resnet18"),
        (SMALL, f"{SMALL} (plain)"),
        ("resnet18.a1_in1k", None),
    ],
)
def test_twins(name, twin):
    models = profiling.create_with_twin(name, num_classes=7, num_kernels=4, fdconv_layers=("conv2",))
    assert list(models) == ([twin, name] if twin else [name])
    assert all(model.num_classes == 7 for model in models.values())
    dynamic = [any(isinstance(layer, FDConv2d) for layer in model.modules()) for model in models.values()]
    assert dynamic == ([False, True] if twin else [False])


@pytest.fixture
def pair():
    twin, model = profiling.create_with_twin(SMALL).values()
    return model, twin


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32) + torch.randn(2, 3, 1, 1)


def test_same_function_passes_and_leaves_the_same_weights(pair, x):
    model, twin = pair
    profiling.check_same_function(model, twin, x)
    torch.testing.assert_close(model(x), twin(x))


def test_a_difference_in_the_last_residual_branch_is_found(pair, x):
    model, twin = pair
    model.layer4[0].conv2.register_forward_hook(lambda layer, args, y: y * 1.003)
    with pytest.raises(MismatchError, match="logits differ by"):
        profiling.check_same_function(model, twin, x)


def test_logits_that_are_not_finite_are_a_difference(pair, x):
    model, twin = pair
    model.fc.register_forward_hook(lambda layer, args, y: y * float("nan"))
    with pytest.raises(MismatchError):
        profiling.check_same_function(model, twin, x)


def test_weights_that_do_not_fit_are_an_error(pair, x):
    with pytest.raises(MismatchError, match="do not fit"):
        profiling.check_same_function(pair[0], timm.create_model("test_resnet"), x)


@pytest.fixture
def dynamic(pair, x):
    """Make a model with random modulators."""
    profiling.check_same_function(*pair, x)
    profiling.randomize_modulators(pair[0])
    return pair[0]


def test_randomized_modulators_are_not_neutral(dynamic, pair, x):
    assert relative_error(dynamic(x), pair[1](x)) > 0.01
    for name, parameter in dynamic.named_parameters():
        if "ksm" in name or "fbm" in name:
            assert parameter.any(), name


@pytest.mark.parametrize("path", [*get_args(ops.Path), None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_path_agrees_with_plain_operations(dynamic, x, path, dtype):
    reference = profiling.plain_copy(dynamic)
    fdconv_zoo.set_path(dynamic, path)
    profiling.check_computation(dynamic, reference, x, dtype=dtype)


def check_against_itself(model, change, x, **kwargs):
    reference = profiling.plain_copy(model)
    change(model)
    profiling.check_computation(model, reference, x, **kwargs)


def dynamic_layers(model):
    return [layer for layer in model.modules() if isinstance(layer, FDConv2d)]


def without_local_branch(model):
    for layer in dynamic_layers(model):
        layer.ksm.local_branch = None


def without_bands(model):
    for layer in dynamic_layers(model):
        layer.fbm = None


def with_the_kernels_of_another_image(model):
    for layer in dynamic_layers(model):
        layer.ksm.register_forward_pre_hook(lambda _, args: (args[0].flip(0),))


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (without_local_branch, torch.float32),
        (without_local_branch, torch.bfloat16),
        (without_bands, torch.float32),
        (with_the_kernels_of_another_image, torch.float32),
    ],
)
def test_a_shortcut_is_found(dynamic, x, change, dtype):
    with pytest.raises(MismatchError, match="the logits differ by"):
        check_against_itself(dynamic, change, x, dtype=dtype, training=False)


@pytest.mark.parametrize(
    ("inner", "part"), [(".fdw.", "fdw"), (".ksm.", "ksm"), (".fbm.", "fbm"), ("bn", "plain layers")]
)
def test_a_wrong_gradient_is_found(dynamic, x, inner, part):
    def change(model):
        for name, parameter in model.named_parameters():
            if inner in name:
                parameter.register_hook(lambda grad: 1.2 * grad)

    with pytest.raises(MismatchError, match=f"the gradients of {part} differ by"):
        check_against_itself(dynamic, change, x)


def test_models_are_checked_before_they_are_timed(dynamic, x, monkeypatch):
    def changed_copy(model):
        model = copy.deepcopy(model)
        without_bands(model)
        return model

    monkeypatch.setattr(profiling.measure, "plain_copy", changed_copy)
    monkeypatch.setattr(profiling.measure, "time_interleaved", None)
    with pytest.raises(MismatchError, match=r"^model: the logits differ"):
        profiling.profile({"model": dynamic}, x)


TINY = ("--device", "cpu", "--batch-size", "2", "--image-size", "16", "--repeats", "1")


def read(file):
    with file.open() as stream:
        return list(csv.DictReader(stream))


def test_end_to_end(tmp_path, capsys):
    file = tmp_path / "costs.csv"
    benchmark.main(["--models", SMALL, "test_resnet", *TINY, "--csv", str(file)])
    output = capsys.readouterr().out
    for fact in ("torch: " + torch.__version__, "timm: " + timm.__version__, "mode: eager", "path: each layer chooses"):
        assert fact in output
    rows = read(file)
    plain = f"{SMALL} (plain)"
    assert [(row["model"], row["twin"]) for row in rows] == [(plain, plain), (SMALL, plain), ("test_resnet",) * 2]
    figures = [field.name for field in dataclasses.fields(profiling.Profile)]
    ratios = [f"{name}_ratio" for name in benchmark.COLUMNS]
    conditions = [
        *("machine", "device", "cores", "threads", "torch", "timm", "dtype", "mode", "layout"),
        *("path", "repeats", "model_kwargs"),
    ]
    added = ["forward_added_seconds", "train_added_seconds"]
    assert list(rows[0]) == [*conditions, "model", "twin", "batch_size", "image_size", *figures, *added, *ratios]
    empty = {"peak_bytes", *added}
    for row in rows:
        assert (row["batch_size"], row["image_size"]) == ("2", "16x16")
        assert all(float(row[name]) >= 0 for name in figures if name not in empty)
        assert all(row[name] == row[f"{name}_ratio"] == "" for name in empty)
    assert {rows[0][ratio] for ratio in ratios} == {"1.0", ""}
    assert float(rows[1]["parameters_ratio"]) == int(rows[1]["parameters"]) / int(rows[0]["parameters"]) > 1
    assert float(rows[1]["saved_bytes_ratio"]) > 1
    assert int(rows[1]["multiply_adds"]) > int(rows[1]["multiply_adds_without_low_passes"])
    assert output.count("1.00") >= 10
    assert "+ ms" not in output


def test_breakdown_and_peers(tmp_path, capsys):
    file, picture = tmp_path / "costs.csv", tmp_path / "costs.png"
    flags = ["--breakdown", "--peers", "--csv", str(file), "--picture", str(picture), "--model-kwargs", "num_kernels=4"]
    benchmark.main(["--models", SMALL, *TINY, *flags])
    rows = {row["model"]: row for row in read(file)}
    plain, *variants, model = list(rows)[: len(benchmark.BREAKDOWN) + 2]
    assert (plain, model) == (f"{SMALL} (plain)", SMALL)
    assert variants == [f"{SMALL}: {part}" for part in benchmark.BREAKDOWN]
    chain = [plain, *variants, model]
    parameters = [int(rows[name]["parameters"]) for name in chain]
    assert parameters == sorted(set(parameters))  # each has one more part than the one before
    for kind in ("forward", "train"):
        total = sum(float(rows[name][f"{kind}_added_seconds"]) for name in chain[1:])
        twin, own = (float(rows[name][f"{kind}_seconds"]) for name in (plain, model))
        assert total == pytest.approx(own - twin)
        assert float(rows[model][f"{kind}_added_seconds_ratio"]) == pytest.approx(
            float(rows[model][f"{kind}_added_seconds"]) / twin
        )
        assert rows[plain][f"{kind}_added_seconds"] == ""
    assert list(rows)[len(chain) :] == list(benchmark.PEERS)
    assert all(rows[peer]["twin"] == plain and rows[peer]["forward_added_seconds"] == "" for peer in benchmark.PEERS)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "+ ms" in capsys.readouterr().out


def test_sizes_are_combined(tmp_path):
    file = tmp_path / "costs.csv"
    sizes = ["--batch-size", "1", "2", "--image-size", "16", "16x24"]
    flags = ["--device", "cpu", "--repeats", "1", "--skip-train", "--csv", str(file)]
    benchmark.main(["--models", "test_resnet", *flags, *sizes])
    found = [(row["batch_size"], row["image_size"]) for row in read(file)]
    assert found == [("1", "16x16"), ("1", "16x24"), ("2", "16x16"), ("2", "16x24")]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_table_is_one_flag(device):
    args = benchmark.build_parser().parse_args(["--table"])
    settings = benchmark.choose_settings(args, torch.device(device))
    assert settings == list(benchmark.TABLE[device])
    assert any(setting.training for setting in settings)
    args.skip_train = True
    assert not any(setting.training for setting in benchmark.choose_settings(args, torch.device(device)))


def test_counting_only_measures_no_times(monkeypatch, capsys):
    monkeypatch.setattr(nn.Module, "compile", None)
    monkeypatch.setattr(profiling.measure, "time_interleaved", None)
    benchmark.main(["--models", SMALL, *TINY, "--count-only", "--compile", "--breakdown"])
    table = capsys.readouterr().out.partition("GMACs: ")[0]
    assert "params/M" in table
    assert "/ms" not in table
    assert "saved/MB" not in table


def test_options_reach_the_measurement(capsys, monkeypatch):
    measured = {}

    def spy(models, *args, **kwargs):
        measured.update(models)
        return profiling.profile(models, *args, **kwargs)

    monkeypatch.setattr(benchmark, "profile", spy)
    flags = ["--dtype", "bfloat16", "--channels-last", "--threads", "1", "--skip-train", "--path", "plain"]
    options = ["--model-kwargs", "in_chans=1", "num_kernels=4"]
    benchmark.main(["--models", SMALL, *TINY, *flags, *options])
    output = capsys.readouterr().out
    facts = ("dtype: bfloat16", "threads: 1", "layout: channels_last", "model kwargs: in_chans=1 num_kernels=4")
    for fact in (*facts, "path: plain"):
        assert fact in output
    assert "train/ms" not in output.partition("GMACs: ")[0]
    assert {layer.path for layer in measured[SMALL].modules() if isinstance(layer, FDConv2d)} == {"plain"}


def test_models_are_compiled_on_request(dynamic, x, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    profiling.profile({"model": dynamic}, x, training=False, repeats=1)
    assert not compiled
    profiling.profile({"model": dynamic}, x, training=False, repeats=1, compiled=True)
    assert compiled == [dynamic]


def test_a_model_that_exhausts_memory_is_named_and_others_are_measured(monkeypatch, capsys, tmp_path):
    def exhausted(models, *args, **kwargs):
        if SMALL in models:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return profiling.profile(models, *args, **kwargs)

    monkeypatch.setattr(benchmark, "profile", exhausted)
    file = tmp_path / "costs.csv"
    with pytest.raises(benchmark.TrainingError, match=f"out of memory: {SMALL} at batch 2;"):
        benchmark.main(["--models", SMALL, "test_resnet", *TINY, "--skip-train", "--csv", str(file)])
    output = capsys.readouterr().out
    assert f"{SMALL:<24}      2  out of memory\ntest_resnet" in output
    assert len(file.read_text().splitlines()) == 2


def test_the_picture_shows_ratios_to_the_twins(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (figures.append(self), path.touch()))
    measured = dict(forward_seconds_ratio=2.5, train_seconds_ratio=None, saved_bytes_ratio=None, peak_bytes_ratio=None)
    own = dict(measured, model="ours", twin="theirs", image_size="8x8")
    twin = dict(own, model="theirs", forward_seconds_ratio=1.0)
    rows = [dict(row, batch_size=batch_size) for batch_size in (1, 4) for row in (twin, own)]
    draw_ratios([*rows[:3], dict(rows[3], train_seconds_ratio=0.5)], tmp_path / "costs.png")
    forward, train = figures[0].axes
    assert [label.get_text() for label in forward.get_yticklabels()] == ["batch 1, 8x8", "ours", "batch 4, 8x8", "ours"]
    assert [text.get_text() for text in forward.texts] == ["2.50", "2.50"]
    assert [text.get_text() for text in train.texts] == ["0.50"]


def test_the_cpu_allocators_error_is_out_of_memory():
    with pytest.raises((RuntimeError, MemoryError)) as error:
        torch.empty(2**55, dtype=torch.uint8)
    assert benchmark.is_out_of_memory(error.value)
    assert not benchmark.is_out_of_memory(RuntimeError("shapes differ"))


def test_an_unknown_model_is_refused_with_suggestions():
    with pytest.raises(benchmark.ConfigError, match=r"resnet50_fdcon: no such model; did you mean resnet50_fdconv"):
        benchmark.main(["--models", SMALL, "resnet50_fdcon"])


def test_missing_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(benchmark.ConfigError, match="no CUDA device"):
        benchmark.main(["--device", "cuda"])
    assert benchmark.choose_device(None).type == "cpu"
    with pytest.raises(benchmark.ConfigError, match="--cuda-graphs needs a CUDA device"):
        benchmark.main(["--cuda-graphs"])


def test_unsupported_model_arguments_are_refused():
    with pytest.raises(benchmark.ConfigError, match=f"{SMALL} cannot be built: .*num_kernels is 0"):
        benchmark.main(["--models", SMALL, *TINY, "--model-kwargs", "num_kernels=0"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--table", "--batch-size", "2"], "--table sets the sizes"),
        (["--table", "--image-size", "32"], "--table sets the sizes"),
        (["--picture", "costs.png", "--count-only"], "remove --count-only"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(flags, message):
    with pytest.raises(benchmark.ConfigError, match=message):
        benchmark.main(flags)


def test_a_picture_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(benchmark.ConfigError, match="--picture needs matplotlib"):
        benchmark.main(["--picture", "costs.png"])


def test_peers_need_layers_to_replace():
    with pytest.raises(benchmark.ConfigError, match="--peers replace FDConv2d layers"):
        benchmark.main(["--models", SMALL, *TINY, "--peers", "--model-kwargs", "fdconv_layers=()"])


def test_numbers_below_one_are_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--repeats", "0"])
    assert "0 is not a positive number" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["--image-size", "32x0"])
    assert "0 is not a positive number" in capsys.readouterr().err


def test_help_says_what_is_counted(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    assert "FFTs and element-wise work are\nnot counted" in capsys.readouterr().out
