"""How many records a file has, said again in a few lines that know nothing of batchserve.

Text is walked byte by byte, packed files are unpacked by Python's own modules, the footer of Parquet
is read as what it is, a Thrift struct, and the messages of Arrow as tables of Flatbuffers.
"""

import bz2
import codecs
import gzip
import itertools
import lzma
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Marks:
    """How a CSV is written."""

    delimiter: str = ","
    quote: str | None = '"'
    escape: str | None = None
    header: bool = True
    skip_lines: int = 0


COMMON = Marks()


def csv_records(raw: bytes, marks: Marks = COMMON) -> list[int]:
    """Return the offset of every record after the header; one that is never closed reaches to the end.

    Args:
        raw: The file, in UTF-8 or another encoding that holds ASCII.
        marks: How it is written.
    """
    start = _after_lines(raw, marks.skip_lines)
    edges = [start, *(start + end for end in _record_ends(raw[start:].decode("latin-1"), marks))]
    edges += [len(raw)] if edges[-1] < len(raw) else []
    filled = [a for a, b in itertools.pairwise(edges) if raw[a:b].strip(b"\r\n")]
    return filled[1:] if marks.header else filled


def _after_lines(raw: bytes, count: int) -> int:
    at = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    for _ in range(count):
        end = re.compile(rb"\r\n|\n|\r").search(raw, at)
        at = end.end() if end else len(raw)
    return at


def _record_ends(text: str, marks: Marks) -> Iterator[int]:
    """Give where records end: a quote opens only at the start of a field, two inside one are one."""
    state, taken = "start", False
    for i, character in enumerate(text):
        if taken or character == marks.escape:
            taken, state = not taken, "plain" if state in {"start", "closed"} else state
        elif state == "quoted":
            state = "closed" if character == marks.quote else "quoted"
        elif character == marks.quote and state in {"start", "closed"}:
            state = "quoted"
        elif character in "\r\n":
            state = "start"
            yield i + 1
        else:
            state = "start" if character == marks.delimiter else "plain"


def json_records(raw: bytes) -> list[int]:
    """Return the offset of every line that is not blank."""
    start = _after_lines(raw, 0)
    lines = raw[start:].split(b"\n")
    starts = itertools.accumulate((len(line) + 1 for line in lines), initial=start)
    return [at for at, line in zip(starts, lines, strict=False) if line.strip()]


def unpacked(raw: bytes, suffix: str) -> bytes | None:
    """Return what a packed file holds, or None if it is damaged."""
    try:
        if suffix == "gz":
            return gzip.decompress(raw)
        return b"".join(_streams(raw, *_STREAMS[suffix]))
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        return None


_STREAMS: dict[str, tuple[Any, bytes]] = {
    "bz2": (bz2.BZ2Decompressor, b""),
    "xz": (partial(lzma.LZMADecompressor, lzma.FORMAT_XZ), b"\0"),
}


def _streams(raw: bytes, make: Any, padding: bytes) -> Iterator[bytes]:
    """Unpack one stream after another; Python's own functions take what is damaged for the end."""
    while raw:
        decompressor = make()
        yield decompressor.decompress(raw)
        if not decompressor.eof:
            raise EOFError
        raw = decompressor.unused_data.lstrip(padding)


def readable_bytes(raw: bytes, suffix: str) -> int:
    """Return how many bytes can be had of a packed file, damaged or not, if it is fed byte by byte."""
    make = _STREAMS[suffix][0] if suffix in _STREAMS else partial(zlib.decompressobj, wbits=31)
    unpacker, size = make(), 0
    for i in range(len(raw)):
        try:
            unpacker = make() if unpacker.eof else unpacker
            for piece in _given(unpacker, raw[i : i + 1]):
                size += len(piece)
        except (OSError, EOFError, zlib.error, lzma.LZMAError):
            break
    return size


def _given(unpacker: Any, byte: bytes) -> Iterator[bytes]:
    """Give what a byte sets free, in small pieces: the last one may make megabytes, and then fail."""
    if not hasattr(unpacker, "needs_input"):  # of gzip
        yield unpacker.decompress(byte)
        return
    yield unpacker.decompress(byte, 1_000)
    while not (unpacker.eof or unpacker.needs_input):
        yield unpacker.decompress(b"", 1_000)


