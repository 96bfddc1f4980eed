import errno
import os

import pytest
import yaml
from safetensors import SafetensorError

from fdconv_zoo.errors import ConfigError, RunFolderError, WriteError
from fdconv_zoo.store.files import replacing, write_text
from fdconv_zoo.training.run_folder import RunFolder

CONFIG = {"model": "resnet18", "lr": 0.1, "scale": (0.5, 1.0), "workers": 2}


@pytest.fixture
def used(tmp_path):
    """The folder of an earlier run, with files of the user among those of the run."""
    path = tmp_path / "run"
    RunFolder(path).start(CONFIG)
    for name in (
        *("model.safetensors", "config.json", "metrics.jsonl", "curves.png", "last/config.json"),
        *("checkpoints/update-000000003/model.safetensors", "checkpoints/.writing-update-000000006/model.safetensors"),
        *("tensorboard/events.out.tfevents.1.host", "notes.txt", "checkpoints/mine.pt", "data/config.json"),
    ):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("x")
    return path


def files_in(path):
    return {str(found.relative_to(path)) for found in path.rglob("*") if found.is_file()}


def test_a_new_folder_is_made_when_the_run_starts(tmp_path):
    run = RunFolder(tmp_path / "a/b")
    assert not run.path.exists()
    run.start(CONFIG)
    assert yaml.safe_load((run.path / "train_config.yaml").read_text())["scale"] == [0.5, 1.0]


def test_a_folder_with_other_files_only_is_fine(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    RunFolder(tmp_path).start(CONFIG)
    assert files_in(tmp_path) == {"notes.txt", "train_config.yaml"}


def test_overwrite_deletes_what_a_run_makes_and_nothing_else(used):
    with pytest.raises(RunFolderError, match="holds another run"):
        RunFolder(used)
    run = RunFolder(used, overwrite=True)
    assert (used / "model.safetensors").exists(), "deleted before the new run was known to be good"
    run.start(CONFIG)
    assert files_in(used) == {"notes.txt", "checkpoints/mine.pt", "data/config.json", "train_config.yaml"}


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}])
def test_a_model_that_no_run_made_is_never_touched(tmp_path, flags):
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(RunFolderError, match=r"model\.safetensors but no train_config\.yaml"):
        RunFolder(tmp_path, **flags)


def test_overwrite_does_not_follow_links(used, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").write_text("x")
    (used / "checkpoints/update-000000009").symlink_to(tmp_path / "elsewhere")
    RunFolder(used, overwrite=True).start(CONFIG)
    assert not (used / "checkpoints/update-000000009").exists()
    assert (tmp_path / "elsewhere/kept").exists()


def test_resume_finds_the_newest_whole_checkpoint_and_clears_the_rest(used):
    run = RunFolder(used, resume=True)
    run.start({**CONFIG, "workers": 8}, free_keys=["workers"])
    assert run.newest_checkpoint == used / "checkpoints/update-000000003"
    assert not (used / "checkpoints/.writing-update-000000006").exists()
    assert (used / "model.safetensors").exists()


def test_resume_with_another_configuration_names_what_differs(used):
    with pytest.raises(ConfigError, match=r"lr \(0\.1 then, 0\.2 now\), model \('resnet18' then, 'resnet50' now\)"):
        RunFolder(used, resume=True).start({**CONFIG, "lr": 0.2, "model": "resnet50"})


def test_resume_without_a_checkpoint_begins_from_the_beginning(tmp_path):
    RunFolder(tmp_path).start(CONFIG)
    write_text(tmp_path / "metrics.jsonl", "old\n")
    run = RunFolder(tmp_path, resume=True)
    run.start(CONFIG)
    assert run.newest_checkpoint is None
    assert files_in(tmp_path) == {"train_config.yaml"}


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="use one of them"):
        RunFolder(tmp_path, resume=True, overwrite=True)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="not a folder"):
        RunFolder(tmp_path / "file")


def test_metrics_are_rewritten_as_whole_lines(tmp_path):
    run = RunFolder(tmp_path)
    run.write_metrics([{"epoch": 1}, {"epoch": 2}])
    run.write_metrics([{"epoch": 1}])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'


def write_half(path, error):
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(KeyError):
        write_half(tmp_path / "file", KeyError())
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "file: no space left on the disk"),
        (OSError(errno.EIO, "Input/output error"), "file: .*Input/output error"),
        (SafetensorError("Error while serializing: I/O error: (os error 28)"), "file: no space left on the disk"),
        (RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0"), "file: torch.save failed"),
    ],
)
def test_failures_of_all_writers_name_the_file(tmp_path, error, message):
    with pytest.raises(WriteError, match=message):
        write_half(tmp_path / "file", error)
    assert os.listdir(tmp_path) == []


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(RuntimeError, match="mat1"):
        write_half(tmp_path / "file", RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="Not a directory"):
        RunFolder(tmp_path / "file/run").start(CONFIG)
