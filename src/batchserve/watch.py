"""Runs of the model that never end are stopped from outside, by one thread per process.

A read that hangs is not: nothing can stop a thread that waits inside the kernel.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from batchserve.errors import BatchserveError, StallError

_LOOKS = 10
"""How often a deadline is looked at within its time."""


@dataclass
class _Run:
    """One run of a model that is going on."""

    options: Any
    deadline: float
    stopped: bool = False


_runs: dict[int, _Run] = {}
_wanted = threading.Lock()
_shortest_s = float("inf")


@contextmanager
def watched(options: Any, timeout_s: float | None) -> Iterator[None]:
    """Tell the RunOptions of one run to terminate when the block takes longer than `timeout_s`.

    Raises:
        StallError: They were.
    """
    if timeout_s is None:
        yield
        return
    run = _Run(options, time.monotonic() + timeout_s)
    _watch(timeout_s)
    _runs[id(run)] = run
    try:
        yield
    except BatchserveError:  # Ctrl-C, say
        raise
    except Exception as error:
        if run.stopped:
            message = f"a run of the model did not end within {timeout_s:g} s and was stopped"
            raise StallError(message, "run the same command again, or allow more: --stall-timeout") from error
        raise
    finally:
        _runs.pop(id(run), None)


def _watch(timeout_s: float) -> None:
    """Start the thread at the first run; look more often if a shorter timeout comes."""
    global _shortest_s  # noqa: PLW0603  one thread per process, like the sessions
    with _wanted:
        if _shortest_s == float("inf"):
            _shortest_s = timeout_s
            threading.Thread(target=_look, name="batchserve-watch", daemon=True).start()
        _shortest_s = min(_shortest_s, timeout_s)


def _look() -> None:
    while True:
        time.sleep(min(1.0, _shortest_s / _LOOKS))
        now = time.monotonic()
        for run in list(_runs.values()):
            if now > run.deadline:
                run.stopped = run.options.terminate = True


def _forget() -> None:
    """Begin anew in a forked process: threads stay behind in the one it comes from."""
    global _shortest_s, _wanted
    _runs.clear()
    _shortest_s, _wanted = float("inf"), threading.Lock()


os.register_at_fork(after_in_child=_forget)
