"""Every reject of a job with its exact place: the rejects of the parts become one file.

A part knows a record by its number in its slice; the number in the file is the sum over the
slices before it, and the line is counted only for files that have rejects, reading each once.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchserve import storage
from batchserve.inputs import Partition, Source
from batchserve.inputs.dialect import Dialect
from batchserve.inputs.records import LineCounter
from batchserve.outputs import REJECTS_MODE, PartReject, Receipt, RejectsFile, Workspace
from batchserve.rejects import Line, Reject, RejectClass, RejectGroup

MAX_EXAMPLES = 3
Done = tuple[Partition, Receipt]
"""A partition and its receipt."""


@dataclass(frozen=True)
class Files:
    """What was read, and for which plan."""

    plan_id: str
    """Put into every line: it says whose rejects they are."""
    sources: Sequence[Source]
    dialect: Dialect


@dataclass(frozen=True)
class Ledger:
    """A rejects file that was written, and what is in it."""

    file: RejectsFile
    groups: tuple[RejectGroup, ...]
    """By class and column."""


def write(path: Path, files: Files, done: Sequence[Done], space: Workspace, before: bytes = b"") -> Ledger:
    """Write the rejects of all parts, in input order, to the new file `path`, durably.

    Args:
        path: The new file; only its owner may read it.
        files: What was read.
        done: What was scored, in order.
        space: Where the parts are.
        before: Lines of an earlier run that stay in front.
    """
    sink = storage.Sink(path)
    try:
        storage.disk.set_mode(path, REJECTS_MODE)
        sink.write(before)
        groups = _Groups()
        for line in lines(files, done, space):
            sink.write(line.model_dump_json(by_alias=True).encode() + b"\n")
            groups.add(line)
        sink.sync()
    except BaseException:
        sink.discard()
        raise
    rows = groups.rows + before.count(b"\n")
    file = RejectsFile(name=path.name, rows=rows, size_bytes=sink.size_bytes, sha256=sink.sha256())
    return Ledger(file, groups.all())


class _Groups:
    """Counts rejects by class and column, and keeps the first few."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[RejectClass, str]] = Counter()
        self._examples: dict[tuple[RejectClass, str], list[Line]] = {}

    def add(self, line: Line) -> None:
        key = line.kind, line.column
        self._counts[key] += 1
        examples = self._examples.setdefault(key, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(line)

    @property
    def rows(self) -> int:
        return self._counts.total()

    def all(self) -> tuple[RejectGroup, ...]:
        return tuple(
            RejectGroup(kind=kind, column=column, rows=rows, examples=tuple(self._examples[kind, column]))
            for (kind, column), rows in sorted(self._counts.items())
        )


def lines(files: Files, done: Sequence[Done], space: Workspace) -> Iterator[Line]:
    """Give the rejects of all parts in input order, each with its place in its file."""
    codecs = {source.path: source.codec for source in files.sources}
    counters: dict[str, LineCounter] = {}
    records: Counter[str] = Counter()
    for partition, receipt in done:
        bases = []
        for part, count in zip(partition.slices, receipt.facts.records, strict=False):
            bases.append(records[part.path])
            records[part.path] += count
        for slice_, reject in _of_part(receipt, space):
            path = reject.place.path
            offset = reject.place.byte_offset
            if offset is not None and path not in counters:
                counters[path] = LineCounter(path, codec=codecs[path], dialect=files.dialect)
            yield Line(
                plan_id=files.plan_id, file=path, record=bases[slice_] + reject.place.record + 1,
                line=None if offset is None else counters[path].line_of(offset), byte_offset=offset,
                column=reject.column, kind=reject.kind, reason=reject.reason, value=reject.value,
                raw=reject.raw, raw_truncated=reject.cut,
            )  # fmt: skip


def _of_part(receipt: Receipt, space: Workspace) -> list[tuple[int, Reject]]:
    """Return the rejects of a part in input order: those of the model were met after their neighbours."""
    if receipt.rejects is None:
        return []
    data = storage.disk.read(space.file(receipt.rejects.name))
    found = [PartReject.model_validate_json(line) for line in data.splitlines()]
    return sorted(
        ((each.slice, each.reject) for each in found), key=lambda pair: (pair[0], pair[1].place.record)
    )
