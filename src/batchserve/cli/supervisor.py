"""The parent of the command: whatever kills the process that scores, somebody says so.

It is forked before anything heavy is imported, relays signals, and waits. A job is begun
again after a death: what is finished stays, and what was running is scored alone first.
"""

import ctypes
import mmap
import os
import signal
import sys
from typing import NoReturn

_RELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEATHS = 3
"""So many in a row, without a partition finished between them, end the command."""
_EXIT_RETRY = 75
_PR_SET_PDEATHSIG = 1

_finished = mmap.mmap(-1, 1)
"""Shared with the child, which sets it to 1 when a partition is finished."""
_again = False


def begun_again() -> bool:
    """Whether this process took over from one that died."""
    return _again


def progressed() -> None:
    """Note, for the parent to see, that a partition is finished."""
    _finished[0] = 1


def supervise(*, restart: bool) -> None:
    """Fork. Return in the child; the parent relays, waits and exits as the child does.

    Args:
        restart: Whether the command may be begun again after a death: a job may.
    """
    global _again  # noqa: PLW0603  set once, before the child begins
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_RELAYED, signal.SIGCHLD))
    deaths = 0
    while child := _forked():
        code, asked = _outcome(child)
        if code >= 0:
            os._exit(code)
        if asked:
            os._exit(128 - code)
        deaths = 1 if _finished[0] else deaths + 1
        _finished[0] = 0
        if not restart or deaths == _DEATHS:
            _give_up(-code, deaths)
        _say(f"the process that scored was {_cause(-code)}; continuing in a new one")
        _again = True


def _forked() -> int:
    """Fork a child that dies with this process; return its pid, or 0 in the child."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(_EXIT_RETRY)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_RELAYED, signal.SIGCHLD))
    return child


def _outcome(child: int) -> tuple[int, bool]:
    """Relay signals until the child ends.

    Returns:
        Its exit code, or minus the signal that ended it; whether that signal was asked for.
    """
    relayed = set()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return code, -code in relayed
        number = signal.sigwait((*_RELAYED, signal.SIGCHLD))
        if number != signal.SIGCHLD:
            relayed.add(number)
            os.kill(child, number)


def _cause(number: int) -> str:
    hint = ", as the kernel does when memory runs out" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name}{hint}"


def _give_up(number: int, deaths: int) -> NoReturn:
    times = f"{deaths} times without finishing a partition, at last " if deaths > 1 else ""
    _say(f"error: the process was {times}{_cause(number)}")
    more = "give it more memory, or fewer --workers; " if number == signal.SIGKILL else ""
    _say(f"hint:  {more}what is finished is kept: the same command continues")
    os._exit(_EXIT_RETRY)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
