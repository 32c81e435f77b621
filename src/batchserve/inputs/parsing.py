"""CSV records to typed rows, by Arrow's reader; and which records it is that it refuses."""

import bisect
import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import csv as pacsv

from batchserve.arrays import NULL_TEXTS, empty_batch, empty_to_null
from batchserve.inputs import encodings, quotes
from batchserve.inputs.dialect import Dialect

_BLANK = (b"", b"\r", b"\n")
REFUSED = (pa.ArrowInvalid, UnicodeDecodeError)
"""What Arrow raises where a text is no record, or not of its type."""


@dataclass(frozen=True)
class Piece:
    """Some records of a chunk as rows, or one record that Arrow refused."""

    start: int
    stop: int
    batch: pa.RecordBatch | None
    reason: str = ""
    """Why it was refused, where that is known."""


@dataclass(frozen=True)
class Rows:
    """What to make of records: the columns of the file, those wanted, and how they are written."""

    schema: pa.Schema
    columns: Sequence[str]
    dialect: Dialect


def pieces(raw: bytes, rows: Rows) -> Iterator[Piece]:
    """Parse whole records; where Arrow refuses, leave out those that are no records at all.

    What is refused still is halved until only the guilty records are left.
    """
    try:
        whole = parse(raw, rows)
    except REFUSED:
        yield from _refused(raw, rows)
    else:
        yield Piece(0, len(raw), whole)


def _refused(raw: bytes, rows: Rows) -> Iterator[Piece]:
    starts = quotes.of(rows.dialect).starts(raw) or [0]
    edges = [*starts, len(raw)]
    after = 0
    for i, reason in sorted(no_records(raw, starts, rows).items()):
        if i > after:
            yield from _halved(raw, edges[after : i + 1], rows)
        yield Piece(edges[i], edges[i + 1], None, reason)
        after = i + 1
    if after < len(starts):
        yield from _halved(raw, edges[after:], rows)


def no_records(raw: bytes, starts: Sequence[int], rows: Rows) -> dict[int, str]:
    """Return the records that are none whatever the types of the columns are, with the reasons.

    All at once, as a partition that began inside a quoted text may have nothing else.
    """
    wanted, dialect = len(rows.schema), rows.dialect
    widths = quotes.of(dialect).widths(raw, starts)
    ragged = np.flatnonzero(widths != wanted).tolist()
    found = {i: _wrong_width(int(widths[i]), wanted) for i in ragged}
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


def _halved(raw: bytes, edges: list[int], rows: Rows) -> Iterator[Piece]:
    """Parse records; where Arrow refuses, halve them."""
    start, stop = edges[0], edges[-1]
    try:
        batch = parse(raw[start:stop], rows)
    except REFUSED:
        batch = None
    if batch is not None or len(edges) == 2:  # noqa: PLR2004  one record: it is the guilty one
        yield Piece(start, stop, batch)
        return
    middle = len(edges) // 2
    yield from _halved(raw, edges[: middle + 1], rows)
    yield from _halved(raw, edges[middle:], rows)


def parse(raw: bytes, rows: Rows) -> pa.RecordBatch:
    """Read whole records as typed rows of the columns that are wanted.

    Raises:
        ArrowInvalid, UnicodeDecodeError: Some text is no record, or not of its type.
    """
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
        parse_options=parse_options(dialect, newlines=newlines),
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
        rows = parse(record.encode(), Rows(schema, names, plain)).to_pylist()
    except REFUSED:
        return None
    return [text or "" for text in rows[0].values()] if len(rows) == 1 else None


def parse_options(dialect: Dialect, *, newlines: bool) -> pacsv.ParseOptions:
    """Say in Arrow's words how records are written."""
    return pacsv.ParseOptions(
        delimiter=dialect.delimiter, quote_char=dialect.quote or False, escape_char=dialect.escape or False,
        newlines_in_values=newlines,
    )  # fmt: skip


def reason_of(error: Exception, dialect: Dialect) -> str:
    """Say in our words why Arrow refused one record."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError) or "UTF8" in text:
        return f"is not {encodings.shown(dialect.encoding)}"
    found = re.search(r"Expected (\d+) columns, got (\d+)", text)
    return _wrong_width(int(found[2]), int(found[1])) if found else "is no CSV record"


def _wrong_width(width: int, wanted: int) -> str:
    return f"has {width} field{'s' * (width != 1)}, not {wanted}"
