"""Two processes on one machine, for tests of what several train or measure together."""

import multiprocessing
from collections.abc import Callable

from torch import multiprocessing as mp


def run_in_two(worker: Callable[..., None], *args: object) -> None:
    """Run `worker(rank, *args)` in two processes, which must both end well.

    They are forks of a server that has imported the package, which takes seconds.
    """
    multiprocessing.set_forkserver_preload(["fdconv_zoo"])
    mp.start_processes(worker, args=args, nprocs=2, start_method="forkserver")
