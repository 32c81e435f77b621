"""Files -> partitions -> record batches.

A partition is what one task scores: slices of files, in input order. Reading a slice gives
blocks of typed rows, records that could not be read, and at last the slice's exact extent.
One module per format, each with the same three functions:

    look(sources, infer, types, ..., asked) -> Look       the columns, from headers and samples
    split(source, target_bytes, dialect) -> [Slice]      ranges that can be read apart
    read(part, reading) -> blocks, bad records           the rows of one range
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from batchserve.errors import DataError, UsageError
from batchserve.inputs.dialect import COMMON, PLAIN, Asked, Dialect, Found
from batchserve.rejects import Place, Reject
from batchserve.storage import patiently, transient_reading

T = TypeVar("T")
Format = Literal["csv", "jsonl", "parquet"]


def _schema_in(value: Any) -> Any:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(value))) if isinstance(value, str) else value


def _schema_out(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


ArrowSchema = Annotated[pa.Schema, BeforeValidator(_schema_in), PlainSerializer(_schema_out)]
"""An Arrow schema that survives JSON."""


class Source(BaseModel, frozen=True):
    """One input file, as it was when the plan was made."""

    path: str
    format: Format
    gzip: bool
    size_bytes: int
    mtime_ns: int


class Slice(BaseModel, frozen=True):
    """A range of one file: bytes of a text file, row groups of a Parquet file."""

    path: str
    format: Format
    gzip: bool = False
    start: int
    stop: int
    """Where the next slice starts; the end of a text file may be open (a very large number)."""
    exact: bool
    """Whether `start` is known to be the start of a record; if not, the reader looks for the
    first one from there and reports what it found."""
    first_record: int = 0
    """Records of the file before this slice, where that is known (Parquet)."""
    size_bytes: int
    """Stored bytes, for progress and for balancing partitions."""


OPEN_END = 1 << 62
"""The stop of a slice that runs to the end of its text file."""


class Partition(BaseModel, frozen=True):
    """What one task scores, fixed by the plan."""

    index: int
    slices: tuple[Slice, ...]
    redone: bool = False
    """True when the plan's guess of the first record was wrong and `start` is corrected."""

    @property
    def name(self) -> str:
        """The name of its part and receipt; a corrected start makes another name."""
        return f"p{self.index:06d}" + (f"-from{self.slices[0].start}" if self.redone else "")

    @property
    def place(self) -> str:
        """Where its rows are, in words.

        Example:
            >>> part = Slice(path="/data/a.csv", format="csv", start=0, stop=9, exact=True, size_bytes=9)
            >>> Partition(index=3, slices=(part,)).place
            'partition 3 (a.csv, bytes 0 to 9)'
        """
        first = self.slices[0]
        unit = "row groups" if first.format == "parquet" else "bytes"
        stop = f"{first.stop:,}" if first.stop < OPEN_END else "the end"
        more = f" and {len(self.slices) - 1} more" if len(self.slices) > 1 else ""
        name = first.path.rpartition("/")[2]
        return f"partition {self.index} ({name}, {unit} {first.start:,} to {stop}{more})"

    @property
    def size_bytes(self) -> int:
        """Stored bytes of all slices."""
        return sum(part.size_bytes for part in self.slices)


class Reading(BaseModel):
    """How the files are read; the same for every partition."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    schema_: ArrowSchema
    """Every column of a text file in file order, with the type it keeps."""
    columns: tuple[str, ...]
    """The columns somebody wants."""
    numeric: tuple[str, ...] = ()
    """The columns that the model reads as numbers."""
    fixed: tuple[str, ...] = ()
    """The columns whose type the user set."""
    batch_rows: int
    """Rows of one run of the model; readers that can choose give multiples of it."""
    dialect: Dialect = COMMON
    """How text files are written."""


@dataclass(frozen=True)
class Look:
    """What is known of a file before reading it."""

    schema: pa.Schema
    sample: pa.RecordBatch
    """Some rows, in the schema's types; may be empty."""
    found: Found = PLAIN
    """How text files are written."""


@dataclass(frozen=True)
class Block:
    """Rows of one slice, and where each is."""

    batch: pa.RecordBatch
    path: str
    base: int
    """Byte offset of the raw text in the file, or records before the block (Parquet)."""
    raw: bytes | None = None
    """The text the rows were read from, whole records."""
    format: Format = "parquet"
    dialect: Dialect = COMMON

    def place(self, row: int) -> Place:
        """Return where row `row` of the batch is in its file."""
        if self.raw is None:
            return Place(path=self.path, record=self.base + row)
        starts = _module(self.format).record_starts(self.raw, self.dialect)
        return Place(path=self.path, byte_offset=self.base + starts[row])


@dataclass(frozen=True)
class BadRecord:
    """A record that could not be read, as a reject."""

    reject: Reject


@dataclass(frozen=True)
class TypeMisfit:
    """A text that does not fit its column's planned type: the plan must be amended."""

    column: str
    place: Place
    value: str
    becomes: str
    """The type, in the words of `--type`, that holds this text and all seen before."""


