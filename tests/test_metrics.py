"""Metrics: equal to what plain numpy says of the same rows, and the same in any split, to the bit."""

import itertools
import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchserve.metrics import Bools, Cut, Limits, Sums
from batchserve.metrics.binary import Binary
from batchserve.metrics.multiclass import Multiclass
from batchserve.metrics.probabilities import Reliability
from batchserve.metrics.regression import Regression
from batchserve.sums import Floats

NUMBER = st.floats(-1e9, 1e9, allow_subnormal=False)
PAIRS = st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=40)
SCORED = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=40)
CLASSED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)
PLACES = st.lists(st.integers(0, 40), max_size=4)


def chance() -> np.random.Generator:
    return np.random.default_rng(20261126)


def pieces(count: int, at: Sequence[int]) -> list[slice]:
    """Cut `count` rows at places anywhere in them."""
    edges = sorted({0, count, *(place % (count + 1) for place in at)})
    return [slice(a, b) for a, b in itertools.pairwise(edges)] or [slice(0, 0)]


def assert_same(parts: Sequence[Any], whole: Sums) -> None:
    """Whether sums of parts are those of the whole, whatever the order."""
    for order in (parts, parts[::-1]):
        found: Any = reduce(add, order)
        assert found.metrics() == whole.metrics()  # type: ignore[attr-defined]  # all sums have it


# -- regression -------------------------------------------------------------------------------


def regression_oracle(y: Floats, p: Floats) -> dict[str, float]:
    """Return what numpy says, of numbers that it can sum well."""
    error = p - y
    known = y != 0
    return {
        "mae": np.abs(error).mean(), "rmse": math.sqrt((error**2).mean()), "bias": error.mean(),
        "r2": 1 - (error**2).sum() / ((y - y.mean()) ** 2).sum(),
        "mape": (np.abs(error[known]) / np.abs(y[known])).mean(),
        "largest_error": np.abs(error).max(),
    }  # fmt: skip


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_a_regression_is_what_numpy_says(scale: float) -> None:
    """MAE, RMSE, bias, R2, MAPE and the largest error are those of numpy."""
    y = np.round(chance().normal(3, 10, 5000)) * scale
    p = y + chance().standard_normal(5000) * scale

    found = Regression.of(y, p).metrics()

    expected = regression_oracle(y, p)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert found["mape_rows"] == int((y != 0).sum()) < 5000


def test_a_regression_by_hand() -> None:
    """Labels 0, 2, 4 predicted as 1, 2, 2: errors 1, 0, -2."""
    found = Regression.of(np.array([0.0, 2, 4]), np.array([1.0, 2, 2])).metrics()

    assert found == {
        "rows": 3, "mae": 1.0, "rmse": math.sqrt(5 / 3), "bias": -1 / 3, "r2": 1 - 5 / 8,
        "mape": 0.25, "mape_rows": 2, "largest_error": 2.0, "largest_error_label": 4.0,
        "largest_error_prediction": 2.0,
    }  # fmt: skip


def test_labels_far_from_zero_keep_their_spread() -> None:
    """R2 of labels near 1e12 that differ by 1 is right, though their squares differ in digit 24."""
    y = 1e12 + np.tile([-1.0, 0.0, 1.0], 1000)

    assert Regression.of(y, y + np.tile([0.5, -0.5, 0.0], 1000)).metrics()["r2"] == 0.75


@given(PAIRS, PLACES)
def test_a_regression_is_the_same_in_any_split(rows: list[tuple[float, float]], at: list[int]) -> None:
    """Sums of pieces come to the metrics of the whole, to the bit, in any order."""
    y, p = np.array(rows).T
    parts = [Regression.of(y[cut], p[cut]) for cut in pieces(len(y), at)]

    assert_same(parts, Regression.of(y, p))


def test_what_is_not_defined_is_none() -> None:
    """One value of all labels has no R2, labels of 0 no MAPE, no rows nothing."""
    flat = Regression.of(np.zeros(3), np.ones(3)).metrics()
    none = Regression.of(np.zeros(0), np.zeros(0)).metrics()

    assert (flat["r2"], flat["mape"], flat["mae"]) == (None, None, 1.0)
    assert {value for name, value in none.items() if name not in {"rows", "mape_rows"}} == {None}


def test_a_calibration_has_bins_of_equal_rows() -> None:
    """1,000 predictions from 0 to 999 make 10 bins of 100, with the means of what is in them."""
    p = np.arange(1000.0)

    table = Regression.of(p + 1, p, Limits(scores=8, values=1024)).calibration(10)

    assert [each["rows"] for each in table] == [100] * 10
    assert [each["mean_prediction"] for each in table] == [100 * i + 49.5 for i in range(10)]
    assert [each["mean_label"] for each in table] == [100 * i + 50.5 for i in range(10)]
    assert [each["from"] for each in table] == [100 * i for i in range(10)]
    assert [each["to"] for each in table] == pytest.approx([100 * i + 99 for i in range(10)])


