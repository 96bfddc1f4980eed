"""The comparison of a model with its twins: all runs, each tested once, and going on after a stop."""

import json
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from conftest import blank_pictures
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import ttest_rel
from torch import nn

from fdconv_zoo.cli import compare, comparison_costs, segment
from fdconv_zoo.cli.compared import parse_compared
from fdconv_zoo.cli.comparison_table import as_table, summarize
from fdconv_zoo.cli.run_pool import run_side_by_side
from fdconv_zoo.data.sources import SAMPLE_FOLDER
from fdconv_zoo.dense.canvases import write_canvases
from fdconv_zoo.dense.detection.model import Detector
from fdconv_zoo.dense.segmentation.model import Segmenter
from fdconv_zoo.errors import ConfigError, DataError, RunFolderError
from fdconv_zoo.index import MODELS, read_entry
from fdconv_zoo.profiling.learning_curves import mean_and_range
from fdconv_zoo.profiling.paired import PairedDifference, paired_difference
from fdconv_zoo.training.run_folder import LOCK

TUNED = "resnet10s_fdconv --spectrum-lr 1 --modulator-lr auto"
MODELS_COMPARED = ["resnet10s_plain", TUNED]


@pytest.fixture(autouse=True)
def _few_timings(monkeypatch):
    monkeypatch.setattr(comparison_costs, "_REPEATS", 2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, source in (("train", "train"), ("validation", "train"), ("test", "validation")):
        pq.write_table(pq.read_table(SAMPLE_FOLDER / f"{source}.parquet").slice(0, 40), folder / f"{split}.parquet")
    return folder


def recipe(dataset, output, *flags):
    """The command line of a small comparison of classifiers."""
    own = ["--config", MODELS / "resnet10s_fdconv.fashion_mnist.yaml", "--dataset", dataset, "--output", output]
    own += ["--epochs", 1, "--batch-size", 20, "--warmup-epochs", 0]
    return [str(flag) for flag in (*own, *flags)]


def test_runs_side_by_side_are_those_of_one_process(dataset, tmp_path, capfd):
    flags = ["--models", "resnet10s_plain", "--epochs", 1, "--batch-size", 20, "--seeds", 0, 1]
    found = []
    for name, processes in (("one", 1), ("two", 2)):
        capfd.readouterr()
        compare.main(recipe(dataset, tmp_path / name, *flags, "--processes", processes))
        found.append(json.loads((tmp_path / name / "comparison.json").read_text())["runs"])
    printed = capfd.readouterr().out
    assert found[0] == found[1]
    assert "epoch 1/1" not in printed
    assert "| `resnet10s_plain` |" in printed
    logs = [(tmp_path / "two" / f"resnet10s_plain-seed{seed}.log").read_text() for seed in (0, 1)]
    assert all("epoch 1/1: training loss" in log and "top-1" in log for log in logs)


def _fail_or_write(path):
    if path.suffix == ".bad":
        raise DataError(f"{path.name} is bad")
    print("writing", path.name)
    path.write_text("done")


def test_a_run_that_fails_is_named_with_its_log(tmp_path):
    items = [tmp_path / name for name in ("a", "b.bad", "c")]
    logs = [tmp_path / "logs" / f"{item.name}.log" for item in items]
    with pytest.raises(RunFolderError, match=r"a run failed: b\.bad is bad.* What it printed is in .*b\.bad\.log"):
        run_side_by_side(_fail_or_write, items, logs, 1)
    assert [item.exists() for item in items] == [True, False, False]
    assert logs[0].read_text() == "writing a\n"


def test_every_model_is_trained_and_tested_once(dataset, tmp_path, capsys):
    output = tmp_path / "runs"

    def compare_seeds(*seeds):
        compare.main(recipe(dataset, output, "--models", *MODELS_COMPARED, "--seeds", *seeds))
        return json.loads((output / "comparison.json").read_text())

    # As two processes that share the seeds, and a last call for the table.
    tested = []
    for seed in (0, 1):
        with blank_pictures():
            alone = compare_seeds(seed)
        tested += alone["runs"]
        assert [run["seed"] for run in alone["runs"]] == [seed] * 2
        assert alone["models"][1]["top1_difference"]["low"] is None
    stamps = {path: path.stat().st_mtime_ns for path in output.glob("*/last/model.safetensors")}
    assert {path.parts[-3] for path in stamps} == {
        f"{name}-seed{seed}"
        for name in ("resnet10s_plain", "resnet10s_fdconv_spectrum-lr-1_modulator-lr-auto")
        for seed in (0, 1)
    }
    (output / "resnet10s_plain-seed1" / "test.json").unlink()  # as if the process had ended before the test
    other = output / "resnet10s_plain-seed0" / "test.json"  # as if tested on another split
    other.write_text(json.dumps({"results": [{"split": "validation", "top1": -1.0, "images": 1}]}))
    capsys.readouterr()
    found = compare_seeds(0, 1)
    assert stamps == {path: path.stat().st_mtime_ns for path in output.glob("*/last/model.safetensors")}

    assert found["runs"] == tested
    assert [row["model"] for row in found["models"]] == MODELS_COMPARED
    assert found["reference"] == MODELS_COMPARED[0]
    top1 = {model: [run["top1"] for run in found["runs"] if run["model"] == model] for model in MODELS_COMPARED}
    for row in found["models"]:
        assert row["images"] == 40
        assert row["top1_mean"] == pytest.approx(sum(top1[row["model"]]) / 2)
        first, second = top1[row["model"]]
        assert row["top1_std"] == pytest.approx(abs(first - second) / 2**0.5)
    assert found["models"][0]["top1_difference"] is None
    for row in found["models"][1:]:
        paired = ttest_rel(top1[row["model"]], top1[MODELS_COMPARED[0]])
        low, high = paired.confidence_interval(0.95)
        expected = {"mean": row["top1_mean"] - found["models"][0]["top1_mean"], "low": low, "high": high}
        if low == low:  # scipy has no interval for two equal differences
            assert row["top1_difference"] == pytest.approx(expected)

    plain, fdconv = found["models"]
    costs = read_entry("resnet10s_fdconv.fashion_mnist").costs
    assert (plain["parameters"], fdconv["parameters"]) == (costs.plain_parameters, costs.parameters)
    assert (plain["multiply_adds"], fdconv["multiply_adds"]) == (costs.plain_multiply_adds, costs.multiply_adds)
    assert plain["step_time"] == plain["saved_memory"] == 1
    assert fdconv["saved_memory"] == pytest.approx(fdconv["saved_bytes"] / plain["saved_bytes"])
    assert fdconv["saved_bytes"] > plain["saved_bytes"]
    for run in found["runs"]:
        history = (output / run["folder"] / "metrics.jsonl").read_text().splitlines()
        assert run["validation"] == {"top1": json.loads(history[-1])["top1"]}
    config = yaml.safe_load((output / found["runs"][1]["folder"] / "train_config.yaml").read_text())
    assert (config["spectrum_lr"], config["modulator_lr"], config["seed"]) == (1.0, "auto", 0)
    assert f"| `{TUNED}` | {costs.parameters:,} | 13.45 M |" in capsys.readouterr().out
    for name in ("curves.png", "results.png"):
        with Image.open(output / name) as picture:
            assert picture.format == "PNG"

    # A run that is done with other flags is not taken for one with these.
    with pytest.raises(ConfigError, match=r"resnet10s_plain-seed0: .* made with other flags: lr \(0.006 then, 0.1 now"):
        compare.main(recipe(dataset, output, "--models", "resnet10s_plain", "--lr", 0.1))


def test_a_run_in_another_process_is_left_alone(dataset, tmp_path):
    folder = tmp_path / "runs" / "resnet10s_plain-seed0"
    folder.mkdir(parents=True)
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(RunFolderError, match=r"resnet10s_plain-seed0: it is in use, another run is writing to it"):
            compare.main(recipe(dataset, tmp_path / "runs", "--models", "resnet10s_plain", "--seeds", 0))
        other.stdin.close()
    assert sorted(path.name for path in folder.iterdir()) == [LOCK]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "resnet18", "resnet18 --lrr 1"], "--models 'resnet18 --lrr 1': unrecognized arguments: --lrr 1"),
        (["--models", "resnet18", "resnet18 --lr -1"], "--models 'resnet18 --lr -1': --lr -1.0: must be at least 0"),
        (["--models", "resnet18", "resnet_18"], "--model resnet_18: "),
        (["--models", "resnet18 --seed 3"], "--models 'resnet18 --seed 3': --seed is not a flag of single runs: give"),
        (["--models", "resnet18 --output=x"], "--models 'resnet18 --output=x': --output is not a flag of single runs"),
        (["--models", "resnet18", "--overwrite"], "--overwrite is not a flag of single runs: to train anew"),
        (["--models", "resnet18 --lr 1", "resnet18 --lr=1"], "'resnet18 --lr 1' and 'resnet18 --lr=1' are the same"),
        (["--models", "resnet18 --lr '1"], "close the quotation mark"),
        (["--models", " "], "an item begins with the name of a model"),
        (["--models", "resnet18", "--seeds", "0", "1", "0"], "--seeds: 0 more than once"),
        (["--models", "resnet18", "--seeds", "-1"], "--seed -1: must be at least 0"),
        (["--models", "resnet18", "--test-dataset", "."], "--test-dataset is for segmentation and detection"),
        (["--models", "resnet18", "--test-split", "exam"], "exam"),
    ],
)
def test_mistakes_are_named_before_work_starts(dataset, tmp_path, flags, message):
    with pytest.raises((ConfigError, DataError), match=re.escape(message)):
        compare.main(recipe(dataset, tmp_path / "runs", *flags))
    assert not (tmp_path / "runs").exists()