@dataclass(frozen=True)
class Extent:
    """The exact range a slice turned out to have: first record's start, last record's end."""

    start: int
    stop: int


Item = Block | BadRecord | TypeMisfit | Extent


def patient(path: Path | str, read: Callable[[], T]) -> T:
    """Read something of an input; where that fails in a way that may pass, again.

    Raises:
        TransientError: It failed five times.
    """

    def attempt(_: int) -> T:
        with transient_reading(path):
            return read()

    return patiently(attempt)


def _module(name: str) -> Any:
    if name == "csv":
        from batchserve.inputs import csv

        return csv
    if name == "jsonl":
        from batchserve.inputs import jsonl

        return jsonl
    from batchserve.inputs import parquet

    return parquet


# -- which columns ----------------------------------------------------------------------------

_SAMPLED_FILES = 16


def look(
    sources: Sequence[Source],
    *,
    infer: str,
    types: dict[str, str],
    hints: dict[str, str] | None = None,
    asked: Asked | None = None,
) -> Look:
    """Find the columns of all files, the type each keeps, and how text files are written.

    Every file's header is read; values are sampled from up to 16 files. The first file says how
    all of them are written.

    Args:
        sources: The input files.
        infer: sample or full.
        types: Column types that are to be, whatever the texts are.
        hints: Column types to begin with where the column is there; a text that does not fit counts.
        asked: What the user says of how text files are written.

    Raises:
        DataError: A file is unreadable or has other columns than the first.
        UsageError: `types` names an unknown type or column.
        TransientError: A file cannot be read just now.
    """
    formats = sorted({source.format for source in sources})
    if len(formats) > 1:
        raise UsageError(f"inputs are of several formats: {', '.join(formats)}", "score one at a time")
    module = _module(formats[0])
    every = max(1, len(sources) // _SAMPLED_FILES)
    sampled = list(sources) if infer == "full" else list(sources[::every])
    found: Look = module.look(sources, sampled, infer, types, hints or {}, asked or Asked())
    return found


def drift(first: str, expected: Sequence[str], path: str, names: Sequence[str]) -> DataError | None:
    """Return the error for a file whose columns differ from the first file's, or None."""
    if list(names) == list(expected):
        return None
    missing = [n for n in expected if n not in names]
    extra = [n for n in names if n not in expected]
    what = [f"no column {', '.join(missing)}"] if missing else []
    what += [f"a column {', '.join(extra)} more"] if extra else []
    differs = " and ".join(what) or "the same columns in another order"
    return DataError(f"{path}: has {differs} than {first}", "score files of one layout at a time")


# -- which partitions -------------------------------------------------------------------------


def partitions(
    sources: Sequence[Source], target_bytes: int, dialect: Dialect = COMMON
) -> tuple[Partition, ...]:
    """Cut files into partitions of about `target_bytes`: big files apart, small ones together."""
    groups: list[list[Slice]] = [[]]
    size = 0
    for source in sources:
        cut = partial(_module(source.format).split, source, target_bytes, dialect)
        for part in patient(source.path, cut):
            if groups[-1] and size + part.size_bytes > target_bytes:
                groups.append([])
                size = 0
            groups[-1].append(part)
            size += part.size_bytes
    return tuple(Partition(index=i, slices=tuple(s)) for i, s in enumerate(g for g in groups if g))


def whole(sources: Sequence[Source], dialect: Dialect = COMMON) -> tuple[Partition, ...]:
    """Return one partition that reads everything in order."""
    slices = [s for src in sources for s in _module(src.format).split(src, OPEN_END, dialect)]
    return (Partition(index=0, slices=tuple(slices)),)


def settled(partitions: Sequence[Partition], dialect: Dialect = COMMON) -> list[Partition]:
    """Replace guessed starts by exact ones, by reading the files once for their record ends.

    For a lazy frame, whose partitions nobody compares afterwards.
    """
    ends: dict[str, int] = {}
    settled: list[Partition] = []
    for partition in partitions:
        slices = []
        for part in partition.slices:
            start = part.start if part.exact else ends[part.path]
            found = part.model_copy(update={"start": start, "exact": True})
            slices.append(found)
            if part.format != "parquet":
                ends[part.path] = _module(part.format).extent(found, dialect).stop
        settled.append(partition.model_copy(update={"slices": tuple(slices)}))
    return settled


# -- which rows -------------------------------------------------------------------------------


def read(part: Slice, reading: Reading) -> Iterator[Item]:
    """Read one slice: blocks and bad records in order, then its extent.

    Raises:
        DataError: The file is corrupt or truncated.
        TransientError: It cannot be read just now.
    """
    with transient_reading(part.path):
        yield from _module(part.format).read(part, reading)


def line_of(place: Place, *, gzip: bool, dialect: Dialect = COMMON) -> int | None:
    """Return the line (1 is the first) of a place in a text file; None for Parquet."""
    if place.byte_offset is None:
        return None
    from batchserve.inputs import records

    return records.count_lines(place.path, place.byte_offset, gzip=gzip, dialect=dialect)
