"""CSV: quotes, splits, types and rows, with Arrow's reader and Arrow's rules.

A quote opens a quoted text only at the start of a field; two quotes inside one stand for one.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv as pacsv

from batchserve.codec import NULL_TEXTS, number_or_none
from batchserve.errors import BatchserveError, DataError, UsageError, did_you_mean, raise_all
from batchserve.inputs import (
    OPEN_END,
    BadRecord,
    Block,
    Extent,
    Item,
    Look,
    Reading,
    Slice,
    Source,
    TypeMisfit,
    drift,
    records,
)
from batchserve.rejects import RAW_CHARACTERS, Place, Reject, RejectClass

_NEWLINE, _QUOTE, _COMMA = 10, 34, 44
_BOM = b"\xef\xbb\xbf"
_MAX_HEADER_BYTES = 16 << 20
_WINDOW_BYTES = 256 << 10
_WINDOWS = 5

TYPES: dict[str, pa.DataType] = {
    "text": pa.string(), "string": pa.string(), "int64": pa.int64(), "int": pa.int64(),
    "int32": pa.int32(), "double": pa.float64(), "float64": pa.float64(), "float": pa.float32(),
    "float32": pa.float32(), "bool": pa.bool_(), "date": pa.date32(),
    "timestamp": pa.timestamp("us"), "timestamptz": pa.timestamp("us", "UTC"),
}  # fmt: skip
"""The names `--type COLUMN=TYPE` knows."""

_FIELD = rb'(?:"(?:[^"]++|"")*+"|(?!"))[^,\r\n]*+'
_RECORD = re.compile(rb"(?:" + _FIELD + rb",)*+" + _FIELD + rb"(?:\r\n|\n|\r)")


# -- record boundaries ------------------------------------------------------------------------


def _ends(buffer: bytes) -> NDArray[np.int64]:
    """Return the end of every record of `buffer`, which starts at a record and has quotes."""
    data = np.frombuffer(buffer, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    if not _well_formed(data, quotes):
        return np.array([m.end() for m in _RECORD.finditer(buffer)], np.int64)
    newlines = np.flatnonzero(data == _NEWLINE)
    outside = np.searchsorted(quotes, newlines) % 2 == 0
    ends: NDArray[np.int64] = newlines[outside] + 1
    return ends


def _well_formed(data: NDArray[np.uint8], quotes: NDArray[np.int64]) -> bool:
    """Whether every second quote opens a field or doubles the one before it.

    Then counting quotes tells inside from outside exactly as Arrow's state machine does;
    a stray quote in the middle of a field breaks the count and needs the slow way.
    """
    openers = quotes[::2]
    before = data[openers[openers > 0] - 1]
    return bool(np.isin(before, (_COMMA, _NEWLINE, 13, _QUOTE)).all())


def end_at(buffer: bytes, least: int) -> int:
    """Return the first record end at or after `least`, or -1.

    Example:
        >>> end_at(b'a,"x\\ny"\\nb,c\\n', 3)
        8
    """
    if _QUOTE not in buffer:
        return records.line_end_at(buffer, least)
    ends = _ends(buffer)
    found = ends[ends >= least]
    return int(found[0]) if found.size else -1


def last_end(buffer: bytes) -> int:
    """Return the end of the last whole record, or -1."""
    if _QUOTE not in buffer:
        return records.last_line_end(buffer)
    ends = _ends(buffer)
    return int(ends[-1]) if ends.size else -1


def record_starts(raw: bytes) -> list[int]:
    """Return where each record of `raw` starts, blank lines left out as the reader does."""
    matches = _RECORD.finditer(raw if raw.endswith((b"\n", b"\r")) else raw + b"\n")
    return [m.start() for m in matches if m.group().strip(b"\r\n")]


def first_record(file: BinaryIO, target: int) -> int:
    """Guess the first record that starts at or after byte `target`.

    Without a quote in the window the next line is it. With quotes, the target may lie inside a
    quoted text: both readings are tried and the one whose quotes open and close fields wins.
    A wrong guess is found when the partitions' extents are compared.
    """
    file.seek(target - 1)
    window = records.read_exactly(file, _WINDOW_BYTES)
    if _QUOTE not in window:
        return records.first_line(file, target)
    outside, inside = window, b'"' + window
    shift = 0
    if _faults(inside) < _faults(outside):
        window, shift = inside, 1
    # What precedes the first line end belongs to the record before.
    end = end_at(window, 1 + shift)
    return target - 1 + end - shift if end >= 0 else records.first_line(file, target)


def _faults(window: bytes) -> int:
    """Count quotes that neither open nor close a field, if `window` starts outside quotes."""
    data = np.frombuffer(window, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    openers, closers = quotes[::2], quotes[1::2]
    edges = (_COMMA, _NEWLINE, 13, _QUOTE)
    bad_openers = ~np.isin(data[openers[openers > 0] - 1], edges)
    bad_closers = ~np.isin(data[closers[closers < data.size - 1] + 1], edges)
    return int(bad_openers.sum() + bad_closers.sum())


# -- header and types -------------------------------------------------------------------------


def header(source: Source) -> tuple[list[str], int]:
    """Return the column names of a CSV and the offset of the first byte after its header.

    Raises:
        DataError: The file is empty, is UTF-16, or its header is unusable.
    """
    with records.opened(source.path, gzip=source.gzip) as file:
        head = records.read_exactly(file, 1 << 16)
        while head and end_at(head, 1) < 0 and len(head) < _MAX_HEADER_BYTES:
            more = records.read_exactly(file, 1 << 20)
            if not more:
                break
            head += more
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{source.path}: is UTF-16", "convert it: iconv -f utf-16 -t utf-8")
    skip = len(_BOM) if head.startswith(_BOM) else 0
    body = head[skip:]
    blank = len(body) - len(body.lstrip(b"\r\n"))
    end = end_at(body, blank + 1)
    line = body[:end] if end >= 0 else body
    if not line.strip():
        raise DataError(f"{source.path}: is empty, without even a header", "remove it")
    names = _names(line, source.path)
    return names, skip + len(line)


def _names(line: bytes, path: str) -> list[str]:
    options = pacsv.ParseOptions(newlines_in_values=True)
    try:
        table = pacsv.read_csv(pa.BufferReader(line + b"\n"), parse_options=options)
        names = [str(name) for name in table.column_names]
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise DataError(f"{path}: its header cannot be read ({error})", "is it UTF-8 CSV?") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {', '.join(twice)} is there twice", "rename one")
    return names


def look(sources: Sequence[Source], sampled: Sequence[Source], infer: str, types: dict[str, str]) -> Look:
    """Find the columns of all files and the type each keeps.

    Integers are typed so only where every text is canonical (no leading zero or plus sign, 64
    bits), doubles only up to 17 significant digits: what is typed can be written back as it was.

    Raises:
        DataError: A file's header is unusable or differs from the first file's.
        UsageError: `types` names an unknown column or type.
    """
    headers = {source.path: header(source) for source in sources}
    names, start = headers[sources[0].path]
    differ = [drift(sources[0].path, names, path, found) for path, (found, _) in headers.items()]
    raise_all([problem for problem in differ if problem])
    wanted = named_types(types, names)
    texts = _sample(sampled, names, headers, full=infer == "full")
    columns = texts.columns
    kinds = [wanted.get(n) or classify(c) for n, c in zip(names, columns, strict=True)]
    schema = pa.schema([pa.field(n, k) for n, k in zip(names, kinds, strict=True)])
    return Look(schema, _typed(texts, schema), start)


def named_types(types: dict[str, str], names: Sequence[str]) -> dict[str, pa.DataType]:
    """Return the Arrow types that `--type` asks for.

    Raises:
        UsageError: A column or a type is unknown.
    """
    problems: list[BatchserveError] = []
    for column, kind in types.items():
        if column not in names:
            near = did_you_mean(column, names) or f"columns are: {', '.join(names)}"
            problems.append(UsageError(f"--type {column}={kind}: no column {column}", near))
        if kind not in TYPES:
            near = did_you_mean(kind, TYPES) or f"types are: {', '.join(TYPES)}"
            problems.append(UsageError(f"--type {column}={kind}: no type {kind}", near))
    raise_all(problems)
    return {column: TYPES[kind] for column, kind in types.items()}


def _sample(
    sources: Sequence[Source], names: list[str], headers: dict[str, tuple[list[str], int]], *, full: bool
) -> pa.Table:
    """Read rows as text: from windows at the start, the end and evenly between, or all."""
    tables = []
    for source in sources:
        start = headers[source.path][1]
        for part in _windows(source, start, full=full):
            tables += [_texts(chunk.raw, names) for chunk in _chunks(part, most=None if full else 1)]
    empty = pa.schema([pa.field(n, pa.string()) for n in names]).empty_table()
    return pa.concat_tables([empty, *tables])


def _windows(source: Source, start: int, *, full: bool) -> Iterator[Slice]:
    base = Slice(
        path=source.path, format="csv", gzip=source.gzip, start=start, stop=OPEN_END, exact=True,
        size_bytes=source.size_bytes,
    )  # fmt: skip
    step = (source.size_bytes - start - _WINDOW_BYTES) // (_WINDOWS - 1)
    if full:
        yield base
    elif source.gzip or step <= _WINDOW_BYTES:
        yield base.model_copy(update={"stop": start + _WINDOWS * _WINDOW_BYTES})
    else:
        for i in range(_WINDOWS):
            at = start + i * step
            update = {"start": at, "stop": at + _WINDOW_BYTES, "exact": i == 0}
            yield base.model_copy(update=update)


def _chunks(part: Slice, most: int | None = None) -> Iterator[records.Chunk]:
    for item in records.chunks(part, first_record, end_at, last_end):
        if isinstance(item, records.Chunk):
            yield item
            most = most - 1 if most is not None else None
            if most == 0:
                return


def _texts(raw: bytes, names: Sequence[str]) -> pa.Table:
    """Read records as text; records that cannot be read are left for the run to reject."""
    schema = pa.schema([pa.field(name, pa.string()) for name in names])
    pieces = _pieces(raw, schema, names)
    return pa.Table.from_batches([p.batch for p in pieces if p.batch is not None], schema)


_INTEGER = r"^-?(0|[1-9][0-9]{0,18})$"
_DOUBLE = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_TIMESTAMP = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"
_MAX_DIGITS = 17


def classify(texts: pa.ChunkedArray) -> pa.DataType:
    """Return the type a column of texts keeps; text where any other would change a text.

    Example:
        >>> classify(pa.chunked_array([["1", "", "20"]])), classify(pa.chunked_array([["007"]]))
        (DataType(int64), DataType(string))
    """
    values = texts.filter(pc.invert(pc.is_in(texts, pa.array(NULL_TEXTS)))).combine_chunks()
    if len(values) == 0:
        return pa.string()
    candidates: list[tuple[str, pa.DataType]] = [
        (_INTEGER, pa.int64()), (_DOUBLE, pa.float64()), ("^(true|false)$", pa.bool_()),
        (_DATE, pa.date32()), (_TIMESTAMP + "$", pa.timestamp("us")),
        (_TIMESTAMP + "Z$", pa.timestamp("us", "UTC")),
    ]  # fmt: skip
    for pattern, kind in candidates:
        if _all(pc.match_substring_regex(values, pattern)) and _faithful(values, kind):
            return kind
    return pa.string()


def _all(flags: pa.BooleanArray) -> bool:
    return bool(pc.all(flags).as_py())


def _faithful(values: pa.StringArray, kind: pa.DataType) -> bool:
    """Whether texts of the right pattern keep their value as `kind`."""
    try:
        typed = values.cast(kind)
    except pa.ArrowInvalid:
        return False  # 2^63, 30 February
    if pa.types.is_integer(kind):
        return _all(pc.equal(typed.cast(pa.string()), values))  # "-0" is no integer
    if not pa.types.is_floating(kind):
        return True
    mantissa = pc.replace_substring_regex(values, r"[eE].*$", "")
    digits = pc.ascii_ltrim(pc.replace_substring_regex(mantissa, r"[-.]", ""), characters="0")
    short = pc.less_equal(pc.utf8_length(digits), _MAX_DIGITS)
    return _all(pc.and_(short, pc.is_finite(typed)))


def _typed(texts: pa.Table, schema: pa.Schema, most: int = 4096) -> pa.RecordBatch:
    """Give the first sampled rows their types; a text that does not fit becomes null."""
    head = texts.slice(0, most).combine_chunks()
    columns = []
    for field, column in zip(schema, head.columns, strict=True):
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        columns.append(_cast_or_null(array, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast_or_null(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        return pc.if_else(pc.equal(texts, ""), None, texts)
    texts = pc.if_else(pc.is_in(texts, pa.array(NULL_TEXTS)), None, texts)
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        return pa.nulls(len(texts), kind)


# -- ranges and rows --------------------------------------------------------------------------


def split(source: Source, found: Look, target_bytes: int) -> list[Slice]:
    """Cut a file into ranges of equal size, none over `target_bytes`; a gzip stays whole."""
    _, start = header(source)
    size = max(0, source.size_bytes - start)
    count = 1 if source.gzip else max(1, -(-size // target_bytes))
    edges = [start + size * i // count for i in range(count)]
    stops = [*edges[1:], OPEN_END]
    return [
        Slice(
            path=source.path, format="csv", gzip=source.gzip, start=a, stop=b, exact=i == 0,
            size_bytes=source.size_bytes // count,
        )
        for i, (a, b) in enumerate(zip(edges, stops, strict=True))
    ]  # fmt: skip


def read(part: Slice, reading: Reading) -> Iterator[Item]:
    """Read the records of one range as typed rows.

    Yields:
        Blocks, and in their place the records that cannot be read; at last the extent.
    """
    for item in records.chunks(part, first_record, end_at, last_end):
        if isinstance(item, Extent):
            yield item
        elif isinstance(item, records.Endless):
            place = Place(path=part.path, byte_offset=item.base)
            reason = "a quote opened in this record is never closed"
            yield BadRecord(Reject(kind="PARSE", column="", place=place, value="", reason=reason))
        else:
            yield from _blocks(item, part.path, reading)


def extent(part: Slice) -> Extent:
    """Return the exact extent of a slice whose start is exact."""
    return records.extent(part, first_record, end_at, last_end)


def _blocks(chunk: records.Chunk, path: str, reading: Reading) -> Iterator[Item]:
    for piece in _pieces(chunk.raw, reading.schema_, reading.columns):
        raw = chunk.raw[piece.start : piece.stop] if piece.stop < len(chunk.raw) or piece.start else chunk.raw
        base = chunk.base + piece.start
        if piece.batch is not None:
            yield Block(piece.batch, path, base, raw, "csv")
        else:
            yield _explained(raw, Place(path=path, byte_offset=base), reading)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some records of a chunk as rows, or one record that Arrow refused."""

    start: int
    stop: int
    batch: pa.RecordBatch | None


