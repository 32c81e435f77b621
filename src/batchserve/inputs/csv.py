"""CSV: quotes, splits, types and rows, with Arrow's reader and Arrow's rules.

A quote opens a quoted text only at the start of a field; two quotes inside one stand for one.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import csv as pacsv

from batchserve.codec import NULL_TEXTS, empty_batch, empty_to_null, number_or_none, without_null_texts
from batchserve.errors import DataError
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
    Wish,
    inference,
    quotes,
    records,
)
from batchserve.inputs.schemas import Agreed, agree
from batchserve.rejects import RAW_CHARACTERS, Place, Reject, RejectClass

_QUOTE = b'"'
_BLANK = (b"", b"\r", b"\n")
_BOM = b"\xef\xbb\xbf"
_MAX_HEADER_BYTES = 16 << 20
_WINDOW_BYTES = 256 << 10
_WINDOWS = 5

# -- header and types -------------------------------------------------------------------------


def header(source: Source) -> tuple[list[str], int]:
    """Return the column names of a CSV and the offset of the first byte after its header.

    Raises:
        DataError: The file is empty, is UTF-16, or its header is unusable.
    """
    with records.opened(source.path, codec=source.codec) as file:
        head = records.read_exactly(file, 1 << 16)
        while head and quotes.end_at(head, 1) < 0 and len(head) < _MAX_HEADER_BYTES:
            more = records.read_exactly(file, 1 << 20)
            if not more:
                break
            head += more
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{source.path}: is UTF-16", "convert it: iconv -f utf-16 -t utf-8")
    skip = len(_BOM) if head.startswith(_BOM) else 0
    body = head[skip:]
    blank = len(body) - len(body.lstrip(b"\r\n"))
    end = quotes.end_at(body, blank + 1)
    line = body[:end] if end >= 0 else body
    if end < 0 and b"\r" in line.strip():
        message = f"{source.path}: its lines end in bare carriage returns"
        raise DataError(message, "convert it: tr '\\r' '\\n'")
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


def look(sources: Sequence[Source], sampled: Sequence[Source], wish: Wish) -> Look:
    """Find the columns of all files and the type each keeps.

    Integers are typed so only where every text is canonical (no leading zero or plus sign, 64
    bits), doubles only up to 17 significant digits: what is typed can be written back as it was.

    Raises:
        DataError: A file's header is unusable or differs from the first file's.
        UsageError: `types` names an unknown column or type.
    """
    headers = {source.path: header(source) for source in sources}
    plain = {path: pa.schema([(n, pa.string()) for n in names]) for path, (names, _) in headers.items()}
    agreed = agree(plain, widen=wish.widen)
    names = agreed.schema.names
    wanted = inference.named_types(wish.types, wish.hints, names)
    texts = _sample(sampled, agreed, headers, full=wish.infer == "full")
    columns = texts.columns
    kinds = [wanted.get(n) or inference.classify(c) for n, c in zip(names, columns, strict=True)]
    schema = pa.schema([pa.field(n, k) for n, k in zip(names, kinds, strict=True)])
    return Look(schema, _typed(texts, schema), agreed.layouts, agreed.drift)


def _sample(
    sources: Sequence[Source], agreed: Agreed, headers: dict[str, tuple[list[str], int]], *, full: bool
) -> pa.Table:
    """Read rows as text: from windows at the start, the end and evenly between, or all."""
    tables = [pa.Table.from_batches([], agreed.schema)]
    for source in sources:
        layout = agreed.layouts.get(source.path)
        names = [name for _, name in layout] if layout else agreed.schema.names
        start = headers[source.path][1]
        for part in _windows(source, start, full=full):
            tables += [_texts(chunk.raw, names) for chunk in _chunks(part, most=None if full else 1)]
    return pa.concat_tables(tables, promote_options="default")


def _windows(source: Source, start: int, *, full: bool) -> Iterator[Slice]:
    base = Slice(
        path=source.path, format="csv", codec=source.codec, start=start, stop=OPEN_END, exact=True,
        size_bytes=source.size_bytes,
    )  # fmt: skip
    step = (source.size_bytes - start - _WINDOW_BYTES) // (_WINDOWS - 1)
    if full:
        yield base
    elif source.codec or step <= _WINDOW_BYTES:
        yield base.model_copy(update={"stop": start + _WINDOWS * _WINDOW_BYTES})
    else:
        for i in range(_WINDOWS):
            at = start + i * step
            update = {"start": at, "stop": at + _WINDOW_BYTES, "exact": i == 0}
            yield base.model_copy(update=update)


def _chunks(part: Slice, most: int | None = None) -> Iterator[records.Chunk]:
    for item in records.chunks(part, quotes.BOUNDARIES):
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
        return empty_to_null(texts)
    texts = without_null_texts(texts)
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        return pa.nulls(len(texts), kind)


# -- ranges and rows --------------------------------------------------------------------------


def split(source: Source, target_bytes: int) -> list[Slice]:
    """Cut a file into ranges of equal size, none over `target_bytes`; a packed one stays whole."""
    _, start = header(source)
    size = max(0, source.size_bytes - start)
    count = 1 if source.codec else max(1, -(-size // target_bytes))
    edges = [start + size * i // count for i in range(count)]
    stops = [*edges[1:], OPEN_END]
    return [
        Slice(
            path=source.path, format="csv", codec=source.codec, start=a, stop=b, exact=i == 0,
            size_bytes=source.size_bytes // count,
        )
        for i, (a, b) in enumerate(zip(edges, stops, strict=True))
    ]  # fmt: skip


def read(part: Slice, reading: Reading) -> Iterator[Item]:
    """Read the records of one range as typed rows.

    Yields:
        Blocks, and in their place the records that cannot be read; at last the extent.
    """
    for item in records.chunks(part, quotes.BOUNDARIES):
        if isinstance(item, Extent):
            yield item
        elif isinstance(item, records.Endless):
            place = Place(path=part.path, byte_offset=item.base)
            reason = "a quote opened in this record is never closed"
            yield BadRecord(Reject(kind="PARSE", column="", place=place, value="", reason=reason))
        else:
            yield from _blocks(item, part.path, reading)


def count(part: Slice) -> tuple[int, int]:
    """Return where a slice whose start is exact stops, and how many records it has."""
    return records.count(part, quotes.BOUNDARIES, quotes.count)


def record_starts(raw: bytes) -> list[int]:
    """Return where each record of `raw` starts, blank lines left out as the reader does."""
    return quotes.record_starts(raw)


def _blocks(chunk: records.Chunk, path: str, reading: Reading) -> Iterator[Item]:
    for piece in _pieces(chunk.raw, reading.schema_, reading.columns):
        raw = chunk.raw[piece.start : piece.stop] if piece.stop < len(chunk.raw) or piece.start else chunk.raw
        base = chunk.base + piece.start
        if piece.batch is not None:
            block = Block(piece.batch, path, base, raw, "csv")
            yield from _altered(block, reading)
            yield block
        else:
            yield _explained(raw, Place(path=path, byte_offset=base), reading)


def _altered(block: Block, reading: Reading) -> Iterator[TypeMisfit]:
    """Find numbers that would not be written back as they were: 007, +5, 18 digits, 1e400.

    Arrow reads them without a word. Only where the raw text has something like them are the
    number columns read once more, as text.
    """
    types = {n: reading.schema_.field(n).type for n in reading.columns if n not in reading.fixed}
    doubles = [n for n, kind in types.items() if pa.types.is_floating(kind)]
    numbers = doubles + [n for n, kind in types.items() if pa.types.is_integer(kind)]
    if not numbers or block.raw is None or not inference.may_alter(block.raw, doubles=bool(doubles)):
        return
    texts = _parse(block.raw, inference.as_texts(reading.schema_), numbers)
    for name in numbers:
        column = texts.column(name)
        row = inference.first_altered(column, types[name])
        if row is not None:
            yield TypeMisfit(name, block.place(row), column[row].as_py(), becomes="text")


@dataclass(frozen=True)
class _Piece:
    """Some records of a chunk as rows, or one record that Arrow refused."""

    start: int
    stop: int
    batch: pa.RecordBatch | None


def _pieces(raw: bytes, schema: pa.Schema, columns: Sequence[str]) -> Iterator[_Piece]:
    """Parse whole records; where Arrow refuses, halve until only the guilty records are left."""
    try:
        whole = _parse(raw, schema, columns)
    except _REFUSED:
        edges = [*(record_starts(raw) or [0]), len(raw)]
        yield from _halved(raw, edges, schema, columns)
    else:
        yield _Piece(0, len(raw), whole)


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
    if raw[:1] in _BLANK and not raw.strip(b"\r\n"):
        return empty_batch(pa.schema([schema.field(c) for c in columns]))
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
    # Empty texts are null. "NA" is not: in a text column it may be Namibia.
    chunks = [column.chunk(0) for column in table.columns]
    arrays = [empty_to_null(c) if pa.types.is_string(c.type) else c for c in chunks]
    return pa.RecordBatch.from_arrays(arrays, schema=table.schema)


def _explained(raw: bytes, place: Place, reading: Reading) -> BadRecord | TypeMisfit:
    """Say why Arrow refused one record: not a record, or a text that is not of its type."""
    schema = reading.schema_
    try:
        row = _parse(raw, inference.as_texts(schema), schema.names).to_pylist()[0]
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
