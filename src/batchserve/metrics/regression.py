"""Numbers: errors, how much of the labels' spread is explained, errors and predictions by size."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np

from batchserve import sums
from batchserve.metrics import WHOLE, ZERO, Limits, Sums, ratio, root
from batchserve.sums import Cells, Floats, as_float, exact_squares, exact_sum


@dataclass(frozen=True, order=True)
class Largest:
    """The largest error, and where it was made; of two equal ones that with the larger label."""

    error: float = -1.0
    label: float = 0.0
    prediction: float = 0.0

    def __add__(self, other: "Largest") -> "Largest":
        return max(self, other)


@dataclass(frozen=True)
class Regression(Sums):
    """Sums over rows with numbers to predict; an error is the prediction less the label."""

    rows: int
    error: Fraction
    absolute: Fraction
    squared: Fraction
    label: Fraction
    label_squared: Fraction
    relative: Fraction
    relative_rows: int
    """Rows whose label is not 0: the others have no relative error."""
    largest: Largest
    predictions: Cells
    """By prediction: rows, sum of predictions, sum of labels."""
    errors: Cells
    """By error: rows."""

    @classmethod
    def of(cls, labels: Floats, predictions: Floats, limits: Limits = WHOLE) -> Self:
        """Return the sums of some rows.

        Args:
            labels: What was to be predicted, [n]; finite.
            predictions: What was predicted, [n]; finite, and their differences to the labels too.
            limits: Of the histograms.

        Example:
            >>> Regression.of(np.array([1.0, 2.0]), np.array([2.0, 4.0])).metrics()["mae"]
            1.5
        """
        errors = predictions - labels
        absolute = np.abs(errors)
        known = labels != 0
        ones = np.ones(len(labels))
        return cls(
            rows=len(labels), error=exact_sum(errors), absolute=exact_sum(absolute),
            squared=exact_squares(errors), label=exact_sum(labels), label_squared=exact_squares(labels),
            relative=exact_sum(_relative(absolute[known], labels[known])), relative_rows=int(known.sum()),
            largest=_largest(absolute, labels, predictions),
            predictions=sums.linear(limits.values, predictions, np.stack((ones, predictions, labels), 1)),
            errors=sums.linear(limits.values, errors, ones[:, None]),
        )  # fmt: skip

    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name.

        R2 is 1 less the squared errors over the squared distances of the labels from their mean; it is
        None where all labels are one. MAPE is the mean of |error / label| over the rows whose label is not 0.
        """
        spread = self.label_squared - self.label**2 / self.rows if self.rows else ZERO
        unexplained = ratio(self.squared, spread)
        worst = self.largest
        return {
            "rows": self.rows,
            "mae": ratio(self.absolute, self.rows),
            "rmse": root(ratio(self.squared, self.rows)),
            "bias": ratio(self.error, self.rows),
            "r2": as_float(1 - self.squared / spread) if unexplained is not None else None,
            "mape": ratio(self.relative, self.relative_rows),
            "mape_rows": self.relative_rows,
            "largest_error": worst.error if self.rows else None,
            "largest_error_label": worst.label if self.rows else None,
            "largest_error_prediction": worst.prediction if self.rows else None,
        }

    def calibration(self, bins: int) -> list[dict[str, Any]]:
        """Return rows of about equal number by their prediction: what was predicted, what was true."""
        cells = self.predictions
        width = math.ldexp(1.0, cells.level)
        return [
            {
                "from": float(cells.keys[part][0]) * width, "to": float(cells.keys[part][-1] + 1) * width,
                "rows": int(rows), "mean_prediction": float(prediction / rows),
                "mean_label": float(label / rows),
            }
            for part in _parts(cells.weights[:, 0], bins)
            for rows, prediction, label in [cells.weights[part].sum(axis=0)]
        ]  # fmt: skip

    def histogram(self) -> dict[str, Any]:
        """Return how many rows have which error: of the middle 99 in 100 in bars, of the others a count."""
        cells = self.errors
        if not self.rows:
            return {"bars": [], "below": 0, "above": 0}
        ends = np.cumsum(cells.weights[:, 0])
        first, last = np.searchsorted(ends, np.array([0.005, 0.995]) * self.rows)
        lost = max(0, math.ceil(math.log2((int(cells.keys[last]) - int(cells.keys[first]) + 1) / _BARS)))
        bars = cells.at(cells.level + lost)
        low, high = int(cells.keys[first]) >> lost, int(cells.keys[last]) >> lost
        width = math.ldexp(1.0, bars.level)
        rows = dict(zip(bars.keys.tolist(), bars.weights[:, 0].astype(int).tolist(), strict=True))
        return {
            "bars": [
                {"from": key * width, "to": (key + 1) * width, "rows": rows.get(key, 0)}
                for key in range(low, high + 1)
            ],
            "below": sum(count for key, count in rows.items() if key < low),
            "above": sum(count for key, count in rows.items() if key > high),
        }  # fmt: skip


_BARS = 48
"""Bars of a histogram, at most one more."""


def _relative(absolute: Floats, labels: Floats) -> Floats:
    """Return |error / label|, no more than the largest float."""
    with np.errstate(over="ignore"):
        return np.minimum(absolute / np.abs(labels), np.finfo(np.float64).max)


def _largest(absolute: Floats, labels: Floats, predictions: Floats) -> Largest:
    worst = np.flatnonzero(absolute == absolute.max(initial=-1.0))
    each = (Largest(float(absolute[i]), float(labels[i]), float(predictions[i])) for i in worst)
    return max(each, default=Largest())


def _parts(rows: Floats, count: int) -> Iterator[slice]:
    """Cut cells into parts of about equal rows."""
    ends = np.cumsum(rows)
    part = np.minimum((ends - rows / 2) * count // max(1.0, rows.sum()), count - 1)
    edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(rows)]
    yield from (slice(a, b) for a, b in itertools.pairwise(edges) if b > a)
