"""The parent of the command: whatever kills the process that scores, somebody says so.

It is forked before anything heavy is imported, relays signals, and waits. A job is begun
again after a death: what is finished stays, and what was running is scored alone first.
"""

import mmap
import os
import signal
import sys
import time
from typing import NoReturn

from batchserve import lifetime

_RELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEATHS = 3
"""So many in a row, without a partition finished between them, end the command."""
_EXIT_RETRY = 75
_SAME_S = 0.5
"""A signal repeated within this time is the same one."""
_PATIENCE_S = 20.0
"""So long after the first the child is killed; it should have ended after ten seconds."""
_LOOK_S = 1.0

_finished = mmap.mmap(-1, 1)
"""Shared with the child, which sets it to 1 when a partition is finished."""
_death = ""


def begun_again() -> str:
    """Return what became of the process that this one took over from; empty if there was none."""
    return _death


def progressed() -> None:
    """Note, for the parent to see, that a partition is finished."""
    _finished[0] = 1


def supervise(*, restart: bool) -> None:
    """Fork. Return in the child; the parent relays, waits and exits as the child does.

    Args:
        restart: Whether the command may be begun again after a death: a job may.
    """
    global _death  # noqa: PLW0603  set before the child begins
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_RELAYED, signal.SIGCHLD))
    deaths = 0
    while child := _forked():
        code, asked = _outcome(child)
        if code >= 0:
            os._exit(code)
        if asked:
            os._exit(128 + asked)
        deaths = 1 if _finished[0] else deaths + 1
        _finished[0] = 0
        if not restart or deaths == _DEATHS:
            _give_up(-code, deaths)
        _death = _cause(-code)
        _say(f"the process that scored was {_death}; continuing in a new one")


def _forked() -> int:
    """Fork a child that dies with this process; return its pid, or 0 in the child."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        lifetime.end_with(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_RELAYED, signal.SIGCHLD))
    return child


def _outcome(child: int) -> tuple[int, int]:
    """Relay a signal, and wait until the child ends; a second signal, or too long a wait, kills it.

    It may be deep in a run of the model, where no Python handler runs.

    Returns:
        Its exit code, or minus the signal that ended it; the signal that was relayed, or 0.
    """
    asked, since = 0, time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), asked
        met = signal.sigtimedwait((*_RELAYED, signal.SIGCHLD), _LOOK_S)
        number = met.si_signo if met and met.si_signo in _RELAYED else 0
        passed_s = time.monotonic() - since
        if asked and ((number and passed_s > _SAME_S) or passed_s > _PATIENCE_S):
            os.kill(child, signal.SIGKILL)
        elif number and not asked:
            asked, since = number, time.monotonic()
            os.kill(child, asked)


def _cause(number: int) -> str:
    hint = ", as the kernel does when memory runs out" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name}{hint}"


def _give_up(number: int, deaths: int) -> NoReturn:
    times = f"died {deaths} times without finishing a partition, the last time " if deaths > 1 else "was "
    _say(f"error: the process that scores {times}{_cause(number)}")
    more = "give it more memory, or fewer --workers or --batch-rows; " if number == signal.SIGKILL else ""
    _say(f"hint:  {more}what is finished is kept: the same command continues")
    os._exit(_EXIT_RETRY)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
