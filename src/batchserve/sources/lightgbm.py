"""LightGBM boosters and estimators, by onnxmltools."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
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
    """Open a booster's own text file.

    Raises:
        ModelError: LightGBM or onnxmltools is not installed; or it is no such file.
    """
    lightgbm = library("lightgbm", "lightgbm")
    try:
        booster = lightgbm.Booster(model_file=str(path))
    except lightgbm.basic.LightGBMError as error:
        raise ModelError(f"{path}: is no model of LightGBM ({reason(error)})", _TEXT) from error
    return of_object(booster)


_TEXT = "booster.save_model('model.txt') writes one; of an estimator its .booster_ has that method"


def of_object(model: Any) -> "Boosted":
    """Open a booster or a fitted estimator of LightGBM.

    Raises:
        ModelError: onnxmltools is not installed, or it splits at categories.
    """
    library("lightgbm", "lightgbm")
    library("onnxmltools", "lightgbm")
    booster = getattr(model, "booster_", model)
    if any('"decision_type":"=="' in json.dumps(tree, separators=(",", ":")) for tree in _trees(booster)):
        raise ModelError(f"{title(model)}: splits at categories", NO_CATEGORIES)
    return Boosted(model, booster)


def _trees(booster: Any) -> list[Any]:
    trees: list[Any] = booster.dump_model()["tree_info"]
    return trees


_INSTEAD = {
    "fair": "train with objective huber",
    "mape": "train with objective regression_l1 and weights 1/|y|",
    "multiclassova": "train with objective multiclass",
    "cross_entropy": "where the labels are 0 and 1, train with objective binary",
    "cross_entropy_lambda": "where the labels are 0 and 1, train with objective binary",
    "none": "an objective of your own is no part of the model: train with one of LightGBM's",
}


@dataclass(frozen=True)
class Boosted:
    """A booster, or the estimator around it."""

    model: Any
    booster: Any

    @property
    def made_with(self) -> str:
        """Its class and objective, LightGBM and onnxmltools."""
        named = f"{title(self.model)} ({self.objective})"
        return f"{named} by {versions('lightgbm', 'onnxmltools')}"

    @property
    def objective(self) -> str:
        """What it was trained for, in LightGBM's words."""
        return str(self.booster.dump_model().get("objective", "none")).partition(" ")[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns it was trained on, unless LightGBM made the names up."""
        names = tuple(self.booster.feature_name())
        return () if all(re.fullmatch(r"Column_\d+", name) for name in names) else names

    @property
    def width(self) -> int | None:
        """How many columns it was trained on."""
        return int(self.booster.num_feature())

    @property
    def instead(self) -> str:
        """Another objective, where onnxmltools does not know this one or gets it wrong."""
        return _INSTEAD.get(self.objective, "")

    def predict(self, rows: pa.RecordBatch) -> Mapping[str, Tensor]:
        """Return label and probabilities of a classifier, else the values."""
        table = matrix(rows)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that an estimator knows and a matrix lacks
            if hasattr(self.model, "predict_proba"):
                return classified(self.model, table)
            return _named(np.asarray(self.booster.predict(table)), self.objective)

    def candidates(self, rows: pa.RecordBatch) -> Iterator[Candidate]:
        """Give graphs with sums in float32, in float64 as LightGBM's own, and with inputs in float64."""
        return by_columns(self.wide(rows.num_columns), rows)

    def wide(self, width: int) -> Iterator[Candidate]:
        """Give the same with one input [rows, width]."""
        yield Candidate("float32", partial(self._graph, width))
        yield Candidate("float32, trees summed in float64", partial(self._graph, width, split=_SPLIT))
        yield Candidate("float64", partial(self._graph, width, double=True))

    def _graph(self, width: int, split: int | None = None, *, double: bool = False) -> "onnx.ModelProto":
        graph = self._converted(width, split)
        surgery.compare_exactly(graph, self._thresholds(), double=double)
        return surgery.inferred(graph)

    def _thresholds(self) -> dict[tuple[int, float], float]:
        """Return all thresholds in float64, by feature and what float32 makes of them."""
        found: dict[tuple[int, float], float] = {}
        nodes = [tree["tree_structure"] for tree in _trees(self.booster)]
        while nodes:
            node = nodes.pop()
            if "threshold" in node:
                value = float(node["threshold"])
                found[node["split_feature"], float(np.float32(value))] = value
                nodes += [node["left_child"], node["right_child"]]
        return found

    def _converted(self, width: int, split: int | None) -> "onnx.ModelProto":
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType

        inputs = [("X", FloatTensorType([None, width]))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph: onnx.ModelProto = convert_lightgbm(
                self.model, initial_types=inputs, target_opset=ONNXMLTOOLS_OPSET, zipmap=False, split=split
            )
        return graph


_SPLIT = 10
"""Trees whose leaves are summed in float32 before the sums are added in float64."""


def _named(values: Tensor, objective: str) -> dict[str, Tensor]:
    """Return what a booster gives under the names of the graph's outputs."""
    if objective == "binary":
        values = np.stack([1 - values, values], axis=1)
    if objective in {"binary", "multiclass", "multiclassova"}:
        return {"label": values.argmax(axis=1), "probabilities": values}
    return {"variable": values}
