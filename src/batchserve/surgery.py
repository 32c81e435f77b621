"""ONNX graphs made ready to be scored: inputs per column, outputs, batch, metadata. `onnx` alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from batchserve.model import Tensor

if TYPE_CHECKING:
    import onnx

BATCH = "rows"
"""The name of the open first dimension."""


def column_inputs(model: "onnx.ModelProto", columns: Sequence[str]) -> "onnx.ModelProto":
    """Give a model with one wide input [rows, k] an input [rows, 1] per column instead.

    Args:
        model: One input, two dimensions.
        columns: The names of its k columns.

    Returns:
        The same model, its inputs put together by a Concat.
    """
    import onnx
    from onnx import helper

    wide = only_input(model)
    hidden = onnx.compose.add_prefix(model, _PREFIX, rename_outputs=False, rename_inputs=True)
    kind = wide.type.tensor_type.elem_type
    inputs = [helper.make_tensor_value_info(name, kind, [BATCH, 1]) for name in columns]
    nodes = [helper.make_node("Concat", list(columns), [_PREFIX + wide.name], axis=1)]
    replace(hidden.graph.input, inputs)
    replace(hidden.graph.node, [*nodes, *hidden.graph.node])
    return hidden


_PREFIX, _FIRST = "batchserve/", "batchserve/first/"


def only_input(model: "onnx.ModelProto") -> "onnx.ValueInfoProto":
    """Return the one input that is no weight."""
    weights = {each.name for each in model.graph.initializer}
    (wide,) = [port for port in model.graph.input if port.name not in weights]
    found: onnx.ValueInfoProto = wide
    return found


def with_outputs(model: "onnx.ModelProto", names: Sequence[str]) -> "onnx.ModelProto":
    """Return the model with these outputs alone; what only others needed is gone."""
    import onnx

    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    replace(kept.graph.output, [port for port in model.graph.output if port.name in names])
    _drop_unread(kept)
    return kept


def _drop_unread(model: "onnx.ModelProto") -> None:
    """Take out nodes, weights and inputs that no output depends on."""
    graph = model.graph
    needed = {port.name for port in graph.output}
    nodes = []
    for node in reversed(graph.node):  # a graph is sorted: what makes a value stands before what reads it
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input) | read_inside(node)
    replace(graph.node, nodes[::-1])
    replace(graph.initializer, [each for each in graph.initializer if each.name in needed])
    replace(graph.input, [port for port in graph.input if port.name in needed])
    del graph.value_info[:]


def read_inside(node: "onnx.NodeProto") -> set[str]:
    """Return the names that the bodies of loops and branches read, those from outside among them."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    names = {name for body in bodies for inner in body.node for name in (*inner.input, *read_inside(inner))}
    return names | {port.name for body in bodies for port in body.output}


def finished(
    model: "onnx.ModelProto", shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]
) -> "onnx.ModelProto":
    """Return the model as it is written: an open batch, the outputs' true shapes, metadata.

    Args:
        model: As the gate ran it.
        shapes: The shape that a row of each output was seen to have; others stay as they are.
        metadata: Keys and values to add.
    """
    import onnx

    done = onnx.ModelProto()
    done.CopyFrom(model)
    done.graph.name = "exported"  # converters make one up by chance: the same export gives the same bytes
    _forget(done)
    for port in done.graph.input:
        port.type.tensor_type.shape.dim[0].dim_param = BATCH
    for port in done.graph.output:
        if port.name in shapes:
            _set_shape(port, (BATCH, *shapes[port.name]))
    kept = {each.key: each.value for each in done.metadata_props}
    onnx.helper.set_model_props(done, kept | dict(metadata))
    opsets = sorted(done.opset_import, key=lambda opset: opset.domain)  # converters keep them in a set
    replace(done.opset_import, opsets)
    return done


def _forget(model: "onnx.ModelProto") -> None:
    """Drop what converters note of how they made it: paths and lines of code of this machine among it."""
    graph = model.graph
    for each in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        each.ClearField("doc_string")
        each.ClearField("metadata_props")
    del graph.value_info[:]


