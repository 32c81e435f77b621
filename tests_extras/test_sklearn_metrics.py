# ruff: noqa: INP001, S101, D103  what tests may do
"""`batchserve evaluate` against scikit-learn's metrics on the same rows.

Needs scikit-learn: `nox -s extras` runs it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn import calibration, metrics

import batchserve as bs

ROWS = 300_000
CLOSE = 1e-9
Floats = NDArray[np.float64]


def chance() -> np.random.Generator:
    return np.random.default_rng(41)


def evaluated(folder: Path, label: Any, prediction: Any, **asked: Any) -> Any:
    pq.write_table(pa.table({"y": label, "p": prediction}), folder / "s.parquet", row_group_size=70_000)
    return bs.evaluate(folder / "s.parquet", label="y", prediction="p", **asked)


@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (1e6, 3), (-40, 1e-3)])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_regression_is_scikit_learns(tmp_path: Path, kind: Any, mean: float, spread: float) -> None:
    """MAE, RMSE, R2, MAPE and the largest error are scikit-learn's, on float32 and float64."""
    y = (mean + spread * chance().standard_normal(ROWS)).astype(kind)
    p = (y + spread * chance().standard_t(3, ROWS)).astype(kind)

    found = evaluated(tmp_path, y, p).metrics

    y, p = y.astype(float), p.astype(float)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(y, p), rel=CLOSE)
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(y, p), rel=CLOSE)
    assert found["r2"] == pytest.approx(metrics.r2_score(y, p), rel=CLOSE)
    assert found["mape"] == pytest.approx(metrics.mean_absolute_percentage_error(y, p), rel=CLOSE)
    assert found["largest_error"] == pytest.approx(metrics.max_error(y, p), rel=CLOSE)


@pytest.mark.parametrize("digits", [2, 5])
def test_scores_are_scikit_learns(tmp_path: Path, digits: int) -> None:
    """All metrics of a binary task are scikit-learn's; with up to 100,001 different scores to the last."""
    p = chance().beta(0.5, 1, ROWS).round(digits)
    y = chance().random(ROWS) < p**1.2

    found = evaluated(tmp_path, y, p, threshold=0.3)

    got, over = found.metrics, p >= 0.3  # noqa: PLR2004  the threshold
    assert got["roc_auc_within"] == got["average_precision_within"] == 0
    assert got["roc_auc"] == pytest.approx(metrics.roc_auc_score(y, p), rel=CLOSE)
    assert got["average_precision"] == pytest.approx(metrics.average_precision_score(y, p), rel=CLOSE)
    assert got["log_loss"] == pytest.approx(metrics.log_loss(y, p), rel=CLOSE)
    assert got["brier"] == pytest.approx(metrics.brier_score_loss(y, p), rel=CLOSE)
    assert got["accuracy"] == pytest.approx(metrics.accuracy_score(y, over), rel=CLOSE)
    assert got["precision"] == pytest.approx(metrics.precision_score(y, over), rel=CLOSE)
    assert got["recall"] == pytest.approx(metrics.recall_score(y, over), rel=CLOSE)
    assert got["f1"] == pytest.approx(metrics.f1_score(y, over), rel=CLOSE)
    assert found.facts()["confusion"] == metrics.confusion_matrix(y, over).tolist()
    true, said = calibration.calibration_curve(y, p, n_bins=10)
    assert [each["mean_label"] for each in found.calibration] == pytest.approx(true, rel=CLOSE)
    assert [each["mean_prediction"] for each in found.calibration] == pytest.approx(said, rel=CLOSE)


def test_more_scores_than_cells_are_within_the_bound(tmp_path: Path) -> None:
    """Of 300,000 different scores the areas lie within the bound that is told, and that is small."""
    p, other = chance().random((2, ROWS))
    y = other < p

    got = evaluated(tmp_path, y, p).metrics

    assert 0 < got["roc_auc_within"] < 1e-5  # noqa: PLR2004  what the page says
    assert abs(got["roc_auc"] - metrics.roc_auc_score(y, p)) <= got["roc_auc_within"]
    off = abs(got["average_precision"] - metrics.average_precision_score(y, p))
    assert off <= got["average_precision_within"]


def test_a_log_loss_of_float32_clips_as_scikit_learn(tmp_path: Path) -> None:
    """A float32 probability of 0 or 1 is clipped at float32's eps."""
    p = np.array([0.0, 1.0, 0.25, 0.0], np.float32)
    y = np.array([True, False, True, False])

    got = evaluated(tmp_path, y, p).metrics

    assert got["log_loss"] == pytest.approx(metrics.log_loss(y, p), rel=1e-6)  # which computes in float32


def test_classes_are_scikit_learns(tmp_path: Path) -> None:
    """Confusion, accuracy, precision, recall, F1 of each class, macro and weighted, and log loss."""
    logits = chance().standard_normal((ROWS, 5))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = np.where(chance().random(ROWS) < 0.6, p.argmax(axis=1), chance().integers(0, 4, ROWS))  # noqa: PLR2004  the share of right ones
    names = np.array(["ant", "bee", "cat", "dog", "elk"])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(p.reshape(-1)), 5)

    found = evaluated(tmp_path, names[y], lists, classes=list(names))

    got, best = found.metrics, p.argmax(axis=1)
    assert found.facts()["confusion"] == metrics.confusion_matrix(y, best).tolist()
    assert got["accuracy"] == pytest.approx(metrics.accuracy_score(y, best), rel=CLOSE)
    assert got["log_loss"] == pytest.approx(metrics.log_loss(y, p, labels=range(5)), rel=CLOSE)
    each = metrics.precision_recall_fscore_support(y, best, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "rows"), each, strict=True):
        shown = [one[name] or 0 for one in found.facts()["per_class"]]
        assert shown == pytest.approx(values.tolist(), rel=CLOSE)
    for average in ("macro", "weighted"):
        theirs = metrics.precision_recall_fscore_support(y, best, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), theirs[:3], strict=True):
            assert got[f"{average}_{name}"] == pytest.approx(value, rel=CLOSE)


def test_labels_are_scikit_learns(tmp_path: Path) -> None:
    """Predicted labels, without probabilities, give the same classification report."""
    y, p = chance().integers(0, 7, ROWS), chance().integers(0, 7, ROWS)

    found = evaluated(tmp_path, y, p)

    report: Any = metrics.classification_report(y, p, output_dict=True)
    assert found.metrics["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"], rel=CLOSE)
    assert {each["class"]: each["f1"] for each in found.facts()["per_class"]} == pytest.approx(
        {str(name): report[str(name)]["f1-score"] for name in range(7)}, rel=CLOSE
    )