def _pieces(raw: bytes, schema: pa.Schema, columns: Sequence[str]) -> Iterator[_Piece]:
    """Parse whole records; where Arrow refuses, halve until only the guilty records are left."""
    try:
        yield _Piece(0, len(raw), _parse(raw, schema, columns))
        return
    except _REFUSED:
        starts = record_starts(raw) or [0]
    yield from _halved(raw, [*starts, len(raw)], schema, columns)


_REFUSED = (pa.ArrowInvalid, UnicodeDecodeError)


def _halved(raw: bytes, edges: list[int], schema: pa.Schema, columns: Sequence[str]) -> Iterator[_Piece]:
    if len(edges) == 2:  # noqa: PLR2004  one record: it is the guilty one
        yield _Piece(edges[0], edges[1], None)
        return
    middle = len(edges) // 2
    for half in (edges[: middle + 1], edges[middle:]):
        try:
            yield _Piece(half[0], half[-1], _parse(raw[half[0] : half[-1]], schema, columns))
        except _REFUSED:
            yield from _halved(raw, half, schema, columns)


def _parse(raw: bytes, schema: pa.Schema, columns: Sequence[str]) -> pa.RecordBatch:
    if not raw.strip(b"\r\n"):
        return pa.RecordBatch.from_pylist([], schema=pa.schema([schema.field(c) for c in columns]))
    table = pacsv.read_csv(
        pa.BufferReader(raw),
        read_options=pacsv.ReadOptions(
            use_threads=False, block_size=len(raw) + 1, column_names=schema.names
        ),
        parse_options=pacsv.ParseOptions(newlines_in_values=_QUOTE in raw),
        convert_options=pacsv.ConvertOptions(
            column_types=schema, include_columns=list(columns), null_values=list(NULL_TEXTS),
            strings_can_be_null=False, true_values=["true"], false_values=["false"],
        ),
    ).combine_chunks()  # fmt: skip
    arrays = [_empty_to_null(c.chunk(0)) for c in table.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=table.schema)


