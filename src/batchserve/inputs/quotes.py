"""Where CSV records start and end: quotes hide line ends, and a split may fall inside a quote."""

import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from batchserve.inputs import records

_NEWLINE, _RETURN, _QUOTE, _COMMA = 10, 13, 34, 44
_EDGES = (_COMMA, _NEWLINE, _RETURN, _QUOTE)
_WINDOW_BYTES = 256 << 10

_FIELD = rb'(?:"(?:[^"]++|"")*+"|(?!"))[^,\r\n]*+'
_RECORD = re.compile(rb"(?:" + _FIELD + rb",)*+" + _FIELD + rb"(?:\r\n|\n|\r)")


def _ends(buffer: bytes) -> NDArray[np.int64]:
    """Return the end of every record of `buffer`, which starts at a record and has quotes."""
    data = np.frombuffer(buffer, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    if not _well_formed(data, quotes):
        return np.array([stop for _, stop in _spans(buffer)], np.int64)
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
    return bool(np.isin(before, _EDGES).all())


def end_at(buffer: bytes, least: int) -> int:
    r"""Return the first record end at or after `least`, or -1.

    Example:
        >>> end_at(b'a,"x\ny"\nb,c\n', 3)
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
    lines = _spans(raw if raw.endswith((b"\n", b"\r")) else raw + b"\n")
    return [start for start, stop in lines if raw[start:stop].strip(b"\r\n")]


def count(raw: bytes) -> int:
    r"""Count the records of `raw`, whole ones, blank lines left out as the reader does.

    Example:
        >>> count(b'a,"x\ny"\n\nb,c\r\n')
        2
    """
    data = np.frombuffer(raw, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE) if _QUOTE in raw else np.empty(0, np.int64)
    returns = raw.count(b"\r")
    if not raw or returns != raw.count(b"\r\n") or not _well_formed(data, quotes):
        return len(record_starts(raw))
    newlines = np.flatnonzero(data == _NEWLINE)
    ends = newlines[np.searchsorted(quotes, newlines) % 2 == 0] + 1 if quotes.size else newlines + 1
    if not ends.size or ends[-1] < data.size:
        ends = np.append(ends, data.size)
    starts = np.concatenate(([0], ends[:-1]))
    lengths = ends - starts
    blank = (lengths <= 1) & (data[starts] == _NEWLINE)
    if returns:
        blank |= (lengths == 2) & (data[starts] == _RETURN)  # noqa: PLR2004  \r\n and no more
    return int(ends.size - blank.sum())


def _spans(buffer: bytes) -> Iterator[tuple[int, int]]:
    """Match record after record; stop at the first that is not whole."""
    at = 0
    for match in _RECORD.finditer(buffer):
        if match.start() != at:
            return
        at = match.end()
        yield match.start(), at


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
    bad_openers = ~np.isin(data[openers[openers > 0] - 1], _EDGES)
    bad_closers = ~np.isin(data[closers[closers < data.size - 1] + 1], _EDGES)
    return int(bad_openers.sum() + bad_closers.sum())


BOUNDARIES = records.Boundaries(first_record, end_at, last_end)
"""Records end at line ends outside quotes."""
