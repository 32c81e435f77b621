"""Small ONNX models, made on the spot: each writes one file and returns its path."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, DOUBLE, INT64, STRING = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.STRING
KINDS = ("red", "green", "blue", "NA")
"""The texts that the models with a `kind` input know; `NA` is a text like any other."""

_OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
_Shape = Sequence[int | str | None]


def _input(name: str, kind: int, shape: _Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _numbers(name: str, shape: Sequence[int]) -> onnx.TensorProto:
    """Return weights that no rounding makes even: different bits show."""
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values / np.float32(shape[0]) ** np.float32(0.5), name)


def _dims(name: str, *dims: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(dims, np.int64), name)


def _write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
) -> Path:
    graph = helper.make_graph(list(nodes), path.stem, list(inputs), list(outputs), list(weights))
    model = helper.make_model(graph, opset_imports=_OPSETS, ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def named(folder: Path) -> Path:
    """Inputs `a`, `b` (float) and `kind` (string), each [N, 1]; output `score` [N, 1]."""
    coded = helper.make_node(
        "LabelEncoder", ["kind"], ["code"], domain="ai.onnx.ml",
        keys_strings=list(KINDS), values_floats=[0.1, 0.7, -1.3, 2.9], default_float=-9.0,
    )  # fmt: skip
    nodes = [
        coded,
        helper.make_node("Concat", ["a", "b", "code"], ["x"], axis=1),
        helper.make_node("Gemm", ["x", "weights", "bias"], ["score"]),
    ]
    inputs = [_input("a", FLOAT, [None, 1]), _input("b", FLOAT, [None, 1]), _input("kind", STRING, [None, 1])]
    outputs = [_input("score", FLOAT, [None, 1])]
    weights = [_numbers("weights", (3, 1)), _numbers("bias", (1,))]
    return _write(folder / "named.onnx", nodes, inputs, outputs, weights)


def wide(folder: Path) -> Path:
    """Input `X` [N, 4]; outputs `total` [N] and `logits` [N, 3]."""
    nodes = [
        helper.make_node("MatMul", ["X", "one"], ["column"]),
        helper.make_node("Reshape", ["column", "flat"], ["total"]),
        helper.make_node("MatMul", ["X", "three"], ["logits"]),
    ]
    outputs = [_input("total", FLOAT, [None]), _input("logits", FLOAT, [None, 3])]
    weights = [_numbers("one", (4, 1)), _numbers("three", (4, 3)), _dims("flat", -1)]
    return _write(folder / "wide.onnx", nodes, [_input("X", FLOAT, [None, 4])], outputs, weights)


def integers(folder: Path) -> Path:
    """Inputs `i` (int64) and `y` (double), each [N, 1]; outputs `twice` (int64), `plus` (double)."""
    nodes = [
        helper.make_node("Add", ["i", "i"], ["twice"]),
        helper.make_node("Cast", ["i"], ["real"], to=DOUBLE),
        helper.make_node("Div", ["real", "y"], ["plus"]),
    ]
    inputs = [_input("i", INT64, [None, 1]), _input("y", DOUBLE, [None, 1])]
    outputs = [_input("twice", INT64, [None, 1]), _input("plus", DOUBLE, [None, 1])]
    return _write(folder / "integers.onnx", nodes, inputs, outputs)


def tensor(folder: Path) -> Path:
    """Input `X` [N, 4]; output `grid` [N, 2, 3]."""
    nodes = [
        helper.make_node("MatMul", ["X", "weights"], ["six"]),
        helper.make_node("Reshape", ["six", "shape"], ["grid"]),
    ]
    weights = [_numbers("weights", (4, 6)), _dims("shape", -1, 2, 3)]
    outputs = [_input("grid", FLOAT, [None, 2, 3])]
    return _write(folder / "tensor.onnx", nodes, [_input("X", FLOAT, [None, 4])], outputs, weights)


def texts(folder: Path) -> Path:
    """Input `kind` (string) [N, 1]; output `colour` (string) [N, 1]."""
    node = helper.make_node(
        "LabelEncoder", ["kind"], ["colour"], domain="ai.onnx.ml",
        keys_strings=list(KINDS), values_strings=["rouge", "vert", "bleu, \u2713", "NA"],
        default_string="",
    )  # fmt: skip
    ports = [_input("kind", STRING, [None, 1])], [_input("colour", STRING, [None, 1])]
    return _write(folder / "texts.onnx", [node], *ports)


def mean_mixer(folder: Path) -> Path:
    """Input `X` [N, 4]; every row of output `centred` depends on the whole batch."""
    nodes = [
        helper.make_node("ReduceMean", ["X", "batch"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["X", "mean"], ["centred"]),
    ]
    outputs = [_input("centred", FLOAT, [None, 4])]
    inputs = [_input("X", FLOAT, [None, 4])]
    return _write(folder / "mean_mixer.onnx", nodes, inputs, outputs, [_dims("batch", 0)])


def quantised_mixer(folder: Path) -> Path:
    """Input `X` [N, 4]; output `rounded` is quantised with a scale of the whole batch."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["X"], ["small", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["small", "scale", "zero"], ["rounded"]),
    ]
    outputs = [_input("rounded", FLOAT, [None, 4])]
    return _write(folder / "quantised_mixer.onnx", nodes, [_input("X", FLOAT, [None, 4])], outputs)


