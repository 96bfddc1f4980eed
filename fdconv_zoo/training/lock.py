"""A lock on a file, which a process holds until it ends, however it ends."""

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
    """An exclusive lock on a file, among processes and, on network file systems with locks, among machines.

    The lock is POSIX's record lock. Unlike that of ``flock``, which the ``filelock`` library takes, it is not passed on
    to forked processes: workers that outlive a killed run for some seconds do not keep the run from being resumed.

    Args:
        path: The file; `acquire` creates it, and its folder. It is left behind.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock, and return whether this process now holds it. Where a file system has no locks, only warn.

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
            _logger.warning("%s: the file system has no locks (%s): start no second run there.", self.path, error)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back, if this process holds it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int) -> None:
    if fcntl is None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
