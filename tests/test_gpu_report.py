"""The report on a GPU: its small form on a CPU, and what it does with sections that fail, crash or hang."""

import ctypes
import gzip
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from run_scripts import ROOT
from torch import nn

from fdconv_zoo.errors import DataError
from fdconv_zoo.profiling.gpu_report import SECTIONS, Settings, write_report
from fdconv_zoo.profiling.gpu_report.convolutions import WAYS, _check_equal
from fdconv_zoo.profiling.gpu_report.correctness import deviation, outcomes
from fdconv_zoo.profiling.gpu_report.document import Document, summary_lines
from fdconv_zoo.profiling.gpu_report.learning import load, read_idx
from fdconv_zoo.profiling.gpu_report.run import Section
from fdconv_zoo.profiling.gpu_report.section import DeviceLostError, Item, Recorder
from fdconv_zoo.profiling.gpu_report.suite import find_tests

MISSING = ("datasets", "segmentation_models_pytorch", "pycocotools", "torchmetrics", "av")  # where a GPU is lent


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def fashion_mnist(tmp_path):
    """96 images of two classes that differ, and 50 to test on, in the format of the real ones."""
    folder = tmp_path / "idx"
    folder.mkdir()
    random = np.random.default_rng(0)
    for part, count in (("train", 96), ("t10k", 50)):
        labels = random.integers(0, 2, count).astype(np.uint8)
        images = random.integers(0, 60, (count, 28, 28)) + 150 * labels[:, None, None] * (np.arange(28) < 14)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images.astype(np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


def test_the_small_form_runs_without_what_a_gpu_machine_lacks(tmp_path, fashion_mnist):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in MISSING:
        (blocked / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}')")
    test = tmp_path / "test_one.py"
    test.write_text("def test_it():\n    pass\n")
    command = [sys.executable, str(ROOT / "scripts" / "gpu_report.py"), "--small", "--device", "cpu", "--minutes", "20"]
    command += ["--out", str(tmp_path / "out"), "--tests", str(test), "--fashion-mnist", str(fashion_mnist)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(blocked), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report) == list(SECTIONS)
    assert not [failure for section in report.values() for failure in section["failures"]]
    assert all(section["tables"] for section in report.values())
    markdown = (tmp_path / "out" / "report.md").read_text()
    for words in ("FDConv, rebuild", "ODConv", "x plain", "1 passed", "test accuracy", "torch.compile"):
        assert words in markdown
    assert "0 failures" in done.stdout


def broken_items(settings):
    return [
        Item("fine", lambda recorder: recorder.row("table", found=1)),
        Item("raises", lambda recorder: 1 / 0),
        Item("raises again", lambda recorder: 1 / 0),
        Item("crashes", lambda recorder: ctypes.string_at(0)),
        Item("hangs", lambda recorder: time.sleep(100), limit=0.2),
        Item("loses the device", lose_the_device),
        Item("fine in the end", lambda recorder: recorder.row("table", found=2)),
    ]


def lose_the_device(recorder):
    with recorder.attempt("capture", leaves_device=False):
        raise ValueError("not while capturing")


def no_items(settings):
    raise ValueError("no items at all")


def slow_items(settings):
    return [
        Item("slow", lambda recorder: (recorder.row("slow", found=3), time.sleep(100))),
        Item("too late", lambda recorder: recorder.row("slow", found=4)),
    ]


def test_what_fails_is_recorded_and_does_not_stop_the_rest(tmp_path):
    # Time for what a busy machine does to the first, and four seconds for the one that does not end.
    sections = {
        "broken": Section("Broken", broken_items, 300),
        "slow": Section("Slow", slow_items, 2),
        "none": Section("None", no_items, 298),
    }
    lines = []
    document = write_report(Settings("cpu"), tmp_path, 600, sections, lines.append)
    broken, slow, none = document.sections.values()
    assert broken["tables"]["table"] == [{"found": 1}, {"found": 2}]
    failures = {failure["what"]: failure["details"] for failure in broken["failures"]}
    assert "ZeroDivisionError" in failures["raises: failed"]
    assert "Segmentation fault" in failures["crashes: the process died"]
    assert "lambda" in failures["hangs: stopped at the end of its time"]  # where it hung
    assert "not while capturing" in failures["loses the device: capture"]
    assert "no items at all" in none["failures"][0]["details"]
    assert slow["tables"]["slow"] == [{"found": 3}]
    assert "stopped at the end of the section" in slow["failures"][0]["what"]
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == document.sections
    assert failures["raises: failed"].strip() in (tmp_path / "report.md").read_text()
    assert any("ZeroDivisionError" in line for line in lines)


def test_the_report_as_text():
    document = Document()
    document.start("one", "Title")
    document.row("table", {"name": "a|b", "time": 1234.5})
    document.row("table", {"name": "c", "ratio": 0.12345})
    document.note("A note.")
    assert document.failure("first", "Traceback\nError: no")
    assert not document.failure("second", "Traceback\nError: no")
    document.finish(3.2)
    assert document.markdown().splitlines() == [
        "# GPU report",
        "",
        "## Title (3 s)",
        "",
        "A note.",
        "",
        "### table",
        "",
        "| name | time | ratio |",
        "| --- | --- | --- |",
        "| a\\|b | 1234 |  |",
        "| c |  | 0.123 |",
        "",
        "### Failure: first",
        "",
        "```",
        "Traceback",
        "Error: no",
        "```",
        "",
        "### Failure: second",
        "",
        "```",
        "as in first",
        "```",
    ]
    assert summary_lines(document)[-2:] == ["FAILED first: Error: no", "FAILED second: as in first"]


def test_deviations_are_found():
    expected = {"large": torch.tensor([1.0, 100.0]), "small": torch.tensor([0.5, 1.0])}
    assert deviation(expected, expected)[0] == 0
    changed = expected | {"small": torch.tensor([0.5, 1.2])}
    assert deviation(changed, expected) == (pytest.approx(0.1), "small")
    broken = expected | {"large": torch.tensor([float("nan"), 100.0])}
    assert deviation(broken, expected)[1] == "large"


def test_outcomes_are_those_of_autograd():
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    found = outcomes(layer, x)
    assert found.keys() == {"output", "input", "weight", "bias"}
    assert torch.equal(found["output"], layer(x).detach().double())
    assert found["weight"].shape == (3, 4)
    # The gradient of the output is the same for every layer and dtype.
    assert torch.allclose(found["bias"], outcomes(layer.double(), x.double())["bias"])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_ways_to_convolve_agree_with_autograd(layout):
    x = torch.randn(3, 4, 5, 6).to(memory_format=layout).requires_grad_()
    kernels = torch.randn(3, 4, 4, 3, 3, requires_grad=True)
    y = torch.cat([nn.functional.conv2d(one[None], kernel, padding=1) for one, kernel in zip(x, kernels, strict=True)])
    grad = torch.randn(y.shape).to(memory_format=layout)
    expected = (y, *torch.autograd.grad(y, (x, kernels), grad))
    for way in WAYS.values():
        found = (way.forward(x, kernels), *way.backward(grad, x, kernels))
        _check_equal(found, expected, torch.float32)
    with pytest.raises(AssertionError, match="deviates"):
        _check_equal((y + 0.1, *expected[1:]), expected, torch.float32)


def test_fashion_mnist_is_read(fashion_mnist, tmp_path):
    images, labels, test_images, test_labels = load(fashion_mnist, torch.device("cpu"))
    assert images.shape == (96, 1, 32, 32)
    assert test_images.shape == (50, 1, 32, 32)
    raw = read_idx(fashion_mnist / "train-images-idx3-ubyte")
    assert torch.allclose(images[:, 0, 2:-2, 2:-2] * 0.353 + 0.286, raw / 255, atol=1e-6)
    assert labels.dtype == torch.long
    assert set(test_labels.tolist()) == {0, 1}
    with pytest.raises(DataError, match="does not exist"):
        read_idx(tmp_path / "none")
    (tmp_path / "text").write_text("hello, not idx")
    with pytest.raises(DataError, match="not an idx file"):
        read_idx(tmp_path / "text")


def test_tests_that_need_a_gpu_are_found(tmp_path):
    (tmp_path / "tests").mkdir()
    texts = {
        "test_a": "@skipif(not torch.cuda.is_available())\ndef test_one(): ...\ndef test_two(): 'cuda.is_available()'",
        "test_triton": "import os\nfrom interpreter import DEVICE\ndef test_all(): ...\ndef helper(): ...",
        "test_gpu_report": "def test_it():\n    names = 'mark.gpu'",
    }
    for name, text in texts.items():
        (tmp_path / "tests" / f"{name}.py").write_text(text)
    assert find_tests(tmp_path) == ("tests/test_triton.py::test_all", "tests/test_a.py::test_one")
    assert any(name.startswith("tests/test_parts.py::") for name in find_tests(ROOT))
    assert "tests/test_triton.py::test_kernels_match_plain_operations" in find_tests(ROOT)


def test_a_device_that_is_lost_ends_the_process():
    events = []
    recorder = Recorder(events.append, time.monotonic() + 10)
    with recorder.attempt("this"):
        raise ValueError("one")
    with pytest.raises(DeviceLostError), recorder.attempt("that", leaves_device=False):
        raise ValueError("two")
    assert [event[0] for event in events] == ["failure", "failure"]
