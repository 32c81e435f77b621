"""CSV: quotes, splits, types and rows, with Arrow's reader and Arrow's rules.

A quote opens a quoted text only at the start of a field; two quotes inside one stand for one.
"""

import bisect
import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import csv as pacsv

from batchserve.codec import NULL_TEXTS, empty_batch, empty_to_null, number_or_none, without_null_texts
from batchserve.errors import DataError
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
    detection,
    encodings,
    inference,
    quotes,
    ranges,
    records,
)
from batchserve.inputs.dialect import Asked, Dialect, Found
from batchserve.inputs.schemas import Agreed, agree
from batchserve.rejects import Place

_BLANK = (b"", b"\r", b"\n")
_MAX_HEADER_BYTES = 16 << 20
_WINDOW_BYTES = 256 << 10
_WINDOWS = 5
_ENCODING_HINT = "say its encoding: --encoding cp1252, latin-1, utf-16, shift_jis, ..."

# -- dialect ----------------------------------------------------------------------------------


def dialect_of(source: Source, asked: Asked) -> Found:
    """Find how a file is written, from its first bytes.

    Raises:
        DataError: They are not of the encoding that the file should have.
    """
    if not asked.delimiter and source.delimiter:
        asked = asked.model_copy(update={"delimiter": source.delimiter})
    encoding = asked.encoding or encodings.marked(_head(source, encodings.UTF_8, 4)) or encodings.UTF_8
    head = _head(source, encoding, detection.HEAD_BYTES)
    _check_encoding(source.path, head, encoding)
    return detection.find(head, encoding, asked)


def _head(source: Source, encoding: str, size: int) -> bytes:
    with records.opened(source.path, codec=source.codec) as stored:
        return records.read_exactly(encodings.as_utf8(stored, encoding), size)


def _check_encoding(path: str, head: bytes, encoding: str) -> None:
    """Refuse a file whose first lines are mostly not what they should be; a few are rejects."""
    if head.count(b"\0") > len(head) // 4:
        message = f"{path}: looks like UTF-16 or UTF-32 without a mark that says so"
        raise DataError(message, "say which: --encoding utf-16-le, utf-16-be, utf-32-le or utf-32-be")
    name = encodings.UTF_8 if encodings.is_streamed(encoding) else encoding
    lines = head.splitlines()
    lines = lines if len(head) < detection.HEAD_BYTES else lines[:-1]  # the last one may be cut
    bad = [line for line in lines if not _is_text(line, name)]
    if len(bad) * 2 > len(lines):
        raise DataError(f"{path}: is not {encodings.shown(encoding)}", _ENCODING_HINT)


def _is_text(line: bytes, name: str) -> bool:
    try:
        line.decode(name)
    except UnicodeDecodeError:
        return False
    return True


# -- header and types -------------------------------------------------------------------------


def header(source: Source, dialect: Dialect) -> tuple[list[str], int]:
    """Return the column names of a CSV and the offset of its first record.

    Raises:
        DataError: The file is empty, or its header is unusable.
    """
    with records.opened(source.path, codec=source.codec) as stored:
        file = encodings.as_utf8(stored, dialect.encoding)
        head = records.read_exactly(file, 1 << 16)
        while (span := _first_record(head, dialect)) is None:
            more = records.read_exactly(file, 1 << 20)
            if not more or len(head) > _MAX_HEADER_BYTES:
                span = _first_record(head, dialect, at_end=True) or (0, 0)
                break
            head += more
    start, stop = span
    line = head[start:stop]
    if not line.strip():
        raise DataError(f"{source.path}: is empty, without even a header", "remove it")
    if len(quotes.of(dialect).starts(line)) > 1:
        message = f"{source.path}: its first line holds line ends of another kind than {dialect.line_end}"
        raise DataError(message, "write it with one kind of line end")
    names = _names(line, source.path, dialect)
    return names, stop if dialect.header else start


def _first_record(head: bytes, dialect: Dialect, *, at_end: bool = False) -> tuple[int, int] | None:
    """Return where the first record starts and ends, or None if more has to be read."""
    body = head.removeprefix(encodings.BOM)
    start = len(head) - len(body) + detection.lines_end(body, dialect.skip_lines)
    start += len(head[start:]) - len(head[start:].lstrip(b"\r\n"))
    end = quotes.of(dialect).end_at(head[start:], 1)
    if end < 0:
        return (start, len(head)) if at_end else None
    return start, start + end


