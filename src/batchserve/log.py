"""Events as JSON lines in a file, and the minute hand that makes long silences speak."""

import dataclasses
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from batchserve.errors import BatchserveError, redacted
from batchserve.events import Event, PartitionScored, RowsScored
from batchserve.meter import Meter
from batchserve.storage import translated

MINUTE_S = 60.0


class Log:
    """A listener that appends what happens to a file, one JSON object a line.

    Every line has `time` (UTC), `run_id` and `event`, and the fields of the event; once a minute
    `event` is `progress`, with rows, rate, rejects and the oldest running partition.

    Raises:
        BatchserveError: The file cannot be written.
    """

    def __init__(self, path: str) -> None:
        with translated(path):
            self._file = Path(path).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115  closed by `close`
        self._meter = Meter()
        self._lock = threading.Lock()

    def on(self, event: Event) -> None:
        """Write the event; rows inside a partition and those of an earlier run are left out."""
        self._meter.on(event)
        resumed = isinstance(event, PartitionScored) and event.resumed
        if not isinstance(event, RowsScored) and not resumed:
            self._write(_snake(type(event).__name__), dataclasses.asdict(event))

    def minute(self) -> None:
        """Say how far the job is."""
        self._write("progress", self._meter.facts())

    def finished(self, facts: dict[str, Any]) -> None:
        """Write the last line of a run that ended well."""
        self._write("finished", facts)

    def failed(self, error: BatchserveError) -> None:
        """Write the last line of a run that ended otherwise."""
        self._write("failed", {"exit_code": error.exit_code, "error": error.message, "hint": error.hint})

    def _write(self, event: str, facts: dict[str, Any]) -> None:
        head = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "run_id": self._meter.run_id}
        line = json.dumps(head | {"event": event} | facts)
        with self._lock:
            self._file.write(redacted(line) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


class MinuteHand:
    """Calls functions once a minute, from a thread of its own, while the block runs."""

    def __init__(self, *calls: Callable[[], object]) -> None:
        self._calls = calls
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._turn, daemon=True)

    def _turn(self) -> None:
        while not self._over.wait(MINUTE_S):
            for call in self._calls:
                call()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
