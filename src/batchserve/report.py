"""What a job did, or could not do, as values and words for people."""

import html
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchserve.errors import DataError, redacted
from batchserve.inputs.records import LineCounter
from batchserve.ledger import Ledger
from batchserve.planning import Plan
from batchserve.profile import Profile
from batchserve.receipts import OutputReceipt
from batchserve.rejects import Line, Place, RejectGroup


@dataclass(frozen=True, repr=False)
class Report:
    """What a finished job did."""

    path: str
    """The output."""
    receipt: OutputReceipt
    """What stands beside the output: rows, nulls, versions, digests."""
    partitions: int
    workers: int
    in_place: bool
    """True when one partition was scored in this process, without Dask."""
    seconds: float
    bytes_in: int
    size_bytes: int
    profile: Profile
    """Where the time went."""
    amended: dict[str, str]
    """Columns that became text (or double) on the way, with the place that showed it."""
    rejects: str | None = None
    """The file of rejected rows, or None if every row was scored."""
    skipped: bool = False
    """True when there was nothing to do: the output was there, of this very plan."""
    rows_before: int = 0
    """Rows of partitions that an earlier, interrupted run of the same plan had scored."""

    @property
    def rows(self) -> int:
        """Rows in the output."""
        return self.receipt.rows_out

    @property
    def size_matters(self) -> bool:
        """Whether bits of scores were seen to depend on how many rows a run of the model has."""
        return any(run.plan.recipe.size_matters for run in self.receipt.runs)

    @property
    def drift(self) -> tuple[str, ...]:
        """How files differed from the first one and what was made of it, in words."""
        return self.receipt.runs[-1].plan.drift

    @property
    def rows_per_s(self) -> float:
        """Rows scored now, per second of wall time."""
        return (self.rows_added - self.rows_before) / self.seconds if self.seconds else 0.0

    @property
    def rows_added(self) -> int:
        """Rows that this job added to the output: all of them, unless it was appended to."""
        return sum(scored.rows_out for scored in self.receipt.runs[-1].scored)

    def facts(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        receipt = self.receipt
        return {
            "output": self.path,
            "plan_id": receipt.plan_id,
            "model_sha256": receipt.model_sha256,
            "rows_in": receipt.rows_in,
            "rows_out": receipt.rows_out,
            "rows_added": 0 if self.skipped else self.rows_added,
            "rows_rejected": receipt.rows_rejected,
            "rejected_by": receipt.rejected_by,
            "rejects": self.rejects,
            "nonfinite": receipt.nonfinite,
            "nulls": receipt.nulls,
            "null_rules": receipt.null_rules,
            "rounded": receipt.rounded,
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(self.rows_per_s),
            "bytes_in": self.bytes_in,
            "size_bytes": self.size_bytes,
            "stage_seconds": {name: round(s, 3) for name, s in receipt.seconds.items()},
            "profile": {name: round(s, 3) for name, s in self.profile.seconds.items()},
            "binds": self.profile.binds,
            "partitions": self.partitions,
            "workers": self.workers,
            "in_place": self.in_place,
            "amended": self.amended,
            "drift": list(self.drift),
            "halved_batches": receipt.halved_batches,
            "size_matters": self.size_matters,
            "read_retries": receipt.read_retries,
            "skipped": self.skipped,
        }

    def __str__(self) -> str:
        return f"{self.rows:,} rows in {self.path} ({self.rows_per_s:,.0f} rows/s)"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        facts = {
            "output": self.path, "rows": f"{self.rows:,}", "seconds": f"{self.seconds:.2f}",
            "rows/s": f"{self.rows_per_s:,.0f}", "partitions": self.partitions,
            "workers": self.workers, "plan": self.receipt.plan_id[:12],
        }  # fmt: skip
        return table_html("batchserve report", facts)


def table_html(title: str, facts: dict[str, Any]) -> str:
    """Return a two-column HTML table, everything escaped."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(k)}</th>"
        f"<td style='text-align:left'>{html.escape(redacted(str(v)))}</td></tr>"
        for k, v in facts.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"


def rejected(kept: Ledger, path: Path, rows_in: int, partitions_left: int) -> DataError:
    """Build the error of a run with too many rejects: how many, where, and the ways on.

    Args:
        kept: The rejects.
        path: Where they were written.
        rows_in: Rows that were read.
        partitions_left: Partitions that were not scored any more.
    """
    rows, file = kept.file.rows, shortest(str(path))
    lines = [f"{rows:,} of {rows_in:,} rows cannot be scored; nothing was published"]
    if partitions_left:
        lines.append(f"  stopped there: {partitions_left:,} partitions were not looked at")
    lines += [*_grouped(kept), f"  every one is in {file}"]
    goes_on = "goes on with the other rows" if partitions_left else "publishes the other rows at once"
    ways = [f"--max-errors {rows} {goes_on}", *dict.fromkeys(map(_way_on, kept.groups))]
    return DataError("\n".join(lines), "; or ".join(ways))


def cut_short(kept: Ledger, path: Path, rows_in: int) -> DataError:
    """Build the error of a run that met a record that does not end: what follows it is not known.

    Args:
        kept: The rejects.
        path: Where they were written.
        rows_in: Rows that were read.
    """
    first = f"{kept.file.rows:,} of {rows_in:,} rows cannot be scored; nothing was published"
    why = "  one of them does not end: rows after it are unknown, so no --max-errors allows for them"
    message = "\n".join([first, *_grouped(kept), why, f"  every one is in {shortest(str(path))}"])
    return DataError(message, "close its quote, or say how the file is written: --quote none")


def _grouped(kept: Ledger) -> Iterator[str]:
    for group in kept.groups:
        name = f"{group.kind} {group.column}".rstrip()
        yield f"  {name}: {group.rows:,} row{'s' * (group.rows != 1)}"
        yield from (f"    {_shown(example)}" for example in group.examples)


def _shown(line: Line) -> str:
    value = line.value or (line.raw if line.kind == "PARSE" else "")
    short = f"{value[:_SHOWN_CHARACTERS]}…" if len(value) > _SHOWN_CHARACTERS else value
    return f"{shortest(line.file)}{_at(line)}: {repr(short) + ' ' if value else ''}{line.reason}"


_SHOWN_CHARACTERS = 80


def _at(line: Line) -> str:
    return f" row {line.record:,}" if line.line is None else f":{line.line}"


def _way_on(group: RejectGroup) -> str:
    if group.kind == "MISSING":
        name = group.column
        return f"say what a null is: --on-null {name}:nan or --on-null {name}:fill=VALUE"
    if group.kind in {"PARSE", "MODEL", "CRASH"}:
        return "correct these records"
    if group.kind == "NONFINITE":
        return "keep such scores: --on-nonfinite keep"
    return f"correct {group.column}, or read another column: --map INPUT=COLUMN, or --features"


def where(place: Place, made: Plan) -> str:
    """Return a place as people write it: file and line, or the file alone where it has no lines.

    The line is counted only now, from the byte offset.
    """
    if place.byte_offset is None:
        return shortest(place.path)
    codec = next((source.codec for source in made.sources if source.path == place.path), None)
    dialect = made.recipe.reading.dialect
    line = LineCounter(place.path, codec=codec, dialect=dialect).line_of(place.byte_offset)
    return f"{shortest(place.path)}:{line}"


def shortest(path: str) -> str:
    """Return a path relative to the working folder where that is shorter."""
    relative = os.path.relpath(path)
    return min(path, relative, key=len)


def human_bytes(size: float) -> str:
    """Return a size with its unit.

    Example:
        >>> human_bytes(463744)
        '464 kB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:  # noqa: PLR2004  the SI step
            decimals = int(size < 10 and unit != "B")  # noqa: PLR2004  two digits are told
            return f"{size:.{decimals}f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
