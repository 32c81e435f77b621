"""Where the scores of a source jump, and rows beside those places: a graph must jump there, too.

Trees, neighbours and bins give another score from one number to the next. A graph that computes in
fewer digits jumps a little earlier or later: hardly ever in a sample, and in some of a million rows.
Nothing is asked of the source but to predict, so it does not matter what stands before its trees.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchserve import parity
from batchserve.binding import is_text
from batchserve.model import Tensor
from batchserve.probes import Probe

Predict = Callable[[pa.RecordBatch], Mapping[str, Tensor]]

_BASES = 4
"""Rows of the sample in which one column is moved."""
_MOST_INTERVALS, _LEAST_INTERVALS = 1024, 4
"""Of all columns and bases together, and at least so many of each."""
_HALVINGS = 64
"""Of an interval until no double is left within it, unless its ends are near zero."""
_DIGITS, _NEAR_DIGITS = 5, 9
"""Of the decimals at a jump, and of those right beside it. Numbers in files are decimals, and where a model
was trained on such its jumps are at decimals, too: rows that stand right there are nothing unusual."""
_ASIDE = 1e-4
"""Of the range of a column: so far from where a label changes no digits of float32 decide about it."""


@dataclass(frozen=True)
class Jumps:
    """Rows made of rows of a sample.

    Attributes:
        probes: At the jumps of scores, as near as files have numbers; and on both sides of where labels
            change.
        near: Nearer to the jumps of scores than float32 can tell.
        known: Whether the source could be asked.
    """

    probes: list[Probe]
    near: pa.RecordBatch
    known: bool = True


def found(predict: Predict, sample: pa.RecordBatch) -> Jumps:
    """Find the jumps of a source: make rows of rows of the sample.

    An interval between two values of a column in whose ends scores differ is halved, and the half in
    which they differ more is halved again, until nothing lies between or scores differ no more.

    Args:
        predict: The source: outputs by name, [rows, ...].
        sample: Rows with the columns of the model; at least one.

    Example:
        >>> rows = pa.record_batch({"x": [1.0, 2.0]})
        >>> def step(rows):
        ...     return {"score": np.where(rows["x"].to_numpy() > 1.25, 1.0, 0.0)}
        >>> found(step, rows).probes[0].rows["x"][0]
        <pyarrow.DoubleScalar: 1.25>
    """
    whole = sample.drop_null()
    rows = whole if len(whole) else sample.slice(0, 1)
    bases = rows.take(pa.array(_even(len(rows), _BASES)))
    intervals = _intervals(bases, sample)
    scores = _narrowed(partial(_scores, predict, bases), intervals)
    labels = _narrowed(partial(_labels, predict, bases, {}), intervals)
    ranges = np.array(
        [np.ptp(_numbers(column)) if len(_numbers(column)) else 0.0 for column in sample.columns]
    )
    aside = np.where(labels.whole, 0.0, _ASIDE * ranges[labels.column])
    at = _decimals(scores, _DIGITS)
    probes = [
        *_probes(bases, scores, at, np.where(scores.whole, scores.high, at)),
        *_probes(bases, labels, labels.low - aside, labels.high + aside),
    ]
    return Jumps(probes, _moved(bases, scores, _decimals(scores, _NEAR_DIGITS)))


@dataclass(frozen=True)
class _Intervals:
    """Pairs of values of one column in one of the rows, each an array [intervals].

    Attributes:
        whole: Whether the column is one of integers.
    """

    base: NDArray[np.int64]
    column: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    whole: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.low)

    def taken(self, chosen: NDArray[np.bool_]) -> "_Intervals":
        return _Intervals(**{name: values[chosen] for name, values in vars(self).items()})

    def middle(self) -> NDArray[np.float64]:
        exact = self.low + (self.high - self.low) / 2
        return np.where(self.whole, np.floor(exact), exact)


def _intervals(bases: pa.RecordBatch, sample: pa.RecordBatch) -> _Intervals:
    numeric = [i for i, field in enumerate(sample.schema) if _is_number(field.type)]
    count = max(_LEAST_INTERVALS, _MOST_INTERVALS // max(1, len(numeric) * len(bases)))
    rows = [
        (base, i, low, high, pa.types.is_integer(sample.schema.field(i).type))
        for i in numeric
        for low, high in _neighbours(sample.column(i), count)
        for base in range(len(bases))
    ]
    base, column, low, high, whole = np.array(rows or np.empty((0, 5)), np.float64).T
    return _Intervals(base.astype(int), column.astype(int), low, high, whole.astype(bool))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind)) and not is_text(kind)


def _neighbours(column: pa.Array, count: int) -> list[tuple[float, float]]:
    numbers = _numbers(column)
    chosen = numbers[_even(len(numbers), count + 1)].tolist()
    return list(itertools.pairwise(chosen))


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    """Return the finite numbers of a column, each once, in order; none of a column of texts."""
    if not _is_number(column.type):
        return np.empty(0)
    numbers: NDArray[np.float64] = np.unique(column.drop_null().cast(pa.float64(), safe=False).to_numpy())
    return numbers[np.isfinite(numbers)]


def _even(length: int, most: int) -> NDArray[np.int64]:
    """Return `most` numbers below `length`, evenly chosen, or all of them."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(np.int64))


