"""Text inputs that only look-ups read: a model that takes each text once, and which row has which.

Handing a text over to ONNX Runtime costs more than looking it up, and a column has few of them. So
behind every look-up (one-hot, labels) stands a Gather, and the model is given the texts of a block
once and one number per row. A look-up computes nothing, so no bit of a score changes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

_LOOKUPS = frozenset({"OneHotEncoder", "LabelEncoder", "CategoryMapper"})
_DOMAIN = "ai.onnx.ml"


@dataclass(frozen=True)
class Codes:
    """A column of texts: each of them once, and which one a row has.

    Attributes:
        texts: The texts [known], objects of `str`; may hold some that no row has.
        rows: Their numbers [rows], int32.
    """

    texts: NDArray[Any]
    rows: NDArray[Any]

    def slice(self, start: int, stop: int) -> "Codes":
        """Return rows `start` to `stop` without copying."""
        return Codes(self.texts, self.rows[start:stop])

    def take(self, good: NDArray[np.bool_]) -> "Codes":
        """Return only the rows where `good` is true."""
        return Codes(self.texts, self.rows[good])


NO_CODES: Mapping[str, Codes] = MappingProxyType({})


def codes_name(name: str) -> str:
    """Return the input that takes the numbers for the text input `name`."""
    return f"{name}/batchserve/rows"


def fed(inputs: Sequence[str], tensors: Mapping[str, Any], codes: Mapping[str, Codes]) -> dict[str, Any]:
    """Return what a model that takes codes for `inputs` is given instead of their tensors."""
    given = dict(tensors)
    for name in inputs:
        given[name] = codes[name].texts.reshape(-1, *tensors[name].shape[1:])
        given[codes_name(name)] = codes[name].rows
    return given


def coded(model: "onnx.ModelProto") -> tuple[str, ...]:
    """Put a Gather behind every look-up of a text input; change `model` in place.

    Returns:
        The inputs that take codes now; none if the model has no such inputs, and nothing is changed.
    """
    import onnx

    graph = model.graph
    if not any(each.domain in {"", "ai.onnx"} for each in model.opset_import):
        return ()
    found = tuple(port for port in graph.input if _is_looked_up(port, graph))
    for port in found:
        rows = codes_name(port.name)
        port.type.tensor_type.shape.dim[0].dim_param = f"{port.name}/batchserve/known"
        graph.input.append(onnx.helper.make_tensor_value_info(rows, onnx.TensorProto.INT32, [None]))
        for at, node in _readers(port.name, graph):
            output, once = node.output[0], f"{node.output[0]}/batchserve/known"
            node.output[0] = once
            graph.node.insert(at + 1, onnx.helper.make_node("Gather", [once, rows], [output], axis=0))
    return tuple(port.name for port in found)


def _is_looked_up(port: "onnx.ValueInfoProto", graph: "onnx.GraphProto") -> bool:
    """Whether an input is texts with open rows that nothing but look-ups read."""
    kind = port.type.tensor_type
    readers = [node for _, node in _readers(port.name, graph)]
    return (
        kind.elem_type == _STRING
        and len(kind.shape.dim) > 0
        and not kind.shape.dim[0].HasField("dim_value")
        and bool(readers)
        and all(node.domain == _DOMAIN and node.op_type in _LOOKUPS for node in readers)
        and not any(attribute.HasField("g") for node in graph.node for attribute in node.attribute)
        and all(output.name != port.name for output in graph.output)
    )


_STRING = 8
"""onnx.TensorProto.STRING."""


def _readers(name: str, graph: "onnx.GraphProto") -> Iterator[tuple[int, "onnx.NodeProto"]]:
    """Give the nodes that read a value, and where each stands, the last one first."""
    for at in reversed(range(len(graph.node))):
        if name in graph.node[at].input:
            yield at, graph.node[at]
