import csv
import errno
import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
import yaml
from accelerate import Accelerator, tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from PIL import Image
from run_scripts import (
    TINY,
    kill_and_resume,
    load_script,
    read_figures,
    read_metrics,
    run_on_the_cpu,
    start_script,
    wait_until_there,
)
from safetensors.torch import load_file
from timm.loss import BinaryCrossEntropy
from torch import nn

from fdconv_zoo.cli import train as train_command
from fdconv_zoo.errors import ConfigError, NonFiniteError, RunFolderError, Terminated, WriteError
from fdconv_zoo.store import files
from fdconv_zoo.training import checkpoint, trainer
from fdconv_zoo.training import flags as flags_module
from fdconv_zoo.training.checkpoint import list_checkpoints
from fdconv_zoo.training.learning_log import read_learning

train = load_script("train")
validate = load_script("validate")
pytestmark = pytest.mark.usefixtures("on_one_cpu_thread", "blank_pictures")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of TINY that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run_on_the_cpu(train, *TINY, "--output", folder)
    return folder


def measure(model: Path, json_file: Path, *, limit: int, batch_size: int) -> dict:
    """What validate.py says of a model folder."""
    flags = ["--dataset", "fashion_mnist_sample", "--limit", limit, "--batch-size", batch_size, "--workers", 0]
    validate.main([str(flag) for flag in ["--model", model, "--json", json_file, *flags]])
    (result,) = json.loads(json_file.read_text())["results"]
    return result


def assert_same_run(first: Path, second: Path):
    assert_same_weights(first, second)
    assert read_figures(first) == read_figures(second)


def assert_same_weights(first: Path, second: Path):
    for name in ("model.safetensors", "last/model.safetensors", "config.json", "last/config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    newest = checkpoint.list_checkpoints(first / "checkpoints")[-1].name
    for name in ("model.safetensors", "ema.safetensors"):
        states = [load_file(folder / "checkpoints" / newest / name) for folder in (first, second)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0]), name


def test_a_run_leaves_a_folder_that_timm_loads(finished):
    rows = read_metrics(finished)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["update"] for row in rows] == [6, 12]
    assert all(row["images"] == 100 for row in rows)

    described = json.loads((finished / "config.json").read_text())
    assert described["label_names"][0] == "T-shirt/top"
    assert described["num_classes"] == 10
    assert described["pretrained_cfg"]["input_size"] == [3, 32, 32]
    model = timm.create_model(f"local-dir:{finished / 'last'}", pretrained=True)
    assert model.num_classes == 10
    for key, value in load_file(finished / "checkpoints/update-000000012/ema.safetensors").items():
        assert torch.equal(model.state_dict()[key], value), key  # the averaged weights are those evaluated and kept

    config = yaml.safe_load((finished / "train_config.yaml").read_text())
    assert config["lr"] == 0.01
    assert config["num_processes"] == 1
    with Image.open(finished / "curves.png") as picture:
        assert picture.width > 1000
    for folder, row in ((finished, max(rows, key=lambda row: row["top1"])), (finished / "last", rows[-1])):
        with (folder / "classes.csv").open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        matrix = [
            list(map(int, line.split(",")[1:])) for line in (folder / "confusion.csv").read_text().splitlines()[1:]
        ]
        assert [line["class"] for line in table] == described["label_names"]
        assert [int(line["images"]) for line in table] == [sum(counts) for counts in matrix]
        right = sum(int(line["right"]) for line in table)
        assert right == sum(matrix[i][i] for i in range(10)) == pytest.approx(row["top1"])  # of 100 images
        assert (folder / "confusion.png").is_file()
    assert list((finished / "tensorboard").glob("*/events.out.tfevents.*"))
    assert not list(finished.rglob(".writing-*"))


def test_the_best_epoch_is_kept_and_validates_alike(finished, tmp_path):
    best = max(read_metrics(finished), key=lambda row: row["top1"])
    result = measure(finished, tmp_path / "results.json", limit=100, batch_size=7)
    assert result["top1"] == pytest.approx(best["top1"])
    assert result["loss"] == pytest.approx(best["loss"], rel=1e-4)


