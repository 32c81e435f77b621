"""Rows, rates and shares so far: what the progress line and the log say."""

import time
from collections import Counter

from batchserve.events import Event, PartitionScored, Planned, RowsScored, Started
from batchserve.report import human_bytes


class Meter:
    """Counts what a job tells."""

    def __init__(self) -> None:
        self.run_id = ""
        self._restart(0, 0)

    def _restart(self, bytes_total: int, partitions: int) -> None:
        self._started = time.monotonic()
        self._bytes_total = bytes_total
        self._waiting = set(range(partitions))
        self.rows = self.rejected = self._bytes = self._bytes_resumed = 0
        self._seconds: Counter[str] = Counter()

    def on(self, event: Event) -> None:
        """Count a partition, or rows of one that is still running."""
        match event:
            case Started():
                self.run_id = event.run_id
            case Planned():
                self._restart(event.bytes_total, event.partitions)
            case RowsScored():
                self.rows = event.rows
            case PartitionScored():
                self._add(event)

    def _add(self, event: PartitionScored) -> None:
        self._waiting.discard(event.index)
        if event.resumed:
            self._bytes_resumed += event.bytes_in
            return
        self.rows = event.rows_in if not self._bytes else self.rows + event.rows_in
        self.rejected += event.rows_rejected
        self._bytes += event.bytes_in
        self._seconds.update(event.seconds)

    @property
    def share(self) -> float | None:
        """How much of the input is done, 0 to 1; None before the first partition is."""
        done = self._bytes + self._bytes_resumed
        return min(1.0, done / max(self._bytes_total, 1)) if done else None

    @property
    def oldest(self) -> int | None:
        """The partition that has been running longest: they are begun in order."""
        return min(self._waiting, default=None)

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""
        return max(time.monotonic() - self._started, 1e-9)

    def facts(self) -> dict[str, float | int | str | None]:
        """Return what a line of the log says."""
        return {
            "rows": self.rows, "rows_per_s": round(self.rows / self.seconds),
            "rows_rejected": self.rejected, "share": self.share, "oldest_partition": self.oldest,
        }  # fmt: skip

    def line(self) -> str:
        """Return the progress line."""
        parts = [f"{self.rows:,} rows", f"{self.rows / self.seconds:,.0f} rows/s"]
        if self._bytes:
            rate = self._bytes / self.seconds
            left = max(0, self._bytes_total - self._bytes_resumed - self._bytes)
            model = self._seconds["model"] / max(sum(self._seconds.values()), 1e-9)
            rejected = self.rejected / max(self.rows, 1)
            parts += [f"{human_bytes(rate)}/s", f"rejected {rejected:.1%}", f"model {model:.0%}"]
            parts.append(f"{left / rate:.0f} s left")
        return " · ".join(parts)

    def minute_line(self) -> str:
        """Return the line that is said once a minute where there is no terminal."""
        oldest = f" · oldest running partition {self.oldest}" if self.oldest is not None else ""
        return f"run {self.run_id} · {self.line()}{oldest}"
