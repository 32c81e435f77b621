"""One class of several: which was predicted for which, and what its probability was."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np

from batchserve.metrics import ZERO, Codes, Cut, Sums, ratio
from batchserve.metrics.probabilities import Reliability, log_loss_sum
from batchserve.sums import Floats


@dataclass(frozen=True)
class Multiclass(Sums):
    """Sums over rows of one class each."""

    rows: int
    pairs: Counter[tuple[str, str]]
    """Rows by their class and by the one that was predicted."""
    likely: int
    """Rows that have a probability for each class."""
    log_loss: Fraction
    reliability: Reliability
    """Of the largest probability of each row: how often was that class true?"""

    @classmethod
    def of(
        cls, labels: Codes, predictions: Codes, names: Sequence[str], chances: Floats | None, at: Cut
    ) -> Self:
        """Return the sums of some rows.

        Args:
            labels: The class of each row, as a place in `names`, [n].
            predictions: The class that was predicted, [n].
            names: The classes.
            chances: The probability of each class, [n, classes], or None.
            at: Where probabilities are cut.

        Example:
            >>> found = Multiclass.of(np.array([0, 1]), np.array([0, 0]), ("a", "b"), None, Cut())
            >>> found.metrics()["accuracy"], found.pairs["b", "a"]
            (0.5, 1)
        """
        both, counts = np.unique(labels * len(names) + predictions, return_counts=True)
        pairs = [divmod(int(each), len(names)) for each in both]
        given = np.zeros((0, 1)) if chances is None else chances
        rows = np.arange(len(given))
        sure, right = given.max(axis=1, initial=0.0), (labels == predictions)[: len(given)]
        return cls(
            rows=len(labels),
            pairs=Counter({(names[a], names[b]): int(n) for (a, b), n in zip(pairs, counts, strict=True)}),
            likely=len(given), log_loss=log_loss_sum(given[rows, labels[: len(given)]], at.least),
            reliability=Reliability.of(sure, right, at.bins),
        )  # fmt: skip

    def classes(self) -> list[str]:
        """Return every class that is a label or was predicted; numbers sort as numbers."""
        return sorted({name for pair in self.pairs for name in pair}, key=_by_number)

    def confusion(self) -> list[list[int]]:
        """Return rows by label and by prediction, both in the order of `classes`."""
        names = self.classes()
        return [[self.pairs[label, predicted] for predicted in names] for label in names]

    def per_class(self) -> list[dict[str, Any]]:
        """Return precision, recall and F1 of each class, and how many rows are of it."""
        counts = np.array(self.confusion(), dtype=np.int64).reshape(len(self.classes()), -1)
        right, rows, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
        return [
            {
                "class": name, "rows": n, "precision": ratio(hits, m), "recall": ratio(hits, n),
                "f1": ratio(2 * hits, n + m),
            }
            for name, hits, n, m in zip(
                self.classes(), right.tolist(), rows.tolist(), predicted.tolist(), strict=True
            )
        ]  # fmt: skip

    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name; in a mean over classes what is not defined counts as 0."""
        each = self.per_class()
        hits = sum(count for (label, predicted), count in self.pairs.items() if label == predicted)
        found: dict[str, Any] = {"rows": self.rows, "classes": len(each), "accuracy": ratio(hits, self.rows)}
        for name in ("precision", "recall", "f1"):
            values = [Fraction(one[name] or 0) for one in each]
            weighted = sum((value * one["rows"] for value, one in zip(values, each, strict=True)), ZERO)
            found |= {
                f"macro_{name}": ratio(sum(values, ZERO), len(each)),
                f"weighted_{name}": ratio(weighted, self.rows),
            }
        return found | {"log_loss": ratio(self.log_loss, self.likely), "ece": self.reliability.error()}

    def calibration(self, bins: int) -> list[dict[str, Any]]:
        """Return the bins of the largest probability: what it said, and how often it was right."""
        del bins  # they were counted so
        return self.reliability.table()


def _by_number(name: str) -> tuple[bool, float, str]:
    """Return a key that sorts numbers before texts, and as numbers."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