@pytest.mark.parametrize("seen", ["update-000000002", "update-000000008"])
def test_a_killed_and_resumed_run_ends_with_the_same_weights(finished, tmp_path, seen):
    flags = [*TINY, "--checkpoint-every", 2]
    kill_and_resume("train", tmp_path / "run", seen, *flags, finished=finished, killed_with=("--workers", 1))
    assert_same_run(finished, tmp_path / "run")


def test_resuming_redoes_what_came_after_the_checkpoint(finished, tmp_path, monkeypatch, capsys):
    """Stopped after the epoch's model and metrics were written but before its checkpoint was."""
    output = ["--output", str(tmp_path / "run")]
    save = trainer.save_checkpoint

    def stop_at_the_last(accelerator, folder, progress, ema):
        if progress.epoch == 2:
            raise KeyboardInterrupt
        save(accelerator, folder, progress, ema)

    monkeypatch.setattr(trainer, "save_checkpoint", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt, match="--resume continues from the last checkpoint"):
        train.main([*TINY, *output])
    assert len(read_metrics(tmp_path / "run")) == 2
    (tmp_path / "run/checkpoints/.writing-update-000000012").mkdir()  # as a crash leaves it
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    train.main([*TINY, *output, "--resume"])
    assert "resuming from" in capsys.readouterr().out
    assert_same_run(finished, tmp_path / "run")
    assert not list((tmp_path / "run").rglob(".writing-*"))


