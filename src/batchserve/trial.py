"""Something tried in a fork of this process, which may die of it."""

import faulthandler
import gc
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from batchserve import lifetime

_POLL_S = 0.002
_STDERR = 2
leave = os._exit
"""Ends a fork at once, with nothing of what its parent has planned for its own end."""


def ended(attempt: Callable[[], int], timeout_s: float | None = None) -> int | None:
    """Call `attempt` in a forked child and tell how that ended.

    Args:
        attempt: What to try; it may not raise. What it changes stays in the child.
        timeout_s: Seconds after which the child is killed, or None to wait for it.

    Returns:
        What `attempt` returned; less than 0 if a signal killed the child (-11 for SIGSEGV); None
        if it took too long.

    Example:
        >>> ended(lambda: 3), ended(lambda: os.kill(os.getpid(), signal.SIGSEGV) or 0)
        (3, -11)
    """
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        lifetime.end_with(parent)
        _hush()
        leave(attempt())
    try:
        return _waited(child, timeout_s)
    except BaseException:  # Ctrl-C, say
        _kill(child)
        raise


def _hush() -> None:
    """Let what dies on trial die fast, without last words and without a dump of its memory."""
    faulthandler.disable()
    gc.disable()  # looking for garbage would copy every page that the two share
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDERR)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _waited(child: int, timeout_s: float | None) -> int | None:
    deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL_S)
    _kill(child)
    return None


def _kill(child: int) -> None:
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