def test_folders_have_readable_names_that_are_safe_and_unique():
    texts = [
        "resnet10s_fdconv",
        "resnet10s_fdconv --spectrum-lr 1 --modulator-lr 1",
        "resnet10s_fdconv --model-kwargs num_kernels=16 fbm=False",
        "resnet18.a1_in1k --checkpoint 'a b/c.safetensors'",
        "resnet18.a1_in1k --checkpoint a/b/c.safetensors",
        "hf-hub:timm/resnet18.a1_in1k",
        "../resnet18",
        f"resnet18 --checkpoint {'x' * 300}",
    ]
    names = [item.folder for item in parse_compared(texts)]
    assert names[:3] == [
        "resnet10s_fdconv",
        "resnet10s_fdconv_spectrum-lr-1_modulator-lr-1",
        "resnet10s_fdconv_model-kwargs-num_kernels=16-fbm=False",
    ]
    assert len(set(names)) == len(texts)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9][\w.=+-]{0,150}", name, flags=re.ASCII)


@pytest.mark.parametrize("seeds", [2, 3, 5, 30])
def test_paired_differences_are_those_of_scipy(seeds):
    generator = np.random.default_rng(seeds)
    shared = generator.normal(90, 3, seeds)  # by the seed, for both models
    reference, values = shared + generator.normal(0, 1, seeds), shared + generator.normal(0.4, 1, seeds)
    found = paired_difference(values.tolist(), reference.tolist())
    low, high = ttest_rel(values, reference).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(values.mean() - reference.mean())


