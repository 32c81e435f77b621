"""Sums that are the same however their terms are split, ordered or put together; pure.

A sum of floats rounds at every step, so that its last bits tell how the rows were cut. Here the sum
of a block is exact, as a fraction: sums of blocks add up to the sum of all rows, to the bit.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_LARGE, _LARGE_SQUARED = 2.0**900, 2.0**450
"""Above this the vector forms would overflow; such numbers are summed one by one."""
_SPLITTER = 2.0**27 + 1


def exact_sum(values: Floats) -> Fraction:
    """Return the sum of finite numbers without any rounding.

    In every pass all values are rounded to one common unit, so that what is taken of them adds up
    without rounding; the next pass takes what is left. That is algorithm 3.4 (ExtractVector) of Rump,
    Ogita and Oishi, "Accurate floating-point summation part I", SIAM J. Sci. Comput. 31(1), 2008.

    Args:
        values: Finite numbers, [n].

    Example:
        >>> exact_sum(np.array([1e100, 1.0, -1e100]))
        Fraction(1, 1)
    """
    most = float(np.abs(values).max(initial=0.0))
    if most > _LARGE:
        return sum(map(Fraction, values.tolist()), Fraction(0))
    room = math.frexp(len(values))[1] + 1
    total, rest = Fraction(0), values
    while most:
        unit = 2.0 ** (math.frexp(most)[1] + room)
        taken = (rest + unit) - unit
        total += Fraction(float(taken.sum()))
        rest = rest - taken
        most = float(np.abs(rest).max(initial=0.0))
    return total


def exact_squares(values: Floats) -> Fraction:
    """Return the sum of the squares of finite numbers without any rounding.

    A square is a float and its rounding error, which is a float too: Dekker, "A floating-point
    technique for extending the available precision", Numerische Mathematik 18, 1971. Below 1e-140 the error
    has no digits left, and is as good as nothing.

    Args:
        values: Finite numbers, [n].

    Example:
        >>> exact_squares(np.array([1e8 + 1])) == (10**8 + 1) ** 2
        True
    """
    if np.abs(values).max(initial=0.0) > _LARGE_SQUARED:
        return sum((Fraction(value) ** 2 for value in values.tolist()), Fraction(0))
    big = _SPLITTER * values
    high = big - (big - values)
    low = values - high
    squares = values * values
    errors = ((high * high - squares) + 2 * high * low) + low * low
    return exact_sum(squares) + exact_sum(errors)


def as_float(value: Fraction) -> float:
    """Return the nearest float; an infinity where the number is larger than any."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


# -- cells ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """A histogram of bounded size that nobody had to choose bins for.

    Every value has a whole-number key; keys sort as values do. When there are more different keys
    than `limit`, each loses its last bit, and so on: two cells next to each other become one. How many
    bits are lost depends on the values alone, not on how they were split.
    """

    limit: int
    level: int
    """Bits that are gone, or the power of two that a cell is wide."""
    keys: NDArray[np.int64]
    """Of the cells that are not empty, in order."""
    weights: Floats
    """Of each cell what was added up, [cells, columns]."""

    @classmethod
    def of(cls, limit: int, level: int, keys: NDArray[np.int64], weights: Floats) -> Self:
        """Return the cells of keys in any order, each with its row of weights."""
        gathered = cls(limit, level, *_gathered(keys, weights))
        return gathered.fitted()

    def __add__(self, other: Self) -> Self:
        level = max(self.level, other.level)
        pair = (self.at(level), other.at(level))
        keys = np.concatenate([each.keys for each in pair])
        weights = np.concatenate([each.weights for each in pair])
        return type(self).of(self.limit, level, keys, weights)

    def fitted(self) -> Self:
        """Return the same with so wide cells that there are no more than the limit."""
        if len(self.keys) <= self.limit:
            return self
        lost = np.sort(_bit_lengths(self.keys[1:] ^ self.keys[:-1]))[-self.limit]
        return self.at(self.level + int(lost))

    def at(self, level: int) -> Self:
        """Return the same with cells of a higher level."""
        if level == self.level:
            return self
        keys = self.keys >> min(level - self.level, 63)
        return type(self)(self.limit, level, *_gathered(keys, self.weights))


def _gathered(keys: NDArray[np.int64], weights: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return each key once, in order, with the sum of its weights."""
    order = np.argsort(keys, kind="stable")  # which is quick for what is two sorted pieces
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1)) if len(keys) else np.zeros(0, np.intp)
    if len(first) == len(keys):
        return keys, weights[order]
    return keys[first], np.add.reduceat(weights[order], first, axis=0)


def _bit_lengths(differences: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return how many bits must go before two neighbours, by their exclusive or, are one key."""
    leading = differences & ~(differences >> 1)  # which no rounding carries to another power of two
    return np.where(differences < 0, 64, np.frexp(leading.astype(np.float64))[1]).astype(np.int32)


def ordered_bits(values: Floats) -> NDArray[np.int64]:
    """Return keys that sort as the values do; only equal values have equal ones.

    Example:
        >>> keys = ordered_bits(np.array([-1.0, -0.0, 0.0, 2.0]))
        >>> bool(keys[0] < keys[1] == keys[2] < keys[3])
        True
    """
    bits = (values + 0.0).view(np.int64)  # -0.0 becomes 0.0
    return np.where(bits < 0, bits ^ np.int64(2**63 - 1), bits)


_DIGITS = 40
"""Binary digits of the largest value that cells can tell apart."""
_LEAST_POWER = -60
"""Below this power of two all values are alike."""


def linear(limit: int, values: Floats, weights: Floats) -> Cells:
    """Return cells of one width, a power of two; the smallest that needs no more than `limit` cells.

    Args:
        limit: How many cells there may be.
        values: Finite numbers, [n].
        weights: What is added up, [n, columns].
    """
    most = float(np.abs(values).max(initial=0.0))
    level = (max(math.frexp(most)[1], _LEAST_POWER) if most else _LEAST_POWER) - _DIGITS
    keys = np.floor(np.ldexp(values, -level)).astype(np.int64)
    keys[(keys == 0) & (values < 0)] = -1  # too small to be told from 0 in these cells
    return Cells.of(limit, level, keys, weights)


def bits(limit: int, values: Floats, weights: Floats) -> Cells:
    """Return cells of single values, while there are no more than `limit` different ones.

    Args:
        limit: How many cells there may be.
        values: Finite numbers, [n].
        weights: What is added up, [n, columns].
    """
    return Cells.of(limit, 0, ordered_bits(values), weights)