@pytest.mark.parametrize(("update", "step"), [(3, 6), (6, 12), (12, 0)])
def test_sigterm_saves_and_the_run_goes_on_from_there(finished, tmp_path, monkeypatch, update, step):
    """In an epoch, at its last update (before the evaluation), and in the last evaluation, which just ends."""
    output = ["--output", str(tmp_path / "run")]
    train_step, evaluate = trainer.Trainer.train_step, trainer.Trainer.evaluate

    def stop_when(is_time):
        if is_time:
            os.kill(os.getpid(), signal.SIGTERM)

    def training(self, batch):
        stop_when(step and self.progress.update == update - 1)
        train_step(self, batch)

    def evaluating(self):
        stop_when(not step and self.progress.update == update)
        return evaluate(self)

    monkeypatch.setattr(trainer.Trainer, "train_step", training)
    monkeypatch.setattr(trainer.Trainer, "evaluate", evaluating)
    if step:
        with pytest.raises(Terminated, match=rf"after update {update}, .*update-{update:09d}; continue with --resume"):
            train.main([*TINY, *output])
        saved = checkpoint.list_checkpoints(tmp_path / "run/checkpoints")[-1]
        assert json.loads((saved / "progress.json").read_text())["step"] == step
        monkeypatch.undo()
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        output.append("--resume")
    train.main([*TINY, *output])
    assert_same_run(finished, tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_before_the_first_update_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(train_command, "load_image_data", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Terminated, match="before the first update"):
        train.main([*TINY, "--output", str(tmp_path / "run")])


def test_a_scheduler_that_ends_all_processes_finds_the_run_saved(tmp_path):
    """Slurm sends SIGTERM to every process of a job, so also to the workers."""
    flags = ["--epochs", "50", "--workers", "2", "--checkpoint-every", "2", "--output", tmp_path / "run"]
    process = start_script("train", *TINY, *flags, start_new_session=True)
    wait_until_there(process, tmp_path / "run/checkpoints/update-000000002")
    os.killpg(process.pid, signal.SIGTERM)
    log, _ = process.communicate(timeout=100)
    assert process.returncode == 75, log
    assert re.search(r"\nended by SIGTERM after update \d+, which is saved in .*; continue with --resume\n", log), log
    assert "Traceback" not in log


@pytest.fixture
def own_images(tmp_path):
    """A folder of the user's images, and the flags of a run of one epoch on them."""
    for number in range(12):
        path = tmp_path / "images" / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(path)
    flags = ["--dataset", str(tmp_path / "images"), "--batch-size", "2", "--epochs", "1", "--limit", "12"]
    return tmp_path / "images", [*TINY, *flags, "--output", str(tmp_path / "run")]


def test_resuming_with_other_pixels_or_classes_is_refused(own_images):
    images, flags = own_images
    train.main(flags)
    image = images / "class 1/1.png"
    original = image.read_bytes()
    Image.new("RGB", (32, 32), "green").save(image)
    with pytest.raises(ConfigError, match="images, labels or their order have changed since the run"):
        train.main([*flags, "--resume"])
    image.write_bytes(original)
    train.main([*flags, "--resume"])
    (images / "class 1/1.png").rename(images / "class 0/1.png")
    (images / "class 0/0.png").rename(images / "class 1/0.png")
    with pytest.raises(ConfigError, match="images, labels or their order have changed since the run"):
        train.main([*flags, "--resume"])


def test_a_run_says_what_it_does_and_how_to_load_the_result(own_images, capsys):
    _, flags = own_images
    train.main([*flags, "--tune", "head"])
    printed = capsys.readouterr().out
    for line in (
        "device: cpu, processes: 1, precision: float32",
        "model: resnet10s_fdconv, 53,852 parameters: 66 trained, 53,786 frozen",
        "data: 2 classes, images: 10 for training, 2 for validation",
        "epoch: 2 updates of 4 images, 8 in all; epochs: 1",
        "warm-up: 1 of 1 epochs, so most updates are small: lower --warmup-epochs",
        f"output: {flags[-1]}",
    ):
        assert line in printed.splitlines()
    pasted: dict = {}
    exec(printed.strip().splitlines()[-1].strip(), pasted)
    assert pasted["model"].num_classes == 2


def test_resuming_a_finished_run_changes_nothing(finished, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*.safetensors")}
    train.main([*TINY, "--output", str(finished), "--resume"])
    assert {path: path.read_bytes() for path in finished.rglob("*.safetensors")} == before
    assert "best: top-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "named"), [(["--lr", "0.02"], "lr (0.01 then, 0.02 now)"), (["--seed", "1"], "seed")]
)
def test_resuming_with_another_configuration_is_refused(finished, change, named):
    with pytest.raises(ConfigError, match=re.escape(named)):
        train.main([*TINY, *change, "--output", str(finished), "--resume"])


def test_another_run_is_refused_unless_overwritten(finished):
    with pytest.raises(RunFolderError, match="--resume, delete it with --overwrite"):
        train.main([*TINY, "--output", str(finished)])


def test_resume_without_a_run_begins_one_and_smoke_is_quick(tmp_path, capsys):
    recipe = "models/resnet10s_fdconv.fashion_mnist.demo.yaml"
    config = ["--config", str(Path(train.__file__).parents[1] / recipe), "--output", str(tmp_path / "run")]
    train.main([*config, "--smoke", "--resume", "--tune", "modulators"])
    printed = capsys.readouterr().out
    assert "starts from the beginning" in printed
    start, row = read_metrics(tmp_path / "run")
    assert (start["epoch"], start["update"], start["train_loss"]) == (0, 0, None)
    assert (row["epoch"], row["update"]) == (1, 4)
    assert re.search(rf"before training: validation loss .*, top-1 {start['top1']:.2f} %", printed)
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    assert type(model).__name__ == "ResNetFDConv"


class Tracker(GeneralTracker):
    """Notes what is logged."""

    name, requires_logging_directory = "wandb", False
    notes: ClassVar[list] = []

    def __init__(self, project, name):
        super().__init__()
        self.notes.append((project, name))

    tracker = None

    def store_init_configuration(self, values):
        self.notes.append(values)

    def log(self, values, step=None, **kwargs):
        self.notes.append((step, values))


def test_every_part_of_the_recipe_is_repeated_when_a_run_is_resumed(finished, tmp_path, monkeypatch):
    flags = [*TINY, "--bce", "--class-weights", "balanced", "--balanced-sampling", "--aug-repeats", "2"]
    flags += ["--vflip", "0.5", "--transforms", "torchvision.RandomRotation(degrees=20)"]
    flags += ["--teacher", str(finished), "--temperature", "2", "--checkpoint-every", "2"]
    train.main([*flags, "--output", str(tmp_path / "whole")])
    save = trainer.save_checkpoint

    def stop(accelerator, folder, progress, ema):
        save(accelerator, folder, progress, ema)
        if progress.update == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        train.main([*flags, "--output", str(tmp_path / "run")])
    monkeypatch.setattr(trainer, "save_checkpoint", save)

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Tracker)
    for module in (tracking, flags_module):
        monkeypatch.setattr(module, "get_available_trackers", lambda: [LoggerType.WANDB, LoggerType.TENSORBOARD])
    train.main([*flags, "--output", str(tmp_path / "run"), "--resume", "--log-with", "wandb"])
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert Tracker.notes[0] == ("fdconv-zoo", "run")
    assert Tracker.notes[1]["lr"] == 0.01
    row = read_metrics(tmp_path / "run")[-1]
    assert Tracker.notes[-1] == (12, {f"validation/{key}": row[key] for key in ("loss", "top1", "top5")})


