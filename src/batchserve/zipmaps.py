"""Outputs of one map per row: as a table of their values, and models that give it as a tensor.

scikit-learn's classifiers end in a ZipMap unless they are told not to, and onnxruntime hands out what
it makes as a Python dict per row, which takes longer than many a model runs. The values are those of
the tensor beneath.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Maps:
    """Maps that all have the same keys.

    Attributes:
        keys: The keys, as text.
        values: Their values [rows, keys].
    """

    keys: tuple[str, ...]
    values: NDArray[Any]

    @classmethod
    def of(cls, rows: Sequence[Mapping[Any, Any]]) -> Self:
        """Return the maps that onnxruntime gave as dicts, at least one.

        Example:
            >>> Maps.of([{0: 0.25, 1: 0.75}]).keys
            ('0', '1')
        """
        keys = tuple(str(key) for key in rows[0])
        # onnxruntime hands a map's tensor(float) values out as Python floats.
        one = next(iter(rows[0].values()), 0.0)
        dtype = np.float32 if isinstance(one, float) else type(one)
        values = np.array([list(row.values()) for row in rows], dtype=dtype)
        return cls(keys, values.reshape(len(rows), len(keys)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the maps of several runs one after the other."""
        return cls(parts[0].keys, np.concatenate([part.values for part in parts]))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | NDArray[Any]) -> "Maps":
        return Maps(self.keys, self.values[rows])


def tabled(values: Any) -> Any:
    """Return what onnxruntime gave for one output: dicts as `Maps`, anything else as it is.

    Example:
        >>> tabled([{"no": 0.25, "yes": 0.75}]).values
        array([[0.25, 0.75]], dtype=float32)
    """
    dicts = isinstance(values, list) and values and isinstance(values[0], dict)
    return Maps.of(values) if dicts else values


def cut(model: "onnx.ModelProto", keys: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Let outputs give the tensor beneath their ZipMap; change `model` in place.

    Args:
        model: A model.
        keys: Outputs, and the keys in the order in which onnxruntime gives them.

    Returns:
        For each output that gives a tensor [rows, keys] now, which of its columns is which key's; none
        where the labels of a ZipMap are not the keys.
    """
    import onnx

    graph = model.graph
    if not any(each.domain in {"", "ai.onnx"} for each in model.opset_import):
        return {}
    columns = {}
    for node in graph.node:
        wanted = list(keys.get(node.output[0], ())) if node.op_type == "ZipMap" else []
        labels = _labels(node)
        if wanted and sorted(labels) == sorted(wanted) and len(set(labels)) == len(labels):
            columns[node.output[0]] = [labels.index(key) for key in wanted]
            node.CopyFrom(onnx.helper.make_node("Identity", node.input, node.output))
    for port in graph.output:
        if port.name in columns:
            kind = onnx.helper.make_tensor_value_info(port.name, onnx.TensorProto.FLOAT, None)
            port.CopyFrom(kind)
    return columns


def _labels(node: "onnx.NodeProto") -> list[str]:
    found = [label for each in node.attribute for label in (*each.strings, *each.ints)]
    return [label.decode() if isinstance(label, bytes) else str(label) for label in found]