def _names(line: bytes, path: str, dialect: Dialect) -> list[str]:
    options = _parse_options(dialect, newlines=True)
    try:
        text = dialect.as_utf8(line)
        table = pacsv.read_csv(pa.BufferReader(text + b"\n"), parse_options=options)
        names = [str(name) for name in table.column_names]
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError):
            message = f"{path}: its header is not {encodings.shown(dialect.encoding)}"
            raise DataError(message, _ENCODING_HINT) from error
        raise DataError(f"{path}: its header cannot be read ({error})", f"is it {dialect}?") from error
    if not dialect.header:
        return [f"column_{i + 1}" for i in range(len(names))]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        hint = "rename one, or say --header no if it is a row"
        raise DataError(f"{path}: column {', '.join(twice)} is there twice", hint)
    return names


def _parse_options(dialect: Dialect, *, newlines: bool) -> pacsv.ParseOptions:
    return pacsv.ParseOptions(
        delimiter=dialect.delimiter, quote_char=dialect.quote or False, escape_char=dialect.escape or False,
        newlines_in_values=newlines,
    )  # fmt: skip


def look(sources: Sequence[Source], sampled: Sequence[Source], wish: Wish) -> Look:
    """Find the columns of all files and the type each keeps.

    Integers are typed so only where every text is canonical (no leading zero or plus sign, 64
    bits), doubles only up to 17 significant digits: what is typed can be written back as it was.

    Raises:
        DataError: A file's header is unusable or differs from the first file's.
        UsageError: `types` names an unknown column or type.
    """
    found = dialect_of(sources[0], wish.asked)
    headers = {source.path: header(source, found.dialect) for source in sources}
    plain = {path: pa.schema([(n, pa.string()) for n in names]) for path, (names, _) in headers.items()}
    agreed = agree(plain, widen=wish.widen)
    names = agreed.schema.names
    wanted = inference.named_types(wish.types, wish.hints, names)
    texts = _sample(sampled, found.dialect, agreed, headers, full=wish.infer == "full")
    columns = texts.columns
    kinds = [wanted.get(n) or inference.classify(c) for n, c in zip(names, columns, strict=True)]
    schema = pa.schema([pa.field(n, k) for n, k in zip(names, kinds, strict=True)])
    unsaid = [name for name in names if name not in wanted and pa.types.is_string(schema.field(name).type)]
    numbers = {name: kind for name in unsaid if (kind := inference.number_type(texts.column(name)))}
    return Look(schema, _typed(texts, schema), found, agreed.layouts, agreed.drift, numbers)


def _sample(
    sources: Sequence[Source], dialect: Dialect, agreed: Agreed,
    headers: dict[str, tuple[list[str], int]], *, full: bool,
) -> pa.Table:  # fmt: skip
    """Read rows as text: from windows at the start, the end and evenly between, or all."""
    tables = [pa.Table.from_batches([], agreed.schema)]
    for source in sources:
        layout = agreed.layouts.get(source.path)
        names = [name for _, name in layout] if layout else agreed.schema.names
        start = headers[source.path][1]
        schema = pa.schema([pa.field(name, pa.string()) for name in names])
        for part in _windows(source, start, dialect, full=full):
            chunks = _chunks(part, dialect, most=None if full else 1)
            tables += [_texts(chunk.raw, schema, dialect) for chunk in chunks]
    return pa.concat_tables(tables, promote_options="default")


def _windows(source: Source, start: int, dialect: Dialect, *, full: bool) -> Iterator[Slice]:
    base = Slice(
        path=source.path, format="csv", codec=source.codec, start=start, stop=OPEN_END, exact=True,
        size_bytes=source.size_bytes,
    )  # fmt: skip
    step = (source.size_bytes - start - _WINDOW_BYTES) // (_WINDOWS - 1)
    if full:
        yield base
    elif source.codec or dialect.streamed or step <= _WINDOW_BYTES:
        yield base.model_copy(update={"stop": start + _WINDOWS * _WINDOW_BYTES})
    else:
        for i in range(_WINDOWS):
            at = start + i * step
            update = {"start": at, "stop": at + _WINDOW_BYTES, "exact": i == 0}
            yield base.model_copy(update=update)