def test_losses_are_those_of_torch_and_timm(own_images):
    _, flags = own_images
    images, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    weight = torch.tensor([2.0, 0.5])
    for more, loss in (
        ([], nn.CrossEntropyLoss(label_smoothing=0.1)),
        (["--class-weights", "2", "0.5", "--smoothing", "0"], nn.CrossEntropyLoss(weight)),
        (["--bce", "--smoothing", "0.2"], BinaryCrossEntropy(0.2)),
    ):
        args = train_command.build_parser().parse([*flags, "--mixup", "0", "--cutmix", "0", *more], smoke={})
        task = train_command.ClassificationTask(args, Accelerator())
        task.load_data(args.dataset)
        task.build_model()
        model = nn.Linear(3, 2)
        assert torch.equal(task.loss(model, images, labels), loss(model(images), labels))


def test_a_run_stops_when_it_gets_no_better_and_keeps_the_start_if_it_was_best(finished, tmp_path, capsys, monkeypatch):
    """Also when it is killed right after the evaluation before training."""
    flags = ["--model", str(finished), *TINY[2:], "--pretrained", "--tune", "head", "--lr", "0"]
    flags += ["--warmup-epochs", "0", "--min-lr", "0", "--epochs", "9", "--patience", "2", "--eval-first"]
    flags += ["--output", str(tmp_path / "run")]
    save = trainer.save_checkpoint

    def stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        train.main(flags)
    monkeypatch.setattr(trainer, "save_checkpoint", save)
    for _ in range(2):  # resumed once more, it is at its end
        train.main([*flags, "--resume"])
        printed = capsys.readouterr().out
        assert "--patience 2: the best epoch was 0, so training stops" in printed
        rows = read_metrics(tmp_path / "run")
        assert [row["epoch"] for row in rows] == [0, 1, 2]
        assert f"best: top-1 {rows[0]['top1']:.2f} % before training" in printed
    first, best = (load_file(folder / "model.safetensors") for folder in (finished, tmp_path / "run"))
    assert all(torch.equal(first[key], best[key]) for key in first)


