"""What happens during a job, as values, and who may listen.

The library never prints: it tells a listener. The progress line, log lines and later metrics
are listeners.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Started:
    """A job begins."""

    run_id: str
    """Made for this run; a run that continues another has its own."""
    output: str


@dataclass(frozen=True, kw_only=True)
class Restarted:
    """The process that scored died, and another begins the job again."""

    cause: str
    """In words: what became of it."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The plan stands; the work is about to start."""

    plan_id: str
    partitions: int
    partitions_done: int
    """Partitions an earlier, interrupted run of the same plan finished."""
    bytes_total: int
    """Input bytes, as stored."""
    workers: int


@dataclass(frozen=True, kw_only=True)
class PartitionScored:
    """One partition has a durable part and a receipt."""

    index: int
    rows_in: int
    rows_rejected: int
    bytes_in: int
    seconds: dict[str, float]
    """Seconds per stage: read, bind, model, write."""
    resumed: bool = False
    """True when an earlier, interrupted run of the same plan scored it."""


@dataclass(frozen=True, kw_only=True)
class RowsScored:
    """A partition that is scored in this process has got on."""

    rows: int
    """Rows of the partition scored so far."""


@dataclass(frozen=True, kw_only=True)
class Suspected:
    """Partitions were in a process that died: they are scored again, each alone."""

    places: tuple[str, ...]
    """In words: partition, file and range."""
    cause: str
    """In words: what became of the process."""


@dataclass(frozen=True, kw_only=True)
class Noted:
    """Something to know that stops nothing."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Amended:
    """Texts did not fit a column's sampled type: it becomes text and the job starts over."""

    columns: dict[str, str]
    """Column name to the place of the first text that did not fit."""


@dataclass(frozen=True, kw_only=True)
class DashboardOpened:
    """Dask's dashboard is being served."""

    url: str


@dataclass(frozen=True, kw_only=True)
class Publishing:
    """All partitions are scored; the output is being put together and checked."""

    parts: int


Event = (
    Started
    | Restarted
    | Planned
    | RowsScored
    | PartitionScored
    | Suspected
    | Noted
    | Amended
    | DashboardOpened
    | Publishing
)


class Listener(Protocol):
    """Anything that wants to know."""

    def on(self, event: Event) -> None:
        """Take note of `event`, quickly; what it raises stops the job, which can be continued."""


class Several:
    """A listener that tells others, in order."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners

    def on(self, event: Event) -> None:
        """Tell every listener."""
        for listener in self._listeners:
            listener.on(event)


class Silent:
    """A listener that ignores everything."""

    def on(self, event: Event) -> None:
        """Ignore `event`."""
