"""Files -> partitions -> record batches.

A partition is what one task scores: slices of files, in input order. Reading a slice gives
blocks of typed rows, records that could not be read, and at last the slice's exact extent.
One module per format, each with the same three functions:

    look(sources, sampled, wish) -> Look          the columns, from headers and samples
    split(source, target_bytes, dialect)          ranges that can be read apart, as slices
    boundaries(dialect), counter(dialect)         of a text: where its records end, how many there are
    read(part, reading) -> blocks, bad records    the rows of one range

A format knows a file's own columns alone. What a file lacks, or has by its folders, its name
or in another type than the first file, is added to its blocks afterwards (`shaping`).
"""

import base64
import importlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from batchserve.errors import UsageError
from batchserve.inputs.dialect import COMMON, PLAIN, Asked, Dialect, Found
from batchserve.rejects import RAW_BYTES, VALUE_CHARACTERS, Place, Reject, RejectClass, shown
from batchserve.storage import patiently, transient_reading

if TYPE_CHECKING:
    from batchserve.inputs import records

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


class Slice(BaseModel, frozen=True):
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
        unit = {"parquet": "row groups", "arrow": "record batches"}.get(first.format, "bytes")
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


# -- which partitions -------------------------------------------------------------------------


def partitions(
    sources: Sequence[Source], target_bytes: int, dialect: Dialect = COMMON
) -> tuple[Partition, ...]:
    """Cut files into partitions of about `target_bytes`: big files apart, small ones together."""
    groups: list[list[Slice]] = [[]]
    size = 0
    for source in sources:
        for part in patient(source.path, partial(_split, source, target_bytes, dialect)):
            if groups[-1] and size + part.size_bytes > target_bytes:
                groups.append([])
                size = 0
            groups[-1].append(part)
            size += part.size_bytes
    return tuple(Partition(index=i, slices=tuple(s)) for i, s in enumerate(g for g in groups if g))


def _split(source: Source, target_bytes: int, dialect: Dialect) -> list[Slice]:
    parts: list[Slice] = module(source.format).split(source, target_bytes, dialect)
    return [part.model_copy(update={"folders": source.folders}) for part in parts]


def grouped(source: Source, sizes: Sequence[tuple[int, int]], target_bytes: int) -> list[Slice]:
    """Cut a file between its row groups or record batches into ranges of about `target_bytes`.

    Args:
        source: The file.
        sizes: Rows and bytes of each row group or record batch.
        target_bytes: What a range should have; one row group may have more.
    """
    edges, rows, size = [0], 0, 0
    for i, (_, group_bytes) in enumerate(sizes):
        if i > edges[-1] and size + group_bytes > target_bytes:
            edges.append(i)
            size = 0
        size += group_bytes
    slices = []
    for start, stop in itertools.pairwise([*edges, len(sizes)] if sizes else [0, 0]):
        part = Slice(
            path=source.path, format=source.format, start=start, stop=stop, exact=True, first_record=rows,
            size_bytes=sum(each for _, each in sizes[start:stop]),
        )  # fmt: skip
        slices.append(part)
        rows += sum(each for each, _ in sizes[start:stop])
    return slices


def ranges(source: Source, start: int, target_bytes: int) -> list[Slice]:
    """Cut a text file into ranges of equal size, none over `target_bytes`.

    How much a packed file holds is not known before it is unpacked: ranges are cut for a quarter
    more than its beginning promises. Those that turn out to lie behind its end have no rows.
    """
    size = max(0, source.size_bytes - start)
    if source.codec and target_bytes < OPEN_END:
        from batchserve.inputs import packed

        promised = packed.promised_bytes(source.path, source.codec, source.size_bytes)
        size = int(promised * _SPARE) if promised > target_bytes else promised
    count = max(1, -(-size // target_bytes))
    edges = [start + size * i // count for i in range(count)]
    return [
        Slice(
            path=source.path, format=source.format, codec=source.codec, start=a, stop=b, exact=i == 0,
            origin=start, size_bytes=size // count,
        )
        for i, (a, b) in enumerate(zip(edges, [*edges[1:], OPEN_END], strict=True))
    ]  # fmt: skip


_SPARE = 1.25


def whole(sources: Sequence[Source], dialect: Dialect = COMMON) -> tuple[Partition, ...]:
    """Return one partition that reads everything in order."""
    slices = [part for source in sources for part in _split(source, OPEN_END, dialect)]
    return (Partition(index=0, slices=tuple(slices)),)


def laid_out(partitions: Sequence[Partition], look: Look, *, add_source: bool) -> tuple[Partition, ...]:
    """Tell every slice what its file's own columns are, and whether rows say where they are from.

    With `add_source` files of several slices are read once to count their records.
    """
    made = [
        partition.model_copy(
            update={
                "slices": tuple(
                    part.model_copy(update={"layout": look.layouts.get(part.path), "add_source": add_source})
                    for part in partition.slices
                )
            }
        )
        for partition in partitions
    ]
    return tuple(settled(made, look.found.dialect) if add_source else made)


def counted(partitions: Sequence[Partition]) -> set[str]:
    """Return the text files of several slices: those whose records are only known when counted."""
    slices = Counter(
        part.path for partition in partitions for part in partition.slices if part.format in TEXT_FORMATS
    )
    return {path for path, count in slices.items() if count > 1}


def settled(partitions: Sequence[Partition], dialect: Dialect = COMMON) -> list[Partition]:
    """Replace guessed starts by exact ones and number records, by reading texts once for record ends.

    For rows that say which record they are, and for a lazy frame, whose partitions nobody
    compares afterwards. A file of one slice is not read.
    """
    return patiently(lambda _: _settled(partitions, dialect))


def _settled(partitions: Sequence[Partition], dialect: Dialect) -> list[Partition]:
    guessed = {part.path for each in partitions for part in each.slices if not part.exact}
    several = counted(partitions) & guessed
    scans: dict[str, records.Scan] = {}
    totals: Counter[str] = Counter()

    def found(part: Slice) -> Slice:
        if part.path not in several:
            return part
        if part.path not in scans:
            scans[part.path] = stack.enter_context(scan(part, dialect))
        update = {"start": scans[part.path].at, "exact": True, "first_record": totals[part.path]}
        with transient_reading(part.path):
            totals[part.path] += count(scans[part.path], part, dialect)
        return part.model_copy(update=update)

    with ExitStack() as stack:
        return [
            each.model_copy(update={"slices": tuple(found(part) for part in each.slices)})
            for each in partitions
        ]


def count(scanned: "records.Scan", part: Slice, dialect: Dialect) -> int:
    """Count the records that start before the stop of a slice, as the reader does, and read past them."""
    from batchserve.inputs import records

    counter = module(part.format).counter(dialect)
    pieces = scanned.until(part.stop)
    return sum(counter(each.raw) if isinstance(each, records.Chunk) else 1 for each in pieces)


def scan(part: Slice, dialect: Dialect) -> AbstractContextManager["records.Scan"]:
    """Open a text file to read its records from the first one of a slice on."""
    from batchserve.inputs import records

    return records.scanned(part, module(part.format).boundaries(dialect), dialect.encoding)


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
