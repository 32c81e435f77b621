"""Are probabilities what they say? Bins of them, and what they gave to what came true."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np

from batchserve.metrics import ZERO, Bin, Bools, Number, ratio
from batchserve.sums import Floats, exact_sum


@dataclass(frozen=True)
class Reliability:
    """Are probabilities what they say? Rows in equal bins of [0, 1], and how many of them were true."""

    bins: tuple[Bin, ...]

    @classmethod
    def of(cls, scores: Floats, true: Bools, bins: int) -> Self:
        """Return the bins of probabilities; one on an edge belongs to the bin below it."""
        place = np.searchsorted(_edges(bins)[1:-1], scores)
        return cls(tuple(_bin(scores[place == i], true[place == i]) for i in range(bins)))

    def __add__(self, other: Self) -> Self:
        return type(self)(tuple(a + b for a, b in zip(self.bins, other.bins, strict=True)))

    def error(self) -> Number:
        """Return the expected calibration error.

        Of each bin the distance of its mean probability from its share of true rows, weighted by its
        rows: Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities", AAAI 2015.
        """
        gaps = sum((abs(each.prediction - each.label) for each in self.bins), ZERO)
        return ratio(gaps, sum(each.rows for each in self.bins))

    def table(self) -> list[dict[str, Any]]:
        """Return the bins that have rows."""
        edges = _edges(len(self.bins)).tolist()
        return [
            {
                "from": low, "to": high, "rows": each.rows,
                "mean_prediction": ratio(each.prediction, each.rows),
                "mean_label": ratio(each.label, each.rows),
            }
            for low, high, each in zip(edges[:-1], edges[1:], self.bins, strict=True)
            if each.rows
        ]  # fmt: skip


def _edges(bins: int) -> Floats:
    return np.arange(bins + 1) / bins


def _bin(scores: Floats, true: Bools) -> Bin:
    return Bin(len(scores), exact_sum(scores), Fraction(int(true.sum())))


def log_loss_sum(likelihoods: Floats, least: float) -> Fraction:
    """Return the sum of -log of what was given to what came true, clipped to [least, 1 - least]."""
    return exact_sum(-np.log(np.clip(likelihoods, least, 1 - least)))