def _chunks(part: Slice, dialect: Dialect, most: int | None = None) -> Iterator[records.Chunk]:
    for item in records.chunks(part, quotes.of(dialect).boundaries, dialect.encoding):
        if isinstance(item, records.Chunk):
            yield item
            most = most - 1 if most is not None else None
            if most == 0:
                return


def _texts(raw: bytes, schema: pa.Schema, dialect: Dialect) -> pa.Table:
    """Read records as text; records that cannot be read are left for the run to reject."""
    rows = _Rows(schema, schema.names, dialect)
    try:
        return pa.Table.from_batches([_parse(raw, rows)], schema)
    except _REFUSED:
        starts = record_starts(raw, dialect)
    wrong = _no_records(raw, starts, rows)
    edges = zip(starts, [*starts[1:], len(raw)], strict=True)
    left = b"".join(raw[a:b] for i, (a, b) in enumerate(edges) if i not in wrong)
    pieces = _pieces(left, rows)
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


def split(source: Source, target_bytes: int, dialect: Dialect) -> list[Slice]:
    """Cut a file into ranges of equal size, none over `target_bytes`."""
    return ranges(source, header(source, dialect)[1], target_bytes)


def read(part: Slice, reading: Reading) -> Iterator[Item]:
    """Read the records of one range as typed rows.

    Yields:
        Blocks, and in their place the records that cannot be read; at last the extent.
    """
    dialect = reading.dialect
    doubtful = not part.exact
    for item in records.chunks(part, quotes.of(dialect).boundaries, dialect.encoding):
        if isinstance(item, Extent):
            yield item
        elif doubtful and isinstance(item, records.Chunk) and _is_nonsense(item.raw, reading):
            yield Extent(_NOWHERE, _NOWHERE)
            return
        elif isinstance(item, records.Endless):
            yield _endless(item, part.path, reading.dialect)
        else:
            yield from _blocks(item, part.path, reading)
        doubtful = False


_NOWHERE = -1
"""A start that is no record's: whoever compares has the slice read again from where it does start."""
_LOOKED_AT_BYTES = 64 << 10
_FEW_RECORDS = 20


def _is_nonsense(raw: bytes, reading: Reading) -> bool:
    """Whether most of the first records are none: the start was guessed, and inside a quoted text.

    Reading on would only make rejects, by the hundred thousand, that nobody believes.
    """
    found = quotes.of(reading.dialect)
    head = raw[: max(0, found.last_end(raw[:_LOOKED_AT_BYTES]))]
    starts = found.starts(head)
    widths = found.widths(head, starts)
    if widths is None or len(starts) < _FEW_RECORDS:
        return False
    return int((widths != len(reading.schema_)).sum()) * 2 > len(starts)


def _endless(record: records.Endless, path: str, dialect: Dialect) -> Item:
    """Say that a record does not end: whatever follows it cannot be told from it."""
    if record.size_bytes > records.MAX_RECORD_BYTES:
        reason = f"is longer than {records.MAX_RECORD_BYTES >> 20} MiB: is a quote in it never closed?"
    else:
        rest = f"the {record.size_bytes:,} bytes to the end of the file are one record"
        reason = f"a quote opened in this record is never closed: {rest}"
    place = Place(path=path, byte_offset=record.base)
    return bad_record(Fault("PARSE", "", "", reason), place, record.raw, dialect)


def boundaries(dialect: Dialect) -> records.Boundaries:
    """Return how records are told apart."""
    return quotes.of(dialect).boundaries


def counter(dialect: Dialect) -> Callable[[bytes], int]:
    """Return what counts the records of a text of whole records."""
    return quotes.of(dialect).count


def record_starts(raw: bytes, dialect: Dialect) -> list[int]:
    """Return where each record of `raw` starts, blank lines left out as the reader does."""
    return quotes.of(dialect).starts(raw)