def heavy(folder: Path, layers: int = 12) -> Path:
    """Inputs `a`, `b` [N, 1]; output `score` [N, 1] takes a good while: time to be killed in."""
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["x"], axis=1),
        helper.make_node("MatMul", ["x", "first"], ["layer0"]),
    ]
    for i in range(layers):
        nodes.append(helper.make_node("MatMul", [f"layer{i}", "weights"], [f"product{i}"]))
        nodes.append(helper.make_node("Tanh", [f"product{i}"], [f"layer{i + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"layer{layers}", "last"], ["score"]))
    inputs = [_input("a", FLOAT, [None, 1]), _input("b", FLOAT, [None, 1])]
    weights = [_numbers("first", (2, 512)), _numbers("weights", (512, 512)), _numbers("last", (512, 1))]
    return _write(folder / "heavy.onnx", nodes, inputs, [_input("score", FLOAT, [None, 1])], weights)


def hungry(folder: Path) -> Path:
    """Input `a` [N, 1]; output `score` [N] takes 4 MiB a row on its way: 4 GiB for 1,024 rows."""
    nodes = [
        helper.make_node("Expand", ["a", "shape"], ["spread"]),
        helper.make_node("ReduceMax", ["spread", "columns"], ["score"], keepdims=0),
    ]
    weights = [_dims("shape", 1, 1 << 20), _dims("columns", 1)]
    outputs = [_input("score", FLOAT, [None])]
    return _write(folder / "hungry.onnx", nodes, [_input("a", FLOAT, [None, 1])], outputs, weights)


def endless(folder: Path, row: float = 13) -> Path:
    """Input `a` [N, 1]; output `score` is `a`, but a run with `row` in its batch never ends."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still"]),
            helper.make_node("Identity", ["state"], ["next"]),
        ],
        "body",
        [_input("i", INT64, []), _input("going", TensorProto.BOOL, []), _input("state", FLOAT, [None, 1])],
        [_input("still", TensorProto.BOOL, []), _input("next", FLOAT, [None, 1])],
    )
    nodes = [
        helper.make_node("Equal", ["a", "row"], ["hits"]),
        helper.make_node("Cast", ["hits"], ["numbers"], to=FLOAT),
        helper.make_node("ReduceMax", ["numbers"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["endless"], to=TensorProto.BOOL),
        helper.make_node("Loop", ["trips", "endless", "a"], ["score"], body=body),
    ]
    weights = [
        numpy_helper.from_array(np.array([[row]], np.float32), "row"),
        numpy_helper.from_array(np.array(np.iinfo(np.int64).max, np.int64), "trips"),
    ]
    outputs = [_input("score", FLOAT, [None, 1])]
    return _write(folder / "endless.onnx", nodes, [_input("a", FLOAT, [None, 1])], outputs, weights)


def fixed() -> Path:
    """Return onnxruntime's own `logreg_iris`: input [3, 2], a label and a ZipMap of probabilities."""
    from onnxruntime.datasets import get_example

    return Path(get_example("logreg_iris.onnx"))


KINDS_OF_TENSOR = {
    "float16": TensorProto.FLOAT16, "float32": FLOAT, "float64": DOUBLE, "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8, "int16": TensorProto.INT16, "int32": TensorProto.INT32, "int64": INT64,
    "uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16, "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64, "object": STRING,
}  # fmt: skip
"""numpy names of all types that columns have, and ONNX's of them."""


def echo(folder: Path, dtype: str, *dims: int | str | None, batch: int | None = None) -> Path:
    """Input `X` [N, *dims] of any type; output `same` is `X`."""
    shape = [batch, *dims]
    ports = [_input("X", KINDS_OF_TENSOR[dtype], shape)], [_input("same", KINDS_OF_TENSOR[dtype], shape)]
    return _write(folder / "echo.onnx", [helper.make_node("Identity", ["X"], ["same"])], *ports)


def image(folder: Path, *dims: int | str | None) -> Path:
    """Input `image` [N, *dims], three of them; output `mean` [N] over all of a row."""
    node = helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0)
    ports = [_input("image", FLOAT, [None, *dims])], [_input("mean", FLOAT, [None])]
    return _write(folder / "image.onnx", [node], *ports, [_dims("axes", 1, 2, 3)])


def two_wide(folder: Path, metadata: dict[str, str] | None = None) -> Path:
    """Inputs `A` [N, 3], `B` [N, 2] and `c` [N, 1]; output `all` [N, 6] has them side by side."""
    node = helper.make_node("Concat", ["A", "B", "c"], ["all"], axis=1)
    inputs = [_input(name, FLOAT, [None, width]) for name, width in (("A", 3), ("B", 2), ("c", 1))]
    path = _write(folder / "two_wide.onnx", [node], inputs, [_input("all", FLOAT, [None, 6])])
    model = onnx.load(path)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def scaled(folder: Path) -> Path:
    """Inputs `x` [N, 3], `by` [] and `plus` [N, 3]; `less` [3] has a default of 0, 0, 0. Output `y`."""
    nodes = [
        helper.make_node("Mul", ["x", "by"], ["times"]),
        helper.make_node("Add", ["times", "plus"], ["more"]),
        helper.make_node("Sub", ["more", "less"], ["y"]),
    ]
    shapes: dict[str, _Shape] = {"x": ["N", 3], "by": [], "plus": ["N", 3], "less": [3]}
    inputs = [_input(name, FLOAT, shape) for name, shape in shapes.items()]
    less = numpy_helper.from_array(np.zeros(3, np.float32), "less")
    return _write(folder / "scaled.onnx", nodes, inputs, [_input("y", FLOAT, ["N", 3])], [less])


def positives(folder: Path) -> Path:
    """Input `X` [1, k]: one row a run; output `positive` [1, ?] has its positive values."""
    nodes = [
        helper.make_node("Greater", ["X", "zero"], ["is"]),
        helper.make_node("Reshape", ["is", "flat"], ["flags"]),
        helper.make_node("Compress", ["X", "flags"], ["positive"], axis=1),
    ]
    weights = [numpy_helper.from_array(np.array(0, np.float32), "zero"), _dims("flat", -1)]
    ports = [_input("X", FLOAT, [1, "k"])], [_input("positive", FLOAT, [1, "p"])]
    return _write(folder / "positives.onnx", nodes, *ports, weights)


def pieces(folder: Path) -> Path:
    """Input `X` [N, 3]; output `rows` is a sequence of N tensors [1, 3]."""
    node = helper.make_node("SplitToSequence", ["X", "one"], ["rows"], axis=0)
    rows = helper.make_tensor_sequence_value_info("rows", FLOAT, None)
    one = numpy_helper.from_array(np.array(1, np.int64), "one")
    return _write(folder / "pieces.onnx", [node], [_input("X", FLOAT, [None, 3])], [rows], [one])


def cast(folder: Path, kind: int) -> Path:
    """Input `X` [N, 2]; output `Y` is `X` in type `kind` of ONNX."""
    node = helper.make_node("Cast", ["X"], ["Y"], to=kind)
    ports = [_input("X", FLOAT, [None, 2])], [_input("Y", kind, [None, 2])]
    graph = helper.make_graph([node], "cast", *ports)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "cast.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def one_for_all(folder: Path) -> Path:
    """Input `X` [N, 4]; output `sum` [] is one value for the whole batch."""
    node = helper.make_node("ReduceSum", ["X"], ["sum"], keepdims=0)
    return _write(folder / "sum.onnx", [node], [_input("X", FLOAT, [None, 4])], [_input("sum", FLOAT, [])])


def weights_beside(folder: Path) -> Path:
    """`wide` with its weights in the file `weights.bin` beside it."""
    model = onnx.load(wide(folder))
    path = folder / "beside.onnx"
    onnx.save(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True, location="weights.bin",
        size_threshold=45, convert_attribute=False,
    )  # fmt: skip
    return path


def foreign(folder: Path) -> Path:
    """Input `s` (string) [N, 1]; output `t` is made by an operator of onnxruntime-extensions."""
    node = helper.make_node("StringUpper", ["s"], ["t"], domain="ai.onnx.contrib")
    ports = [_input("s", STRING, ["N", 1])], [_input("t", STRING, ["N", 1])]
    opsets = [*_OPSETS, helper.make_opsetid("ai.onnx.contrib", 1)]
    model = helper.make_model(helper.make_graph([node], "g", *ports), opset_imports=opsets, ir_version=9)
    path = folder / "foreign.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def random(folder: Path) -> Path:
    """Input `X` [N, 4]; output `noise` is another one at every run."""
    node = helper.make_node("RandomUniformLike", ["X"], ["noise"])
    ports = [_input("X", FLOAT, [None, 4])], [_input("noise", FLOAT, [None, 4])]
    return _write(folder / "random.onnx", [node], *ports)


def sum_of_integers(folder: Path) -> Path:
    """Input `i` (int64) [N, 1]; output `share` is what is left of it over the sum of the batch."""
    nodes = [
        helper.make_node("ReduceSum", ["i", "batch"], ["sum"], keepdims=1),
        helper.make_node("Sub", ["i", "sum"], ["share"]),
    ]
    ports = [_input("i", INT64, [None, 1])], [_input("share", INT64, [None, 1])]
    return _write(folder / "sum_of_integers.onnx", nodes, *ports, [_dims("batch", 0)])


def picker(folder: Path, name: str = "picker") -> Path:
    """Inputs `a` (double), `k` (int64), `kind` (string), each [N, 1]; fails on a row whose `k` is not 0 to 9.

    Outputs `score` (double) [N, 1], by other weights than `named`, and `label` (string) [N, 1].
    """
    table = np.random.default_rng(3).standard_normal((10, 1))
    nodes = [
        helper.make_node("Reshape", ["k", "flat"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["picked"]),
        helper.make_node("Mul", ["a", "picked"], ["score"]),
        helper.make_node(
            "LabelEncoder", ["kind"], ["label"], domain="ai.onnx.ml",
            keys_strings=list(KINDS), values_strings=["warm", "cold", "cold", ""], default_string="other",
        ),
    ]  # fmt: skip
    inputs = [
        _input("a", DOUBLE, [None, 1]),
        _input("k", INT64, [None, 1]),
        _input("kind", STRING, [None, 1]),
    ]
    outputs = [_input("score", DOUBLE, [None, 1]), _input("label", STRING, [None, 1])]
    weights = [numpy_helper.from_array(table, "table"), _dims("flat", -1)]
    return _write(folder / f"{name}.onnx", nodes, inputs, outputs, weights)
