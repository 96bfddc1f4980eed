import errno
import fcntl
import json
import multiprocessing
import os
import stat
from concurrent.futures import ProcessPoolExecutor

import pytest
import yaml
from safetensors import SafetensorError

from fdconv_zoo.errors import ConfigError, RunFolderError, WriteError
from fdconv_zoo.store.files import replacing, write_text
from fdconv_zoo.training import checkpoint
from fdconv_zoo.training.run_folder import RunFolder

CONFIG = {"model": "resnet18", "lr": 0.1, "scale": (0.5, 1.0), "workers": 2}


@pytest.fixture
def used(tmp_path):
    """The folder of an earlier run, with files of the user among those of the run."""
    path = tmp_path / "run"
    RunFolder(path).start(CONFIG)
    for name in (
        *("model.safetensors", "config.json", "metrics.jsonl", "curves.png", "last/config.json"),
        *("checkpoints/update-000000003.old/x", "checkpoints/.writing-update-000000006/model.safetensors"),
        *("tensorboard/events.out.tfevents.1.host", "notes.txt", "checkpoints/mine.pt", "data/config.json"),
    ):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("x")
    make_checkpoint(path, 3)
    return path


def make_checkpoint(path, update):
    """A folder with the files of a checkpoint, and their checksums."""
    folder = path / f"checkpoints/update-{update:09d}"
    folder.mkdir(parents=True)
    for name in ("progress.json", "model.safetensors"):
        (folder / name).write_text(f"{name} of {update}")
    (folder / checkpoint.CHECKSUMS).write_text(json.dumps(checkpoint._checksums(folder)))
    return folder


def files_in(path):
    return {str(found.relative_to(path)) for found in path.rglob("*") if found.is_file()} - {".lock"}


def test_a_new_folder_is_made_when_the_run_starts(tmp_path):
    run = RunFolder(tmp_path / "a/b")
    assert not run.path.exists()
    run.start(CONFIG)
    assert yaml.safe_load((run.path / "train_config.yaml").read_text())["scale"] == [0.5, 1.0]


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_that_no_run_made_is_refused_unless_it_is_empty(tmp_path, flags):
    (tmp_path / ".gitkeep").touch()
    (tmp_path / ".writing-train_config.yaml").touch()  # of a run that was killed at once
    RunFolder(tmp_path, **flags)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RunFolderError, match=r"not empty \(notes\.txt\) and has no train_config\.yaml"):
        RunFolder(tmp_path, **flags)


def test_overwrite_deletes_what_a_run_makes_and_nothing_else(used):
    with pytest.raises(RunFolderError, match="holds another run"):
        RunFolder(used)
    run = RunFolder(used, overwrite=True)
    assert (used / "model.safetensors").exists(), "deleted before the new run was known to be good"
    run.start(CONFIG)
    kept = {"notes.txt", "checkpoints/mine.pt", "checkpoints/update-000000003.old/x", "data/config.json"}
    assert files_in(used) == {*kept, "train_config.yaml"}


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


def test_resume_goes_back_to_the_newest_whole_checkpoint_and_keeps_the_damaged(used, caplog):
    for update in (6, 9, 12):
        make_checkpoint(used, update)
    for stray in ("update-last", "update-000000012 (copy)", "update-1"):
        (used / "checkpoints" / stray).mkdir()
    (used / "checkpoints/update-000000099").mkdir()  # with the name of a checkpoint, but none
    weights = used / "checkpoints/update-000000012/model.safetensors"
    weights.write_text(weights.read_text().replace("1", "3"))
    (used / "checkpoints/update-000000009/progress.json").unlink()
    run = RunFolder(used, resume=True)
    run.start(CONFIG)
    assert run.newest_checkpoint.name == "update-000000006"
    assert (
        "update-000000012 is damaged (model.safetensors is not what was written): the run continues from" in caplog.text
    )
    assert "progress.json is missing" in caplog.text
    assert (used / "checkpoints/damaged-update-000000012/model.safetensors").exists()
    assert (used / "checkpoints/update-000000012 (copy)").exists()
    RunFolder(used, overwrite=True).start(CONFIG)
    assert not list((used / "checkpoints").glob("damaged-*"))


def test_resume_with_damaged_checkpoints_only_is_refused(used):
    (used / "checkpoints/update-000000003/checksums.json").write_text("{")
    before = files_in(used)
    with pytest.raises(RunFolderError, match=r"no checkpoint in .* is whole \(update-000000003: .*--overwrite"):
        RunFolder(used, resume=True).start(CONFIG)
    assert files_in(used) == before


@pytest.mark.parametrize(
    "content", [b"", b"a: [b", b"- 1", b"\xff\xfe", b"text", b"[" * 3000, b"!!python/name:os.system"]
)
def test_a_damaged_configuration_is_named(used, content):
    (used / "train_config.yaml").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"train_config\.yaml is damaged, .*another --output") as caught:
        RunFolder(used, resume=True).start(CONFIG)
    assert "\n" not in str(caught.value)


def test_changed_data_are_named_and_not_what_follows_from_a_flag(tmp_path):
    RunFolder(tmp_path).start({**CONFIG, "data_checksum": "one"})
    with pytest.raises(ConfigError, match="images, labels or their order have changed since the run"):
        RunFolder(tmp_path, resume=True).start({**CONFIG, "data_checksum": "two"})
    with pytest.raises(ConfigError, match=r"another configuration: lr \(0\.1 then, 1 now\)\. Use"):
        RunFolder(tmp_path, resume=True).start({**CONFIG, "data_checksum": "two", "lr": 1})


def resume_with_another_configuration(path):
    RunFolder(path, resume=True).start({})


def test_two_processes_never_run_in_one_folder(tmp_path):
    run, late = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    run.start(CONFIG)
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as others:
        other = others.submit(resume_with_another_configuration, run.path)
        with pytest.raises(RunFolderError, match="it is in use, another run is writing to it"):
            other.result()
        with pytest.raises(RunFolderError, match="holds another run"):  # which has started since `late` was made
            late.start(CONFIG)
        run.release()  # although forked processes, as a DataLoader's workers, are still there
        late.release()
        other = others.submit(resume_with_another_configuration, run.path)
        with pytest.raises(ConfigError, match="with another configuration"):
            other.result()


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


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"run\\udce9'?: its name is not UTF-8"):
        RunFolder(tmp_path / "run\udce9")


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
    with pytest.raises(RunFolderError, match="a folder above it is a file"):
        RunFolder(tmp_path / "file/run")


def network_share(path):
    raise OSError(errno.EINVAL, "Invalid argument")


def windows(path):
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("refuse", [network_share, windows])
def test_folders_that_cannot_be_flushed_are_written_to(tmp_path, monkeypatch, refuse):
    fsync, open_file = os.fsync, os.open

    def flush(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refuse(descriptor)
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")  # Windows flushes only what is open for writing
        fsync(descriptor)

    def open_unless_folder(path, flags, *args, **kwargs):
        if refuse is windows and os.path.isdir(path):
            refuse(path)
        return open_file(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "open", open_unless_folder)
    write_text(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_flush_that_fails_is_reported(tmp_path, monkeypatch, number):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match="could not write"):
        write_text(tmp_path / "file", "x")
    assert os.listdir(tmp_path) == []
