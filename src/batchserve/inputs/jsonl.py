"""JSON lines: one object per line; a line end is always a record's end."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import json as pajson

from batchserve.arrays import empty_batch
from batchserve.codec import number_or_none
from batchserve.errors import DataError, raise_all
from batchserve.inputs import (
    OPEN_END,
    Block,
    Extent,
    Fault,
    Item,
    Look,
    Reading,
    Slice,
    Source,
    TypeMisfit,
    Wish,
    bad_record,
    cutting,
    encodings,
    records,
)
from batchserve.inputs.dialect import Dialect, Found
from batchserve.inputs.inference import named_types
from batchserve.lists import is_list
from batchserve.rejects import Place

_REFUSED = (pa.ArrowInvalid, UnicodeDecodeError)
_SAMPLE_BYTES = 1 << 20


def record_starts(raw: bytes, dialect: Dialect | None = None) -> list[int]:
    """Return where each record of `raw` starts, blank lines left out as the reader does."""
    del dialect
    starts, at = [], 0
    for line in raw.split(b"\n"):
        if line.strip():
            starts.append(at)
        at += len(line) + 1
    return starts


def look(sources: Sequence[Source], sampled: Sequence[Source], wish: Wish) -> Look:
    """Find the keys of all objects and the type each keeps.

    Raises:
        DataError: No object could be read.
        UsageError: `types` names an unknown key or type, or the user said what only CSV has.
    """
    raise_all(list(wish.asked.misplaced("JSON", "encoding")))
    # Only its mark is read of the first: a key that a file lacks is null there.
    encoding = wish.asked.encoding or encodings.marked(_head(sources[0])) or encodings.UTF_8
    dialect = Dialect(encoding=encoding)
    full = wish.infer == "full"
    texts = [chunk for source in sampled for chunk in _sample(source, dialect, full=full)]
    tables = [table for text in texts for table in _inferred(text, dialect)]
    if not tables:
        path = sampled[0].path
        raise DataError(f"{path}: no JSON object in the first lines", "one object per line is read")
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))
    wanted = named_types(wish.types, wish.hints, names)
    merged = _merged([table.schema for table in tables])
    kinds = [wanted.get(name) or _kept(merged.field(name).type) for name in names]
    schema = pa.schema([pa.field(n, k) for n, k in zip(names, kinds, strict=True)])
    return Look(schema, _rows(texts[0], schema, dialect), Found(dialect=dialect, said=wish.asked.said))


def _head(source: Source) -> bytes:
    with records.opened(source.path, codec=source.codec) as file:
        return records.read_exactly(file, 4)


def _start(source: Source) -> int:
    """Return where the first line starts: after the mark of UTF-8, if there is one."""
    return len(encodings.BOM) if _head(source).startswith(encodings.BOM) else 0


def _sample(source: Source, dialect: Dialect, *, full: bool) -> Iterator[bytes]:
    stop = OPEN_END if full else _SAMPLE_BYTES
    part = _slice(source, _start(source), stop, exact=True)
    for item in records.chunks(part, records.LINES, dialect.encoding):
        if isinstance(item, records.Chunk) and item.raw.strip():
            yield item.raw


def _inferred(raw: bytes, dialect: Dialect) -> Iterator[pa.Table]:
    """Read lines with the types Arrow finds; where it refuses, halve down to single lines."""
    try:
        text = _text(raw, dialect)
        yield pajson.read_json(pa.BufferReader(text), read_options=_whole(text))
    except _REFUSED:
        starts = record_starts(raw)
        if len(starts) > 1:
            middle = starts[len(starts) // 2]
            yield from _inferred(raw[:middle], dialect)
            yield from _inferred(raw[middle:], dialect)


def _merged(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Widen types until all schemas fit; a kind that does not mix with the first is left to be rejected."""
    merged = schemas[0]
    for schema in schemas[1:]:
        for field in schema:
            with suppress(pa.ArrowTypeError):
                merged = pa.unify_schemas([merged, pa.schema([field])], promote_options="permissive")
    return merged


def _kept(kind: pa.DataType) -> pa.DataType:
    """JSON has no dates: a text that looks like one stays the text it is."""
    return pa.string() if pa.types.is_timestamp(kind) or pa.types.is_null(kind) else kind


def _whole(raw: bytes) -> pajson.ReadOptions:
    return pajson.ReadOptions(use_threads=False, block_size=len(raw) + 1)


def _rows(raw: bytes, schema: pa.Schema, dialect: Dialect, most: int = 4096) -> pa.RecordBatch:
    starts = [*record_starts(raw), len(raw)]
    pieces = _pieces(raw[: starts[min(most, len(starts) - 1)]], schema, dialect)
    good = [batch for _, _, batch in pieces if batch is not None]
    return (
        pa.Table.from_batches(good, schema).combine_chunks().to_batches()[0] if good else empty_batch(schema)
    )


def _slice(source: Source, start: int, stop: int, *, exact: bool, size_bytes: int = 0) -> Slice:
    return Slice(
        path=source.path, format="jsonl", codec=source.codec, start=start, stop=stop, exact=exact,
        size_bytes=size_bytes,
    )  # fmt: skip


def split(source: Source, target_bytes: int, dialect: Dialect) -> list[Slice]:
    """Cut a file into ranges of equal size, none over `target_bytes`."""
    del dialect
    return cutting.ranges(source, _start(source), target_bytes)