def _blocks(chunk: records.Chunk, path: str, reading: Reading) -> Iterator[Item]:
    for piece in _pieces(chunk.raw, _Rows(reading.schema_, reading.columns, reading.dialect)):
        raw = chunk.raw[piece.start : piece.stop] if piece.stop < len(chunk.raw) or piece.start else chunk.raw
        base = chunk.base + piece.start
        if piece.batch is not None:
            block = Block(piece.batch, path, base, raw, "csv", reading.dialect)
            yield from _altered(block, reading)
            yield block
        elif piece.reason:
            place = Place(path=path, byte_offset=base)
            yield bad_record(Fault("PARSE", "", "", piece.reason), place, raw, reading.dialect)
        else:
            place = Place(path=path, byte_offset=base)
            found = _explained(raw, place, reading)
            yield bad_record(found, place, raw, reading.dialect) if isinstance(found, Fault) else found


def _altered(block: Block, reading: Reading) -> Iterator[TypeMisfit]:
    """Find numbers that would not be written back as they were: 007, +5, 18 digits, 1e400.

    Arrow reads them without a word. Only where the raw text has something like them are the
    number columns read once more, as text.
    """
    types = {n: reading.schema_.field(n).type for n in reading.columns if n not in reading.fixed}
    doubles = [n for n, kind in types.items() if pa.types.is_floating(kind)]
    numbers = doubles + [n for n, kind in types.items() if pa.types.is_integer(kind)]
    if (
        not numbers
        or block.raw is None
        or not inference.may_alter(block.raw, reading.dialect, doubles=bool(doubles))
    ):
        return
    texts = _parse(block.raw, _Rows(inference.as_texts(reading.schema_), numbers, reading.dialect))
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
    reason: str = ""
    """Why it was refused, where that is known."""


@dataclass(frozen=True)
class _Rows:
    """What to make of records: the columns of the file, those wanted, and how they are written."""

    schema: pa.Schema
    columns: Sequence[str]
    dialect: Dialect


def _pieces(raw: bytes, rows: _Rows) -> Iterator[_Piece]:
    """Parse whole records; where Arrow refuses, leave out those that are no records at all.

    What is refused still is halved until only the guilty records are left.
    """
    try:
        whole = _parse(raw, rows)
    except _REFUSED:
        yield from _refused(raw, rows)
    else:
        yield _Piece(0, len(raw), whole)


def _refused(raw: bytes, rows: _Rows) -> Iterator[_Piece]:
    starts = record_starts(raw, rows.dialect) or [0]
    edges = [*starts, len(raw)]
    after = 0
    for i, reason in sorted(_no_records(raw, starts, rows).items()):
        if i > after:
            yield from _halved(raw, edges[after : i + 1], rows)
        yield _Piece(edges[i], edges[i + 1], None, reason)
        after = i + 1
    if after < len(starts):
        yield from _halved(raw, edges[after:], rows)


def _no_records(raw: bytes, starts: Sequence[int], rows: _Rows) -> dict[int, str]:
    """Return the records that are none whatever the types of the columns are, with the reasons.

    All at once, as a partition that began inside a quoted text may have nothing else.
    """
    wanted, dialect = len(rows.schema), rows.dialect
    widths = quotes.of(dialect).widths(raw, starts)
    ragged = np.flatnonzero(widths != wanted).tolist() if widths is not None else []
    found = {i: _wrong_width(int(widths[i]), wanted) for i in ragged} if widths is not None else {}
    reason = f"is not {encodings.shown(dialect.encoding)}"
    return found | dict.fromkeys(_undecodable(raw, starts, dialect), reason)


def _undecodable(raw: bytes, starts: Sequence[int], dialect: Dialect) -> Iterator[int]:
    """Give the records with a byte that is no character."""
    name = encodings.UTF_8 if dialect.streamed else dialect.encoding
    decode, view, at = codecs.lookup(name).decode, memoryview(raw), 0
    while at < len(raw):
        try:
            decode(view[at:])
        except UnicodeDecodeError as error:
            i = bisect.bisect_right(starts, at + error.start) - 1
            yield i
            at = starts[i + 1] if i + 1 < len(starts) else len(raw)
        else:
            return


_REFUSED = (pa.ArrowInvalid, UnicodeDecodeError)


