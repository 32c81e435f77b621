"""Files -> partitions -> record batches.

A partition is what one task scores: slices of files, in input order. Reading a slice gives
blocks of typed rows, records that could not be read, and at last the slice's exact extent.
One module per format, each with the same functions:

    look(sources, sampled, wish) -> Look          the columns, from headers and samples
    split(source, target_bytes, dialect)          ranges that can be read apart, as slices (of Parquet
                                                  and Arrow also `cuts`: into how many, at most)
    read(part, reading) -> blocks, bad records    the rows of one range
    boundaries(dialect), counter(dialect)         of a text: where its records end, how many there are

A format knows a file's own columns alone. What a file lacks, or has by its folders, its name
or in another type than the first file, is added to its blocks afterwards (`shaping`).
"""

import base64
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from batchserve.errors import UsageError
from batchserve.inputs.dialect import COMMON, PLAIN, Asked, Dialect, Found
from batchserve.rejects import RAW_BYTES, VALUE_CHARACTERS, Place, Reject, RejectClass, shown
from batchserve.storage import patiently, transient_reading

T = TypeVar("T")
SOURCE_FILE, SOURCE_ROW = "source_file", "source_row"
"""The columns that `--add-source` adds: path of the file, and number of the record in it from 1 on."""
Format = Literal["csv", "jsonl", "parquet", "arrow"]
TEXT_FORMATS = frozenset({"csv", "jsonl"})
"""Formats whose slices are ranges of bytes, with starts that may be guesses."""
Layout = tuple[tuple[str, str], ...]
"""Columns of one file in its order: their names in the file, and in the job."""
Folders = tuple[tuple[str, str | None], ...]
"""Columns of a file that folders like `year=2013` give: their names and texts."""
Codec = Literal["gzip", "bzip2", "zstd", "xz"]
"""How a text file is packed."""


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
    delimiter: str | None = None
    """What the suffix says of the delimiter of a CSV: a tab for `.tsv`, else nothing."""
    codec: Codec | None = None
    folders: Folders = ()
    size_bytes: int
    mtime_ns: int

    def same_file(self, other: "Source") -> bool:
        """Whether `other` is the same version of the same file, however it was named."""
        mine, others = (
            (self.path, self.size_bytes, self.mtime_ns),
            (other.path, other.size_bytes, other.mtime_ns),
        )
        return mine == others


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A range of one file: bytes of a text file, row groups of Parquet, record batches of Arrow."""

    path: str
    format: Format
    codec: Codec | None = None
    start: int
    stop: int
    """Where the next slice starts; the end of a text file may be open (a very large number)."""
    exact: bool
    """Whether `start` is known to be the start of a record; if not, the reader looks for the
    first one from there and reports what it found."""
    rows: tuple[int, int] | None = None
    """Of its only row group or record batch the rows from the first to before the second; None for all."""
    first_record: int = 0
    """Records of the file before this slice, where that is known (not of text, unless counted)."""
    size_bytes: int
    """Stored bytes, of a packed file unpacked ones; for progress and for balancing partitions."""
    origin: int = 0
    """Where the first record of a text file starts: one that cannot be wound is searched from there."""
    segment: str | None = None
    """A file with just the records of the slice, unpacked, while a job runs."""
    layout: Layout | None = None
    """The file's own columns, where they are not those of the job."""
    folders: Folders = ()
    add_source: bool = False
    """Whether rows say which file and which record of it they are."""


OPEN_END = 1 << 62
"""The stop of a slice that runs to the end of its text file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
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
        unit = {"parquet": "row groups", "arrow": "record batches"}.get(first.format, "bytes")
        stop = f"{first.stop:,}" if first.stop < OPEN_END else "the end"
        rows = f", rows {first.rows[0]:,} to {first.rows[1]:,}" if first.rows else ""
        more = f" and {len(self.slices) - 1} more" if len(self.slices) > 1 else ""
        name = first.path.rpartition("/")[2]
        return f"partition {self.index} ({name}, {unit} {first.start:,} to {stop}{rows}{more})"

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
class Fault:
    """What is wrong with a row."""

    kind: RejectClass
    column: str
    value: str
    reason: str


@dataclass(frozen=True)
class Look:
    """What is known of a file before reading it."""

    schema: pa.Schema
    sample: pa.RecordBatch
    """Some rows, in the schema's types; may be empty."""
    found: Found = PLAIN
    """How text files are written."""
    layouts: dict[str, Layout] = field(default_factory=dict)
    """Of the files whose own columns are not those of the schema."""
    drift: tuple[str, ...] = ()
    """How files differ and what is made of it, in words."""
    numbers: dict[str, pa.DataType] = field(default_factory=dict)
    """What columns of texts would be without the texts that are no numbers."""


