"""Rows that cannot be scored: what a reject is, and how many an output may lack.

A reject names its place exactly. While a partition is read, a record is numbered within its
slice; the number in the file, and the line, are known when all slices before it are read.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

RejectClass = Literal["PARSE", "CAST", "MISSING", "RANGE", "MODEL", "NONFINITE", "CRASH"]
"""PARSE: not a record at all. CAST: a text that is no number. MISSING: a null in a model column.
RANGE: a number that the model's type cannot hold. MODEL: the model fails on the row. NONFINITE:
its score is infinite or not a number. CRASH: the model kills its process on the row."""

RAW_BYTES = 4096
"""A raw record is cut after so many bytes."""
VALUE_CHARACTERS = 200
LOOK_ON_ROWS = 10_000
"""Rejects over a budget of rows after which no more are looked for."""


class Place(BaseModel, frozen=True):
    """Where a record is."""

    path: str
    byte_offset: int | None = None
    """Bytes before the record in the (unpacked) text file; None for formats that are no text."""
    record: int = 0
    """Records before it in its slice."""


class Reject(BaseModel, frozen=True):
    """One row that cannot be scored."""

    kind: RejectClass
    column: str
    """The column at fault, empty when the record as a whole is."""
    place: Place
    value: str
    """The text or number at fault."""
    reason: str
    raw: str = ""
    """The record as it stands in the file."""
    cut: bool = False
    """Whether `raw` is only its start."""


def shown(raw: bytes) -> str:
    r"""Return the start of a record as text, bytes that are not UTF-8 as `\xNN`.

    Example:
        >>> shown(b"na\xefve,1\n")
        'na\\xefve,1'
    """
    return raw[:RAW_BYTES].decode("utf-8", "backslashreplace").rstrip("\r\n")


class Line(BaseModel):
    """One line of a rejects file."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    plan_id: str
    file: str
    record: int
    """Number of the record in its file; 1 is the first after the header."""
    line: int | None
    """Line that the record starts in; 1 is the first of the file."""
    byte_offset: int | None
    column: str
    kind: RejectClass = Field(alias="class")
    reason: str
    value: str
    raw: str
    raw_truncated: bool = False


class RejectGroup(BaseModel, frozen=True):
    """All rejects of one class in one column."""

    kind: RejectClass
    column: str
    rows: int
    examples: tuple[Line, ...]
    """The first few, in input order."""


@dataclass(frozen=True)
class Budget:
    """How many rows may be rejected in an output that is published."""

    rows: int | None = None
    percent: float | None = None
    """One of the two is set."""

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read `--max-errors`.

        Example:
            >>> Budget.parse("7"), Budget.parse("0.5%")
            (Budget(rows=7, percent=None), Budget(rows=None, percent=0.5))
        """
        text = text.strip()
        return cls(percent=float(text[:-1])) if text.endswith("%") else cls(rows=int(text))

    def allows(self, rejected: int, rows_in: int) -> bool:
        """Whether an output may lack `rejected` of `rows_in` rows.

        Example:
            >>> Budget(percent=1).allows(2, 200), Budget(rows=1).allows(2, 200)
            (True, False)
        """
        if self.percent is not None:
            return rejected * 100 <= self.percent * rows_in
        return rejected <= (self.rows or 0)

    def hopeless(self, rejected: int) -> bool:
        """Whether there are so many rejects that looking for more is of no use."""
        return self.rows is not None and rejected > self.rows + LOOK_ON_ROWS