def read(part: Slice, reading: Reading) -> Iterator[Item]:
    """Read the lines of one range as typed rows.

    Yields:
        Blocks, and in their place the lines that cannot be read; at last the extent.
    """
    for item in records.chunks(part, records.LINES, reading.dialect.encoding):
        if isinstance(item, Extent):
            yield item
        elif isinstance(item, records.Endless):
            place = Place(path=part.path, byte_offset=item.base)
            yield bad_record(
                Fault("PARSE", "", "", "this line does not end"), place, item.raw, reading.dialect
            )
        else:
            yield from _blocks(item, part.path, reading)


def boundaries(dialect: Dialect) -> records.Boundaries:
    """Return how records are told apart: every line is one, in any dialect."""
    del dialect
    return records.LINES


def counter(dialect: Dialect) -> Callable[[bytes], int]:
    """Return what counts the lines of a text of whole lines, but for blank ones."""
    return lambda raw: len(record_starts(raw, dialect))


def _blocks(chunk: records.Chunk, path: str, reading: Reading) -> Iterator[Item]:
    for start, stop, batch in _pieces(chunk.raw, reading.schema_, reading.dialect):
        raw, base = chunk.raw[start:stop], chunk.base + start
        if batch is not None:
            yield Block(batch.select(list(reading.columns)), path, base, raw, "jsonl")
        else:
            place = Place(path=path, byte_offset=base)
            found = _explained(raw, place, reading)
            yield bad_record(found, place, raw, reading.dialect) if isinstance(found, Fault) else found


def _pieces(
    raw: bytes, schema: pa.Schema, dialect: Dialect, start: int = 0
) -> Iterator[tuple[int, int, pa.RecordBatch | None]]:
    """Parse whole lines; where Arrow refuses, halve until only the guilty lines are left."""
    if not raw.strip():
        return
    try:
        text = _text(raw, dialect)
        batch = _parse(text, schema)
    except _REFUSED:
        batch = None
    else:
        batch = batch if _is_one_per_line(text, batch.num_rows) else None
    starts = [0] if batch is not None else record_starts(raw)
    if len(starts) == 1:
        yield start, start + len(raw), batch
        return
    middle = starts[len(starts) // 2]
    yield from _pieces(raw[:middle], schema, dialect, start)
    yield from _pieces(raw[middle:], schema, dialect, start + middle)


def _text(raw: bytes, dialect: Dialect) -> bytes:
    """Return lines as UTF-8; Arrow would let malformed text pass, in values and in keys.

    Raises:
        UnicodeDecodeError: Some byte is no character.
    """
    text = dialect.as_utf8(raw)
    if not text.isascii():
        text.decode()
    return text


def _is_one_per_line(text: bytes, rows: int) -> bool:
    """Whether every line is one of the `rows` objects that Arrow found, which cares for no line ends."""
    data = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(data[:-1] == _FEED)
    before = np.where(data[ends - 1] == _RETURN, data[ends - 2], data[ends - 1])
    if ends.size == rows - 1 and (before == _CLOSE).all() and (data[ends + 1] == _OPEN).all():
        return True
    lines = [line.strip() for line in text.split(b"\n")]
    filled = [line for line in lines if line]
    return len(filled) == rows and all(line[0] == _OPEN and line[-1] == _CLOSE for line in filled)


_FEED, _RETURN, _OPEN, _CLOSE = b"\n\r{}"


def _parse(raw: bytes, schema: pa.Schema) -> pa.RecordBatch:
    options = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    table = pajson.read_json(pa.BufferReader(raw), read_options=_whole(raw), parse_options=options)
    table = table.select(schema.names).combine_chunks()
    return pa.RecordBatch.from_arrays([c.chunk(0) for c in table.columns], schema=schema)


def _explained(raw: bytes, place: Place, reading: Reading) -> Fault | TypeMisfit:
    """Say why Arrow refused one line."""
    try:
        row = json.loads(_text(raw, reading.dialect).decode())
    except UnicodeDecodeError:
        return Fault("PARSE", "", "", f"is not {encodings.shown(reading.dialect.encoding)}")
    except ValueError:
        return Fault("PARSE", "", "", "is no JSON")
    if not isinstance(row, dict):
        return Fault("PARSE", "", "", "is no JSON object")
    unknown = [key for key in row if key not in reading.schema_.names]
    if unknown:
        reason = f"key {', '.join(unknown)} was in no sampled line; --infer full reads every line"
        return Fault("PARSE", unknown[0], "", reason)
    for name, value in row.items():
        field = reading.schema_.field(name)
        if _misfit(name, value, field):
            return _judged(field, value, place, reading)
    return Fault("PARSE", "", "", "cannot be read")


def _misfit(name: str, value: Any, field: pa.Field) -> bool:
    try:
        _parse(json.dumps({name: value}).encode() + b"\n", pa.schema([field]))
    except _REFUSED:
        return True
    return False


def _judged(field: pa.Field, value: Any, place: Place, reading: Reading) -> Fault | TypeMisfit:
    """Widen an integer column that meets a fraction; reject what no number can be."""
    whole = pa.types.is_integer(field.type) and field.name not in reading.fixed
    if whole and isinstance(value, float):
        return TypeMisfit(field.name, place, str(value), becomes="double")
    if is_list(field.type):
        return Fault(
            "CAST", field.name, str(value), f"is no {field.type}; --infer full reads every line first"
        )
    if field.name in reading.numeric and number_or_none(str(value)) is None:
        return Fault("CAST", field.name, str(value), "is no number")
    reason = f"is no {field.type}; --type {field.name}=TYPE or --infer full decides otherwise"
    return Fault("CAST", field.name, str(value), reason)
