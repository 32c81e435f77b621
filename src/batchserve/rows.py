"""Rows ready for the model, each still knowing its record."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchserve.codec import Encoded
from batchserve.inputs import Block, Fault
from batchserve.rejects import Reject


@dataclass(frozen=True)
class Stretch:
    """Rows of one block, and where they came from."""

    block: Block
    slice: int
    record: int
    """Records of the slice before the block."""
    rows: range | NDArray[np.int64]
    """Their row numbers in the block."""

    def cut(self, start: int, stop: int) -> "Stretch":
        """Return rows `start` to `stop` of it."""
        return replace(self, rows=self.rows[start:stop])

    def record_of(self, at: int) -> int:
        """Return how many records of the slice are before row `at` of it."""
        return self.record + int(self.rows[at])

    def reject(self, at: int, fault: Fault) -> Reject:
        """Build the reject for row `at` of it."""
        return self.block.reject(int(self.rows[at]), self.record_of(at), fault)


@dataclass(frozen=True)
class Rows:
    """Rows ready for the model, each still knowing its record."""

    encoded: tuple[Encoded, ...]
    """What each model is given; the first also holds the columns that pass through."""
    origins: tuple[Stretch, ...]

    def __len__(self) -> int:
        return self.encoded[0].rows

    @property
    def kept(self) -> pa.RecordBatch:
        """The columns that pass through."""
        return self.encoded[0].kept

    def slice(self, start: int, stop: int) -> "Rows":
        """Return rows `start` to `stop` without copying."""
        found, at = [], 0
        for stretch in self.origins:
            first, last = max(start - at, 0), min(stop - at, len(stretch.rows))
            if first < last:
                found.append(stretch.cut(first, last))
            at += len(stretch.rows)
        return Rows(tuple(each.slice(start, stop) for each in self.encoded), tuple(found))

    def joined(self, other: "Rows") -> "Rows":
        """Return these rows followed by those of `other`."""
        both = zip(self.encoded, other.encoded, strict=True)
        return Rows(tuple(mine.joined(theirs) for mine, theirs in both), self.origins + other.origins)

    def take(self, good: NDArray[np.bool_]) -> "Rows":
        """Return only the rows where `good` is true."""
        found, at = [], 0
        for stretch in self.origins:
            kept = np.asarray(stretch.rows)[good[at : at + len(stretch.rows)]]
            found.append(replace(stretch, rows=kept))
            at += len(stretch.rows)
        return Rows(tuple(each.take(good) for each in self.encoded), tuple(found))

    def origin(self, row: int) -> tuple[Stretch, int]:
        """Return the stretch that a row is of, and how many rows of it are before that."""
        for stretch in self.origins:
            if row < len(stretch.rows):
                return stretch, row
            row -= len(stretch.rows)
        raise IndexError(row)

    def reject(self, row: int, fault: Fault) -> tuple[int, Reject]:
        """Return the number of the slice that a row is of, and the reject for it."""
        stretch, at = self.origin(row)
        return stretch.slice, stretch.reject(at, fault)


def aligned(pieces: Iterable[Rows], batch_rows: int) -> Iterator[Rows]:
    """Re-cut rows so that all pieces but the last are whole multiples of `batch_rows`.

    So padding is paid once per partition, not once per block of the reader.
    """
    carry: Rows | None = None
    for piece in pieces:
        start = 0
        if carry is not None:
            start = min(batch_rows - len(carry), len(piece))
            carry = carry.joined(piece.slice(0, start))
            if len(carry) < batch_rows:
                continue
            yield carry
        stop = start + (len(piece) - start) // batch_rows * batch_rows
        if stop > start:
            yield piece.slice(start, stop)
        carry = piece.slice(stop, len(piece)) if stop < len(piece) else None
    if carry is not None:
        yield carry
