"""Where CSV records start and end: quotes hide line ends, and a split may fall inside a quote.

The rules are Arrow's: a quote opens a quoted text only at the start of a field, two inside one
stand for one, and an escape character takes the meaning from the byte after it anywhere.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache, partial
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from batchserve.inputs import records
from batchserve.inputs.dialect import Dialect

_NEWLINE, _RETURN = 10, 13
_WINDOW_BYTES = 256 << 10

Positions = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Records:
    """Where the records of one dialect start and end."""

    def __init__(self, dialect: Dialect) -> None:
        self._quote = dialect.quote.encode() if dialect.quote else b""
        self._escape = dialect.escape.encode() if dialect.escape else b""
        self._terminator = dialect.terminator
        self._delimiter = dialect.delimiter.encode()

    @cached_property
    def boundaries(self) -> records.Boundaries:
        """How a reader of ranges tells the records apart."""
        return records.Boundaries(self.first_record, self.end_at, self.last_end, self._terminator)

    @cached_property
    def _is_edge(self) -> Flags:
        """Of each byte: may it stand before a quote that opens a field, or doubles the one before it?"""
        found = np.zeros(256, dtype=bool)
        found[[*self._delimiter, _NEWLINE, _RETURN, *self._quote]] = True
        return found

    @cached_property
    def _field(self) -> re.Pattern[bytes]:
        """One field, as Arrow's state machine reads it."""
        quote, escape, delimiter = map(re.escape, (self._quote, self._escape, self._delimiter))
        escaped = rb"|" + escape + rb"." if escape else b""
        plain = rb"(?:[^" + delimiter + escape + rb"\r\n]++" + escaped + rb")*+"
        body = rb"(?:[^" + quote + escape + rb"]++|" + quote * 2 + escaped + rb")*+"
        opened = rb"(?:" + quote + body + quote + rb"|(?!" + quote + rb"))" if quote else b""
        return re.compile(opened + plain, re.DOTALL)

    @cached_property
    def _record(self) -> re.Pattern[bytes]:
        """One record and its end."""
        field, delimiter = self._field.pattern, re.escape(self._delimiter)
        end = rb"(?:\r\n|\n|\r)" if self._terminator == b"\n" else rb"[\r\n]"
        line = rb"(?:" + field + delimiter + rb")*+" + field + end
        return re.compile(line, re.DOTALL)

    def _is_plain(self, buffer: bytes) -> bool:
        """Whether every line of `buffer` is a record."""
        quoted = self._quote and self._quote in buffer
        return not quoted and not (self._escape and self._escape in buffer)

    def _ends(self, buffer: bytes) -> Positions:
        """Return the end of every record of `buffer`, which starts at a record and is not plain."""
        outside = self._outside(np.frombuffer(buffer, np.uint8), self._terminator)
        if outside is None:
            ends = [stop for _, stop in self.spans(buffer) if buffer[stop - 1] == self._terminator[0]]
            return np.array(ends, np.int64)
        found: Positions = outside + 1
        return found

    def _outside(self, data: NDArray[np.uint8], marks: bytes) -> Positions | None:
        """Return where any of `marks` stands with its own meaning: outside quotes and not escaped.

        None if quotes cannot be counted, and the slow way is needed.
        """
        escaped = self._escaped(data)
        quotes = _without(_found(data, self._quote), escaped)
        if not self._well_formed(data, quotes, escaped):
            return None
        found = _without(_found(data, marks), escaped)
        return found[np.searchsorted(quotes, found) % 2 == 0] if quotes.size else found

    def _escaped(self, data: NDArray[np.uint8]) -> Flags | None:
        """Say of each byte whether an escape character before it takes its meaning; None if there is none.

        In a row of escape characters every second one is itself escaped.
        """
        escapes = _found(data, self._escape)
        if not escapes.size:
            return None
        place = np.arange(escapes.size)
        is_first = np.diff(escapes, prepend=-2) > 1
        since_first = place - np.maximum.accumulate(np.where(is_first, place, 0))
        escaped = np.zeros(data.size + 1, dtype=bool)
        escaped[escapes[since_first % 2 == 0] + 1] = True
        return escaped

    def _well_formed(self, data: NDArray[np.uint8], quotes: Positions, escaped: Flags | None) -> bool:
        """Whether every second quote opens a field or doubles the one before it.

        Then counting quotes tells inside from outside exactly as Arrow's state machine does;
        a stray quote in the middle of a field breaks the count and needs the slow way.
        """
        openers = quotes[::2]
        before = openers[openers > 0] - 1
        at_edge = self._is_edge[data[before]]
        return bool(at_edge.all()) and (escaped is None or not escaped[before].any())

    def end_at(self, buffer: bytes, least: int) -> int:
        r"""Return the first record end at or after `least`, or -1.

        Example:
            >>> Records(Dialect()).end_at(b'a,"x\ny"\nb,c\n', 3)
            8
        """
        if self._is_plain(buffer):
            return records.line_end_at(buffer, least, self._terminator)
        ends = self._ends(buffer)
        found = ends[ends >= least]
        return int(found[0]) if found.size else -1

    def last_end(self, buffer: bytes) -> int:
        """Return the end of the last whole record, or -1."""
        if self._is_plain(buffer):
            return records.last_line_end(buffer, self._terminator)
        ends = self._ends(buffer)
        return int(ends[-1]) if ends.size else -1

    def starts(self, raw: bytes) -> list[int]:
        """Return where each record of `raw` starts, blank lines left out as the reader does."""
        ends = self._outside(np.frombuffer(raw, np.uint8), b"\r\n")
        if ends is None:
            lines = self.spans(raw + 2 * self._terminator)  # the last record needs no end; lend it one
            return [start for start, stop in lines if raw[start:stop].strip(b"\r\n")]
        is_end = np.zeros(len(raw) + 1, dtype=bool)
        is_end[ends + 1] = True  # by one more, so that it is known of each byte what stands before it
        is_end[0] = True
        starts: list[int] = np.flatnonzero(is_end[:-1] & ~is_end[1:]).tolist()
        return starts

    def widths(self, raw: bytes, starts: Sequence[int]) -> Positions:
        r"""Return how many fields each record has.

        Example:
            >>> Records(Dialect()).widths(b'a,"b,c"\nd\n', [0, 8])
            array([2, 1])
        """
        delimiters = self._outside(np.frombuffer(raw, np.uint8), self._delimiter)
        if delimiters is None:
            return np.array([self._width(raw, start) for start in starts], np.int64)
        before: Positions = np.searchsorted(delimiters, [*starts, len(raw)])
        return np.diff(before) + 1

    def _width(self, raw: bytes, start: int) -> int:
        count, match = 1, self._field.match
        while (found := match(raw, start)) and raw[found.end() : found.end() + 1] == self._delimiter:
            start = found.end() + 1
            count += 1
        return count

    def count(self, raw: bytes) -> int:
        r"""Count the records of `raw`, whole ones, blank lines left out as the reader does.

        Example:
            >>> Records(Dialect()).count(b'a,"x\ny"\n\nb,c\r\n')
            2
        """
        data = np.frombuffer(raw, np.uint8)
        escaped = self._escaped(data)
        quotes = _without(_found(data, self._quote), escaped)
        returns = raw.count(b"\r")
        odd = self._terminator != b"\n" or returns != raw.count(b"\r\n")
        if not raw or odd or not self._well_formed(data, quotes, escaped):
            return len(self.starts(raw))
        newlines = _without(np.flatnonzero(data == _NEWLINE), escaped)
        ends = newlines[np.searchsorted(quotes, newlines) % 2 == 0] + 1
        if not ends.size or ends[-1] < data.size:
            ends = np.append(ends, data.size)
        starts = np.concatenate(([0], ends[:-1]))
        lengths = ends - starts
        blank = (lengths <= 1) & (data[starts] == _NEWLINE)
        if returns:
            blank |= (lengths == 2) & (data[starts] == _RETURN)  # noqa: PLR2004  \r\n and no more
        return int(ends.size - blank.sum())

    def spans(self, buffer: bytes) -> Iterator[tuple[int, int]]:
        """Give where each record starts and ends; stop at the first that is not whole."""
        at, match = 0, self._record.match
        while found := match(buffer, at):
            yield at, found.end()
            at = found.end()

    def first_record(self, file: BinaryIO, target: int) -> int:
        """Guess the first record that starts at or after byte `target`.

        Without a quote in the window the next line is it. With quotes, the target may lie inside a
        quoted text: both readings are tried and the one whose quotes open and close fields wins.
        A wrong guess is found when the partitions' extents are compared.
        """
        next_line = partial(records.first_line, file, target, self._terminator)
        file.seek(target - 1)
        window = records.read_exactly(file, _WINDOW_BYTES)
        if self._is_plain(window):
            return next_line()
        inside, shift = self._quote + window, 0
        if self._faults(inside) < self._faults(window):
            window, shift = inside, len(self._quote)
        # What precedes the first line end belongs to the record before.
        end = self.end_at(window, 1 + shift)
        return target - 1 + end - shift if end >= 0 else next_line()

    def _faults(self, window: bytes) -> int:
        """Count quotes that neither open nor close a field, if `window` starts outside quotes."""
        data = np.frombuffer(window, np.uint8)
        quotes = _without(_found(data, self._quote), self._escaped(data))
        openers, closers = quotes[::2], quotes[1::2]
        bad_openers = ~self._is_edge[data[openers[openers > 0] - 1]]
        bad_closers = ~self._is_edge[data[closers[closers < data.size - 1] + 1]]
        return int(bad_openers.sum() + bad_closers.sum())


def _found(data: NDArray[np.uint8], marks: bytes) -> Positions:
    """Return where any of up to two bytes stands."""
    if not marks:
        return np.empty(0, np.int64)
    is_mark = data == marks[0]
    return np.flatnonzero(is_mark | (data == marks[1]) if marks[1:] else is_mark)


def _without(positions: Positions, escaped: Flags | None) -> Positions:
    return positions if escaped is None else positions[~escaped[positions]]


@lru_cache(maxsize=8)
def of(dialect: Dialect) -> Records:
    """Return where the records of a dialect start and end."""
    return Records(dialect)
