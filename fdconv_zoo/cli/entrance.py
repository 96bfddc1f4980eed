"""Starts every command. This is the only place that catches errors that the user can act on."""

import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any

from fdconv_zoo.errors import Terminated, UserError, without_secrets

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: "the user is invited to retry"


def run_command(command: Callable[..., None], *args: Any) -> None:
    """Run a command. A `UserError` becomes one message on stderr, without a traceback, and exit code 1.

    On Ctrl-C, the message of the `KeyboardInterrupt` is printed, if it has one, and the exit code is 130. On SIGTERM,
    a run saves a checkpoint, and the exit code is `TRY_AGAIN`, so that a job script or a scheduler can requeue the job.

    Args:
        command: A `main`, or the function of a sub-command.
        *args: Its arguments.
    """
    for stream in (sys.stdout, sys.stderr):  # file names may not be valid in any encoding
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        command(*args)
        sys.stdout.flush()  # here, where a closed pipe is caught
    except UserError as error:
        if _is_first():
            print(f"error: {without_secrets(str(error))}", file=sys.stderr)
        sys.exit(1)
    except UnicodeEncodeError as error:
        if "surrogates" not in error.reason:
            raise
        print(f"error: {error.object!a}: this name of a file or folder is not UTF-8: rename it", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Terminated as ended:
        if _is_first():
            print(f"\nended by SIGTERM {ended}", file=sys.stderr)
        sys.exit(TRY_AGAIN)
    except KeyboardInterrupt as interrupt:
        print("\n" + "; ".join(["stopped", *map(str, interrupt.args)]), file=sys.stderr)
        sys.exit(130)


def _is_first() -> bool:
    """Whether this is the process of rank 0. All processes fail alike, so only this one prints the message."""
    return int(os.environ.get("RANK", "0")) == 0
