"""Events as JSON lines in a file, and the minute hand that makes long silences speak."""

import dataclasses
import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from batchserve.errors import BatchserveError, UsageError, redacted
from batchserve.events import Event, PartitionScored, Restarted, RowsScored, Started
from batchserve.meter import Meter
from batchserve.storage import translated

MINUTE_S = 60.0


def as_json(facts: dict[str, Any], indent: int | None = None) -> str:
    """Return one JSON object; secrets are taken out of every text in it.

    Of the texts and not of the JSON, where a backslash before a quote would be taken along.
    """
    return json.dumps(_redacted(facts), indent=indent)


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {redacted(name): _redacted(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(each) for each in value]
    return redacted(value) if isinstance(value, str) else value


class Log:
    """A listener that appends what happens to a file, one JSON object a line.

    Every line has `time` (UTC), `run_id` and `event`, and the fields of the event; once a minute
    `event` is `progress`, with rows, rate, rejects and the oldest running partition. Nothing
    comes after the last line of a run; that it cannot be written undoes nothing.

    Raises:
        BatchserveError: The file cannot be written, or is no log.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._meter = Meter()
        self._lock = threading.Lock()
        self._over = False
        self._restarted: Restarted | None = None
        with translated(path):
            self._append(b"\n" if _is_torn(self._path) else b"")

    def on(self, event: Event) -> None:
        """Write the event; rows inside a partition and those of an earlier run are left out."""
        self._meter.on(event)
        if isinstance(event, Restarted):
            self._restarted = event  # told when the run has an id
            return
        resumed = isinstance(event, PartitionScored) and event.resumed
        if not isinstance(event, RowsScored) and not resumed:
            self._write(_snake(type(event).__name__), dataclasses.asdict(event))
        if isinstance(event, Started) and self._restarted:
            self._write("restarted", dataclasses.asdict(self._restarted))

    def minute(self) -> None:
        """Say how far the job is."""
        self._write("progress", self._meter.facts())

    def finished(self, facts: dict[str, Any]) -> None:
        """Write the last line of a run that ended well."""
        self._end("finished", facts)

    def failed(self, error: BatchserveError) -> None:
        """Write the last line of a run that ended otherwise."""
        self._end("failed", {"exit_code": error.exit_code, "error": error.message, "hint": error.hint})

    def _end(self, event: str, facts: dict[str, Any]) -> None:
        with suppress(BatchserveError):  # the run ended as it did, whatever becomes of the log
            self._write(event, facts)
        self._over = True

    def _write(self, event: str, facts: dict[str, Any]) -> None:
        head = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "run_id": self._meter.run_id}
        line = as_json(head | {"event": event} | facts) + "\n"
        with self._lock, translated(self._path):
            if not self._over:  # a minute may be up in the very moment the run ends
                self._append(line.encode())

    def _append(self, data: bytes) -> None:
        """Append in one call, as runs may share a log; to the file of that name now, as logs are rotated."""
        with self._path.open("ab", buffering=0) as file:
            if data:
                file.write(data)


def _is_torn(path: Path) -> bool:
    """Whether a log ends within a line, as a full disk leaves it.

    Raises:
        UsageError: It is a file of another kind, an input say, and is not to be appended to.
    """
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        if not file.readline().startswith(b'{"time": "'):
            message = f"--log-json {path}: is no log, and lines are appended to it"
            raise UsageError(message, "name another file")
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


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
                with suppress(BatchserveError):  # a full disk, which the next event meets, too
                    call()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