def _set_shape(port: "onnx.ValueInfoProto", dims: Sequence[int | str]) -> None:
    kind = port.type.tensor_type
    del kind.shape.dim[:]
    for dim in dims:
        kind.shape.dim.add(**{"dim_param" if isinstance(dim, str) else "dim_value": dim})


def as_bytes(model: "onnx.ModelProto") -> bytes:
    """Return the bytes of a model, the same each time."""
    return bytes(model.SerializeToString(deterministic=True))


def opsets(model: "onnx.ModelProto") -> dict[str, int]:
    """Return the versions of the operator sets that a model uses."""
    return {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}


def chained(
    first: "onnx.ModelProto", second: "onnx.ModelProto", kind: int | None = None
) -> "onnx.ModelProto":
    """Return a model that gives the one output of `first` to the one input of `second`.

    Args:
        first: One output.
        second: One input.
        kind: The type of ONNX that what passes between them is cast to, or None to leave it.
    """
    import onnx
    from onnx import helper

    first = onnx.compose.add_prefix(first, _FIRST, rename_inputs=False)
    inner = onnx.compose.add_prefix(second, _PREFIX, rename_outputs=False)
    (between,) = first.graph.output
    wide = only_input(second).name
    ends = [between.name], [_PREFIX + wide]
    glue = helper.make_node("Identity", *ends) if kind is None else helper.make_node("Cast", *ends, to=kind)
    graph = helper.make_graph(
        [*first.graph.node, glue, *inner.graph.node], "chained", first.graph.input, inner.graph.output,
        [*first.graph.initializer, *inner.graph.initializer],
    )  # fmt: skip
    versions: dict[str, int] = {}
    for opset in (*first.opset_import, *second.opset_import):
        versions[opset.domain] = max(opset.version, versions.get(opset.domain, 0))
    sets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    return helper.make_model(graph, opset_imports=sets, ir_version=max(first.ir_version, second.ir_version))


def _tree_scores(model: "onnx.ModelProto") -> Iterator["onnx.ValueInfoProto"]:
    """Give the scores of trees, float32 whatever goes in: onnx does not infer them."""
    from onnx import TensorProto, helper

    for node in model.graph.node:
        if node.op_type in {"TreeEnsembleClassifier", "TreeEnsembleRegressor"}:
            yield helper.make_tensor_value_info(node.output[-1], TensorProto.FLOAT, None)


def replace(held: Any, values: Iterable[Any]) -> None:
    """Give a repeated field of a protobuf other values."""
    copies = list(values)
    del held[:]
    held.extend(copies)


def thresholds(model: "onnx.ModelProto") -> list[float]:
    """Return the values that the trees of a model compare with, each once."""
    found: set[float] = set()
    for node in model.graph.node:
        if node.op_type.startswith("TreeEnsemble"):
            found |= {value for value, mode in _splits(node) if mode != b"LEAF"}
    return sorted(found)


def _splits(node: "onnx.NodeProto") -> list[tuple[float, bytes]]:
    from onnx import numpy_helper

    attributes = {each.name: each for each in node.attribute}
    if "nodes_values_as_tensor" in attributes:
        values = numpy_helper.to_array(attributes["nodes_values_as_tensor"].t).tolist()
    else:
        values = list(attributes["nodes_values"].floats) if "nodes_values" in attributes else []
    modes = attributes["nodes_modes"].strings if "nodes_modes" in attributes else []
    return list(zip(values, modes, strict=False))


def flattened(model: "onnx.ModelProto", name: str) -> "onnx.ModelProto":
    """Return the model with one output in one dimension."""
    import onnx

    done = onnx.compose.add_prefix(model, _FIRST, rename_inputs=False)
    done.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), f"{_PREFIX}flat"))
    for port, old in zip(done.graph.output, model.graph.output, strict=True):
        ends = ([port.name, f"{_PREFIX}flat"] if old.name == name else [port.name]), [old.name]
        done.graph.node.append(onnx.helper.make_node("Reshape" if old.name == name else "Identity", *ends))
        port.name = old.name
        if old.name == name:
            _set_shape(port, [BATCH])
    return done


