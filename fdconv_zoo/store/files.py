"""Writes files atomically: after a crash, a file is either complete or unchanged."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fdconv_zoo.errors import WriteError

TEMPORARY_PREFIX = ".writing-"  # may be left behind by a crash; the next run removes it

# Errors of file systems that do not support flushing a file or a folder: network shares, FUSE, folders on Windows.
_CANNOT_FLUSH = {
    *(errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY),
    *(errno.EBADF, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR),
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; what the block writes there replaces `path` at the end.

    `path` is a file, or a folder that does not exist yet. Contents are flushed to disk before the rename, if the file
    system supports it, so a crash leaves either the old `path` or the complete new one. After an error, the temporary
    path is removed.

    Raises:
        WriteError: writing failed, in the block or after it.
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
    """Write `text` to `path` atomically, as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush_to_disk(path: Path) -> None:
    """Flush a file, or a folder and its contents, from the operating system's cache to the disk."""
    if path.is_dir():
        for child in path.iterdir():
            flush_to_disk(child)
    _fsync(path)


def remove(path: Path) -> None:
    """Delete a file, a link (not its target) or a folder, if it exists."""
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
            reason = "torch.save failed, most likely because the disk is full"  # the archive writer gives no reason
        else:
            raise
        raise WriteError(f"could not write {path}: {reason}") from error


def _fsync(path: Path) -> None:
    # Windows only flushes files that are open for writing, and cannot open folders.
    access = os.O_RDONLY if path.is_dir() else os.O_RDWR
    try:
        descriptor = os.open(path, access)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
