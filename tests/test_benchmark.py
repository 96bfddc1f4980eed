"""What is counted and compared; never how long anything took."""

import csv
import dataclasses

import pytest
import timm
import torch
from run_scripts import load_script
from torch import nn

import fdconv_zoo  # noqa: F401 - registers the models
from fdconv_zoo import FDConv2d, profiling
from fdconv_zoo.profiling import TwinMismatchError

benchmark = load_script("benchmark")

SMALL = "resnet10s_fdconv"


@pytest.fixture(autouse=True)
def on_one_cpu_thread():
    """On a shared machine, threads that wait for each other take most of the time of small models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_counts_of_a_known_model():
    model = timm.create_model("resnet18")
    assert profiling.count_parameters(model) == 11_689_512
    assert 1.81e9 < profiling.count_multiply_adds(model, torch.randn(1, 3, 224, 224)) < 1.82e9


def test_multiply_adds_do_not_depend_on_what_fdconv_does_element_by_element():
    conv = nn.Conv2d(24, 32, 3, padding=1)
    x = torch.randn(1, 24, 10, 10)
    plain = profiling.count_multiply_adds(conv, x)
    assert plain == 24 * 32 * 9 * 100
    layer = FDConv2d.from_conv(conv, ksm_global=False, ksm_local=False, fbm=False)
    assert profiling.count_multiply_adds(layer, x) == plain


class SavesTwoStorages(nn.Module):
    """Keeps x and y, y three times, besides a parameter and a buffer."""

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_bytes_leave_out_other_models():
    model, x = nn.Linear(512, 512, device="cuda"), torch.randn(256, 512, device="cuda")
    step = profiling._training_step(model, x, torch.float32)
    step()
    alone = profiling.peak_bytes_of_step(model, x, step)
    other = torch.empty(10_000_000, device="cuda")
    assert alone == profiling.peak_bytes_of_step(model, x, step)
    own = sum(parameter.nbytes for parameter in model.parameters())
    assert 2 * own + x.nbytes <= alone < other.nbytes  # with gradients


def test_steps_are_timed_by_turns():
    calls = []
    steps = [lambda: calls.append("A"), lambda: calls.append("B")]
    times = profiling.time_by_turns(steps, repeats=1, device=torch.device("cpu"))
    assert "".join(calls) == "AB" * (profiling.WARM_UP + 1)
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
    return torch.randn(2, 3, 32, 32)


def test_same_function_passes_and_leaves_the_same_weights(pair, x):
    model, twin = pair
    profiling.check_same_function(model, twin, x)
    torch.testing.assert_close(model(x), twin(x))


def test_a_difference_in_the_last_residual_branch_is_found(pair, x):
    model, twin = pair
    model.layer4[0].conv2.register_forward_hook(lambda layer, args, y: y * 1.003)
    with pytest.raises(TwinMismatchError, match="logits differ by"):
        profiling.check_same_function(model, twin, x)


def test_logits_that_are_not_finite_are_a_difference(pair, x):
    model, twin = pair
    model.fc.register_forward_hook(lambda layer, args, y: y * float("nan"))
    with pytest.raises(TwinMismatchError):
        profiling.check_same_function(model, twin, x)


def test_weights_that_do_not_fit_are_an_error(pair, x):
    with pytest.raises(TwinMismatchError, match="do not fit"):
        profiling.check_same_function(pair[0], timm.create_model("test_resnet"), x)


TINY = ("--device", "cpu", "--batch-size", "2", "--image-size", "16", "--repeats", "1")


def test_end_to_end(tmp_path, capsys):
    file = tmp_path / "costs.csv"
    benchmark.main(["--models", SMALL, "test_resnet", *TINY, "--csv", str(file)])
    output = capsys.readouterr().out
    for fact in ("torch: " + torch.__version__, "timm: " + timm.__version__, "batch size: 2", "mode: eager"):
        assert fact in output
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    plain = f"{SMALL} (plain)"
    assert [(row["model"], row["twin"]) for row in rows] == [(plain, plain), (SMALL, plain), ("test_resnet",) * 2]
    figures = [field.name for field in dataclasses.fields(profiling.Profile)]
    ratios = [f"{name}_ratio" for name in benchmark.COLUMNS]
    conditions = [
        *("machine", "device", "cores", "threads", "torch", "timm", "dtype", "mode", "layout"),
        *("batch_size", "repeats", "model_kwargs"),
    ]
    assert list(rows[0]) == [*conditions, "model", "twin", "image_size", *figures, *ratios]
    for row in rows:
        assert row["image_size"] == "16x16"
        assert all(float(row[name]) >= 0 for name in figures if name != "peak_bytes")
        assert row["peak_bytes"] == row["peak_bytes_ratio"] == ""
    assert {rows[0][ratio] for ratio in ratios[:-1]} == {"1.0"}
    assert float(rows[1]["parameters_ratio"]) == int(rows[1]["parameters"]) / int(rows[0]["parameters"]) > 1
    assert float(rows[1]["saved_bytes_ratio"]) > 1
    assert output.count("1.00") >= 10


def test_options_reach_the_measurement(capsys):
    flags = ["--dtype", "bfloat16", "--channels-last", "--threads", "1", "--skip-train"]
    options = ["--model-kwargs", "in_chans=1", "num_kernels=4"]
    benchmark.main(["--models", SMALL, *TINY, *flags, *options])
    output = capsys.readouterr().out
    for fact in ("dtype: bfloat16", "threads: 1", "layout: channels_last", "model kwargs: in_chans=1 num_kernels=4"):
        assert fact in output
    assert "train/ms" not in output.partition("GMACs: ")[0]


def test_compiling_is_asked_for(pair, x, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    profiling.profile({"model": pair[0]}, x, training=False, repeats=1)
    assert not compiled
    profiling.profile({"model": pair[0]}, x, training=False, repeats=1, compiled=True)
    assert compiled == [pair[0]]


def test_a_model_that_exhausts_memory_is_named_and_others_go_on(monkeypatch, capsys, tmp_path):
    def exhausted(models, *args, **kwargs):
        if SMALL in models:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return profiling.profile(models, *args, **kwargs)

    monkeypatch.setattr(benchmark, "profile", exhausted)
    file = tmp_path / "costs.csv"
    with pytest.raises(benchmark.TrainingError, match=f"out of memory: {SMALL};"):
        benchmark.main(["--models", SMALL, "test_resnet", *TINY, "--skip-train", "--csv", str(file)])
    output = capsys.readouterr().out
    assert f"{SMALL:<24}  out of memory\ntest_resnet" in output
    assert len(file.read_text().splitlines()) == 2


def test_the_cpu_allocators_error_is_out_of_memory():
    with pytest.raises((RuntimeError, MemoryError)) as error:
        torch.empty(2**55, dtype=torch.uint8)
    assert benchmark.is_out_of_memory(error.value)
    assert not benchmark.is_out_of_memory(RuntimeError("shapes differ"))


def test_an_unknown_model_is_refused_with_near_names():
    with pytest.raises(benchmark.ConfigError, match=r"resnet50_fdcon: no such model; did you mean resnet50_fdconv"):
        benchmark.main(["--models", SMALL, "resnet50_fdcon"])


def test_absent_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(benchmark.ConfigError, match="no CUDA device"):
        benchmark.main(["--device", "cuda"])
    assert benchmark.choose_device(None).type == "cpu"


def test_arguments_a_model_does_not_take_are_refused():
    with pytest.raises(benchmark.ConfigError, match=f"{SMALL} cannot be built: .*num_kernels is 0"):
        benchmark.main(["--models", SMALL, *TINY, "--model-kwargs", "num_kernels=0"])


def test_numbers_below_one_are_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--repeats", "0"])
    assert "0 is not a positive number" in capsys.readouterr().err


def test_help_says_what_is_counted(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    assert "FFTs and element-wise work are\nnot counted" in capsys.readouterr().out
