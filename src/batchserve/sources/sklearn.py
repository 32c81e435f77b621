"""scikit-learn estimators and pipelines, by skl2onnx."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchserve import sources, surgery
from batchserve.errors import ModelError
from batchserve.model import Tensor
from batchserve.sources import (
    OPSETS,
    Candidate,
    Kind,
    converters,
    frame,
    kinds,
    library,
    matrix,
    reason,
    title,
    versions,
)

if TYPE_CHECKING:
    import onnx

Columns = Mapping[str, Kind]


def of_object(model: Any) -> "Estimator":
    """Open a fitted estimator or pipeline.

    Raises:
        ModelError: skl2onnx is not installed.
    """
    library("skl2onnx", "sklearn")
    return Estimator(model)


@dataclass(frozen=True)
class Estimator:
    """A fitted estimator or pipeline."""

    model: Any

    @property
    def made_with(self) -> str:
        """Its class, scikit-learn and skl2onnx; of a booster in a pipeline its own libraries, too."""
        booster = _booster(_last(self.model)) if hasattr(self.model, "steps") else None
        last = f"; its last step {booster.made_with}" if booster else ""
        return f"{title(self.model)} by {versions('sklearn', 'skl2onnx')}{last}"

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the data frame that it was fitted on."""
        return tuple(getattr(self.model, "feature_names_in_", ()))

    @property
    def width(self) -> int | None:
        """How many columns it was fitted on."""
        return getattr(self.model, "n_features_in_", None)

    @property
    def instead(self) -> str:
        """Another estimator, where skl2onnx has no converter or gets this one wrong."""
        parts = {type(each).__name__ for each in _parts(self.model)}
        return "; ".join(text for name, text in _INSTEAD.items() if name in parts)

    def predict(self, rows: pa.RecordBatch) -> Mapping[str, Tensor]:
        """Return label and scores of a classifier, the values of a regressor."""
        table = self._table(rows)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _predicted(self.model, table)

    def _table(self, rows: pa.RecordBatch) -> Any:
        if self.names:
            return frame(rows)
        texts = any(not pa.types.is_floating(f.type) and not pa.types.is_integer(f.type) for f in rows.schema)
        return frame(rows).to_numpy(object) if texts else matrix(rows)

    def candidates(self, rows: pa.RecordBatch) -> Iterator[Candidate]:
        """Give graphs in float32, in float64, in that up to the last step, and with integers as they are."""
        parts = {type(each).__name__ for each in _parts(self.model)}
        remark = _EQUALLY_FAR if parts & _OF_NEIGHBOURS else ""
        for how, make in self._ways(rows):
            yield Candidate(how, make, remark=remark)

    def _ways(self, rows: pa.RecordBatch) -> "Iterator[tuple[str, Callable[[], onnx.ModelProto]]]":
        columns = kinds(rows.schema)
        wide = "text" not in columns.values() and not _selects(self.model)
        convert = partial(_wide if wide else _named, self.model, columns)
        if booster := _booster(_last(self.model)):
            yield from _boosted_last(self.model, columns, booster, wide=wide)
            return
        for how in ("float32", "float64"):
            yield how, partial(convert, how)
        if len(getattr(self.model, "steps", ())) > 1:
            yield _SPLIT, partial(_split, self.model, columns, wide=wide)
        if not wide and "integer" in columns.values():  # last: an integer has no NaN for a null
            for how in ("float32 and int64", "float64 and int64"):
                yield how, partial(convert, how)


_OF_NEIGHBOURS = {"KNeighborsClassifier", "KNeighborsRegressor"}
_EQUALLY_FAR = (
    "where the last neighbour that counts is as far as the next one, another may count; "
    "scikit-learn leaves that to the order of its rows"
)
"""What scikit-learn says of it: https://scikit-learn.org/stable/modules/generated/sklearn.neighbors.KNeighborsClassifier.html"""

