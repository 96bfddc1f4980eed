"""The experiments that need no training: counts against fvcore and by hand, similarity of kernels that are set."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from run_scripts import ROOT, load_script
from torch import nn
from torch.nn import functional as F

from fdconv_zoo import FDConv2d, set_path
from fdconv_zoo.cli import compare, train
from fdconv_zoo.errors import ConfigError
from fdconv_zoo.index import read_entry
from fdconv_zoo.profiling.experiments.forms_of_fbm import FORMS, paths_on
from fdconv_zoo.profiling.experiments.kernel_similarity import mean_similarities, similarity
from fdconv_zoo.profiling.experiments.output import draw_swin, swin_table
from fdconv_zoo.profiling.experiments.swapped_modulators import swapped_modulators
from fdconv_zoo.profiling.experiments.swin_stress import measure_swin
from fdconv_zoo.profiling.experiments.work import count_work
from fdconv_zoo.profiling.peers import DCD, CondConv, DYConv, ODConv
from fdconv_zoo.store.export import export_model


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x * 2 + 1, dict(elementwise=2 * 3 * 8 * 16)),
        (lambda x: x.clone().long() + 1, {}),
        (lambda x: x @ torch.zeros(16, 5, device=x.device), dict(products=3 * 8 * 16 * 5)),
        # Half of 2.5 N log2(N), for three channels.
        (torch.fft.rfft2, dict(transforms=3 * 1.25 * 128 * 7)),
        (torch.fft.fft2, dict(transforms=3 * 2.5 * 128 * 7)),
        (lambda x: torch.fft.irfft2(torch.complex(x, x)[..., :9], s=(8, 16)), dict(transforms=3 * 1.25 * 128 * 7)),
    ],
)
def test_work_by_kind(function, expected):
    work = count_work(Function(function), (8, 16))
    assert vars(work) == {"products": 0, "norms": 0, "transforms": 0.0, "elementwise": 0} | expected
    assert work.total == sum(expected.values())


def test_get_flops_counts_what_fvcore_counts():
    """In the authors' form: the exact one has other low-passes, for free sizes, in the program that fvcore traces."""
    fvcore = pytest.importorskip("fvcore.nn")
    model = timm.create_model("resnet10s_fdconv", band_mask="reference", num_kernels=4).eval()
    work = count_work(model, (32, 48))
    set_path(model, "plain")
    counted = fvcore.FlopCountAnalysis(model, torch.randn(1, 3, 32, 48))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert work.get_flops == pytest.approx(counted.total(), rel=0.01)
    assert work.transforms > 0
    assert work.elementwise > 0


CONV = nn.Conv2d(6, 4, 3, bias=False)
# Cosines: 0 between the first two, 1 / sqrt(2) and -1 / sqrt(2) of the third.
KERNELS = torch.zeros(3, 4, 6, 3, 3)
KERNELS[0, 0, 0, 0, 0], KERNELS[1, 0, 0, 0, 1] = 2.0, 3.0
KERNELS[2, 0, 0, 0, :2] = torch.tensor([1.0, -1.0])


def with_kernels(kind):
    layer = kind(CONV, 3)
    target = layer.conv.weight if kind is CondConv else layer.kernels.weight
    target.data.copy_(KERNELS.view_as(target))
    return layer


@pytest.mark.parametrize("kind", [CondConv, DYConv, ODConv])
def test_similarity_of_kernels_that_are_set(kind):
    model = nn.Sequential(nn.Conv2d(3, 6, 1), with_kernels(kind), DCD(CONV))
    half = 0.5**0.5
    np.testing.assert_allclose(similarity(model[1]), [[1, 0, half], [0, 1, -half], [half, -half, 1]], atol=1e-6)
    assert mean_similarities(model) == {"1": pytest.approx(2 * half / 3)}


def test_disjoint_kernels_are_not_similar():
    layers = {"dynamic": FDConv2d(20, 24, 3, num_kernels=8), "single": FDConv2d(20, 24, 3, num_kernels=1)}
    found = mean_similarities(nn.ModuleDict(layers))
    assert [*found] == ["dynamic"]
    assert found["dynamic"] < 0.02


