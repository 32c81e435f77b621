"""NaN led around matrix products that are to be computed in int8, which has none. `onnx` alone."""

from collections.abc import Collection, Iterator, Sequence
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

import numpy as np

from batchserve import surgery

if TYPE_CHECKING:
    import onnx

_PREFIX = "batchserve/nan/"
_FLAG, _NAN, _ZERO, _AXIS = (f"{_PREFIX}{name}" for name in ("flag", "value", "zero", "axis"))


def with_nan(
    model: "onnx.ModelProto", products: Collection[str], *, whole: bool = False
) -> "onnx.ModelProto":
    """Return the model with NaN led around its products: quantised, they would make a number of it.

    A row with NaN in what the first products read has NaN in what the last ones give.

    Args:
        model: The batch is the first dimension of what its products read and give, unless `whole`.
        products: The types of the operators.
        whole: Lead NaN around all of the model, from its inputs to its outputs.
    """
    import onnx
    from onnx import numpy_helper

    done = onnx.ModelProto()
    done.CopyFrom(model)
    first, last = _floats(model) if whole else (_first(model, products), _last(model, products))
    ranks = _ranks(model)
    held = {_NAN: np.float32(np.nan), _ZERO: np.float32(0), _AXIS: np.array([1])}
    held |= {
        f"{_PREFIX}{rank}": np.array([-1, *[1] * (rank - 1)]) for rank in {ranks.get(n, 2) for n in last}
    }
    done.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in held.items())
    for node in done.graph.node:
        if whole or node.op_type in products:  # what quantises a tensor does it for all who read that name
            node.input[:] = [f"{_PREFIX}to/{name}" if name in first else name for name in node.input]
        node.output[:] = [f"{_PREFIX}of/{name}" if name in last else name for name in node.output]
    done.graph.node.extend(onnx.helper.make_node("Identity", [n], [f"{_PREFIX}to/{n}"]) for n in first)
    done.graph.node.extend(_flag(first))
    for name in last:
        done.graph.node.extend(_guard(name, ranks.get(name, 2)))
    _sort(done)
    return done


def _floats(model: "onnx.ModelProto") -> tuple[list[str], list[str]]:
    """Return the inputs and the outputs of float32."""
    ends = model.graph.input, model.graph.output
    given, made = ([port.name for port in e if port.type.tensor_type.elem_type == FLOAT] for e in ends)
    return given, made


FLOAT = 1
"""ONNX's float32."""


def _first(model: "onnx.ModelProto", products: Collection[str]) -> list[str]:
    """Return the tensors that products read, of what comes in and not from another product."""
    fed, made = {port.name for port in model.graph.input}, set[str]()
    found: list[str] = []
    for node in model.graph.node:
        reads = {*node.input, *surgery.read_inside(node)}
        if node.op_type in products:
            found += [name for name in node.input if name in fed - made]
        if reads & fed:
            fed |= set(node.output)
        if node.op_type in products or reads & made:
            made |= set(node.output)
    return list(dict.fromkeys(found))


def _last(model: "onnx.ModelProto", products: Collection[str]) -> list[str]:
    """Return what products give that no other product comes to read."""
    read: set[str] = set()
    found: list[str] = []
    for node in reversed(model.graph.node):
        if node.op_type in products and read.isdisjoint(node.output):
            found += node.output
        if node.op_type in products or not read.isdisjoint(node.output):
            read |= {*node.input, *surgery.read_inside(node)}
    return found


def _ranks(model: "onnx.ModelProto") -> dict[str, int]:
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    typed = [each for each in (*graph.value_info, *graph.output) if each.type.tensor_type.HasField("shape")]
    return {each.name: len(each.type.tensor_type.shape.dim) for each in typed}


def _flag(first: Sequence[str]) -> Iterator["onnx.NodeProto"]:
    """Give what tells, [rows, 1], whether a row has NaN in any of these tensors."""
    from onnx import TensorProto, helper

    counts = []
    for i, name in enumerate(first):
        flat, nan, number, total = (f"{_PREFIX}{i}/{step}" for step in ("flat", "is", "number", "count"))
        yield helper.make_node("Flatten", [name], [flat], axis=1)
        yield helper.make_node("IsNaN", [flat], [nan])
        yield helper.make_node("Cast", [nan], [number], to=TensorProto.FLOAT)
        yield helper.make_node("ReduceSum", [number, _AXIS], [total], keepdims=1)
        counts.append(total)
    yield helper.make_node("Sum", counts, [f"{_PREFIX}count"])
    yield helper.make_node("Greater", [f"{_PREFIX}count", _ZERO], [_FLAG])


def _guard(name: str, rank: int) -> Iterator["onnx.NodeProto"]:
    """Give what makes a product's tensor NaN in the rows that are to have it."""
    from onnx import helper

    flag = f"{_PREFIX}flag/{name}"
    yield helper.make_node("Reshape", [_FLAG, f"{_PREFIX}{rank}"], [flag])
    yield helper.make_node("Where", [flag, _NAN, f"{_PREFIX}of/{name}"], [name])


def _sort(model: "onnx.ModelProto") -> None:
    """Put every node behind those that make what it reads."""
    nodes = list(model.graph.node)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output}
    reads = {i: {*node.input, *surgery.read_inside(node)} for i, node in enumerate(nodes)}
    before = {i: sorted({makers[name] for name in names if name in makers}) for i, names in reads.items()}
    order = [nodes[i] for i in TopologicalSorter(before).static_order()]
    surgery.replace(model.graph.node, order)
