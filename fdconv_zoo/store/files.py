"""Files that are whole or absent, whatever happens while they are written."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fdconv_zoo.errors import WriteError

TEMPORARY_PREFIX = ".writing-"  # what a crash can leave behind; the next run removes it


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its place at the end.

    Works for a file and for a folder, which must not exist yet. Contents reach the disk before the rename, so that
    a crash at any moment leaves either the old `path` or the whole new one. On an error the temporary is removed.

    Raises:
        WriteError: it could not be written, in the block or after it.
    """
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    remove(temporary)
    try:
        with explaining_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush_to_disk(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
    except BaseException:
        remove(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush_to_disk(path: Path) -> None:
    """Force a file, or a folder and all it holds, out of the operating system's cache."""
    if path.is_dir():
        for child in path.iterdir():
            flush_to_disk(child)
    _fsync(path)


def remove(path: Path) -> None:
    """Delete a file, a link (not what it points at) or a folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def explaining_write_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write into a `WriteError` that names `path` and the reason."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, OSError):
            reason = "no space left on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        elif isinstance(error, SafetensorError):
            reason = "no space left on the disk" if "os error 28" in str(error) else str(error)
        elif "inline_container" in str(error):
            reason = "torch.save failed, most likely because the disk is full"  # its archive writer tells no more
        else:
            raise
        raise WriteError(f"could not write {path}: {reason}") from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
