"""skl2onnx's converters, with what they get wrong put right; the gate judges the result like any other."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from batchserve import surgery
from batchserve.model import Tensor
from batchserve.sources import OPSETS

Converter = Callable[[Any, Any, Any], None]
Attributes = dict[str, Any]


def amended() -> dict[type, Converter]:
    """Return converters by class, for `convert_sklearn`."""
    from sklearn import ensemble, tree
    from sklearn.impute import SimpleImputer

    boosted = (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor)
    trees = (
        tree.DecisionTreeClassifier, tree.DecisionTreeRegressor, tree.ExtraTreeClassifier,
        tree.ExtraTreeRegressor, ensemble.RandomForestClassifier, ensemble.RandomForestRegressor,
        ensemble.ExtraTreesClassifier, ensemble.ExtraTreesRegressor,
    )  # fmt: skip
    return {SimpleImputer: _imputer} | dict.fromkeys(boosted, _boosted) | dict.fromkeys(trees, _trees)


def _boosted(scope: Any, operator: Any, container: Any) -> None:
    """Convert histogram boosting with thresholds that answer as its own do: skl2onnx rounds them."""
    from skl2onnx.common._registration import get_converter
    from skl2onnx.common.data_types import DoubleTensorType

    trees = [tree.nodes for trees in operator.raw_operator._predictors for tree in trees]  # noqa: SLF001  nowhere else
    splits = [(int(node["feature_idx"]), float(node["num_threshold"])) for nodes in trees for node in nodes]
    known = {(feature, float(np.float32(value))): value for feature, value in splits}
    double = isinstance(operator.inputs[0].type, DoubleTensorType)
    change = partial(_with_thresholds, known, double=double)
    get_converter(operator.type)(scope, operator, _Plain(container, change))


def _with_thresholds(
    known: Mapping[tuple[int, float], float], attributes: Attributes, *, double: bool
) -> Attributes:
    places = zip(attributes["nodes_featureids"], attributes["nodes_values"], strict=True)
    values = [known.get((feature, float(np.float32(value))), float(value)) for feature, value in places]
    if not double:
        return {"nodes_values": surgery.float32_below(values).tolist()}
    floats = {name: np.asarray(attributes[name], np.float64) for name in _FLOATS if name in attributes}
    return floats | {"nodes_values": np.array(values, np.float64)}


_FLOATS = ("nodes_hitrates", "base_values", "class_weights", "target_weights")


def _trees(scope: Any, operator: Any, container: Any) -> None:
    """Convert trees with the way that NaN goes: skl2onnx sends it right at every split."""
    from skl2onnx.common._registration import get_converter

    model = operator.raw_operator
    members = model.estimators_ if hasattr(model, "estimators_") else [model]
    ways = [each.tree_.missing_go_to_left for each in members]
    get_converter(operator.type)(scope, operator, _Plain(container, partial(_with_ways, ways)))


def _with_ways(ways: Sequence[Tensor], attributes: Attributes) -> Attributes:
    places = zip(attributes["nodes_treeids"], attributes["nodes_nodeids"], strict=True)
    return {"nodes_missing_value_tracks_true": [int(ways[tree][node]) for tree, node in places]}


class _Plain:
    """skl2onnx's container, with the attributes of trees as they should be and as onnx wants them.

    Args:
        container: Of skl2onnx.
        change: Returns those attributes of a tree node that should be other.
    """

    def __init__(self, container: Any, change: Callable[[Attributes], Attributes]) -> None:
        self._container, self._change = container, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, *args: Any, **attributes: Any) -> None:
        """Add a node; numpy's numbers become Python's, and float64 lists tensors, which keep all digits."""
        if "nodes_values" in attributes:
            attributes |= self._change(attributes)
        plain = dict(_plain(name, value) for name, value in attributes.items())
        if any(name.endswith("_as_tensor") for name in plain):
            plain["op_version"] = OPSETS["ai.onnx.ml"]
        self._container.add_node(*args, **plain)


def _plain(name: str, value: Any) -> tuple[str, Any]:
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        from onnx import numpy_helper

        return f"{name}_as_tensor", numpy_helper.from_array(value, name)
    if isinstance(value, np.ndarray):
        return name, value.tolist()
    if isinstance(value, list):
        return name, [_python(each) for each in value]
    return name, _python(value)


def _python(value: Any) -> Any:
    own = value.item() if isinstance(value, np.generic) else value
    return int(own) if isinstance(own, bool) else own


def _imputer(scope: Any, operator: Any, container: Any) -> None:
    """Convert an imputer of float64: onnxruntime's own operator for it knows float32 alone."""
    from onnx import TensorProto
    from skl2onnx.common._registration import get_converter
    from skl2onnx.common.data_types import DoubleTensorType
    from skl2onnx.operator_converters.common import concatenate_variables

    model = operator.raw_operator
    usual = (
        not isinstance(operator.inputs[0].type, DoubleTensorType)
        or model.missing_values == model.missing_values
    )
    if usual or model.add_indicator or np.isnan(np.asarray(model.statistics_, dtype=float)).any():
        get_converter(operator.type)(scope, operator, container)
        return
    whole = concatenate_variables(scope, operator.inputs, container)
    values, missing = (scope.get_unique_variable_name(name) for name in ("imputed", "missing"))
    statistics = np.asarray(model.statistics_, dtype=float).tolist()
    container.add_initializer(values, TensorProto.DOUBLE, [1, len(statistics)], statistics)
    container.add_node("IsNaN", [whole], [missing], op_version=13)
    container.add_node("Where", [missing, values, whole], [operator.outputs[0].full_name], op_version=16)
