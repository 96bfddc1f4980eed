"""Startup: as a library, the package loads torch at once; as a command, it delays that.

`python -m fdconv_zoo` and the installed `fdconv-zoo` import the package before any of their own code runs. They answer
`--help` without loading torch. Otherwise they set how long OpenMP threads spin before they load torch, because OpenMP
reads the setting only once.

Torch's threads wait for each other after every operation. In GCC's OpenMP runtime, which torch includes, a waiting
thread spins at full load for some milliseconds. If other processes need the same cores, the spinning threads may keep
the last thread from running, and every operation takes that much longer: training has been observed to take ten times
as long. With `GOMP_SPINCOUNT=1000`, threads spin for some microseconds. The runtime itself uses this value if it has
more threads than there are cores.
"""

import importlib
import multiprocessing
import os
import sys
from pathlib import Path

_PROGRAMS = ("fdconv-zoo", "fdconv-zoo.exe")


def _starts_a_command() -> bool:
    """Whether the package is imported as the first step of `python -m fdconv_zoo` or `fdconv-zoo`."""
    if not sys.argv or multiprocessing.parent_process() is not None:  # a worker only needs the library
        return False
    if sys.argv[0] == "-m":  # Python's placeholder while it looks for the module; the module's arguments follow
        return sys.orig_argv[-len(sys.argv)].removeprefix("-m") == __package__
    return Path(sys.argv[0]).name in _PROGRAMS


waits_for_command = _starts_a_command()


def load_library() -> None:
    """Load the whole package, if this process is a command that has delayed it."""
    global waits_for_command
    if waits_for_command:
        waits_for_command = False
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        importlib.reload(sys.modules[__package__])