@dataclass(frozen=True)
class Block:
    """Rows of one slice, and where each is."""

    batch: pa.RecordBatch
    path: str
    base: int = 0
    """Byte offset of the raw text in the file."""
    raw: bytes | None = None
    """The text the rows were read from, whole records; None for formats that are no text."""
    format: Format = "parquet"
    dialect: Dialect = COMMON

    def reject(self, row: int, record: int, fault: Fault) -> Reject:
        """Build the reject for row `row` of the batch, which is record `record` of the slice."""
        place = self.place(row).model_copy(update={"record": record})
        return bad_record(fault, place, self._record(row), self.dialect).reject

    def place(self, row: int) -> Place:
        """Return where row `row` of the batch is in its file."""
        return Place(path=self.path, byte_offset=None if self.raw is None else self.base + self._starts[row])

    def _record(self, row: int) -> bytes:
        if self.raw is None:
            return json.dumps(self.batch.slice(row, 1).to_pylist()[0], default=str).encode()
        stop = self._starts[row + 1] if row + 1 < len(self._starts) else len(self.raw)
        return self.raw[self._starts[row] : stop]

    @cached_property
    def _starts(self) -> list[int]:
        starts: list[int] = module(self.format).record_starts(self.raw, self.dialect)
        return starts


@dataclass(frozen=True)
class BadRecord:
    """A record that could not be read, as a reject."""

    reject: Reject


def bad_record(fault: Fault, place: Place, raw: bytes, dialect: Dialect = COMMON) -> BadRecord:
    """Build the reject for the record `raw`; raw text and value are cut to what is kept."""
    with suppress(UnicodeDecodeError):
        raw = dialect.as_utf8(raw)
    value = fault.value[:VALUE_CHARACTERS]
    reject = Reject(
        kind=fault.kind, column=fault.column, place=place, value=value, reason=fault.reason,
        raw=shown(raw), cut=len(raw) > RAW_BYTES,
    )  # fmt: skip
    return BadRecord(reject)


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


def module(name: str) -> Any:
    """Return the module of a format."""
    return importlib.import_module(f"batchserve.inputs.{_MODULES.get(name, name)}")


_MODULES = {"arrow": "ipc"}


# -- which columns ----------------------------------------------------------------------------

_SAMPLED_FILES = 16


@dataclass(frozen=True)
class Wish:
    """What the user says of columns."""

    infer: str = "sample"
    """sample or full."""
    types: dict[str, str] = field(default_factory=dict)
    """Column types that are to be, whatever the texts are."""
    hints: dict[str, str] = field(default_factory=dict)
    """Column types to begin with where the column is there; a text that does not fit counts."""
    widen: bool = False
    """Whether files may have other columns than the first."""
    add_source: bool = False
    """Whether rows are to say which file and which record of it they are."""
    asked: Asked = field(default_factory=Asked)
    """How text files are written, as far as that is not to be found."""


def look(sources: Sequence[Source], wish: Wish) -> Look:
    """Find the columns of all files and the type each keeps.

    Every file's header is read; values are sampled from up to 16 files. The first file says how
    all of them are written.

    Args:
        sources: The input files.
        wish: What the user says of columns.

    Raises:
        DataError: A file is unreadable or has other columns than the first.
        UsageError: The wish names an unknown type or column.
        TransientError: A file cannot be read just now.
    """
    from batchserve.inputs import shaping

    formats = {source.format: source.path for source in reversed(sources)}
    if len(formats) > 1:
        told = ", ".join(f"{name} ({path})" for name, path in sorted(formats.items()))
        raise UsageError(f"inputs are of several formats: {told}", "score one at a time")
    added = shaping.added(sources, wish)
    every = max(1, len(sources) // _SAMPLED_FILES)
    sampled = list(sources) if wish.infer == "full" else list(sources[::every])
    own = replace(wish, types={name: kind for name, kind in wish.types.items() if name not in added.names})
    found: Look = module(sources[0].format).look(sources, sampled, own)
    return shaping.widened(found, added, sources)


# -- which rows -------------------------------------------------------------------------------


def read(part: Slice, reading: Reading) -> Iterator[Item]:
    """Read one slice: blocks and bad records in order, then its extent.

    Raises:
        DataError: The file is corrupt or truncated.
        TransientError: It cannot be read just now.
    """
    from batchserve.inputs import shaping

    own = shaping.own_reading(part, reading)
    with transient_reading(part.path):
        yield from shaping.shaped(part, reading, module(part.format).read(part, own))
