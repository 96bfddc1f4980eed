"""A file lock that is released when the process ends, even if it is killed."""

import errno
import logging
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

_logger = logging.getLogger(__name__)

_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class FileLock:
    """An exclusive lock on a file, between processes and, on network file systems that support locks, machines.

    It is a POSIX record lock. Unlike ``flock``, which the ``filelock`` library uses, it is not inherited by forked
    processes. So a killed run can be resumed although its workers outlive it by some seconds.

    Args:
        path: The file. `acquire` creates it and its folder; it is not deleted.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Acquire the lock without waiting, and return whether this process holds it.

        If the file system does not support locks, this method logs a warning and returns True.

        Raises:
            OSError: the file cannot be created.
        """
        if self._descriptor is not None:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno in _HELD:
                os.close(descriptor)
                return False
            _logger.warning(
                "%s: the file system does not support locks (%s): do not start a second run there.", self.path, error
            )
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Release the lock, if this process holds it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int) -> None:
    if fcntl is None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
