"""How much memory the workers may use, and how many rows of a run fit into it.

The kernel kills where a cgroup is exceeded, without a word to the process; so the first batch is
tried in a child, under a limit that makes the allocation fail instead.
"""

import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from batchserve import machine, trial

_STEP_ROWS = 64
_SHARE = 0.8
"""Of what is free; the rest is for readers, writers and what the allocator keeps."""


def share_bytes(workers: int, asked: int | None = None, processes: int = 1) -> int:
    """Return what one of several workers may use beyond what its process uses before it works.

    Args:
        workers: Partitions scored at once.
        asked: The user's own limit for all of them in bytes, or None.
        processes: How many processes they are in; each is taken to be as large as this one is now.
    """
    resident, virtual = used_bytes()
    left = machine.memory_bytes(asked) - resident * processes
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        left = min(left, space - virtual)
    return max(0, int(left * _SHARE / workers))


def used_bytes() -> tuple[int, int]:
    """Return this process's resident and virtual bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        virtual, resident, *_ = Path("/proc/self/statm").read_text().split()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, 0
    return int(resident) * page, int(virtual) * page


def fitting_rows(run: Callable[[int], object], rows: int, share: int, timeout_s: float) -> tuple[int, bool]:
    """Halve the rows of a run until one fits: multiples of 64, and only if 64 do not fit, fewer.

    Args:
        run: Runs the model once over so many rows; raises when memory runs out.
        rows: Rows to begin with, a multiple of 64.
        share: Bytes that one run may take.
        timeout_s: Seconds after which a trial counts as one that fits: it will stall later, too.

    Returns:
        The first number of rows that fits, or 1; and whether that run ended well.
    """
    while (ended := trial.ended(partial(_tried, run, rows, share), timeout_s)) not in _FITS and rows > 1:
        half = rows // 2
        rows = max(half // _STEP_ROWS * _STEP_ROWS, min(half, _STEP_ROWS))
    return rows, ended == _WELL


_WELL, _SHORT, _OTHERWISE = 0, 1, 2
_FITS = {_WELL, _OTHERWISE, None, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL}
"""Other failures show later; by these signals a row may kill, want of memory looks otherwise."""


def _tried(run: Callable[[int], object], rows: int, share: int) -> int:
    """Run under the limit, in the child; return its exit code."""
    try:
        _, virtual = used_bytes()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = virtual + share if hard == resource.RLIM_INFINITY else min(virtual + share, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        run(rows)
    except BaseException as error:  # noqa: BLE001  nothing may leave the child
        from batchserve.errors import MemoryShortError

        return _SHORT if isinstance(error, (MemoryError, MemoryShortError)) else _OTHERWISE
    return _WELL
