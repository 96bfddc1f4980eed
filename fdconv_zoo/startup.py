"""The start of a process: a library, which loads torch at once, or a command, which has to do something before.

`python -m fdconv_zoo` and the installed `fdconv-zoo` import the package before any code of theirs runs. They answer
`--help` without torch, and set how OpenMP's threads wait before torch is loaded, which reads it only once:

Torch's threads meet after every operation. GCC's runtime, which torch brings along, lets those that come first spin at
full load for some milliseconds. Where other processes want the same cores, the one they wait for is not running, and
each operation costs the slice of time that they burn: training was seen to take ten times as long. A thousand rounds,
what the runtime itself takes where it has more threads than there are cores, last some microseconds.
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
    if sys.argv[0] == "-m":  # Python's own placeholder while it looks for the module, which its arguments follow
        return sys.orig_argv[-len(sys.argv)].removeprefix("-m") == __package__
    return Path(sys.argv[0]).name in _PROGRAMS


waits_for_command = _starts_a_command()


def load_library() -> None:
    """Load what `import fdconv_zoo` loads, if this process is a command, which has put it off."""
    global waits_for_command
    if waits_for_command:
        waits_for_command = False
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        importlib.reload(sys.modules[__package__])
