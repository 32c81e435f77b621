"""Parquet: ranges of row groups, streamed; page checksums are verified where there are any."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchserve.arrays import empty_batch, one_array
from batchserve.errors import DataError, UsageError, from_os, raise_all
from batchserve.inputs import OPEN_END, Block, Extent, Item, Look, Reading, Slice, Source, Wish, cutting
from batchserve.inputs.dialect import Dialect
from batchserve.inputs.schemas import Agreed, agree
from batchserve.storage import transient_reading

LEAST_BATCH_ROWS = 16_384
SAMPLE_ROWS = 4096
_BATCH_BYTES = 16 << 20
"""Of what is read at once, in the encoding of the file."""
_READ_BUFFER_BYTES = 256 << 10
_COLUMN_BYTES = 1 << 20
"""What Arrow holds of every column of a row group that it streams: a dictionary and a page, unpacked."""
_MOST_WHOLE_BYTES = 128 << 20
_BUNDLE_COLUMNS = 16
_SOME_BYTES = 16
"""What a text or a list is taken to need in memory."""
_ABSURD_BYTES, _ABSURD_TIMES = 1 << 30, 100_000


@contextmanager
def translated(path: str, place: Callable[[], str] = str) -> Iterator[None]:
    """Turn what Arrow says of a file into our errors.

    Args:
        path: The file.
        place: Gives the place in it that was being read, in words.

    Raises:
        DataError: The file is damaged or cut off.
        TransientError: It cannot be read just now.
    """
    try:
        with transient_reading(path):
            yield
    except (MemoryError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, MemoryError) and not _absurd(error, path):  # Arrow's own is one of both kinds
            raise
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of Arrow
            raise from_os(OSError(error.errno, os.strerror(error.errno)), path) from error
        if isinstance(error, pa.ArrowNotImplementedError):
            message = f"{path}: holds what Arrow cannot read{place()} ({error})"
            raise DataError(message, "write the file without it") from error
        message = f"{path}: is damaged or cut off{place()} ({error})"
        raise DataError(message, "fetch the file again") from error


def _absurd(error: MemoryError, path: str) -> bool:
    """Whether so much memory was asked for at once that the size can only be damaged.

    What is packed best, a column of one value by zstd, is 30,000 times as large when it is unpacked.
    """
    size = re.search(r"size (\d+)", str(error))
    return size is not None and int(size[1]) > max(_ABSURD_BYTES, _ABSURD_TIMES * Path(path).stat().st_size)


@contextmanager
def opened(path: str, place: Callable[[], str] = str) -> Iterator[pq.ParquetFile]:
    """Open a file so that a huge row group streams: no pre-buffering, checksums verified."""
    with (
        translated(path, place),
        pq.ParquetFile(
            path, pre_buffer=False, buffer_size=_READ_BUFFER_BYTES, page_checksum_verification=True
        ) as file,
    ):
        yield file


def look(sources: Sequence[Source], sampled: Sequence[Source], wish: Wish) -> Look:
    """Read every footer: the columns, their types, some rows.

    Raises:
        DataError: A file is damaged or has other columns than the first.
        UsageError: Types are wished for: Parquet columns have types; or a dialect, which is of CSV.
    """
    raise_all(list(wish.asked.misplaced("Parquet")))
    check_no_types(wish, "Parquet")
    agreed = agree({source.path: _schema(source.path) for source in sources}, widen=wish.widen)
    first = sample(map(_head, sampled), sampled, agreed)
    return Look(agreed.schema, first, layouts=agreed.layouts, drift=agreed.drift)


def check_no_types(wish: Wish, name: str) -> None:
    """Check that no type is wished for.

    Raises:
        UsageError: One is.
    """
    if wish.types:
        message = f"--type {', '.join(wish.types)}: a column of {name} has its own type"
        raise UsageError(message, "--type is for text files and folders: leave it out")


def plain(schema: pa.Schema, path: str) -> pa.Schema:
    """Return a file's schema without metadata.

    Raises:
        DataError: Two columns have one name, or there is no column.
    """
    names = schema.names
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"{path}: column {', '.join(twice)} is there twice", "rename one")
    if not names:
        raise DataError(f"{path}: has no column", "leave the file out")
    return pa.schema([pa.field(field.name, field.type) for field in schema])


def _schema(path: str) -> pa.Schema:
    with opened(path) as file:
        return plain(file.schema_arrow, path)


def sample(heads: Iterator[pa.RecordBatch], sampled: Sequence[Source], agreed: Agreed) -> pa.RecordBatch:
    """Return the first rows there are, in the columns and types of the job."""
    for head, source in zip(heads, sampled, strict=True):
        if head.num_rows:
            layout = agreed.layouts.get(source.path) or tuple((name, name) for name in agreed.schema.names)
            own = {name: head.column(file_name) for file_name, name in layout}
            columns = [
                own[field.name].cast(field.type) if field.name in own else pa.nulls(len(head), field.type)
                for field in agreed.schema
            ]
            return pa.RecordBatch.from_arrays(columns, schema=agreed.schema)
    return empty_batch(agreed.schema)


def _head(source: Source) -> pa.RecordBatch:
    with opened(source.path, lambda: f" in its first {SAMPLE_ROWS:,} rows") as file:
        schema = plain(file.schema_arrow, source.path)
        rows, groups = _few_rows(file, SAMPLE_ROWS, 1), range(file.num_row_groups)
        found = [next(_batches(file, groups, bundle, rows), None) for bundle in _bundles(schema.names)]
        columns = [column for batch in found if batch is not None for column in batch.columns]
        return pa.RecordBatch.from_arrays(columns, schema=schema) if columns else empty_batch(schema)


def _batches(
    file: pq.ParquetFile, groups: Sequence[int], columns: list[str] | None, rows: int,
    within: tuple[int, int] = (0, OPEN_END),
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    """Stream row groups, of a single one also a range of its rows.

    Apart where one has a dictionary in a list or struct: Arrow cannot join those.
    """
    schema = file.schema_arrow  # made anew each time it is asked for
    names = columns or schema.names
    apart = any(pa.types.is_nested(f.type) and "dictionary<" in str(f.type) for f in schema)
    kinds = [schema.field(name).type for name in names]
    wide = {i for i in groups if _is_wide(kinds, file.metadata.row_group(i).num_rows)}
    for run in [[i] for i in groups] if apart or wide else [list(groups)]:
        if not wide.isdisjoint(run):  # then it is one
            batch = _at_once(file, names, run[0], within)
            yield from (batch.slice(at, rows) for at in range(0, batch.num_rows, rows))
        else:
            stream = file.iter_batches(rows, row_groups=run, columns=columns, use_threads=False)
            yield from _between(stream, *within)


def _is_wide(kinds: Sequence[pa.DataType], rows: int) -> bool:
    """Whether a row group takes less memory as a whole than streamed, a page of every column at once."""
    if len(kinds) <= _BUNDLE_COLUMNS or not all(map(pa.types.is_primitive, kinds)):
        return False
    whole_bytes = rows * sum(kind.bit_width for kind in kinds) // 8
    return bool(whole_bytes < min(_MOST_WHOLE_BYTES, len(kinds) * _COLUMN_BYTES))


def _at_once(
    file: pq.ParquetFile, names: Sequence[str], group: int, within: tuple[int, int]
) -> pa.RecordBatch:
    """Read rows of a row group, a few columns at a time: Arrow keeps pages of all that it reads at once."""
    columns: list[pa.Array] = []
    for bundle in _bundles(names):
        if within == (0, OPEN_END):
            table = file.read_row_group(group, columns=bundle, use_threads=False)
        else:
            stream = _batches(file, [group], bundle, LEAST_BATCH_ROWS, within)
            table = pa.Table.from_batches(list(stream))
        columns += map(one_array, table.columns)
    return pa.RecordBatch.from_arrays(columns, names=list(names))


def _bundles(names: Sequence[str]) -> list[list[str]]:
    return [list(names[at : at + _BUNDLE_COLUMNS]) for at in range(0, len(names), _BUNDLE_COLUMNS)]


def _few_rows(file: pq.ParquetFile, rows: int, unit: int) -> int:
    """Return `rows`, or as many units of rows as are read at once: images take more than numbers."""
    metadata = file.metadata
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    row_bytes: int = max(1, size // max(1, metadata.num_rows))
    return min(rows, max(1, _BATCH_BYTES // row_bytes // unit) * unit)


def extent(source: Source, dialect: Dialect) -> tuple[int, int]:
    """Return how many rows a file has, and their bytes as `split` counts them."""
    slices = split(source, source.size_bytes, dialect)
    with opened(source.path) as file:
        return int(file.metadata.num_rows), sum(part.size_bytes for part in slices)


def split(source: Source, target_bytes: int, dialect: Dialect, cuts: int = 1) -> list[Slice]:
    """Cut a file between row groups, and large ones, into ranges of about `target_bytes`.

    Sizes are those of rows in memory: they follow the work. Stored bytes do not, as dictionaries and
    compression make some files small.
    """
    del dialect
    with opened(source.path) as file:
        row_bytes = sum(map(_value_bytes, file.schema_arrow.types))
        found = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    sizes = [(group.num_rows, max(group.total_byte_size, group.num_rows * row_bytes)) for group in found]
    return cutting.grouped(source, sizes, target_bytes, cuts)


def _value_bytes(kind: pa.DataType) -> int:
    return int(kind.bit_width) // 8 if pa.types.is_primitive(kind) else _SOME_BYTES


def read(part: Slice, reading: Reading) -> Iterator[Item]:
    """Read a range of row groups as record batches, then give its extent in row groups.

    Raises:
        DataError: The file is damaged, or has not the rows that its footer states.
    """
    base = part.first_record
    unit = reading.batch_rows
    groups = list(range(part.start, part.stop))
    with opened(part.path, lambda: f" after row {base:,}") as file:
        count = sum(file.metadata.row_group(i).num_rows for i in groups)
        first, last = part.rows or (0, count)
        stated = base + last - first
        rows = _few_rows(file, max(1, LEAST_BATCH_ROWS // unit) * unit, unit)
        within = (first, last if last < count else OPEN_END)
        for batch in _batches(file, groups, list(reading.columns), rows, within):
            yield Block(named(batch, reading.columns), part.path)
            base += batch.num_rows
    if base != stated:
        message = f"{part.path}: ends after row {base:,}, its footer states {stated:,}"
        raise DataError(message, "fetch the file again")
    yield Extent(part.start, part.stop)


def _between(batches: Iterator[pa.RecordBatch], first: int, last: int) -> Iterator[pa.RecordBatch]:
    """Give the rows from the first to before the last; no batch is read that has none of them."""
    at = 0
    for batch in batches:
        start, stop = max(0, first - at), min(batch.num_rows, last - at)
        if start < stop:
            yield batch.slice(start, stop - start)
        at += batch.num_rows
        if at >= last:
            return


def named(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Return the columns named, in that order, without metadata."""
    arrays = [batch.column(name) for name in columns]
    schema = pa.schema([pa.field(n, a.type) for n, a in zip(columns, arrays, strict=True)])
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