def renamed(model: "onnx.ModelProto", old: str, new: str) -> "onnx.ModelProto":
    """Return the model with another name for one output."""
    import onnx

    if old != new and any(new in node.output for node in model.graph.node):
        model = onnx.compose.add_prefix(model, _FIRST, rename_inputs=False, rename_outputs=False)
    done = onnx.ModelProto()
    done.CopyFrom(model)
    if old != new:
        done.graph.node.append(onnx.helper.make_node("Identity", [old], [new]))
        for port in done.graph.output:
            port.name = new if port.name == old else port.name
    return done


def inferred(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Return the model with the types of outputs that its operators have: converters declare some wrongly."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for port in bare.graph.output:
        port.ClearField("type")
    scores = list(_tree_scores(bare))
    replace(bare.graph.value_info, scores)
    found = {port.name: port for port in onnx.shape_inference.infer_shapes(bare).graph.output}
    found |= {port.name: port for port in scores}
    del bare.graph.value_info[:]
    for port in bare.graph.output:
        known = found[port.name].type.tensor_type.elem_type
        declared = next(each for each in model.graph.output if each.name == port.name)
        port.CopyFrom(declared)
        if known and declared.type.HasField("tensor_type"):
            port.type.tensor_type.elem_type = known
    return bare


def compare_exactly(
    model: "onnx.ModelProto", known: Mapping[tuple[int, float], float], *, double: bool
) -> None:
    """Let trees that ask `x <= t` answer as they do in float64: converters round t to float32, also up.

    Args:
        model: One wide input of float32; it is changed.
        known: Thresholds in float64, by feature and what float32 makes of them.
        double: Whether the input becomes float64; else each threshold the greatest float32 below it,
            which answers the same for every float32.
    """
    import onnx

    for node in model.graph.node:
        if node.op_type.startswith("TreeEnsemble"):
            _set_thresholds(node, known, double=double)
    if double:
        only_input(model).type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        for opset in model.opset_import:
            opset.version = 3 if opset.domain == "ai.onnx.ml" else opset.version


def _set_thresholds(
    node: "onnx.NodeProto", known: Mapping[tuple[int, float], float], *, double: bool
) -> None:
    attributes = {each.name: each for each in node.attribute}
    features = attributes["nodes_featureids"].ints
    values = attributes["nodes_values"].floats
    exact = [known.get(key, key[1]) for key in zip(features, values, strict=True)]
    if double:
        floats = [each for each in node.attribute if each.type == each.FLOATS]
        tensors = [_as_tensor(each, exact if each.name == "nodes_values" else each.floats) for each in floats]
        replace(node.attribute, [*(each for each in node.attribute if each not in floats), *tensors])
    else:
        values[:] = float32_below(exact).tolist()


def float32_below(values: Sequence[float]) -> Tensor:
    """Return the greatest float32 up to each value: `x <= t` is the same for every float32 x.

    Example:
        >>> float(float32_below([0.1])[0]) < 0.1 < float(np.float32(0.1))
        True
    """
    wanted = np.array(values, np.float64)
    nearest = wanted.astype(np.float32)
    return np.where(nearest > wanted, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def _as_tensor(attribute: "onnx.AttributeProto", values: Sequence[float]) -> "onnx.AttributeProto":
    """Return an attribute of floats as one of a float64 tensor, which opset 3 has."""
    from onnx import helper, numpy_helper

    name = f"{attribute.name}_as_tensor"
    return helper.make_attribute(name, numpy_helper.from_array(np.array(values, np.float64), name))


def without_zipmap(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Return the model with the tensor of scores that a ZipMap would make maps of."""
    import onnx

    done = onnx.ModelProto()
    done.CopyFrom(model)
    for node in model.graph.node:
        if node.op_type == "ZipMap":
            replace(done.graph.node, [each for each in done.graph.node if each.op_type != "ZipMap"])
            (port,) = [each for each in done.graph.output if each.name == node.output[0]]
            port.CopyFrom(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
    return done
