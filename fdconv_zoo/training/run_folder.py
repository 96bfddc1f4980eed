"""The output folder of a run: what may be in it, and every write to it."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fdconv_zoo.errors import ConfigError, RunFolderError, WriteError
from fdconv_zoo.store.files import TEMPORARY_PREFIX, explaining_write_errors, remove, write_text
from fdconv_zoo.training.checkpoint import list_checkpoints

CONFIG = "train_config.yaml"

# All that a run writes, and so all that --overwrite deletes. The configuration marks the folder as that of a run: it is
# written first and deleted last.
PATTERNS = (
    f"{TEMPORARY_PREFIX}*",
    f"last/{TEMPORARY_PREFIX}*",
    f"checkpoints/{TEMPORARY_PREFIX}*",
    "checkpoints/update-*",
    "tensorboard/events.out.tfevents.*",
    "last/model.safetensors",
    "last/config.json",
    "model.safetensors",
    "config.json",
    "metrics.jsonl",
    "curves.png",
    "pictures.png",
    "confusion.csv",
    "confusion.png",
    "predictions.json",
    CONFIG,
)


class RunFolder:
    """The output folder of a run.

    Args:
        path: The folder; `start` creates it.
        resume: Continue the run in it, if there is one.
        overwrite: Delete the run in it, if there is one.

    Raises:
        RunFolderError: it holds a run, and neither `resume` nor `overwrite` is set; or it holds files with a run's
            names that are not of a run.
        ConfigError: both are set.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, overwrite: bool = False):
        self.path = Path(path)
        self.resume = resume
        if resume and overwrite:
            raise ConfigError(
                "--resume continues the run in the output folder and --overwrite deletes it: use one of them"
            )
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"--output {self.path}: it is a file, not a folder")
        found = self._run_files()
        if not found:
            return
        if not (self.path / CONFIG).is_file():
            raise RunFolderError(
                f"--output {self.path}: it has {found[0].relative_to(self.path)} but no {CONFIG}, so it is not the "
                "folder of a run, and a run would overwrite its files; choose another folder"
            )
        if not resume and not overwrite:
            raise RunFolderError(
                f"--output {self.path}: it holds another run; continue it with --resume, delete it with --overwrite, "
                "or choose another folder"
            )

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(iter(reversed(list_checkpoints(self.checkpoints))), None)

    def start(self, config: Mapping[str, Any], *, free_keys: Collection[str] = ()) -> None:
        """Take over the folder for this run; only the main process calls it.

        Afterwards `newest_checkpoint` is the one to resume from. If there is none, the run starts from the beginning,
        and all files of an earlier run are gone.

        Args:
            config: The full configuration.
            free_keys: Keys whose values may differ when a run is resumed, because the result does not depend on them.

        Raises:
            ConfigError: the run to be resumed was started with another configuration.
            WriteError: the folder cannot be written to.
        """
        config = json.loads(json.dumps(config))  # tuples become the lists that YAML gives back
        if self.resume and (self.path / CONFIG).is_file():
            self._check_same(config, free_keys)
        fresh = not self.resume or self.newest_checkpoint is None
        with self.writing():
            for found in self._run_files():
                if fresh or found.name.startswith(TEMPORARY_PREFIX):
                    remove(found)
            write_text(self.path / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def write_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Rewrite metrics.jsonl: one JSON object per line and epoch."""
        lines = "".join(json.dumps(row) + "\n" for row in history)
        write_text(self.path / "metrics.jsonl", lines)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a failed write in the block into a `WriteError` that says which checkpoint is kept."""
        newest = self.newest_checkpoint
        remedy = "Free some space and start again; no checkpoint had been written yet"
        if newest is not None:
            remedy = f"The last complete checkpoint is kept: {newest}. Free some space and start again with --resume"
        try:
            with explaining_write_errors(self.path):
                yield
        except WriteError as error:
            raise WriteError(f"{error}. {remedy}") from error

    def _run_files(self) -> list[Path]:
        return [found for pattern in PATTERNS for found in sorted(self.path.glob(pattern))]

    def _check_same(self, config: Mapping[str, Any], free_keys: Collection[str]) -> None:
        before = yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8"))
        differing = [
            f"{key} ({before.get(key)!r} then, {config.get(key)!r} now)"
            for key in sorted({*before, *config} - {*free_keys})
            if before.get(key) != config.get(key)
        ]
        if differing:
            raise ConfigError(
                f"--resume: the run in {self.path} was started with another configuration: {', '.join(differing)}. "
                "Use the same values, or start a new run in another --output"
            )