def test_a_histogram_has_every_row() -> None:
    """Bars and what lies outside them are all rows; an error of a million squashes no bar."""
    errors = np.append(chance().standard_normal(10_000), 1e6)

    found = Regression.of(np.zeros(10_001), errors).histogram()

    inside = sum(bar["rows"] for bar in found["bars"])
    assert (inside + found["below"] + found["above"], 20 < len(found["bars"]) <= 49) == (10_001, True)
    assert found["above"] >= 1
    assert -4 < found["bars"][0]["from"] < -2 < 2 < found["bars"][-1]["to"] < 4


# -- binary -----------------------------------------------------------------------------------


def auc_oracle(positive: Bools, scores: Floats) -> float:
    """Count all pairs of a positive row and another: in order, or equal."""
    pairs = list(itertools.product(scores[positive].tolist(), scores[~positive].tolist()))
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def precision_oracle(positive: Bools, scores: Floats) -> float:
    """Go down the scores; add precision times the recall that each gains."""
    total, recall = 0.0, 0.0
    for score in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= score
        now = positive[taken].sum() / positive.sum()
        total += positive[taken].mean() * (now - recall)
        recall = now
    return total


def binary_rows(count: int) -> tuple[Bools, Floats]:
    scores = chance().beta(1, 2, count).astype(np.float32).astype(np.float64).round(2)
    return chance().random(count) < scores, scores


def test_scores_are_what_plain_loops_say() -> None:
    """ROC AUC, average precision, log loss, Brier and ECE are those of loops over all rows."""
    positive, scores = binary_rows(400)
    likelihoods = np.clip(np.where(positive, scores, 1 - scores), 2.0**-52, 1 - 2.0**-52)

    found = Binary.of(positive, scores, Cut()).metrics()

    assert found["roc_auc"] == pytest.approx(auc_oracle(positive, scores), rel=1e-12)
    assert found["average_precision"] == pytest.approx(precision_oracle(positive, scores), rel=1e-12)
    assert found["log_loss"] == pytest.approx(-np.log(likelihoods).mean(), rel=1e-12)
    assert found["brier"] == pytest.approx(((scores - positive) ** 2).mean(), rel=1e-12)
    assert (found["roc_auc_within"], found["average_precision_within"]) == (0, 0)


def test_a_threshold_by_hand() -> None:
    """At 0.5 the scores 0.5, 0.9, 0.6 and 0.1 of yes, yes, no, yes are 2 hits, an alarm and a miss."""
    found = Binary.of(np.array([True, True, False, True]), np.array([0.5, 0.9, 0.6, 0.1]), Cut())

    metrics = found.metrics()
    assert found.confusion() == [[0, 1], [1, 2]]
    assert (metrics["accuracy"], metrics["precision"], metrics["recall"], metrics["f1"]) == (
        0.5, 2 / 3, 2 / 3, 2 / 3,
    )  # fmt: skip


@pytest.mark.parametrize("cells", [2, 16, 128])
def test_areas_of_few_cells_are_within_what_they_say(cells: int) -> None:
    """Where there are more scores than cells, the true areas lie within the bounds that are told."""
    positive, scores = binary_rows(400)
    scores = scores + chance().random(400) / 100

    found = Binary.of(positive, scores, Cut(), Limits(scores=cells, values=8)).metrics()

    assert 0 < abs(found["roc_auc"] - auc_oracle(positive, scores)) <= found["roc_auc_within"] < 0.5
    off = abs(found["average_precision"] - precision_oracle(positive, scores))
    assert 0 < off <= found["average_precision_within"]


@given(SCORED, PLACES, st.sampled_from([2, 8, 1 << 18]))
def test_scores_are_the_same_in_any_split(rows: list[tuple[bool, float]], at: list[int], cells: int) -> None:
    """Sums of pieces come to the metrics of the whole, to the bit; with few cells, too."""
    positive, scores = np.array([a for a, _ in rows]), np.array([b for _, b in rows])
    limits = Limits(scores=cells, values=8)
    parts = [Binary.of(positive[cut], scores[cut], Cut(), limits) for cut in pieces(len(rows), at)]

    assert_same(parts, Binary.of(positive, scores, Cut(), limits))
    assert reduce(add, parts).calibration(10) == Binary.of(positive, scores, Cut(), limits).calibration(10)


