"""Text files as byte ranges cut at record boundaries; what CSV and JSONL share.

A range need not start at a record: the reader looks for the first one, reads to the first
record that starts at or after the range's stop, and reports both offsets exactly.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from batchserve.inputs import OPEN_END, Codec, Extent, Slice
from batchserve.inputs.dialect import COMMON, Dialect
from batchserve.inputs.encodings import UTF_8, as_utf8
from batchserve.rejects import RAW_BYTES
from batchserve.storage import transient_reading, translated

BLOCK_BYTES = 4 << 20
MAX_RECORD_BYTES = 128 << 20
"""A record longer than this is taken for an unclosed quote."""


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
def opened(path: str, *, codec: Codec | None) -> Iterator[BinaryIO]:
    """Open a text file, unpacking it.

    Raises:
        DataError: A packed file is damaged or cut off.
        TransientError: It cannot be read just now.
    """
    with transient_reading(path), translated(path):
        if codec is None:
            with Path(path).open("rb", buffering=0) as file:
                yield cast("BinaryIO", file)
            return
        from batchserve.inputs import packed

        with packed.unpacked(path, codec) as file:
            yield file


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, fewer only at the end of the file."""
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Scan:
    """Reads a text file on and on, cut into whole records.

    Attributes:
        at: Byte offset of the next record; nothing can be read after one that does not end.
    """

    def __init__(self, file: BinaryIO, at: int, boundaries: Boundaries) -> None:
        self._file, self._boundaries = file, boundaries
        self._carry = b""
        self.at = at

    def until(self, stop: int) -> Iterator[Chunk | Endless]:
        """Give all records that start before byte `stop`."""
        state = _MORE
        while state == _MORE and self.at < stop:
            # Blocks grow with a record that does not end, so that it is not searched too often.
            block = read_exactly(self._file, max(BLOCK_BYTES, len(self._carry)))
            buffer = self._carry + block if self._carry else block
            size, state = _cut(buffer, stop - self.at, self._boundaries, at_end=not block)
            at, self.at, self._carry = self.at, self.at + size, buffer[size:]
            if size:
                yield Chunk(at, buffer[:size] if size < len(buffer) else buffer)
        if state == _ENDLESS:
            yield Endless(self.at, self._carry[: RAW_BYTES + 1], len(self._carry))
            self.at = OPEN_END


@contextmanager
def scanned(part: Slice, boundaries: Boundaries, encoding: str = UTF_8) -> Iterator[Scan]:
    """Open a file to read its records from the first one of a slice on.

    A packed file, or one that is decoded as a stream, cannot be wound: where the start of the
    slice is not known it is searched from the first record of the file.
    """
    with opened(part.path, codec=part.codec) as stored:
        file = as_utf8(stored, encoding)
        if part.exact:
            start = part.start
        else:
            start = part.origin if file is not stored or part.codec else boundaries.first(file, part.start)
        if start < part.stop:  # else nothing is read: a record that does not end took it all
            file.seek(start)
        scan = Scan(file, start, boundaries)
        for _ in scan.until(part.start):
            pass
        yield scan


def chunks(part: Slice, boundaries: Boundaries, encoding: str = UTF_8) -> Iterator[Chunk | Endless | Extent]:
    """Cut a slice into chunks of whole records, then give its extent.

    Offsets and texts are those of the unpacked file, or of its UTF-8 text if its encoding
    has to be decoded as a stream.
    """
    with _segment(part, boundaries) or scanned(part, boundaries, encoding) as scan:
        start = scan.at
        yield from scan.until(part.stop)
        yield Extent(start, scan.at)


def _segment(part: Slice, boundaries: Boundaries) -> AbstractContextManager[Scan] | None:
    """Open the records of a slice that were unpacked for it, if they are still there."""
    if part.segment is None:
        return None
    try:
        file = Path(part.segment).open("rb", buffering=0)  # noqa: SIM115  closed with its scan
    except FileNotFoundError:
        return None
    return _closing(Scan(cast("BinaryIO", file), part.start, boundaries), file)


@contextmanager
def _closing(scan: Scan, file: Any) -> Iterator[Scan]:
    with file:
        yield scan


_MORE, _DONE, _ENDLESS = "more", "done", "endless"


def _cut(buffer: bytes, least: int, boundaries: Boundaries, *, at_end: bool) -> tuple[int, str]:
    """Return how many bytes of `buffer` are whole records up to byte `least`, and what comes next."""
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


class LineCounter:
    """Tells the lines of places in one text file, asked for in order; the file is read once."""

    def __init__(self, path: str, *, codec: Codec | None, dialect: Dialect = COMMON) -> None:
        self._blocks = _blocks(path, codec=codec, encoding=dialect.encoding)
        self._terminator = dialect.terminator
        self._block = b""
        self._base = self._at = 0
        self._line = 1

    def line_of(self, offset: int) -> int:
        """Return the line, counted from 1, that byte `offset` is in; not before the last one asked for."""
        while offset > self._base + len(self._block):
            self._count(len(self._block))
            self._base += len(self._block)
            self._block, self._at = next(self._blocks), 0
        self._count(offset - self._base)
        return self._line

    def _count(self, stop: int) -> None:
        self._line += self._block.count(self._terminator, self._at, stop)
        self._at = stop


def _blocks(path: str, *, codec: Codec | None, encoding: str) -> Iterator[bytes]:
    with opened(path, codec=codec) as stored:
        file = as_utf8(stored, encoding)
        while block := read_exactly(file, 1 << 20):
            yield block


LINES = Boundaries(first_line, line_end_at, last_line_end)
"""Every line is a record."""