def _halved(raw: bytes, edges: list[int], rows: _Rows) -> Iterator[_Piece]:
    """Parse records; where Arrow refuses, halve them."""
    start, stop = edges[0], edges[-1]
    try:
        batch = _parse(raw[start:stop], rows)
    except _REFUSED:
        batch = None
    if batch is not None or len(edges) == 2:  # noqa: PLR2004  one record: it is the guilty one
        yield _Piece(start, stop, batch)
        return
    middle = len(edges) // 2
    yield from _halved(raw, edges[: middle + 1], rows)
    yield from _halved(raw, edges[middle:], rows)


def _parse(raw: bytes, rows: _Rows) -> pa.RecordBatch:
    if raw[:1] in _BLANK and not raw.strip(b"\r\n"):
        return empty_batch(pa.schema([rows.schema.field(c) for c in rows.columns]))
    dialect = rows.dialect
    text = dialect.as_utf8(raw)
    newlines = bool(dialect.escape or (dialect.quote and dialect.quote.encode() in text))
    table = pacsv.read_csv(
        pa.BufferReader(text),
        read_options=pacsv.ReadOptions(
            use_threads=False, block_size=len(text) + 1, column_names=rows.schema.names
        ),
        parse_options=_parse_options(dialect, newlines=newlines),
        convert_options=pacsv.ConvertOptions(
            column_types=rows.schema, include_columns=list(rows.columns), null_values=list(NULL_TEXTS),
            strings_can_be_null=False, true_values=["true"], false_values=["false"],
        ),
    ).combine_chunks()  # fmt: skip
    # Empty texts are null. "NA" is not: in a text column it may be Namibia.
    chunks = [column.chunk(0) for column in table.columns]
    arrays = [empty_to_null(c) if pa.types.is_string(c.type) else c for c in chunks]
    return pa.RecordBatch.from_arrays(arrays, schema=table.schema)


def text_fields(record: str, names: Sequence[str], dialect: Dialect) -> list[str] | None:
    """Return the fields of one record as texts, nulls as empty ones; None if it is none of these columns."""
    schema = pa.schema([pa.field(name, pa.string()) for name in names])
    plain = dialect.model_copy(update={"encoding": encodings.UTF_8})
    try:
        rows = _parse(record.encode(), _Rows(schema, names, plain)).to_pylist()
    except _REFUSED:
        return None
    return [text or "" for text in rows[0].values()] if len(rows) == 1 else None


def _explained(raw: bytes, place: Place, reading: Reading) -> Fault | TypeMisfit:
    """Say why Arrow refused one record: not a record, or a text that is not of its type."""
    schema = reading.schema_
    try:
        texts = _Rows(inference.as_texts(schema), schema.names, reading.dialect)
        row = _parse(raw, texts).to_pylist()[0]
    except (*_REFUSED, IndexError) as error:
        return Fault("PARSE", "", "", _reason(error, reading.dialect))
    for name in reading.columns:
        kind, value = schema.field(name).type, row[name]
        if value is not None and _misfit(value, kind):
            return _judged(name, kind, value, place, reading)
    return Fault("PARSE", "", "", "cannot be read")


def _misfit(value: str, kind: pa.DataType) -> bool:
    rows = _Rows(pa.schema([pa.field("value", kind)]), ["value"], Dialect())
    quoted = '"' + value.replace('"', '""') + '"\n'
    try:
        _parse(quoted.encode(), rows)
    except _REFUSED:
        return True
    return False


def _judged(name: str, kind: pa.DataType, value: str, place: Place, reading: Reading) -> Fault | TypeMisfit:
    """Reject a text where a number is needed or the user set the type; else amend the plan."""
    if name in reading.fixed:
        return Fault("CAST", name, value, f"is no {kind}, the type that --type gave")
    if name in reading.numeric and number_or_none(value) is None:
        return Fault("CAST", name, value, "is no number")
    return TypeMisfit(column=name, place=place, value=value, becomes="text")


def _reason(error: Exception, dialect: Dialect) -> str:
    text = str(error)
    if isinstance(error, UnicodeDecodeError) or "UTF8" in text:
        return f"is not {encodings.shown(dialect.encoding)}"
    found = re.search(r"Expected (\d+) columns, got (\d+)", text)
    return _wrong_width(int(found[2]), int(found[1])) if found else "is no CSV record"


def _wrong_width(width: int, wanted: int) -> str:
    return f"has {width} field{'s' * (width != 1)}, not {wanted}"