def test_scores_that_are_no_probabilities() -> None:
    """Scores below 0 or above 1 have an order and a threshold, and no log loss, Brier or calibration."""
    found = Binary.of(np.array([True, False]), np.array([3.0, -3.0]), Cut(threshold=0.0))

    metrics = found.metrics()
    assert (metrics["roc_auc"], metrics["accuracy"], metrics["scores_outside"]) == (1.0, 1.0, 2)
    assert (metrics["log_loss"], metrics["brier"], metrics["ece"], found.calibration(10)) == (
        None, None, None, [],
    )  # fmt: skip


def test_one_class_has_no_area() -> None:
    """Without a row of each kind there is no area; without a predicted one no precision."""
    metrics = Binary.of(np.array([False]), np.array([0.25]), Cut()).metrics()

    assert (metrics["roc_auc"], metrics["average_precision"], metrics["precision"], metrics["recall"]) == (
        None, None, None, None,
    )  # fmt: skip
    assert metrics["accuracy"] == 1.0


def test_a_sure_mistake_costs_what_the_type_allows() -> None:
    """A probability of 0 for what came true counts as the eps of its type."""
    found = Binary.of(np.array([True]), np.array([0.0]), Cut(least=2.0**-23))

    assert found.metrics()["log_loss"] == -math.log(2.0**-23)


def test_bins_by_hand() -> None:
    """0.1 is of the first bin of ten, as an edge belongs below; 0 and 1 are of the first and the last."""
    found = Reliability.of(np.array([0.0, 0.1, 0.15, 1.0]), np.array([False, True, False, True]), 10)

    table = found.table()
    assert [(each["from"], each["rows"], each["mean_label"]) for each in table] == [
        (0.0, 2, 0.5), (0.1, 1, 0.0), (0.9, 1, 1.0),
    ]  # fmt: skip
    assert table[0]["mean_prediction"] == 0.05
    assert found.error() == pytest.approx((2 * 0.45 + 0.15 + 0) / 4)


# -- classes ----------------------------------------------------------------------------------


def codes(rows: Sequence[tuple[int, int]]) -> tuple[Any, Any]:
    labels, predictions = np.array(rows, dtype=np.int64).T
    return labels, predictions


def test_classes_by_hand() -> None:
    """Of classes a, b, c: two a are found, one b is taken for a, c was only predicted, for b."""
    found = Multiclass.of(*codes([(0, 0), (0, 0), (1, 0), (1, 2)]), ("a", "b", "c"), None, Cut())

    assert found.classes() == ["a", "b", "c"]
    assert found.confusion() == [[2, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert found.per_class() == [
        {"class": "a", "rows": 2, "precision": 2 / 3, "recall": 1.0, "f1": 0.8},
        {"class": "b", "rows": 2, "precision": None, "recall": 0.0, "f1": 0.0},
        {"class": "c", "rows": 0, "precision": 0.0, "recall": None, "f1": 0.0},
    ]
    metrics = found.metrics()
    assert (metrics["accuracy"], metrics["macro_f1"], metrics["weighted_f1"]) == (
        0.5, pytest.approx(0.8 / 3), 0.4,
    )  # fmt: skip
    assert metrics["log_loss"] is None


def test_probabilities_of_classes_by_hand() -> None:
    """The log loss is that of what was given to the true class; calibration is that of the surest."""
    chances = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])

    found = Multiclass.of(np.array([1, 2]), chances.argmax(axis=1), ("a", "b", "c"), chances, Cut())

    assert found.metrics()["log_loss"] == pytest.approx((math.log(4) - math.log(0.8)) / 2)
    assert [(each["rows"], each["mean_label"]) for each in found.calibration(10)] == [(1, 0.0), (1, 1.0)]


@given(CLASSED, PLACES)
def test_classes_are_the_same_in_any_split(rows: list[tuple[int, int]], at: list[int]) -> None:
    """Sums of pieces come to the metrics and the confusion of the whole."""
    labels, predictions = codes(rows)
    chances = np.eye(4)[predictions] * 0.7 + 0.075
    parts = [
        Multiclass.of(labels[cut], predictions[cut], "abcd", chances[cut], Cut())
        for cut in pieces(len(rows), at)
    ]
    whole = Multiclass.of(labels, predictions, "abcd", chances, Cut())

    assert_same(parts, whole)
    assert reduce(add, parts).confusion() == whole.confusion()


def test_classes_that_are_numbers_sort_as_numbers() -> None:
    """Class 10 comes after class 9, and texts come after numbers."""
    found = Multiclass.of(np.arange(3), np.arange(3), ("10", "x", "9"), None, Cut())

    assert found.classes() == ["9", "10", "x"]
