"""How good predictions are: sums over rows that add up, and what they come to; pure.

Sums of blocks are put together with `+`, in any order and however the rows were cut, and come to the
same metrics: what is summed is exact (`sums`), and rounded once, at the end. One module per task.
"""

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import NDArray

from batchserve.sums import as_float

Bools = NDArray[np.bool_]
Codes = NDArray[np.int64]
Number = float | None
"""A metric; None where the rows do not define it."""
ZERO = Fraction(0)


@dataclass(frozen=True)
class Limits:
    """How many cells the histograms of one set of sums may have."""

    scores: int
    """Different scores up to which the areas under curves are exact."""
    values: int
    """Cells of predictions and errors of a regression."""


WHOLE = Limits(scores=1 << 18, values=4096)
GROUP = Limits(scores=1 << 14, values=256)
"""For each group of `--by`, as there may be a hundred."""


@dataclass(frozen=True)
class Cut:
    """Where scores are cut: at the threshold, into bins, and before the logarithm."""

    threshold: float = 0.5
    bins: int = 10
    least: float = float(np.finfo(np.float64).eps)
    """The smallest probability that a logarithm is taken of: the eps of the scores' type."""


class Sums:
    """Sums whose fields are added one by one."""

    def __add__(self, other: Self) -> Self:
        names = [each.name for each in fields(self)]  # type: ignore[arg-type] # all are dataclasses
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True)
class Bin(Sums):
    """Rows whose predictions are alike."""

    rows: int = 0
    prediction: Fraction = ZERO
    label: Fraction = ZERO


def ratio(part: Fraction | int, whole: Fraction | int) -> Number:
    """Return a quotient rounded once; None for nothing of nothing."""
    return as_float(Fraction(part) / whole) if whole else None


def root(value: Number) -> Number:
    """Return the square root of a metric."""
    return math.sqrt(value) if value is not None else None
