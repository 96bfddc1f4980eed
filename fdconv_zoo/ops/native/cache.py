"""The cache of built libraries: a folder of the user that no other user may write to, since its code is executed.

The name of a library ends with the checksum of its content. So a damaged library is recognized before it is loaded
(loading a truncated file can end the process), a library is replaced as a single file, and processes that build at the
same time do not disturb each other.
"""

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from fdconv_zoo.ops.native.unavailable import UnavailableError


def open_cache() -> Path:
    """Create the cache folder if it does not exist, and check that it is safe.

    Raises:
        UnavailableError: other users can write to it, or the user cannot create it.
    """
    folder = _user_cache() / "fdconv_zoo" / "native"
    try:
        for path in (folder.parent, folder):
            with suppress(FileExistsError):
                path.mkdir(mode=0o700, parents=True)
            check_safe(path)
    except OSError as error:
        raise UnavailableError(
            f"the cache {folder} cannot be made: {error.strerror}; XDG_CACHE_HOME can name another"
        ) from None
    return folder


def find_library(folder: Path, key: str) -> Path | None:
    """Find the library with a key, and remove damaged ones.

    Raises:
        UnavailableError: the file is not safe.
    """
    for path in sorted(folder.glob(f"{key}-*.so")):
        check_safe(path)
        if _name(key, path) == path.name:
            return path
        path.unlink(missing_ok=True)
    return None


@contextmanager
def build_folder(folder: Path) -> Iterator[Path]:
    """Create a temporary folder in the cache, and remove it at the end of the block.

    Raises:
        UnavailableError: the cache is not writable, or full.
    """
    temporary = None
    try:
        temporary = Path(mkdtemp(prefix="building-", dir=folder))
        yield temporary
    except OSError as error:
        raise UnavailableError(f"the cache {folder} cannot be written to: {error.strerror}") from None
    finally:
        if temporary is not None:
            rmtree(temporary, ignore_errors=True)


def keep_library(built: Path, folder: Path, key: str) -> Path:
    """Move a library into the cache, in one atomic step."""
    built.chmod(0o700)  # the compiler applied the umask
    kept = folder / _name(key, built)
    os.replace(built, kept)
    return kept


def check_safe(path: Path) -> None:
    """Check that nobody but the user can write to a file or a folder.

    Raises:
        UnavailableError: another user can, or it is a symbolic link.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise UnavailableError(f"{path} is a symbolic link; remove it")
    if status.st_uid != os.geteuid():
        raise UnavailableError(
            f"{path} belongs to another user (uid {status.st_uid}); XDG_CACHE_HOME can name another cache"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise UnavailableError(f"{path} is writable by other users (mode {mode:o}); remove it, or `chmod go-w` it")


def _user_cache() -> Path:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():  # the XDG specification says to ignore relative paths
        return named
    try:
        home = Path.home()
    except RuntimeError:
        raise UnavailableError("there is no home folder for a cache; XDG_CACHE_HOME can name one") from None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _name(key: str, path: Path) -> str:
    return f"{key}-{hashlib.sha256(path.read_bytes()).hexdigest()[:20]}.so"
