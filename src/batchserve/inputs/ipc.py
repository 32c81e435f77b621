"""Arrow IPC: files (Feather version 2) in ranges of record batches, and streams as a whole.

Neither has checksums: a bit that flips among the values is not found. A record batch is read
as one, and `write_table` of pyarrow makes a whole table one. A file of such batches is mapped
into memory, so that it takes none unless its buffers are compressed.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from batchserve.arrays import empty_batch
from batchserve.errors import DataError, raise_all
from batchserve.inputs import OPEN_END, Block, Extent, Item, Look, Reading, Slice, Source, Wish, cutting
from batchserve.inputs.dialect import Dialect
from batchserve.inputs.parquet import (
    LEAST_BATCH_ROWS,
    SAMPLE_ROWS,
    check_no_types,
    named,
    plain,
    sample,
    translated,
)
from batchserve.inputs.schemas import Agreed, agree

FILE_MAGIC = b"ARROW1"
STREAM_MAGIC = b"\xff\xff\xff\xff"
_STREAM_END = STREAM_MAGIC + b"\0\0\0\0"
_MAPPED_BYTES = 128 << 20
"""Files whose record batches are larger are mapped. Others are not: a disk that fails under a
mapped file kills the process."""


@contextmanager
def _opened(path: str, columns: Sequence[str] = ()) -> Iterator["_Batches"]:
    """Open a file or stream, to read only `columns` of it, or all."""
    with pa.OSFile(path) as file:
        stored = file.read(len(FILE_MAGIC)) == FILE_MAGIC
        file.seek(0)
        open_ = ipc.open_file if stored else ipc.open_stream
        with open_(file) as whole:
            schema = plain(whole.schema, path)
            mapped = stored and file.size() > _MAPPED_BYTES * max(1, whole.num_record_batches)
        file.seek(0)
        if mapped:  # asked for some columns, Arrow would copy them
            with pa.memory_map(path) as source, ipc.open_file(source) as reader:
                yield _Batches(path, source, reader, columns)
            return
        included = [schema.get_field_index(name) for name in columns or schema.names]
        with open_(file, options=ipc.IpcReadOptions(included_fields=included, use_threads=False)) as reader:
            yield _Batches(path, file, reader, columns)


class _Batches:
    """The record batches of an open file or stream, each checked: the format itself has no checksums."""

    def __init__(self, path: str, file: pa.NativeFile, reader: Any, columns: Sequence[str]) -> None:
        self._path, self._file, self._reader = path, file, reader
        self.stored = isinstance(reader, ipc.RecordBatchFileReader)
        self.schema: pa.Schema = reader.schema
        self._columns = list(columns or self.schema.names)

    def between(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Give record batches `start` to `stop`; of a stream all.

        Raises:
            DataError: A stream has no end mark, or does not end with it.
        """
        found = self._stored(start, stop) if self.stored else self._streamed()
        for batch in found:
            wanted = named(batch, self._columns)
            wanted.validate(full=True)
            yield wanted

    def _stored(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        count = self._reader.num_record_batches
        return (self._reader.get_batch(i) for i in range(start, min(stop, count)))

    def _streamed(self) -> Iterator[pa.RecordBatch]:
        at = self._file.tell()
        for batch in self._reader:
            at = self._file.tell()
            yield batch
        self._file.seek(at)
        rest = self._file.read(len(_STREAM_END) + 1)
        if rest != _STREAM_END:
            cut = "something follows its end" if rest else "it ends without an end mark"
            message = f"{self._path}: the Arrow stream is damaged or cut off at byte {at:,}: {cut}"
            raise DataError(message, "fetch the file again, or write it again and close its writer")


def look(sources: Sequence[Source], sampled: Sequence[Source], wish: Wish) -> Look:
    """Read every schema: the columns, their types, some rows.

    Raises:
        DataError: A file is damaged, has other columns than the first, or a type that Parquet lacks.
        UsageError: Types are wished for: Arrow columns have types; or a dialect, which is of CSV.
    """
    raise_all(list(wish.asked.misplaced("Arrow")))
    check_no_types(wish, "Arrow")
    agreed = agree({source.path: _schema(source.path) for source in sources}, widen=wish.widen)
    agreed = Agreed(_storable(agreed.schema, sources[0].path), agreed.layouts, agreed.drift)
    first = sample(map(_head, sampled), sampled, agreed)
    return Look(agreed.schema, first, layouts=agreed.layouts, drift=agreed.drift)


def _schema(path: str) -> pa.Schema:
    with translated(path), _opened(path) as reader:
        return plain(reader.schema, path)


def _storable(schema: pa.Schema, path: str) -> pa.Schema:
    """Return the types that columns come back with from Parquet: milliseconds for seconds, say.

    Raises:
        DataError: Parquet has no such type.
    """
    problems = []
    kinds = []
    for field in schema:
        try:
            kinds.append(_returned(field.type))
        except pa.ArrowException:
            message = f"{path}: column {field.name} is {field.type}, which Parquet cannot hold"
            problems.append(DataError(message, "write the file without it, or in another type"))
    raise_all(problems)
    return pa.schema([pa.field(name, kind) for name, kind in zip(schema.names, kinds, strict=True)])


def _returned(kind: pa.DataType) -> pa.DataType:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_batches([], pa.schema([pa.field("", kind)])), buffer)
    return pq.read_schema(buffer).field(0).type