def test_paired_differences_by_hand():
    # Student's t for 4 degrees of freedom is 2.776 in printed tables.
    found = paired_difference([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5)
    assert found.mean == 3
    assert found.high - 3 == pytest.approx(2.776 * (2.5 / 5) ** 0.5, rel=1e-3)
    assert 3 - found.low == pytest.approx(found.high - 3)
    assert paired_difference([2.0], [0.5]) == PairedDifference(1.5, None, None)
    with pytest.raises(ValueError, match="argument"):
        paired_difference([1.0, 2.0], [1.0])


def test_the_table_has_results_differences_and_costs():
    metrics = {"box_ap": "box AP", "mask_ap": "mask AP"}
    costs = {"parameters": 1234567, "multiply_adds": 13450432, "step_time": 1.26, "saved_memory": 1.064}
    plain = [{"images": 9, "box_ap": 10.0}, {"images": 9, "box_ap": 12.0}]
    dynamic = [{"images": 9, "box_ap": 11.5}, {"images": 9, "box_ap": 12.5}]
    rows = [("a", plain), ("b --lr 1", dynamic)]
    table = as_table([{"model": name, **costs, **summarize(own, plain, metrics)} for name, own in rows], metrics)
    *_, first, second = table.splitlines()
    assert first == "| `a` | 1,234,567 | 13.45 M | 11.00 % | 1.41 | reference | 2 | 1.3 x | 1.06 x |"
    half = 12.706 * 0.5**0.5 / 2**0.5  # differences 1.5 and 0.5; t for one degree of freedom
    interval = f"+1.00 [{1 - half:+.2f}, {1 + half:+.2f}]"
    assert second == f"| `b --lr 1` | 1,234,567 | 13.45 M | 12.00 % | 0.71 | {interval} | 2 | 1.3 x | 1.06 x |"
    assert "mask AP" not in table

    once = [{"model": name, **costs, **summarize(own[:1], plain[:1], metrics)} for name, own in rows[1:]]
    assert "| 11.50 % |  | +1.50 | 1 |" in as_table(once, metrics)


def test_curves_are_of_the_epochs_that_all_seeds_have():
    first = [{"epoch": 0, "top1": 10.0, "train_loss": None}, {"epoch": 1, "top1": 50.0, "train_loss": 2.0}]
    second = [*first[:1], {"epoch": 1, "top1": 54.0, "train_loss": 1.0}, {"epoch": 2, "top1": 60.0, "train_loss": 0.5}]
    epochs, mean, low, high = (column.tolist() for column in mean_and_range([first, second], "top1"))
    assert (epochs, mean, low, high) == ([0, 1], [10, 52], [10, 50], [10, 54])
    epochs, mean, *_ = mean_and_range([first, second], "train_loss")
    assert (epochs.tolist(), mean.tolist()) == ([1], [1.5])


PARTS = ["resnet10s_plain", "resnet10s_fdw", "resnet10s_fdw_ksm", "resnet10s_fdconv", "resnet10s_condconv"]


@pytest.fixture(scope="module")
def canvases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "canvases"
    write_canvases(folder, train=8, validation=4, size=64)
    return folder


@pytest.fixture(scope="module")
def trained_twins(tmp_path_factory):
    """Weights of two networks, as a comparison leaves them."""
    folder = tmp_path_factory.mktemp("twins")
    for name in ("resnet10s_plain", "resnet10s_condconv"):
        torch.manual_seed(0)
        (folder / f"{name}-seed5" / "last").mkdir(parents=True)
        save_file(timm.create_model(name).state_dict(), folder / f"{name}-seed5" / "last" / "model.safetensors")
    return folder


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(
    ("task", "parts", "small", "metrics"),
    [
        ("segment", PARTS, ["--crop-size", 64], ["miou"]),
        ("detect", [PARTS[0], *PARTS[2:4]], ["--min-size", 64], ["box_ap", "mask_ap"]),
    ],
)
def test_parts_of_fdconv_in_dense_prediction(task, parts, small, metrics, canvases, trained_twins, tmp_path, capsys):
    output = tmp_path / "runs"
    flags = ["--config", MODELS / f"resnet10s_fdconv.fashion_mnist.{task}_canvases.yaml", "--dataset", canvases]
    flags += ["--models", *parts, "--seeds", 5, "--start-from", trained_twins, "--output", output, "--epochs", 1]
    flags += ["--batch-size", 4, "--warmup-epochs", 0, "--lr", 0, "--pictures", 0, *small]
    compare.main([str(flag) for flag in flags])
    rows = json.loads((output / "comparison.json").read_text())["models"]
    assert [row["model"] for row in rows] == parts
    for row in rows:
        last = json.loads((output / f"{row['model']}-seed5" / "metrics.jsonl").read_text().splitlines()[-1])
        assert [row[f"{metric}_mean"] for metric in metrics] == [last[metric] for metric in metrics]
        assert row["images"] == 4
    parameters = [row["parameters"] for row in rows]
    assert parameters == sorted(parameters)
    assert "| `resnet10s_fdw_ksm` |" in capsys.readouterr().out
    # Nothing was learned: what reads plain weights still is the plain network, to rounding.
    plain, *dynamic = [backbone_kernel(output / f"{name}-seed5" / "last") for name in parts[:4]]
    for kernel in dynamic:
        torch.testing.assert_close(kernel, plain, rtol=0, atol=1e-6)


def test_another_folder_is_tested_on(canvases, tmp_path):
    other, output = tmp_path / "other", tmp_path / "runs"
    write_canvases(other, train=1, validation=3, size=64, seed=1)
    recipe = ["--config", str(MODELS / "resnet10s_fdconv.fashion_mnist.segment_canvases.yaml"), "--epochs", "1"]
    recipe += ["--no-pretrained", "--batch-size", "4", "--crop-size", "64", "--pictures", "0"]
    flags = [*recipe, "--dataset", str(canvases), "--models", "resnet10s_plain", "--seeds", "5"]
    flags += ["--output", str(output), "--test-dataset"]
    with pytest.raises(ConfigError, match="no such folder"):
        compare.main([*flags, str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match="it is the --dataset of the runs"):
        compare.main([*flags, str(canvases)])
    assert not output.exists()

    def compare_once(*flags):
        compare.main(flags)
        (run,) = json.loads((output / "comparison.json").read_text())["runs"]
        return run

    tested = compare_once(*flags, str(other))
    folder = output / "resnet10s_plain-seed5"
    by_hand = [*recipe, "--evaluate", str(folder / "last"), "--dataset", str(other), "--output", str(tmp_path / "hand")]
    segment.main(by_hand)
    expected = json.loads((tmp_path / "hand" / "results.json").read_text())
    assert (tested["miou"], tested["images"]) == (expected["miou"], 3)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert tested["validation"] == {"miou": last["miou"]}
    assert last["miou"] != tested["miou"]

    # Without it, the figures are those of the validation images, of the same run.
    stamp = (folder / "last" / "model.safetensors").stat().st_mtime_ns
    validated = compare_once(*flags[:-1])
    assert (validated["miou"], validated["images"]) == (last["miou"], 4)
    assert (folder / "last" / "model.safetensors").stat().st_mtime_ns == stamp


def test_missing_weights_are_named_before_work_starts(trained_twins, tmp_path):
    flags = ["--config", MODELS / "resnet10s_fdconv.fashion_mnist.segment_canvases.yaml", "--models", "resnet10s_fdw"]
    flags += ["--seeds", 5, 6, "--start-from", trained_twins, "--output", tmp_path / "runs"]
    with pytest.raises(ConfigError, match=r"no resnet10s_plain-seed6/last/model.safetensors, from which resnet10s_fdw"):
        compare.main([str(flag) for flag in flags])
    assert not (tmp_path / "runs").exists()


def backbone_kernel(folder):
    config = json.loads((folder / "config.json").read_text())
    model = (Segmenter if "decoder" in config else Detector).from_pretrained(folder)
    layer = model.backbone.model.layer1[0].conv1
    return layer.weight if isinstance(layer, nn.Conv2d) else layer.fdw()[0]


@pytest.mark.parametrize("name", ["resnet10s_odconv", "resnet10s_dcd", "resnet10s_kernelwarehouse"])
def test_a_twin_comes_back_from_its_folder(name, tmp_path):
    model = timm.create_model(name, num_classes=3)
    model(torch.randn(2, 3, 32, 32))  # in training mode, in which some count their steps
    model.eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))