def save_run(name, folder):
    model = timm.create_model(name)
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct")
    preprocessing = {key: model.pretrained_cfg[key] for key in keys}
    (folder / "last").mkdir(parents=True)
    export_model(model, folder / "last", class_names=None, preprocessing=preprocessing, model_args={})
    return model


def test_the_table_of_similarities_reads_runs(tmp_path, capsys):
    script = load_script("experiments")
    runs = {name: save_run(name, tmp_path / name) for name in ("resnet10s_odconv", "resnet10s_fdconv")}
    folders = [str(tmp_path / name) for name in runs]
    script.main(["kernels", *folders, "--output", str(tmp_path / "out")])
    table = (tmp_path / "out" / "kernels.md").read_text()
    assert table == capsys.readouterr().out
    assert table.splitlines()[0] == "| layer | `resnet10s_odconv` | `resnet10s_fdconv` |"
    found = json.loads((tmp_path / "out" / "kernels.json").read_text())["results"]
    for folder, model in zip(folders, runs.values(), strict=True):
        assert found[folder] == pytest.approx(mean_similarities(model), abs=1e-6)
    save_run("resnet10s_plain", tmp_path / "plain")
    with pytest.raises(ConfigError, match="no layer mixes kernels"):
        script.main(["kernels", str(tmp_path / "plain"), "--output", str(tmp_path / "out")])


def randomize(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def test_swapped_modulators():
    layer, images = randomize(FDConv2d(4, 6, 3, padding=1, num_kernels=4)), torch.randn(3, 4, 8, 8)
    others = [2, 0, 1]
    with torch.no_grad():
        kernels = layer.assemble(images.mean((2, 3)))
        factors = 2 * torch.sigmoid(layer.fbm.attention(images))
        own = layer(images)

        def expected(of_kernels, of_factors):
            weighed = [layer.fbm.weigh(images[[i]], factors[[j]]) for i, j in enumerate(of_factors)]
            outputs = [F.conv2d(x, kernels[j], layer.bias, padding=1) for x, j in zip(weighed, of_kernels, strict=True)]
            return torch.cat(outputs)

        for swaps, wanted in (
            ({}, expected([0, 1, 2], [0, 1, 2])),
            ({"kernels": True}, expected(others, [0, 1, 2])),
            ({"bands": True}, expected([0, 1, 2], others)),
            ({"kernels": True, "bands": True}, expected(others, others)),
        ):
            with swapped_modulators(layer, **swaps):
                torch.testing.assert_close(layer(images), wanted)
            assert torch.equal(layer(images), own)
            assert not swaps or (wanted - own).abs().max() > 0.01
        with swapped_modulators(layer, kernels=True, bands=True):  # one image at a time
            outputs = torch.cat([layer(images[[index]]) for index in (2, 0, 1, 2)])
        torch.testing.assert_close(outputs[1:], expected(others, others))
        torch.testing.assert_close(outputs[:1], own[[2]])
        with swapped_modulators(layer, bands=True):
            layer(torch.zeros(1, 4, 6, 10))
            assert layer(images).shape == own.shape


def test_the_table_of_swaps(tmp_path, capsys):
    script, run, out = load_script("experiments"), str(tmp_path / "run"), str(tmp_path / "out")
    flags = ["--smoke", "--dataset", "fashion_mnist_sample", "--output", run, "--batch-size", "8", "--limit", "50"]
    train.main([*flags, "--model", "resnet10s_fdconv", "--lr", "0.01"])
    last = json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1])
    capsys.readouterr()
    script.main(["swap", run, "--output", out])
    table = Path(out, "swap.md").read_text()
    assert table == capsys.readouterr().out
    assert json.loads(Path(out, "swap.json").read_text())["results"][run]["its own"] == last["top1"]
    assert table.splitlines()[2].startswith(f"| `run` | {last['top1']:.2f} |")
    save_run("resnet10s_fdconv", tmp_path / "model")
    with pytest.raises(ConfigError, match="not the output folder of a run"):
        script.main(["swap", str(tmp_path / "model"), "--output", out])