def _head(source: Source) -> pa.RecordBatch:
    with translated(source.path, lambda: " in its first rows"), _opened(source.path) as reader:
        batches = reader.between(0, OPEN_END)
        empty = empty_batch(plain(reader.schema, source.path))
        return next((batch for batch in batches if batch.num_rows), empty).slice(0, SAMPLE_ROWS)


def extent(source: Source, dialect: Dialect) -> tuple[int, int]:
    """Return how many rows a file or stream has, and its bytes."""
    del dialect
    return sum(survey(source.path)[0]), source.size_bytes


def split(source: Source, target_bytes: int, dialect: Dialect, cuts: int = 1) -> list[Slice]:
    """Cut a file between record batches, and large ones, into ranges of about `target_bytes`.

    A stream stays whole.
    """
    del dialect
    with translated(source.path), _opened(source.path) as reader:
        stored = reader.stored
    if not stored or source.size_bytes <= target_bytes:
        part = Slice(
            path=source.path, format="arrow", start=0, stop=OPEN_END, exact=True, size_bytes=source.size_bytes
        )
        return [part]
    rows, *_ = survey(source.path)
    sizes = [(each, source.size_bytes * each // max(1, sum(rows))) for each in rows]
    return cutting.grouped(source, sizes, target_bytes, cuts)


def survey(path: str) -> tuple[list[int], bool, dict[bytes, bytes]]:
    """Return the rows of each record batch, whether it is a file (not a stream), and its key-values.

    Raises:
        DataError: The file is damaged or cut off.
    """
    with translated(path):
        with _opened(path) as reader:
            narrowest = min(reader.schema, key=lambda field: _width(field.type)).name
            metadata = reader.schema.metadata or {}
        with _opened(path, [narrowest]) as reader:
            return [batch.num_rows for batch in reader.between(0, OPEN_END)], reader.stored, metadata


def _width(kind: pa.DataType) -> int:
    try:
        return int(kind.bit_width)
    except ValueError:  # of no fixed width
        return 1 << 20


def read(part: Slice, reading: Reading) -> Iterator[Item]:
    """Read a range of record batches, or a stream, then give its extent in record batches.

    Raises:
        DataError: The file is damaged or cut off.
    """
    base = part.first_record
    rows = max(1, LEAST_BATCH_ROWS // reading.batch_rows) * reading.batch_rows
    with translated(part.path, lambda: f" after row {base:,}"), _opened(part.path, reading.columns) as reader:
        for whole in reader.between(part.start, part.stop):
            batch = whole.slice(part.rows[0], part.rows[1] - part.rows[0]) if part.rows else whole
            for start in range(0, batch.num_rows, rows):
                piece = batch.slice(start, rows)
                yield Block(piece, part.path, base)
                base += piece.num_rows
    yield Extent(part.start, part.stop)
