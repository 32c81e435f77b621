"""What stands at the start of a CSV: how it is written, the names of its columns, its first record."""

from collections import Counter
from dataclasses import replace

import pyarrow as pa
from pyarrow import csv as pacsv

from batchserve.errors import DataError
from batchserve.inputs import Source, detection, encodings, parsing, quotes, records
from batchserve.inputs.dialect import Asked, Dialect, Found

_MAX_HEADER_BYTES = 16 << 20
_ENCODING_HINT = "say its encoding: --encoding cp1252, latin-1, utf-16, shift_jis, ..."


def dialect_of(source: Source, asked: Asked) -> Found:
    """Find how a file is written, from its first bytes.

    Raises:
        DataError: They are not of the encoding that the file should have.
    """
    if not asked.delimiter and source.delimiter:
        asked = replace(asked, delimiter=source.delimiter)
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


def read(source: Source, dialect: Dialect) -> tuple[list[str], int]:
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
    options = parsing.parse_options(dialect, newlines=True)
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
