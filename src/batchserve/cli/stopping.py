"""Ctrl-C and SIGTERM: the first one ends the job in good order, the second at once."""

import signal
from typing import TYPE_CHECKING, Any, NoReturn, Self

from batchserve.errors import StoppedError, TerminatedError

if TYPE_CHECKING:
    from batchserve.events import Event, Listener


class Stop:
    """Turns the first Ctrl-C or SIGTERM into our error; a second one ends the process at once.

    An exception raised in a signal handler is lost where Python ignores exceptions (a callback
    of the garbage collector, say), so it is raised again at the next event of the job.
    """

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._number = 0
        self._before: dict[int, Any] = {}

    def on(self, event: "Event") -> None:
        """Pass `event` on, unless the job is to stop."""
        if self._number:
            self._raise()
        self._listener.on(event)

    def _caught(self, number: int, frame: object) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)
        self._number = number
        self._raise()

    def _raise(self) -> NoReturn:
        kind = TerminatedError if self._number == signal.SIGTERM else StoppedError
        raise kind("stopped", "the same command continues from the finished parts")

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
