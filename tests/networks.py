"""Networks made by hand: what has matrix products to reduce."""

from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper

WIDTH, HIDDEN = 6, 256
COLUMNS = tuple("abcdef")
WIDE = (TensorProto.FLOAT, None, WIDTH)
SCORE = (TensorProto.FLOAT, None, 1)


def model(nodes: list[onnx.NodeProto], inputs: Any, outputs: Any, **weights: Any) -> onnx.ModelProto:
    """Build a model: names to (type, *dims), weights to arrays."""
    held = [numpy_helper.from_array(np.asarray(weight), name) for name, weight in weights.items()]
    given, made = (
        [helper.make_tensor_value_info(name, kind, dims) for name, (kind, *dims) in named.items()]
        for named in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "g", given, made, held)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def weights(dtype: Any = np.float32, scale: float = 1.0) -> dict[str, Any]:
    """Return the weights of three layers."""
    rng = np.random.default_rng(0)
    sizes = [(WIDTH, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)]
    made = [rng.normal(size=size) / np.sqrt(size[0]) * scale for size in sizes]
    return {f"w{i}": each.astype(dtype) for i, each in enumerate(made)}


def network(dtype: Any = np.float32, **extra: Any) -> onnx.ModelProto:
    """Three layers from one wide input `x` to `score` between 0 and 1."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model(
        [
            helper.make_node("MatMul", ["x", "w0"], ["h0"]),
            helper.make_node("Relu", ["h0"], ["r0"]),
            helper.make_node("MatMul", ["r0", "w1"], ["h1"]),
            helper.make_node("Relu", ["h1"], ["r1"]),
            helper.make_node("MatMul", ["r1", "w2"], ["h2"]),
            helper.make_node("Sigmoid", ["h2"], ["score"]),
        ],
        {"x": (kind, None, WIDTH)},
        {"score": (kind, None, 1)},
        **weights(dtype, **extra),
    )


def sample(rows: int = 2000, seed: int = 1) -> pa.RecordBatch:
    """Rows for `network`."""
    values = np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)
    return pa.RecordBatch.from_arrays([pa.array(column) for column in values.T], names=list(COLUMNS))
