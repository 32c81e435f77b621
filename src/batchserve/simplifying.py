"""A graph as onnxruntime's optimiser leaves it: constants folded, nodes without effect gone."""

from pathlib import Path
from typing import TYPE_CHECKING

from batchserve import surgery

if TYPE_CHECKING:
    import onnx

_STANDARD = {"", "ai.onnx", "ai.onnx.ml"}


def simplified(graph: "onnx.ModelProto", file: Path) -> "onnx.ModelProto | None":
    """Return a graph of fewer nodes that should do the same; whether it does, the caller tries.

    Of onnxruntime's optimisations only the basic ones, which any runtime can run; a session makes the
    others by itself, for the CPU that it is on.

    Args:
        graph: Any that onnxruntime can run.
        file: Beside it the other graph may be written.

    Returns:
        None if there are no fewer nodes, or some are onnxruntime's own.
    """
    import onnx
    import onnxruntime as ort

    written = file.with_suffix(".simple.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(written)
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    ort.InferenceSession(surgery.as_bytes(graph), options, providers=["CPUExecutionProvider"])
    made = onnx.load(written)
    if len(made.graph.node) >= len(graph.graph.node) or {n.domain for n in made.graph.node} - _STANDARD:
        return None
    surgery.replace(made.opset_import, [each for each in made.opset_import if each.domain in _STANDARD])
    return made
