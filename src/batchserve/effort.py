"""How much work a model is for one row, by its graph alone: the same on every machine.

What the plan decides by it must be the same again when a job goes on elsewhere, so nothing is
measured: operations are counted, and weighed by what they took on one machine, once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchserve.binding import Binding
from batchserve.modelfile import ModelSpec, weights_files

if TYPE_CHECKING:
    import onnx

_SMALL_BYTES = 128 << 10
"""Of a model that is not looked into: its 32,000 weights are no great work, and importing `onnx` is."""
_DENSE_NS, _TREE_NS, _LIGHT_NS = 0.02, 2.0, 0.3
"""For a multiplication and addition in a matrix product, a step down a tree, and any other value:
measured with a transformer, a network and a forest (benchmarks/workloads.py) on one core of an EPYC."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Effort:
    """What one row takes.

    Attributes:
        seconds: A rough guess for one core.
        widest_bytes: Of the largest tensor between two operators.
    """

    seconds: float
    widest_bytes: int


NONE = Effort(0.0, 0)
"""Of a model that is small, or whose shapes cannot be told."""


def of(spec: ModelSpec, binding: Binding) -> Effort:
    """Count the work of a model for one row.

    Args:
        spec: The model.
        binding: What fills its inputs: it knows the dimensions of lists.
    """
    path = Path(spec.path)
    if path.stat().st_size < _SMALL_BYTES and not weights_files(path):
        return NONE
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        rows = binding.fixed_batch or 1
        _sized(model.graph, rows, {feed.input: feed.shape for feed in binding.feeds if feed.packed})
        shapes = _shapes(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)
    except Exception:  # noqa: BLE001  onnx knows less than onnxruntime; then nothing is known of it
        return NONE
    outputs = [math.prod(shapes.get(name, ())) for node in model.graph.node for name in node.output]
    seconds = sum(_nanoseconds(node, shapes) for node in model.graph.node) * 1e-9 / rows
    return Effort(seconds, max(outputs, default=0) * _VALUE_BYTES // rows)


_VALUE_BYTES = 4


def _sized(graph: "onnx.GraphProto", rows: int, lists: Mapping[str, Sequence[int | None]]) -> None:
    """Give every open dimension of the inputs a size: the batch, those of lists, or 1."""
    for port in graph.input:
        row = lists.get(port.name, ())
        for i, dim in enumerate(port.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                known = row[i - 1] if 0 < i <= len(row) else None
                dim.dim_value = rows if i == 0 else known or 1


def _shapes(graph: "onnx.GraphProto") -> dict[str, Shape]:
    found: dict[str, Shape] = {each.name: tuple(each.dims) for each in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        found[value.name] = tuple(dim.dim_value or 1 for dim in dims)
    return found


def _nanoseconds(node: "onnx.NodeProto", shapes: Mapping[str, Shape]) -> float:
    taken = [shapes.get(name, ()) for name in node.input]
    given = max((math.prod(shapes.get(name, ())) for name in node.output), default=0)
    count = _DENSE.get(node.op_type)
    if count and len(taken) > 1:
        return _DENSE_NS * count(taken, given)
    if node.op_type.startswith("TreeEnsemble"):
        return _TREE_NS * _steps(node)
    return _LIGHT_NS * given


def _product(taken: Sequence[Shape], given: int) -> float:
    """Count a matrix product: every value of the result is a sum over a row of the first matrix."""
    return given * (taken[0][-1:] or (1,))[0]


def _convolution(taken: Sequence[Shape], given: int) -> float:
    return given * math.prod(taken[1][1:])


def _recurrence(taken: Sequence[Shape], given: int) -> float:
    del given
    return (taken[0][:1] or (1,))[0] * sum(math.prod(weights) for weights in taken[1:3])


_DENSE: dict[str, Callable[[Sequence[Shape], int], float]] = {
    "MatMul": _product, "Gemm": _product, "FusedMatMul": _product, "MatMulInteger": _product,
    "Conv": _convolution, "ConvTranspose": _convolution, "ConvInteger": _convolution,
    "LSTM": _recurrence, "GRU": _recurrence, "RNN": _recurrence,
}  # fmt: skip


def _steps(node: "onnx.NodeProto") -> float:
    """Count the steps down all trees of a forest, taken to be balanced."""
    attributes: dict[str, Any] = {each.name: each.ints for each in node.attribute}
    trees = attributes.get("nodes_treeids") or attributes.get("tree_roots") or []
    nodes = len(attributes.get("nodes_featureids") or trees)
    count = max(1, len(set(trees)))
    return count * math.log2(nodes / count + 1)