_INSTEAD = {
    "VotingClassifier": "say VotingClassifier(flatten_transform=False)",
    "TransformedTargetRegressor": "export its .regressor_ and transform the scores back afterwards",
    "SelfTrainingClassifier": "export its .estimator_",
    "FixedThresholdClassifier": "export its .estimator_ and hold its probabilities to the threshold",
    "TunedThresholdClassifierCV": "export its .estimator_ and hold its probabilities to the threshold",
    "ClassifierChain": "export each of its .estimators_, or train a MultiOutputClassifier",
    "RegressorChain": "export each of its .estimators_, or train a MultiOutputRegressor",
    "GaussianProcessClassifier": "train an SVC or a LogisticRegression on Nystroem features",
    "KNeighborsRegressor": "train a HistGradientBoostingRegressor",
    "KernelRidge": "train an SVR, or a Ridge on Nystroem features",
    "NearestCentroid": "train a LinearDiscriminantAnalysis",
    "LabelPropagation": "train a KNeighborsClassifier on the labels that it found",
    "LabelSpreading": "train a KNeighborsClassifier on the labels that it found",
    "OutputCodeClassifier": "train a OneVsRestClassifier",
    "CCA": "train a PLSRegression",
    "PLSCanonical": "train a PLSRegression",
    "IsotonicRegression": "train a HistGradientBoostingRegressor with monotonic_cst",
    "Incremental": "dask-ml's wrapper holds the estimator that it fitted: export its .estimator_",
    "ParallelPostFit": "dask-ml's wrapper holds the estimator that it fitted: export its .estimator",
}
"""By class: what to train or export instead."""


def _parts(model: Any) -> Iterator[Any]:
    """Give an estimator and all estimators that it is made of."""
    yield model
    for name in ("steps", "transformers_", "estimators"):
        for entry in getattr(model, name, None) or ():
            yield from _parts(entry[1] if isinstance(entry, tuple) else entry)
    for name in ("estimator", "regressor", "final_estimator"):
        if (inner := getattr(model, name, None)) is not None and hasattr(inner, "get_params"):
            yield from _parts(inner)


_SPLIT = "float64, its last step float32"


def _predicted(model: Any, table: Any) -> dict[str, Tensor]:
    if not hasattr(model, "predict"):
        return {"variable": np.asarray(model.transform(table))}
    values = np.asarray(model.predict(table))
    if not len(getattr(model, "classes_", ())):  # CatBoost's regressors have an empty list
        labels = values.dtype.kind in "iu"
        return {"label" if labels and not _is_regressor(model) else "variable": values}
    return {"label": values} | _scores(model, table)


def _is_regressor(model: Any) -> bool:
    from sklearn.base import is_regressor

    return bool(is_regressor(model))


def _scores(model: Any, table: Any) -> dict[str, Tensor]:
    """Return probabilities, or what the classifier decides by: of two classes, minus and plus the margin."""
    if hasattr(model, "predict_proba"):
        found = model.predict_proba(table)
        return {} if isinstance(found, list) else {"probabilities": np.asarray(found)}
    if not hasattr(model, "decision_function"):
        return {}
    margin = np.asarray(model.decision_function(table))
    return {"probabilities": np.stack([-margin, margin], axis=1) if margin.ndim == 1 else margin}


def _selects(model: Any) -> bool:
    """Whether some step takes columns by their names or places."""
    from sklearn.compose import ColumnTransformer

    steps = [step for _, step in getattr(model, "steps", ())]
    return isinstance(model, ColumnTransformer) or any(_selects(step) for step in steps)


def _named(model: Any, columns: Columns, how: str) -> "onnx.ModelProto":
    """Convert a model whose every column is an input."""
    types = _types(how)
    return _converted(model, [(name, types[kind]([None, 1])) for name, kind in columns.items()])


