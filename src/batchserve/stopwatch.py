"""Seconds that a thread spends on something, and how many of them it does not run in."""

import time
from dataclasses import dataclass
from typing import Self


@dataclass
class Stopwatch:
    """Adds up the seconds of the blocks it is entered for, all of one thread.

    Attributes:
        seconds: Wall time of the blocks.
        waited_s: How much of it the thread did not run: for a disk, a lock, or a CPU.

    Example:
        >>> watch = Stopwatch()
        >>> with watch:
        ...     pass
        >>> watch.seconds >= watch.waited_s >= 0
        True
    """

    seconds: float = 0.0
    waited_s: float = 0.0
    _began: float = 0.0
    _ran: float = 0.0

    def start(self) -> None:
        """Begin a block."""
        self._began, self._ran = time.perf_counter(), time.thread_time()

    def stop(self) -> None:
        """Add the block that was begun last."""
        ran = time.thread_time() - self._ran
        passed = time.perf_counter() - self._began
        self.seconds += passed
        self.waited_s += max(0.0, passed - ran)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def hand_over(self, other: "Stopwatch") -> None:
        """Take off what `other` counted inside the blocks of this one."""
        self.seconds = max(0.0, self.seconds - other.seconds)
        self.waited_s = min(self.seconds, max(0.0, self.waited_s - other.waited_s))
