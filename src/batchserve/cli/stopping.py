"""Ctrl-C, SIGTERM and SIGHUP: the first one ends the job in good order, the second at once."""

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, Self

from batchserve import events
from batchserve.cli import supervisor
from batchserve.errors import StoppedError, TerminatedError

if TYPE_CHECKING:
    from batchserve.events import Event, Listener

_FINISH_TIMEOUT_S = 10
_SAME_S = 0.5
"""A terminal and `timeout` send a signal to parent and child, and the parent relays its own."""


class Stop:
    """Turns the first Ctrl-C or SIGTERM into our error; a second one ends the process at once.

    A partition that is scored in this very thread is finished first, if that takes no more than
    ten seconds; on threads and clusters the runner waits for those that run. An exception raised
    in a signal handler is lost where Python ignores exceptions (a callback of the garbage
    collector, say), so it is raised again at the next event of the job.
    """

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._number = 0
        self._since = 0.0
        self._in_place = False
        self._before: dict[int, Any] = {}

    def on(self, event: "Event") -> None:
        """Pass `event` on, unless the job is to stop."""
        self._in_place = isinstance(event, events.RowsScored)
        if self._number and not self._in_place:
            self._raise()
        if isinstance(event, events.PartitionScored) and not event.resumed:
            supervisor.progressed()
        self._listener.on(event)

    def _caught(self, number: int, frame: object) -> None:
        del frame
        now = time.monotonic()
        if number == self._number and now - self._since < _SAME_S:
            return
        if self._number:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._number, self._since = number, now
        text = "stopping: what is running may finish (10 s); once more, and it is left at once"
        with suppress(OSError):  # the terminal may be what is gone
            self._listener.on(events.Noted(text=text))
        if not self._in_place:
            self._raise()
        signal.setitimer(signal.ITIMER_REAL, _FINISH_TIMEOUT_S)

    def _late(self, number: int, frame: object) -> None:
        del number, frame
        self._raise()

    def _raise(self) -> NoReturn:
        kind = StoppedError if self._number == signal.SIGINT else TerminatedError
        raise kind("stopped", "the same command continues from the finished parts")

    def __enter__(self) -> Self:
        handlers = {signal.SIGINT: self._caught, signal.SIGTERM: self._caught, signal.SIGALRM: self._late}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
            handlers[signal.SIGHUP] = self._caught
        for number, handler in handlers.items():
            self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
