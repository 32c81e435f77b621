"""Parquet: ranges of row groups, streamed; page checksums are verified where there are any."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from batchserve.codec import empty_batch
from batchserve.errors import BatchserveError, DataError, UsageError, from_os, raise_all
from batchserve.inputs import Block, Extent, Item, Look, Reading, Slice, Source, drift
from batchserve.storage import transient_reading

_LEAST_BATCH_ROWS = 16_384
_SAMPLE_ROWS = 4096
_BATCH_BYTES = 16 << 20
"""Of what is read at once, in the encoding of the file."""
_READ_BUFFER_BYTES = 1 << 20


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    """Open a file so that a huge row group streams: no pre-buffering, checksums verified."""
    try:
        with (
            transient_reading(path),
            pq.ParquetFile(
                path, pre_buffer=False, buffer_size=_READ_BUFFER_BYTES, page_checksum_verification=True
            ) as file,
        ):
            yield file
    except MemoryError:  # Arrow's own is one of its exceptions too
        raise
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of Arrow
            raise from_os(OSError(error.errno, os.strerror(error.errno)), path) from error
        raise DataError(f"{path}: is damaged or cut off ({error})", "fetch the file again") from error


def look(
    sources: Sequence[Source],
    sampled: Sequence[Source],
    infer: str,
    types: dict[str, str],
    hints: dict[str, str],
) -> Look:
    """Read every footer: the columns, their types, some rows.

    Raises:
        DataError: A file is damaged or has other columns than the first.
        UsageError: `types` is set: Parquet columns have types.
    """
    del infer, hints
    if types:
        raise UsageError("--type is for text files: a Parquet column has its own type", "leave it out")
    schemas = {source.path: _schema(source.path) for source in sources}
    first = schemas[sources[0].path]
    problems = [p for path, s in schemas.items() if (p := _differs(sources[0].path, first, path, s))]
    raise_all(problems)
    batches = (batch for source in sampled for batch in _head(source.path))
    empty = empty_batch(first)
    return Look(first, next((b for b in batches if b.num_rows), empty))


def _schema(path: str) -> pa.Schema:
    with _opened(path) as file:
        plain = [field.remove_metadata() for field in file.schema_arrow]
    names = [field.name for field in plain]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {', '.join(twice)} is there twice", "rename one")
    return pa.schema(plain)


def _differs(first: str, expected: pa.Schema, path: str, schema: pa.Schema) -> BatchserveError | None:
    problem = drift(first, expected.names, path, schema.names)
    if problem or schema.equals(expected):
        return problem
    changed = [f"{a.name} is {b.type}, not {a.type}" for a, b in zip(expected, schema, strict=True) if a != b]
    return DataError(f"{path}: column {', '.join(changed)} as in {first}", "convert one of them")


def _head(path: str) -> Iterator[pa.RecordBatch]:
    with _opened(path) as file:
        for batch in file.iter_batches(_few_rows(file, _SAMPLE_ROWS, 1), use_threads=False):
            yield _plain(batch)
            return


def _few_rows(file: pq.ParquetFile, rows: int, unit: int) -> int:
    """Return `rows`, or as many units of rows as are read at once: images take more than numbers."""
    metadata = file.metadata
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    row_bytes: int = max(1, size // max(1, metadata.num_rows))
    return min(rows, max(1, _BATCH_BYTES // row_bytes // unit) * unit)


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    schema = pa.schema([field.remove_metadata() for field in batch.schema])
    return pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def split(source: Source, target_bytes: int) -> list[Slice]:
    """Cut a file between row groups into ranges of about `target_bytes`.

    Sizes are the unpacked bytes that the footer states: they follow the work, stored bytes do not.
    """
    with _opened(source.path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    slices: list[Slice] = []
    start = record = 0
    rows = size = 0
    for i, (group_rows, group_bytes) in enumerate(sizes):
        if i > start and size + group_bytes > target_bytes:
            slices.append(_range(source, start, i, record, size))
            start, record, rows, size = i, record + rows, 0, 0
        rows, size = rows + group_rows, size + group_bytes
    return [*slices, _range(source, start, len(sizes), record, size)]


def _range(source: Source, start: int, stop: int, record: int, size: int) -> Slice:
    return Slice(
        path=source.path, format="parquet", start=start, stop=stop, exact=True, first_record=record,
        size_bytes=size,
    )  # fmt: skip


def read(part: Slice, reading: Reading) -> Iterator[Item]:
    """Read a range of row groups as record batches, then give its extent in row groups."""
    base = part.first_record
    unit = reading.batch_rows
    with _opened(part.path) as file:
        batches = file.iter_batches(
            _few_rows(file, max(1, _LEAST_BATCH_ROWS // unit) * unit, unit),
            row_groups=list(range(part.start, part.stop)),
            columns=list(reading.columns),
            use_threads=False,
        )
        for batch in batches:
            yield Block(_plain(batch.select(list(reading.columns))), part.path, base)
            base += batch.num_rows
    yield Extent(part.start, part.stop)
