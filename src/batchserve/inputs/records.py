"""Text files as byte ranges cut at record boundaries; what CSV and JSONL share.

A range need not start at a record: the reader looks for the first one, reads to the first
record that starts at or after the range's stop, and reports both offsets exactly.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from batchserve.errors import DataError
from batchserve.inputs import OPEN_END, Extent, Slice
from batchserve.inputs.dialect import COMMON, Dialect
from batchserve.inputs.encodings import UTF_8, as_utf8
from batchserve.storage import transient_reading, translated

BLOCK_BYTES = 4 << 20
MAX_RECORD_BYTES = 128 << 20
"""A record longer than this is taken for an unclosed quote."""

_SHOWN_BYTES = 4096


@dataclass(frozen=True)
class Boundaries:
    """How a format's records are told apart."""

    first: Callable[[BinaryIO, int], int]
    """(file, target) -> the start of the first record at or after byte `target`; may be a guess."""
    end_at: Callable[[bytes, int], int]
    """(text that starts at a record, least) -> the first record end at or after `least`, or -1."""
    last_end: Callable[[bytes], int]
    """text that starts at a record -> the end of the last whole record, or -1."""
    terminator: bytes = b"\n"
    """The last byte of a record."""


@dataclass(frozen=True)
class Chunk:
    """Whole records of a text file."""

    base: int
    """Byte offset of `raw` in the file."""
    raw: bytes


@dataclass(frozen=True)
class Endless:
    """A record that does not end."""

    base: int
    """Byte offset of its start."""
    raw: bytes
    """Its first bytes."""
    size_bytes: int
    """How much of it was read."""


@contextmanager
def opened(path: str, *, gzip: bool) -> Iterator[BinaryIO]:
    """Open a text file, unpacking gzip.

    Raises:
        DataError: The gzip stream is damaged or cut off.
        TransientError: It cannot be read just now.
    """
    with transient_reading(path), translated(path):
        if not gzip:
            with Path(path).open("rb", buffering=0) as file:
                yield cast("BinaryIO", file)
            return
        from isal import igzip, igzip_lib

        try:
            with igzip.open(path, "rb") as unpacked:
                yield cast("BinaryIO", unpacked)
        except (EOFError, zlib.error, igzip_lib.IsalError, igzip.BadGzipFile) as error:  # type: ignore[misc]  # isal types a class as an instance
            message = f"{path}: the gzip stream is damaged or cut off ({error})"
            raise DataError(message, "fetch or pack the file again") from error


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, fewer only at the end of the file."""
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def chunks(part: Slice, boundaries: Boundaries, encoding: str = UTF_8) -> Iterator[Chunk | Endless | Extent]:
    """Cut a slice into chunks of whole records, then give its extent.

    Offsets and texts are those of the unpacked file, or of its UTF-8 text if its encoding
    has to be decoded as a stream.
    """
    with opened(part.path, gzip=part.gzip) as stored:
        file = as_utf8(stored, encoding)
        start = part.start if part.exact else boundaries.first(file, part.start)
        if start >= part.stop:
            yield Extent(start, start)
            return
        file.seek(start)
        base, carry, state = start, b"", _MORE
        while state == _MORE:
            # Blocks grow with a record that does not end, so that it is not searched too often.
            block = read_exactly(file, max(BLOCK_BYTES, len(carry)))
            buffer = carry + block if carry else block
            stop, state = _cut(buffer, part.stop - base, boundaries, at_end=not block)
            if stop:
                yield Chunk(base, buffer[:stop] if stop < len(buffer) else buffer)
            base, carry = base + stop, buffer[stop:]
        if state == _ENDLESS:
            yield Endless(base, carry[:_SHOWN_BYTES], len(carry))
        # Nothing after an endless record can be read: later slices of the file are empty.
        yield Extent(start, OPEN_END if state == _ENDLESS else base)


def extent(part: Slice, boundaries: Boundaries, encoding: str = UTF_8) -> Extent:
    """Return the exact extent of a slice without reading its rows."""
    items = chunks(part, boundaries, encoding)
    return next(item for item in items if isinstance(item, Extent))


_MORE, _DONE, _ENDLESS = "more", "done", "endless"


def _cut(buffer: bytes, least: int, boundaries: Boundaries, *, at_end: bool) -> tuple[int, str]:
    """Return how many bytes of `buffer` are whole records of the slice, and what comes next."""
    if len(buffer) >= least and (end := boundaries.end_at(buffer, least)) >= 0:
        return end, _DONE
    whole = max(0, boundaries.last_end(buffer))
    if not at_end:
        return whole, _MORE if len(buffer) - whole <= MAX_RECORD_BYTES else _ENDLESS
    # The last record of a file needs no line end: lend it one to see whether it is whole (and
    # a second one, should an escape character take the meaning from the first).
    rest = buffer[whole:]
    if not rest or boundaries.end_at(rest + 2 * boundaries.terminator, len(rest)) >= 0:
        return len(buffer), _DONE
    return whole, _ENDLESS


def line_end_at(buffer: bytes, least: int, terminator: bytes = b"\n") -> int:
    """Return the first line end at or after `least`, or -1."""
    return buffer.find(terminator, max(0, least - 1)) + 1 or -1


def last_line_end(buffer: bytes, terminator: bytes = b"\n") -> int:
    """Return the end of the last whole line, or -1."""
    return buffer.rfind(terminator) + 1 or -1


def first_line(file: BinaryIO, target: int, terminator: bytes = b"\n") -> int:
    """Return the start of the first line at or after byte `target` (or the file's end)."""
    file.seek(target - 1)
    position = target - 1
    while block := read_exactly(file, 1 << 16):
        if (found := block.find(terminator)) >= 0:
            return position + found + 1
        position += len(block)
    return position


def count_lines(path: str, offset: int, *, gzip: bool, dialect: Dialect = COMMON) -> int:
    """Return the line, counted from 1, that byte `offset` of a text file is in."""
    lines = 1
    with opened(path, gzip=gzip) as stored:
        file = as_utf8(stored, dialect.encoding)
        while offset > 0 and (block := read_exactly(file, min(BLOCK_BYTES, offset))):
            lines += block.count(dialect.terminator)
            offset -= len(block)
    return lines


LINES = Boundaries(first_line, line_end_at, last_line_end)
"""Every line is a record."""