def test_the_table_of_forms(tmp_path, capsys):
    flags = [
        "--model",
        "resnet10s_fdconv",
        "--image-size",
        "16",
        "--batch-size",
        "2",
        "--repeats",
        "1",
        "--count-size",
        "32",
        "32",
    ]
    load_script("experiments").main(["fbm", *flags, "--device", "cpu", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "fbm.json").read_text())["results"]
    paths = paths_on(torch.device("cpu"))
    assert {"plain", "rebuild"} <= set(paths)
    exact = [row for row in rows if row["form"] == "exact"]
    assert [row["path"] for row in exact] == paths
    assert [row["form"] for row in rows if row["path"] is None] == [
        "plain",
        *(form for form in FORMS if form != "exact"),
    ]
    assert all(row["forward_seconds"] > 0 and row["training_seconds"] > 0 for row in rows)
    work = {row["form"]: row["total"] for row in rows}
    assert work["plain"] < work["FDConv without FBM"] < work["one edge, 1/4"] < work["two edges, 1/4 and 1/8"]
    assert work["two edges, 1/4 and 1/8"] < work["exact"]
    assert work["FDConv without FBM"] < work["in stages 3 and 4 only"] < work["exact"]
    assert (tmp_path / "fbm.png").stat().st_size > 10_000
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


@pytest.fixture(scope="module")
def swin_rows():
    small = dict(embed_dim=24, depths=(2,), num_heads=(2,))
    measured = dict(batch_sizes=[1, 2], image_sizes=[56], repeats=1, device=torch.device("cpu"))
    return measure_swin("swin_fdconv", **measured, **small)


def test_figures_of_swin(swin_rows):
    paths = [None, *paths_on(torch.device("cpu"))]
    assert [(row["batch_size"], row["path"]) for row in swin_rows] == [(n, path) for n in (1, 2) for path in paths]
    for row in swin_rows:
        plain = swin_rows[0] if row["batch_size"] == 1 else swin_rows[len(paths)]
        assert row["get_flops_ratio"] == row["get_flops"] / plain["get_flops"]
        assert row["forward_ratio"] == row["forward_seconds"] / plain["forward_seconds"]
    assert swin_rows[1]["transforms"] > 0 == swin_rows[0]["transforms"]


def test_table_and_picture_of_swin(swin_rows, tmp_path):
    lines = swin_table(swin_rows).splitlines()
    assert len(lines) == 2 + len(swin_rows)
    assert lines[2].startswith("| 56 | 1 | plain twin | 1.00 | 1.00 | ")
    axes, _ = draw_swin(swin_rows).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    for path in paths_on(torch.device("cpu")):
        expected = [row["forward_ratio"] for row in swin_rows if row["path"] == path]
        assert list(lines[f"{path}, 56x56"].get_ydata()) == expected
    assert set(lines["multiply-adds, 56x56"].get_ydata()) == {swin_rows[1]["total_ratio"]}


def commands_of_the_page():
    text = (ROOT / "docs" / "experiments.md").read_text()
    found = re.findall(r"^    fdconv-zoo compare (?:[^\n]*\\\n)*[^\n]*", text, re.M)
    return [shlex.split(command.replace("\\\n", " "))[2:] for command in found]


def test_commands_of_the_page_name_models_that_can_be_built():
    commands = commands_of_the_page()
    assert len(commands) == 9
    outputs, models = [], {}
    for words in commands:
        args, recipe = compare.build_parser().parse_known_args(words)
        args.start_from = None  # what another command of the page makes
        items = compare.parse_compared(args.models)
        runs = compare.plan_runs(args, items, recipe, compare.TASKS[read_entry(args.config).task])
        models |= {str((run.args.model, run.args.model_kwargs)): run.args for run in runs[: len(items)]}
        segments = "segment" in args.config
        assert all(run.args.model_kwargs.get("stem_pool", False) is segments for run in runs)
        outputs.append(args.output)
    assert len(set(outputs)) == len(outputs)
    for args in models.values():
        timm.create_model(args.model, **args.model_kwargs)
