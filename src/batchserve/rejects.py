"""Rows that cannot be scored: what a reject is, and how rejects are counted.

A reject names its place exactly. Text files know the byte offset of a record (the line is
counted from it only when somebody has to be told); Parquet knows the record number.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from pydantic import BaseModel

RejectClass = Literal["PARSE", "CAST", "MISSING", "RANGE"]
"""PARSE: not a record at all. CAST: a text that is no number. MISSING: a null in a model column.
RANGE: a number that the model's type cannot hold."""

MAX_EXAMPLES = 3
RAW_CHARACTERS = 200


class Place(BaseModel, frozen=True):
    """Where a record is."""

    path: str
    byte_offset: int | None = None
    """Bytes before the record in the (unpacked) text file."""
    record: int | None = None
    """Records before it in the file, where it has no byte offset."""


class Reject(BaseModel, frozen=True):
    """One row that cannot be scored."""

    kind: RejectClass
    column: str
    """The column at fault, empty when the record as a whole is."""
    place: Place
    value: str
    """The text or number at fault, or the start of the raw record."""
    reason: str


class RejectGroup(BaseModel, frozen=True):
    """All rejects of one class in one column."""

    kind: RejectClass
    column: str
    rows: int
    examples: tuple[Reject, ...]
    """The first few, in input order."""


class Rejects:
    """Counts rejects as they are met, and keeps the first few of every group."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[RejectClass, str]] = Counter()
        self._examples: dict[tuple[RejectClass, str], list[Reject]] = {}

    def add(self, kind: RejectClass, column: str, made: Callable[[], Reject]) -> None:
        """Count a reject; `made` is called only for the first few, as finding a place costs."""
        self._counts[kind, column] += 1
        examples = self._examples.setdefault((kind, column), [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(made())

    def groups(self) -> tuple[RejectGroup, ...]:
        """Return what was counted, by class and column."""
        return tuple(
            RejectGroup(kind=kind, column=column, rows=rows, examples=tuple(self._examples[kind, column]))
            for (kind, column), rows in sorted(self._counts.items())
        )


def merged(groups: Iterable[RejectGroup]) -> tuple[RejectGroup, ...]:
    """Add up the groups of several partitions, which are given in input order."""
    gathered: dict[tuple[RejectClass, str], list[RejectGroup]] = {}
    for group in groups:
        gathered.setdefault((group.kind, group.column), []).append(group)
    return tuple(_sum(same) for _, same in sorted(gathered.items()))


def _sum(same: Sequence[RejectGroup]) -> RejectGroup:
    examples = [example for group in same for example in group.examples]
    rows = sum(group.rows for group in same)
    return same[0].model_copy(update={"rows": rows, "examples": tuple(examples[:MAX_EXAMPLES])})