# -- halving ----------------------------------------------------------------------------------

_Score = Callable[[_Intervals, NDArray[np.float64]], NDArray[np.float64]]
"""Scores [intervals, scores] of the rows whose column has the value of each interval."""


def _narrowed(score: _Score, intervals: _Intervals) -> _Intervals:
    """Return intervals as narrow as they can be with a jump in each."""
    if not len(intervals):
        return intervals
    low, high = score(intervals, intervals.low), score(intervals, intervals.high)
    scale = np.maximum(np.ptp(np.concatenate([low, high]), axis=0), _TINY)
    for _ in range(_HALVINGS):
        jump = _apart(low, high, scale) > parity.TOLERANCE
        intervals, low, high = intervals.taken(jump), low[jump], high[jump]
        middle = intervals.middle()
        if not np.any((intervals.low < middle) & (middle < intervals.high)):
            break
        between = score(intervals, middle)
        first = _apart(low, between, scale) >= _apart(between, high, scale)
        intervals = replace(
            intervals,
            low=np.where(first, intervals.low, middle),
            high=np.where(first, middle, intervals.high),
        )
        low, high = np.where(first[:, None], low, between), np.where(first[:, None], between, high)
    return intervals


_TINY = 1e-30


def _apart(one: Tensor, other: Tensor, scale: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (np.abs(one - other) / scale).max(axis=1, initial=0.0)
    return found


def _scores(
    predict: Predict, bases: pa.RecordBatch, intervals: _Intervals, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Predict the scores of rows."""
    if not len(intervals):
        return np.empty((0, 1))
    given = predict(_moved(bases, intervals, values))
    scores = [np.asarray(each) for each in given.values()]
    flat = [each.reshape(len(each), -1).astype(np.float64) for each in scores if each.dtype.kind == "f"]
    found: NDArray[np.float64] = np.concatenate([np.empty((len(values), 0)), *flat], axis=1)
    return np.nan_to_num(found)


def _labels(
    predict: Predict, bases: pa.RecordBatch, known: dict[Any, int], intervals: _Intervals,
    values: NDArray[np.float64],
) -> NDArray[np.float64]:  # fmt: skip
    """Predict the labels of rows, as numbers."""
    if not len(intervals):
        return np.empty((0, 1))
    given = predict(_moved(bases, intervals, values))
    labels = np.asarray(given.get("label", np.zeros(len(values)))).reshape(len(values), -1).tolist()
    return np.array([[known.setdefault(str(label), len(known)) for label in row] for row in labels], float)


# -- rows -------------------------------------------------------------------------------------


def _moved(bases: pa.RecordBatch, intervals: _Intervals, values: NDArray[np.float64]) -> pa.RecordBatch:
    """Return the row of each interval with another value in its column."""
    rows = bases.take(pa.array(intervals.base, pa.int64()))
    columns = list(rows.columns)
    for i in np.unique(intervals.column):
        kind = rows.schema.field(int(i)).type
        here = pa.array(intervals.column == i)
        columns[i] = pc.if_else(here, pa.array(values).cast(kind, safe=False), columns[i])
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


def _probes(bases: pa.RecordBatch, intervals: _Intervals, *values: NDArray[np.float64]) -> Iterator[Probe]:
    for i in np.unique(intervals.column):
        here = intervals.column == i
        rows = [_moved(bases, intervals.taken(here), each[here]) for each in values]
        yield Probe("jump", bases.schema.field(int(i)).name, pa.concat_batches(rows))


def _decimals(intervals: _Intervals, digits: int) -> NDArray[np.float64]:
    """Return the decimals of so many digits next to the lower ends; integers as they are."""
    texts = [f"{value:.{digits}g}" for value in intervals.low]
    return np.where(intervals.whole, intervals.low, np.array(texts, np.float64))
