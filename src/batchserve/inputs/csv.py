"""CSV: quotes, splits, types and rows, with Arrow's reader and Arrow's rules.

A quote opens a quoted text only at the start of a field; two quotes inside one stand for one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from batchserve.arrays import empty_to_null, without_null_texts
from batchserve.codec import number_or_none
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
    header,
    inference,
    parsing,
    quotes,
    records,
)
from batchserve.inputs.dialect import Dialect
from batchserve.inputs.schemas import Agreed, agree
from batchserve.rejects import Place

_WINDOW_BYTES = 256 << 10
_WINDOWS = 5

# -- types ------------------------------------------------------------------------------------


def look(sources: Sequence[Source], sampled: Sequence[Source], wish: Wish) -> Look:
    """Find the columns of all files and the type each keeps.

    Integers are typed so only where every text is canonical (no leading zero or plus sign, 64
    bits), doubles only up to 17 significant digits: what is typed can be written back as it was.

    Raises:
        DataError: A file's header is unusable or differs from the first file's.
        UsageError: `types` names an unknown column or type.
    """
    found = header.dialect_of(sources[0], wish.asked)
    headers = {source.path: header.read(source, found.dialect) for source in sources}
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
        yield replace(base, stop=start + _WINDOWS * _WINDOW_BYTES)
    else:
        for i in range(_WINDOWS):
            at = start + i * step
            yield replace(base, start=at, stop=at + _WINDOW_BYTES, exact=i == 0)


def _chunks(part: Slice, dialect: Dialect, most: int | None = None) -> Iterator[records.Chunk]:
    for item in records.chunks(part, quotes.of(dialect).boundaries, dialect.encoding):
        if isinstance(item, records.Chunk):
            yield item
            most = most - 1 if most is not None else None
            if most == 0:
                return


def _texts(raw: bytes, schema: pa.Schema, dialect: Dialect) -> pa.Table:
    """Read records as text; records that cannot be read are left for the run to reject."""
    rows = parsing.Rows(schema, schema.names, dialect)
    try:
        return pa.Table.from_batches([parsing.parse(raw, rows)], schema)
    except parsing.REFUSED:
        starts = record_starts(raw, dialect)
    wrong = parsing.no_records(raw, starts, rows)
    edges = zip(starts, [*starts[1:], len(raw)], strict=True)
    left = b"".join(raw[a:b] for i, (a, b) in enumerate(edges) if i not in wrong)
    pieces = parsing.pieces(left, rows)
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
    return cutting.ranges(source, header.read(source, dialect)[1], target_bytes)


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
    wrong = int((widths != len(reading.schema_)).sum())
    return len(starts) >= _FEW_RECORDS and wrong * 2 > len(starts)


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
    for piece in parsing.pieces(chunk.raw, parsing.Rows(reading.schema_, reading.columns, reading.dialect)):
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
    texts = parsing.parse(
        block.raw, parsing.Rows(inference.as_texts(reading.schema_), numbers, reading.dialect)
    )
    for name in numbers:
        column = texts.column(name)
        row = inference.first_altered(column, types[name])
        if row is not None:
            yield TypeMisfit(name, block.place(row), column[row].as_py(), becomes="text")


def _explained(raw: bytes, place: Place, reading: Reading) -> Fault | TypeMisfit:
    """Say why Arrow refused one record: not a record, or a text that is not of its type."""
    schema = reading.schema_
    try:
        texts = parsing.Rows(inference.as_texts(schema), schema.names, reading.dialect)
        row = parsing.parse(raw, texts).to_pylist()[0]
    except (*parsing.REFUSED, IndexError) as error:
        return Fault("PARSE", "", "", parsing.reason_of(error, reading.dialect))
    for name in reading.columns:
        kind, value = schema.field(name).type, row[name]
        if value is not None and _misfit(value, kind):
            return _judged(name, kind, value, place, reading)
    return Fault("PARSE", "", "", "cannot be read")


def _misfit(value: str, kind: pa.DataType) -> bool:
    rows = parsing.Rows(pa.schema([pa.field("value", kind)]), ["value"], Dialect())
    quoted = '"' + value.replace('"', '""') + '"\n'
    try:
        parsing.parse(quoted.encode(), rows)
    except parsing.REFUSED:
        return True
    return False


def _judged(name: str, kind: pa.DataType, value: str, place: Place, reading: Reading) -> Fault | TypeMisfit:
    """Reject a text where a number is needed or the user set the type; else amend the plan."""
    if name in reading.fixed:
        return Fault("CAST", name, value, f"is no {kind}, the type that --type gave")
    if name in reading.numeric and number_or_none(value) is None:
        return Fault("CAST", name, value, "is no number")
    return TypeMisfit(column=name, place=place, value=value, becomes="text")
