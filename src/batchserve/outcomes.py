"""What was to be predicted and what was: two columns to the sums of their task; pure."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from batchserve.errors import BatchserveError, DataError, UsageError, raise_all
from batchserve.labels import chances_of, check_classes, coded, numbers, plain, valid
from batchserve.metrics import Bools, Codes, Limits
from batchserve.metrics.binary import Binary
from batchserve.metrics.multiclass import Multiclass
from batchserve.metrics.regression import Regression
from batchserve.predictions import filtered
from batchserve.questions import Question
from batchserve.sums import Floats

Measured = Regression | Binary | Multiclass
_SHOWN = 5


@dataclass(frozen=True)
class Outcome:
    """What some rows came to. Outcomes add up."""

    measured: Measured
    left_out: Counter[str]
    """Rows that could not be compared, by reason."""
    labels: Counter[str]
    """Rows by class; empty for a regression."""

    def __add__(self, other: "Outcome") -> "Outcome":
        measured: Any = self.measured
        return Outcome(measured + other.measured, self.left_out + other.left_out, self.labels + other.labels)


def outcome(question: Question, label: pa.Array, prediction: pa.Array, limits: Limits) -> Outcome:
    """Compare predictions with labels.

    Args:
        question: Which task.
        label: What was to be predicted.
        prediction: What was.
        limits: Of the histograms.

    Raises:
        DataError: There is a class that the prediction cannot have, or too many.
        UsageError: Nobody said which class is the positive one.
    """
    label, prediction = plain(label), plain(prediction)
    labelled, predicted = valid(label), valid(prediction)
    left: Counter[str] = Counter()
    left["label is null"] = int((~labelled).sum())
    left["prediction is null"] = int((labelled & ~predicted).sum())
    both = labelled & predicted
    if not both.all():
        label, prediction = filtered(label, both), filtered(prediction, both)
    if question.task == "regression":
        return _regression(numbers(label), numbers(prediction), left, limits)
    codes, names = coded(label, question.label)
    if question.task == "multiclass" and not question.names:
        return _labels(question, codes, names, coded(prediction, question.prediction), left)
    chances = chances_of(prediction, len(question.names)) if question.names else numbers(prediction)[:, None]
    return _scores(question, codes, names, chances, left, limits)


def _regression(labels: Floats, predictions: Floats, left: Counter[str], limits: Limits) -> Outcome:
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.isfinite(predictions - labels)
    good = np.isfinite(labels)
    left["label is NaN or infinite"] = int((~good).sum())
    left["prediction is NaN or infinite"] = int((good & ~errors).sum())
    good &= errors
    return Outcome(Regression.of(labels[good], predictions[good], limits), +left, Counter())


def _good(codes: Codes, finite: Bools, left: Counter[str]) -> Bools:
    left["label is NaN or infinite"] = int((codes < 0).sum())
    left["prediction is NaN or infinite"] = int(((codes >= 0) & ~finite).sum())
    good: Bools = (codes >= 0) & finite
    return good


def _counted(codes: Codes, names: Sequence[str]) -> Counter[str]:
    return +Counter(dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=False)))


def _scores(
    question: Question, codes: Codes, names: list[str], chances: Floats, left: Counter[str], limits: Limits
) -> Outcome:  # fmt: skip
    good = _good(codes, np.asarray(np.isfinite(chances).all(axis=1)), left)
    codes, chances = codes[good], chances[good]
    labels = _counted(codes, names)
    if question.names:
        _check_known(question, labels)
    if question.task == "multiclass":
        places = np.array([question.names.index(n) if n in question.names else 0 for n in names], np.int64)
        true = places[codes] if names else codes
        best = chances.argmax(axis=1).astype(np.int64)
        return Outcome(Multiclass.of(true, best, question.names, chances, question.cut), +left, labels)
    raise_all(list(_binary_problems(question, labels, final=False)))
    positive = np.isin(codes, [i for i, name in enumerate(names) if name == question.positive])
    column = question.names.index(question.positive) if question.names else 0
    return Outcome(Binary.of(positive, chances[:, column], question.cut, limits), +left, labels)


def _labels(
    question: Question, codes: Codes, names: list[str], predicted: tuple[Codes, list[str]], left: Counter[str]
) -> Outcome:
    others, other_names = predicted
    good = _good(codes, others >= 0, left)
    every = [*names, *(name for name in other_names if name not in names)]
    places = np.array([every.index(name) for name in other_names], np.int64)
    best = places[others[good]] if other_names else others[good]
    measured = Multiclass.of(codes[good], best, every, None, question.cut)
    return Outcome(measured, +left, _counted(codes[good], names))


def _check_known(question: Question, labels: Counter[str]) -> None:
    if unknown := [name for name in labels if name not in question.names]:
        told = f"{question.label} has the class {', '.join(unknown[:_SHOWN])}"
        known = ", ".join(question.names[:_SHOWN])
        message = f"{told}, and {question.prediction} has probabilities for {known}"
        raise DataError(message, "say in which order its classes are: --classes A,B")


def _binary_problems(question: Question, labels: Counter[str], *, final: bool) -> Iterator[BatchserveError]:
    told = ", ".join(sorted(labels)[:_SHOWN])
    if len(labels) > 2:  # noqa: PLR2004  no or yes
        yield DataError(f"{question.label} has more than two classes: {told}", "say --task multiclass")
    elif not question.positive_said and not labels.keys() <= {"0", "1"}:
        yield UsageError(f"{question.label} is {told}: which of them is positive?", "say --positive CLASS")
    elif final and len(labels) == 2 and question.positive not in labels:  # noqa: PLR2004  no or yes
        yield DataError(f"{question.label} is never {question.positive}, but {told}", "say --positive CLASS")


def check(question: Question, found: Outcome, *, final: bool = False) -> None:
    """Check that what was added up makes sense together.

    Args:
        question: What was asked.
        found: Of all blocks up to now.
        final: Whether that is all.

    Raises:
        DataError: There are more than two classes, or too many, or label and prediction share none.
    """
    measured = found.measured
    if isinstance(measured, Binary):
        raise_all(list(_binary_problems(question, found.labels, final=final)))
    if isinstance(measured, Multiclass):
        classes = measured.classes()
        check_classes(question.label, len(classes))
        predicted = {name for _, name in measured.pairs}
        if final and found.labels and not predicted & found.labels.keys():
            told = f"{question.label} is {_some(found.labels)}, and {question.prediction} {_some(predicted)}"
            raise DataError(f"no prediction is a label: {told}", "name other columns, or --classes A,B")


def _some(names: Any) -> str:
    return ", ".join(sorted(names)[:_SHOWN])
