"""Yes or no: how well scores order the rows, what they are worth as probabilities, and at a threshold."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np

from batchserve import sums
from batchserve.metrics import WHOLE, Bools, Cut, Limits, Number, Sums, ratio
from batchserve.metrics.probabilities import Reliability, log_loss_sum
from batchserve.sums import Cells, Floats, exact_squares


@dataclass(frozen=True)
class Binary(Sums):
    """Sums over rows that are positive or not, and have a score for being so."""

    rows: int
    positives: int
    hits: int
    """Positive rows whose score reaches the threshold."""
    alarms: int
    """Other rows whose score does."""
    outside: int
    """Rows whose score is below 0 or above 1: it is no probability."""
    log_loss: Fraction
    brier: Fraction
    scores: Cells
    """By score: rows that are not positive, rows that are."""
    reliability: Reliability

    @classmethod
    def of(cls, positive: Bools, scores: Floats, at: "Cut", limits: Limits = WHOLE) -> Self:
        """Return the sums of some rows.

        Args:
            positive: Which rows are positive, [n].
            scores: Larger for rows that are more likely to be, [n]; finite.
            at: Where scores are cut.
            limits: Of the histogram.

        Example:
            >>> found = Binary.of(np.array([True, False]), np.array([0.75, 0.25]), Cut())
            >>> found.metrics()["roc_auc"], found.metrics()["brier"]
            (1.0, 0.0625)
        """
        over = scores >= at.threshold
        likely = (scores >= 0) & (scores <= 1)
        true, given = positive[likely], scores[likely]
        return cls(
            rows=len(scores), positives=int(positive.sum()), hits=int((over & positive).sum()),
            alarms=int((over & ~positive).sum()), outside=int((~likely).sum()),
            log_loss=log_loss_sum(np.where(true, given, 1 - given), at.least),
            brier=exact_squares(given - true),
            scores=sums.bits(limits.scores, scores, np.stack((~positive, positive), 1).astype(np.float64)),
            reliability=Reliability.of(given, true, at.bins),
        )  # fmt: skip

    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name; of scores that are no probabilities only those of their order."""
        likely = self.rows if not self.outside else 0
        auc, auc_within = _area(self.scores)
        precision, precision_within = _average_precision(self.scores)
        return {
            "rows": self.rows,
            "positives": self.positives,
            "roc_auc": auc,
            "roc_auc_within": auc_within,
            "average_precision": precision,
            "average_precision_within": precision_within,
            "log_loss": ratio(self.log_loss, likely),
            "brier": ratio(self.brier, likely),
            "ece": self.reliability.error() if likely else None,
            "scores_outside": self.outside,
            **self._at_threshold(),
        }

    def _at_threshold(self) -> dict[str, Any]:
        misses = self.positives - self.hits
        return {
            "accuracy": ratio(self.rows - self.alarms - misses, self.rows),
            "precision": ratio(self.hits, self.hits + self.alarms),
            "recall": ratio(self.hits, self.positives),
            "f1": ratio(2 * self.hits, 2 * self.hits + self.alarms + misses),
        }

    def confusion(self) -> list[list[int]]:
        """Return rows by label (negative, positive) and by prediction."""
        misses = self.positives - self.hits
        return [[self.rows - self.positives - self.alarms, self.alarms], [misses, self.hits]]

    def calibration(self, bins: int) -> list[dict[str, Any]]:
        """Return the bins of [0, 1]; none where scores are no probabilities."""
        del bins  # they were counted so
        return [] if self.outside else self.reliability.table()


def _area(scores: Cells) -> tuple[Number, Number]:
    """Return the area under the ROC curve, and how far from it the true one may be.

    The area is the share of pairs, one positive and one not, that the scores put in order; a pair in
    one cell counts half (Mann and Whitney 1947). The order of those pairs is what is not known.
    """
    others, positives = scores.weights.T
    pairs = others.sum() * positives.sum()
    if not pairs:
        return None, None
    below = np.cumsum(others) - others
    unknown = float((positives * others).sum() / 2) if scores.level else 0.0
    return float((positives * (below + others / 2)).sum() / pairs), float(unknown / pairs)


def _average_precision(scores: Cells) -> tuple[Number, Number]:
    """Return the sum of precision times the recall gained, score by score, and how far off it may be.

    What is not known is the order within a cell: all its positives first at best, last at worst.
    """
    others, positives = scores.weights[::-1].T
    found, alarms = np.cumsum(positives), np.cumsum(others)
    if not len(found) or not found[-1]:
        return None, None
    average = float((positives * found / (found + alarms)).sum() / found[-1])
    if not scores.level:
        return average, 0.0
    best = (positives * found / np.maximum(1, found + alarms - others)).sum() / found[-1]
    worst = (positives * (found - positives + 1) / (found - positives + 1 + alarms)).sum() / found[-1]
    return average, float(max(best - average, average - worst))