# -- Parquet ----------------------------------------------------------------------------------


def parquet_rows(raw: bytes) -> int | None:
    """Return the rows that the footer of a Parquet file states, or None if it cannot be read."""
    if len(raw) < 12 or raw[-4:] != b"PAR1":
        return None
    (size,) = struct.unpack("<I", raw[-8:-4])
    try:
        rows = _Thrift(raw[max(0, len(raw) - 8 - size) : -8]).fields(until=3).get(3)
    except (IndexError, ValueError, RecursionError):
        return None
    return rows if isinstance(rows, int) else None


def arrow_rows(raw: bytes) -> int | None:
    """Return the rows that the messages of an Arrow file or stream state, or None if they cannot be read."""
    found = list(_arrow_rows(raw))
    return None if None in found else sum(filter(None, found))


def readable_arrow_rows(raw: bytes) -> int:
    """Return the rows that are stated before a message that cannot be read."""
    return sum(filter(None, _arrow_rows(raw)))


def _arrow_rows(raw: bytes) -> Iterator[int | None]:
    """Give the rows of each record batch, then None if it goes on and cannot be read."""
    try:
        for at in _blocks(raw) if raw.startswith(b"ARROW1") else _messages(raw):
            yield _stated(raw, at)
    except (struct.error, IndexError):
        yield None


def _blocks(raw: bytes) -> Iterator[int]:
    """Give where the footer of an Arrow file says that record batches are."""
    (size,) = struct.unpack("<i", raw[-10:-6])
    footer = len(raw) - 10 - size
    vector = _followed(raw, _field(raw, _followed(raw, footer), 3))
    for i in range(_number(raw, vector, "<I")):
        yield _number(raw, vector + 4 + 24 * i, "<q")


def _messages(raw: bytes) -> Iterator[int]:
    """Give where the messages of an Arrow stream are that are record batches."""
    at = 0
    while (size := _number(raw, at + 4, "<I")) and at < len(raw):
        message = _followed(raw, at + 8)
        if raw[_field(raw, message, 1)] == _RECORD_BATCH:
            yield at
        body = _field(raw, message, 3)
        at += 8 + size + (_number(raw, body, "<Q") if body else 0)


_RECORD_BATCH = 3


def _stated(raw: bytes, at: int) -> int:
    """Return the rows that the record batch at `at` states."""
    length = _field(raw, _followed(raw, _field(raw, _followed(raw, at + 8), 2)), 0)
    return _number(raw, length, "<q") if length else 0


def _number(raw: bytes, at: int, kind: str) -> int:
    return int(struct.unpack_from(kind, raw, at)[0])


def _followed(raw: bytes, at: int) -> int:
    return at + _number(raw, at, "<I")


def _field(raw: bytes, table: int, index: int) -> int:
    """Return where field `index` of a table of Flatbuffers is, or 0 if it is not there."""
    names = table - _number(raw, table, "<i")
    if 4 + 2 * index >= _number(raw, names, "<H"):
        return 0
    offset = _number(raw, names + 4 + 2 * index, "<H")
    return table + offset if offset else 0


class _Thrift:
    """Reads a struct of Thrift's compact protocol: numbers of fields to values."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def fields(self, until: int = 0) -> dict[int, Any]:
        """Read a struct, or of it what comes up to the field of this number."""
        found: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) & 15:  # the lower half 0 is the end, whatever the upper is
            number = number + (head >> 4) if head >> 4 else self._signed()
            found[number] = self._value(head & 15)
            if number == until:
                break
        return found

    def _byte(self) -> int:
        self._at += 1
        return self._raw[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _value(self, kind: int) -> Any:
        if kind in {1, 2}:
            return kind == 1
        if kind in {3, 7}:
            self._at += 1 if kind == 3 else 8
            return None
        if kind in {4, 5, 6}:
            return self._signed()
        if kind == 8:
            size = self._varint()  # which moves on, too
            self._at += size
            return None
        if kind in {9, 10}:
            return self._list()
        if kind == 12:
            return self.fields()
        raise ValueError(kind)

    def _list(self) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        return [self._byte() == 1 if head & 15 in {1, 2} else self._value(head & 15) for _ in range(count)]