def test_grayscale_models_are_exported_with_their_channel(tmp_path):
    grayscale = ["--in-chans", "1", "--mean", "0.3", "--std", "0.3", "--epochs", "1", "--limit", "16"]
    train.main([*TINY, *grayscale, "--output", str(tmp_path / "run")])
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    saved = load_file(tmp_path / "run/model.safetensors")
    assert tuple(model.pretrained_cfg["input_size"]) == (1, 32, 32)
    assert tuple(model.pretrained_cfg["mean"]) == (0.3,)
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    # The first update has the warm-up's small learning rate; the next ones leave the weights without bounds.
    flags = ["--lr", "1e36", "--warmup-epochs", "1", "--opt", "sgd", "--clip-grad", "0", "--checkpoint-every", "1"]
    with pytest.raises(NonFiniteError, match=r"is kept: .*update-00000000\d\. Try a lower --lr"):
        train.main([*TINY, *flags, "--output", str(tmp_path / "run")])
    weights = load_file(checkpoint.list_checkpoints(tmp_path / "run/checkpoints")[-1] / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_from_it(finished, tmp_path, monkeypatch):
    output = ["--output", str(tmp_path / "run"), "--checkpoint-every", "2"]
    flush = files.flush_to_disk

    def full(path):
        if "update-000000004" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    monkeypatch.setattr(files, "flush_to_disk", full)
    with pytest.raises(WriteError, match=r"update-000000004: no space left.* is kept: .*update-000000002"):
        train.main([*TINY, *output])
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["update-000000002"]
    monkeypatch.setattr(files, "flush_to_disk", flush)
    train.main([*TINY, *output, "--resume"])
    assert_same_run(finished, tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "resnet50_fdcnv"], "did you mean resnet50_fdconv"),
        (["--model", "resnet50_fdconv.a9_in1k"], "its tags are a1_in1k"),
        (["--batch-size", "7"], "make it even"),
        (["--batch-size", "64"], "training set has 100 images, but one update takes 128"),
        (["--model", "test_resnet", "--tune", "modulators"], "needs a model with FDConv layers"),
        (["--img-size", "0"], "--img-size 0"),
        (["--opt", "adamv"], "--opt adamv"),
        (["--mean", "0.5", "0.5"], "2 values for 3 channels"),
        (["--aa", "rand-x7"], "--aa rand-x7"),
        (["--model-kwargs", "no_such=1"], "no_such"),
        (["--epochs", "0"], "--epochs 0"),
        (["--streaming"], "--updates-per-epoch"),
        (["--streaming", "--balanced-sampling"], "need to know all images"),
        (["--class-weights", "1", "2"], "--class-weights 1 2: must be 'balanced', or 10 numbers"),
        (["--transforms", "torchvision.NoSuch()"], "--transforms torchvision.NoSuch()"),
        (["--transforms", "torchvision.Resize(4)"], "must keep size, channels and type"),
        (["--teacher", "no/such/folder"], "--teacher no/such/folder: no such folder"),
        (["--teacher", "resnet18.a1_in1k"], "--teacher resnet18.a1_in1k cannot be built"),
        (["--log-with", "wandb"], "--log-with wandb: it is not installed; pip install wandb"),
        (["--checkpoint", "no_such.safetensors"], "no_such.safetensors"),
        (["--model", "resnet18_fdconv.a1_in1k", "--pretrained"], "load a file with --checkpoint FILE, or start from"),
        (["--model", "resnet18.a1_in1k", "--pretrained"], "load a file with --checkpoint FILE, or start from"),
    ],
)
def test_wrong_flags_are_named_before_training_starts(tmp_path, flags, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        train.main([*TINY, *flags, "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
    assert "pretrained_cfg_overlay" not in str(caught.value), "advice in Python for a command line"


def test_a_stream_trains_and_resumes(tmp_path, monkeypatch):
    for number in range(60):
        folder = tmp_path / "images" / ("train" if number < 50 else "validation") / f"class {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (4 * number, 80 * (number % 3), 0)).save(folder / f"{number}.png")
    flags = [
        "--dataset",
        str(tmp_path / "images"),
        "--streaming",
        "--updates-per-epoch",
        "3",
        "--checkpoint-every",
        "1",
    ]
    train.main([*TINY, *flags, "--output", str(tmp_path / "whole")])
    assert [row["images"] for row in read_metrics(tmp_path / "whole")] == [10, 10]
    assert [row["top5"] for row in read_metrics(tmp_path / "whole")] == [None, None]
    save = trainer.save_checkpoint

    def stop(accelerator, folder, progress, ema):
        save(accelerator, folder, progress, ema)
        if progress.update == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        train.main([*TINY, *flags, "--output", str(tmp_path / "run")])
    monkeypatch.setattr(trainer, "save_checkpoint", save)
    train.main([*TINY, *flags, "--output", str(tmp_path / "run"), "--resume"])
    assert_same_run(tmp_path / "whole", tmp_path / "run")


TWO_PROCESSES = [*TINY, "--limit", "51", "--batch-size", "4"]
WATCH = ("--watch", "3")  # changes nothing: the same run without it has the same weights


@pytest.fixture(scope="module")
def finished_by_two(tmp_path_factory):
    """The folder of a run of two processes."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")  # gloo; accelerate takes it up
    output = tmp_path_factory.mktemp("two") / "run"
    process = start_script("train", *TWO_PROCESSES, *WATCH, "--output", output, launcher=launcher)
    log, _ = process.communicate(timeout=200)
    assert process.returncode == 0, log
    return output


def test_two_processes_train_and_measure_as_one(finished_by_two, tmp_path):
    output = finished_by_two
    assert yaml.safe_load((output / "train_config.yaml").read_text())["num_processes"] == 2
    last = read_metrics(output)[-1]
    assert last["update"] == 6
    assert last["images"] == 51  # the image that fills up the last batch is not counted twice
    assert [row["update"] for row in read_learning(output)] == [1, 3, 6]  # by the main process alone
    result = measure(output / "last", tmp_path / "results.json", limit=51, batch_size=8)
    assert result["top1"] == pytest.approx(last["top1"])
    assert result["top5"] == pytest.approx(last["top5"])
    assert result["loss"] == pytest.approx(last["loss"], rel=1e-5)


def test_two_nodes_resume_after_a_process_of_one_is_killed(finished_by_two, tmp_path):
    """Two machines that share a folder, and the run that two processes of one machine would have made."""
    output = tmp_path / "run"

    def start_nodes(*flags: str) -> list[subprocess.Popen]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1")
        nodes = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *rendezvous)
        command = ("train", *TWO_PROCESSES, "--output", output, *flags)
        return [start_script(*command, launcher=nodes) for _ in range(2)]

    nodes = start_nodes("--checkpoint-every", "1")
    try:
        wait_until_there(nodes[0], output / "checkpoints/update-000000002")
        (worker,) = Path(f"/proc/{nodes[1].pid}/task/{nodes[1].pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGKILL)
        for node in nodes:  # the other node's launcher notices, too
            log, _ = node.communicate(timeout=200)
            assert node.returncode != 0, log
        assert list_checkpoints(output / "checkpoints")[-1].name < "update-000000006", "it ended before it was killed"
        nodes += start_nodes("--resume")
        for node in nodes[2:]:
            log, _ = node.communicate(timeout=200)
            assert node.returncode == 0, log
    finally:
        for node in nodes:
            node.terminate()
            node.communicate()
    assert_same_weights(finished_by_two, output)
    for first, second in zip(read_figures(finished_by_two), read_figures(output), strict=True):
        # The sum of the losses is added up in another order.
        assert second.pop("train_loss") == pytest.approx(first.pop("train_loss"), rel=1e-6)
        assert second == first


def test_a_compiled_run_trains_like_an_eager_one(finished, tmp_path, monkeypatch):
    """With the compiler's front end only, which does not need a minute for a C++ compiler."""
    modes, compile_module = [], nn.Module.compile

    def compile_in_front(module, mode):
        modes.append(mode)
        compile_module(module, backend="aot_eager")

    kept = []
    monkeypatch.setattr(trainer, "keep_kernels", lambda model, keep: kept.append(keep))
    monkeypatch.setattr(nn.Module, "compile", compile_in_front)
    torch._dynamo.reset()
    train.main([*TINY, "--compile", "--keep-kernels", "--output", str(tmp_path / "run")])
    assert kept == [True]
    assert modes == [None]
    for compiled, eager in zip(read_metrics(tmp_path / "run"), read_metrics(finished), strict=True):
        assert compiled["train_loss"] == pytest.approx(eager["train_loss"], rel=1e-3)
        assert compiled["loss"] == pytest.approx(eager["loss"], rel=1e-2)
    weights = [load_file(folder / "last/model.safetensors") for folder in (finished, tmp_path / "run")]
    assert weights[0].keys() == weights[1].keys()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    torch._dynamo.reset()


def test_cuda_graphs_without_a_gpu_are_refused_before_work_starts(tmp_path):
    with pytest.raises(ConfigError, match="--cuda-graphs needs a CUDA device, and the run would train on the cpu"):
        train.main([*TINY, "--grad-accum", "1", "--cuda-graphs", "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
