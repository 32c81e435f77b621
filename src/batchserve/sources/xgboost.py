"""XGBoost boosters and estimators, by onnxmltools."""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchserve import surgery
from batchserve.errors import ModelError
from batchserve.model import Tensor
from batchserve.sources import (
    NO_CATEGORIES,
    ONNXMLTOOLS_OPSET,
    Candidate,
    by_columns,
    classified,
    library,
    matrix,
    reason,
    title,
    versions,
)

if TYPE_CHECKING:
    import onnx


def of_file(path: Path) -> "Boosted":
    """Open a booster's own file.

    Raises:
        ModelError: XGBoost or onnxmltools is not installed; or it is no such file.
    """
    xgboost = library("xgboost", "xgboost")
    try:
        booster = xgboost.Booster(model_file=str(path))
    except xgboost.core.XGBoostError as error:
        message = f"{path}: is no model of XGBoost ({reason(error)})"
        raise ModelError(message, "model.save_model('model.json') writes one") from error
    return of_object(booster)


def of_object(model: Any) -> "Boosted":
    """Open a booster or a fitted estimator of XGBoost.

    Raises:
        ModelError: onnxmltools is not installed, or it splits at categories.
    """
    library("xgboost", "xgboost")
    library("onnxmltools", "xgboost")
    booster = model.get_booster() if hasattr(model, "get_booster") else model
    if "c" in (booster.feature_types or []):
        raise ModelError(f"{title(model)}: splits at categories", NO_CATEGORIES)
    learner = json.loads(booster.save_config())["learner"]
    return Boosted(model, booster, learner["objective"]["name"], learner["gradient_booster"]["name"])


_INSTEAD = {
    "gblinear": "train a linear model of scikit-learn",
    "dart": "train with booster gbtree",
    "reg:logistic": "train with objective binary:logistic",
    "binary:logitraw": "train with objective binary:logistic",
    "rank": "rank with LightGBM's lambdarank, or train with objective reg:squarederror",
    "survival": "train with objective reg:gamma or reg:tweedie",
}


@dataclass(frozen=True)
class Boosted:
    """A booster, or the estimator around it."""

    model: Any
    booster: Any
    objective: str
    kind: str
    """Of what it is a sum: gbtree, dart, gblinear."""

    @property
    def made_with(self) -> str:
        """Its class and objective, XGBoost and onnxmltools."""
        named = f"{title(self.model)} ({self.objective})"
        return f"{named} by {versions('xgboost', 'onnxmltools')}"

    @property
    def names(self) -> tuple[str, ...]:
        """The columns it was trained on, if they had names."""
        return tuple(self.booster.feature_names or ())

    @property
    def width(self) -> int | None:
        """How many columns it was trained on."""
        return int(self.booster.num_features())

    @property
    def instead(self) -> str:
        """Another objective or booster, where onnxmltools gets this one wrong."""
        keys = (self.kind, self.objective, self.objective.partition(":")[0])
        return next((_INSTEAD[key] for key in keys if key in _INSTEAD), "")

    def predict(self, rows: pa.RecordBatch) -> Mapping[str, Tensor]:
        """Return label and probabilities of a classifier, else the values."""
        import xgboost

        table = matrix(rows)
        if hasattr(self.model, "predict_proba"):
            return classified(self.model, table)
        if self.model is not self.booster:
            return {"variable": np.asarray(self.model.predict(table))}
        matrix_of = xgboost.DMatrix(table, feature_names=self.booster.feature_names)
        return self._named(np.asarray(self.booster.predict(matrix_of)))

    def _named(self, values: Tensor) -> dict[str, Tensor]:
        """Return what a booster gives under the names of the graph's outputs."""
        if self.objective == "binary:logistic":
            values = np.stack([1 - values, values], axis=1)
        if self.objective in {"binary:logistic", "multi:softprob"}:
            return {"label": values.argmax(axis=1), "probabilities": values}
        return {"label" if self.objective == "multi:softmax" else "variable": values}

    def candidates(self, rows: pa.RecordBatch) -> Iterator[Candidate]:
        """Give a graph in float32: XGBoost computes in that."""
        return by_columns(self.wide(rows.num_columns), rows)

    def wide(self, width: int) -> Iterator[Candidate]:
        """Give the same with one input [rows, width]."""
        yield Candidate("float32", lambda: surgery.inferred(self._converted(width)))

    def _converted(self, width: int) -> "onnx.ModelProto":
        """Convert under the names f0, f1 ...: the converter takes no others."""
        from onnxmltools import convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType

        names, self.booster.feature_names = self.booster.feature_names, None
        inputs = [("X", FloatTensorType([None, width]))]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph: onnx.ModelProto = convert_xgboost(
                    self.model, initial_types=inputs, target_opset=ONNXMLTOOLS_OPSET
                )
        finally:
            self.booster.feature_names = names
        return surgery.without_zipmap(graph)