def _wide(model: Any, columns: Columns, how: str) -> "onnx.ModelProto":
    """Convert a model of one wide input, and put that together from the columns."""
    inputs = [("X", _types(how)["float"]([None, len(columns)]))]
    return surgery.column_inputs(_converted(model, inputs), tuple(columns))


def _split(model: Any, columns: Columns, *, wide: bool) -> "onnx.ModelProto":
    """Convert the last step apart, in float32: scikit-learn's own trees cast what they get to that."""
    import onnx

    first = (_wide if wide else _named)(model[:-1], columns, "float64")
    last = _converted(model[-1], [("X", _types("float32")["float"]([None, model[-1].n_features_in_]))])
    return surgery.chained(first, last, onnx.TensorProto.FLOAT)


def _booster(last: Any) -> Any:
    """Return the last step as a source of its own, if its library is one for boosters."""
    homes = {kind.__module__.partition(".")[0] for kind in type(last).__mro__}
    return sources.of_object(last) if homes & {"lightgbm", "xgboost", "catboost"} else None


def _boosted_last(
    model: Any, columns: Columns, booster: Any, *, wide: bool
) -> "Iterator[tuple[str, Callable[[], onnx.ModelProto]]]":
    """Give graphs whose steps up to the booster are converted by skl2onnx, the booster by its own library."""
    for first in ("float32", "float64"):
        for last in booster.wide(booster.width):
            how = f"{first}, {title(booster.model)} in {last.how}"
            yield how, partial(_chained, model, columns, first, last, wide=wide)


def _chained(model: Any, columns: Columns, how: str, last: Candidate, *, wide: bool) -> "onnx.ModelProto":
    first = (_wide if wide else _named)(model[:-1], columns, how)
    second = last.make()
    kind = surgery.only_input(second).type.tensor_type.elem_type
    return surgery.chained(first, second, kind)


def _types(how: str) -> dict[Kind, Any]:
    from skl2onnx.common import data_types as of

    number = of.DoubleTensorType if how.startswith("float64") else of.FloatTensorType
    integer = of.Int64TensorType if how.endswith("int64") else number
    return {"text": of.StringTensorType, "float": number, "integer": integer}


def _converted(model: Any, inputs: list[tuple[str, Any]]) -> "onnx.ModelProto":
    from skl2onnx import convert_sklearn
    from skl2onnx.common.exceptions import MissingShapeCalculator

    convert = partial(
        convert_sklearn, model, initial_types=inputs, target_opset=OPSETS,
        custom_conversion_functions=converters.amended(),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = convert(options={"zipmap": False} if hasattr(model, "classes_") else None)
        except NameError:  # this classifier's converter has no such option, and makes no ZipMap
            graph = convert(options={id(_last(model)): {"nocl": False}})
        except MissingShapeCalculator as error:
            raise ModelError(f"skl2onnx has no converter for {_missing(error)}") from error
    graph = _renamed(graph, model)
    for port in graph.graph.output:
        if port.name == "label" and port.type.tensor_type.shape.dim[0].dim_value == 1:
            graph = surgery.flattened(graph, "label")  # [1, rows], as QuadraticDiscriminantAnalysis has it
    return surgery.inferred(graph)


def _last(model: Any) -> Any:
    """Return the last step of a pipeline, or the estimator itself."""
    return model.steps[-1][1] if hasattr(model, "steps") else model


def _missing(error: Exception) -> str:
    """Return the class that an error of skl2onnx names."""
    found = re.search(r"type '<class '([\w.]+)'>'", str(error))
    return found[1].rpartition(".")[2] if found else reason(error)


def _renamed(graph: "onnx.ModelProto", model: Any) -> "onnx.ModelProto":
    """Call what a regressor or a step gives `variable`, whatever its converter calls it."""
    names = [port.name for port in graph.graph.output]
    if hasattr(model, "classes_") or "label" in names:
        return graph
    return surgery.renamed(graph, names[0], "variable")
