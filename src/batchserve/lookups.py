"""Text inputs that only look-ups read: a model that takes each text once, and which row has which.

Handing a text over to ONNX Runtime costs more than looking it up, and a column has few of them. So
behind every look-up (one-hot, labels) stands a Gather, and the model is given the texts of a block
once and one number per row. A look-up computes nothing, so no bit of a score changes.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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


class Shortcut:
    """Runs a model by codes, once so many rows were met that making one that takes them is worth it.

    Its first run is compared with one of the model itself: where a bit differs it is never used.

    Args:
        path: The model's file.
        opened: Opens a session of a serialised model.
    """

    def __init__(self, path: str, opened: Callable[[bytes], Any]) -> None:
        self._path, self._opened = path, opened
        self._rows_left = _WORTH_ROWS
        self._making = threading.Lock()
        self._session: Any = None
        self._inputs: tuple[str, ...] = ()

    def run(
        self, outputs: Sequence[str], tensors: Mapping[str, Any], codes: Mapping[str, Codes], options: Any
    ) -> list[Any] | None:
        """Run the model by codes; None if it is not there, or would be given more texts than rows."""
        if self._session is None or not set(self._inputs) <= codes.keys():
            return None
        if sum(len(codes[name].texts) for name in self._inputs) > len(tensors[self._inputs[0]]):
            return None
        result: list[Any] = self._session.run(list(outputs), fed(self._inputs, tensors, codes), options)
        return result

    def consider(
        self, outputs: Sequence[str], tensors: Mapping[str, Any], codes: Mapping[str, Codes],
        options: Any, result: Sequence[Any],
    ) -> None:  # fmt: skip
        """Count rows that the model itself gave `result` for; after enough, make the one by codes."""
        self._rows_left -= len(next(iter(tensors.values())))
        if self._rows_left > 0 or not self._making.acquire(blocking=False):
            return  # or it was made, or is being made: once is enough
        try:
            session, inputs = self._made()
            if inputs and set(inputs) <= codes.keys():
                again = session.run(list(outputs), fed(inputs, tensors, codes), options)
                if all(map(_equal, result, again)):
                    self._inputs, self._session = inputs, session
        except Exception:  # noqa: BLE001  whatever is wrong with it, the model itself goes on
            return

    def _made(self) -> tuple[Any, tuple[str, ...]]:
        import onnx

        if Path(self._path).stat().st_size > _MOST_BYTES:
            return None, ()
        model = onnx.load(self._path, load_external_data=False)
        inputs = coded(model)
        return (self._opened(model.SerializeToString()) if inputs else None), inputs


_WORTH_ROWS = 65_536
"""Making it takes a tenth of a second; what it saves of so many rows is a good part of that."""
_MOST_BYTES = 16 << 20
"""Of a model whose weights may be there twice."""


def _equal(first: Any, second: Any) -> bool:
    """Whether two outputs are the same to the bit."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray) and first.dtype != object:
        return (
            first.dtype == second.dtype
            and first.shape == second.shape
            and first.tobytes() == second.tobytes()
        )
    return bool(np.array_equal(first, second))


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
