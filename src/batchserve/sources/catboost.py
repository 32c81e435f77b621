"""CatBoost models, by CatBoost's own exporter."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchserve import surgery
from batchserve.errors import ModelError
from batchserve.model import Tensor
from batchserve.sources import Candidate, by_columns, library, matrix, reason, title, versions

if TYPE_CHECKING:
    import onnx


def of_file(path: Path) -> "Boosted":
    """Open a model's own file.

    Raises:
        ModelError: CatBoost is not installed; or it is no such file.
    """
    catboost = library("catboost", "catboost")
    try:
        return of_object(catboost.CatBoost().load_model(str(path)))
    except catboost.CatBoostError as error:
        message = f"{path}: is no model of CatBoost ({reason(error)})"
        raise ModelError(message, "model.save_model('model.cbm') writes one") from error


def of_object(model: Any) -> "Boosted":
    """Open a fitted model.

    Raises:
        ModelError: CatBoost is not installed, or the model reads categories or texts.
    """
    library("catboost", "catboost")
    if model.get_cat_feature_indices() or model.get_text_feature_indices():
        hint = "train on one-hot columns, in a pipeline with OneHotEncoder"
        raise ModelError(f"{title(model)}: reads categories, which CatBoost does not export to ONNX", hint)
    return Boosted(model)


@dataclass(frozen=True)
class Boosted:
    """A fitted model of CatBoost."""

    model: Any

    @property
    def made_with(self) -> str:
        """Its class and loss, and CatBoost."""
        return f"{title(self.model)} ({self.loss}) by {versions('catboost')}"

    @property
    def loss(self) -> str:
        """What it was trained for, in CatBoost's words."""
        return str(self.model.get_all_params().get("loss_function", ""))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns it was trained on, unless they had numbers for names."""
        names = tuple(self.model.feature_names_)
        return () if all(name.isdigit() for name in names) else names

    @property
    def width(self) -> int | None:
        """How many columns it was trained on."""
        return len(self.model.feature_names_)

    @property
    def instead(self) -> str:
        """Nothing is known beforehand."""
        return ""

    def predict(self, rows: pa.RecordBatch) -> Mapping[str, Tensor]:
        """Return label and probabilities of a classifier, else the values."""
        table = matrix(rows)
        if not self._classifies:
            return {"variable": np.asarray(self.model.predict(table))}
        label = np.asarray(self.model.predict(table, prediction_type="Class")).reshape(-1)
        scores = np.asarray(self.model.predict(table, prediction_type="Probability"))
        return {"label": label, "probabilities": scores}

    @property
    def _classifies(self) -> bool:
        return len(self.model.classes_) > 0

    def candidates(self, rows: pa.RecordBatch) -> Iterator[Candidate]:
        """Give the graph that CatBoost writes: its trees compare in float32."""
        return by_columns(self.wide(rows.num_columns), rows)

    def wide(self, width: int) -> Iterator[Candidate]:  # noqa: ARG002  CatBoost knows it
        """Give the same with one input [rows, width]."""
        yield Candidate("float32", self._exported)

    def _exported(self) -> "onnx.ModelProto":
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            self.model.save_model(str(file), format="onnx")
            graph = surgery.without_zipmap(onnx.load(file))
        del graph.metadata_props[:]  # when and how it was trained, in ten thousand characters
        outputs = [port.name for port in graph.graph.output]
        names = ["label", "probabilities"] if self._classifies else ["variable"]
        for old, new in zip(outputs, names, strict=False):
            graph = surgery.renamed(graph, old, new)
        return graph