def _empty_to_null(column: pa.Array) -> pa.Array:
    """Make empty texts null. "NA" stays: in a text column it may be Namibia."""
    if not pa.types.is_string(column.type):
        return column
    filled = pc.not_equal(column, "")
    if _all(filled):
        return column
    _, offsets, data = column.buffers()
    return pa.StringArray.from_buffers(len(column), offsets, data, filled.buffers()[1])


def _explained(raw: bytes, place: Place, reading: Reading) -> BadRecord | TypeMisfit:
    """Say why Arrow refused one record: not a record, or a text that is not of its type."""
    schema = reading.schema_
    texts = pa.schema([pa.field(name, pa.string()) for name in schema.names])
    try:
        row = _parse(raw, texts, schema.names).to_pylist()[0]
    except (*_REFUSED, IndexError) as error:
        return _bad("PARSE", "", place, _shown(raw), _reason(error))
    for name in reading.columns:
        kind, value = schema.field(name).type, row[name]
        if value is not None and _misfit(value, kind):
            return _judged(name, kind, value, place, reading)
    return _bad("PARSE", "", place, _shown(raw), "cannot be read")


def _misfit(value: str, kind: pa.DataType) -> bool:
    texts = pa.schema([pa.field("value", kind)])
    quoted = '"' + value.replace('"', '""') + '"\n'
    try:
        _parse(quoted.encode(), texts, ["value"])
    except _REFUSED:
        return True
    return False


def _judged(
    name: str, kind: pa.DataType, value: str, place: Place, reading: Reading
) -> BadRecord | TypeMisfit:
    """Reject a text where a number is needed or the user set the type; else amend the plan."""
    if name in reading.fixed:
        return _bad("CAST", name, place, value, f"is no {kind}, the type that --type gave")
    if name in reading.numeric and number_or_none(value) is None:
        return _bad("CAST", name, place, value, "is no number")
    return TypeMisfit(column=name, place=place, value=value, becomes="text")


def _bad(kind: RejectClass, column: str, place: Place, value: str, reason: str) -> BadRecord:
    return BadRecord(Reject(kind=kind, column=column, place=place, value=value, reason=reason))


def _shown(raw: bytes) -> str:
    return raw[:RAW_CHARACTERS].decode("utf-8", "backslashreplace").rstrip("\r\n")


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, UnicodeDecodeError) or "UTF8" in text:
        return "is not UTF-8"
    found = re.search(r"Expected (\d+) columns, got (\d+)", text)
    return f"has {found[2]} fields, not {found[1]}" if found else "is no CSV record"
