"""A float32 graph made one that multiplies in float16 or int8, and how much faster that is here.

By the tools that come with onnxruntime. What they make is not trusted: the gate compares it.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from batchserve import bypass, scoring
from batchserve.errors import ModelError, UsageError, did_you_mean
from batchserve.model import Tensor
from batchserve.scorers import Recipe

if TYPE_CHECKING:
    import onnx

Precision = Literal["float16", "int8"]

REDUCIBLE = ("MatMul", "Gemm", "Conv")
"""The operators whose work falls with the width of their numbers."""


def named(text: str) -> Precision:
    """Read a precision as the user says it.

    Raises:
        UsageError: There is no such one, or it would let rows change each other's scores.
    """
    known: Precision
    for known in get_args(Precision):
        if text == known:
            return known
    if "dynamic" in text:
        raise UsageError(f"--precision {text}: {_DYNAMIC}", "say int8: its scales are fixed by the sample")
    hint = did_you_mean(text, get_args(Precision)) or f"say one of {', '.join(get_args(Precision))}"
    raise UsageError(f"--precision {text}: there is no such precision", hint)


_DYNAMIC = (
    "dynamic quantisation takes its scales from the whole batch, so one row changes the scores of others "
    "(a NaN row made all 1,024 scores of its batch NaN)"
)


def reduced(
    graph: "onnx.ModelProto", file: Path, rows: Mapping[str, Tensor], precision: Precision, *, whole: bool
) -> "onnx.ModelProto":
    """Return a graph whose matrix products are computed in fewer digits; inputs and outputs stay.

    Args:
        graph: In float32.
        file: Beside it the graph may be written.
        rows: What goes into it for the sample, by input [rows, ...]: int8 takes its scales from them.
        precision: In what it is to multiply.
        whole: Whether NaN is led around all of the graph, not its products alone, for int8.

    Raises:
        UsageError: It has no operator that would be faster.
        ModelError: Those that it has do not compute in float32, or no row has numbers only.
    """
    if not any(node.op_type in REDUCIBLE for node in graph.graph.node):
        raise _nothing(graph, precision)
    if not list(_products(graph)):
        raise ModelError(f"no {' or '.join(REDUCIBLE)} in it computes in float32: nothing to reduce")
    if precision == "float16":
        return _in_float16(graph)
    return _in_int8(bypass.with_nan(graph, REDUCIBLE, whole=whole), file, rows)


def _nothing(graph: "onnx.ModelProto", precision: Precision) -> UsageError:
    has = ", ".join(sorted({node.op_type for node in graph.graph.node}))
    message = f"--precision {precision}: the graph has no {', '.join(REDUCIBLE)} to reduce (it has {has})"
    return UsageError(message, "nothing would be faster: trees and lookups stay as they are; leave it out")


def _products(graph: "onnx.ModelProto") -> Iterator["onnx.NodeProto"]:
    """Give the operators that can be reduced: their weights, if they have any, are float32."""
    other = {each.name for each in graph.graph.initializer if each.data_type != bypass.FLOAT}
    for node in graph.graph.node:
        if node.op_type in REDUCIBLE and other.isdisjoint(node.input):
            yield node


def _in_float16(graph: "onnx.ModelProto") -> "onnx.ModelProto":
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    done = onnx.ModelProto()
    done.CopyFrom(graph)  # the tool writes into what it is given
    converted: onnx.ModelProto = convert_float_to_float16(done, keep_io_types=True)
    return converted


# -- int8 -------------------------------------------------------------------------------------


def _in_int8(graph: "onnx.ModelProto", file: Path, rows: Mapping[str, Tensor]) -> "onnx.ModelProto":
    """Quantise statically: the ranges are those that the sample has, the same for every batch.

    Weights have seven bits: with eight, sums of two products overflow 16 bits on CPUs without VNNI,
    which would score other than those with it.
    """
    import onnx
    from onnxruntime import quantization as q

    wide, narrow = (file.with_suffix(f".{name}.onnx") for name in ("wide", "int8"))
    onnx.save(graph, wide)  # a path: of a model that is in memory the tool moves the weights away
    with _silence():
        q.quantize_static(
            wide, narrow, _reader(_finite(rows)), quant_format=q.QuantFormat.QDQ, per_channel=True,
            reduce_range=True, activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
            op_types_to_quantize=list(REDUCIBLE),
        )  # fmt: skip
    return onnx.load(narrow)


def _finite(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows that have no NaN and no infinity: these have no range."""
    found = [np.isfinite(each.reshape(len(each), -1)).all(axis=1) for each in rows.values() if _floats(each)]
    good = np.logical_and.reduce(found) if found else slice(None)
    kept = {name: tensor[good] for name, tensor in rows.items()}
    if not all(map(len, kept.values())):
        raise ModelError("every row of the sample has a null or an infinity: int8 has no range to take")
    return kept


def _floats(tensor: Tensor) -> bool:
    return tensor.dtype.kind == "f"


def _reader(rows: Mapping[str, Tensor]) -> Any:
    """Return what gives the sample to the tool in runs of a moderate size."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        starts = iter(range(0, len(next(iter(rows.values()))), _CALIBRATED_ROWS))

        def get_next(self) -> dict[str, Tensor] | None:
            start = next(self.starts, None)
            if start is None:
                return None
            return {name: tensor[start : start + _CALIBRATED_ROWS] for name, tensor in rows.items()}

    return Reader()


_CALIBRATED_ROWS = 256


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the tool from advising what the gate measures."""
    import onnxruntime as ort

    logging.disable(logging.WARNING)
    ort.set_default_logger_severity(_NOTHING)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNINGS)
        logging.disable(logging.NOTSET)


_WARNINGS, _NOTHING = 2, 4
"""onnxruntime's own levels; the first is its default."""


# -- how much faster --------------------------------------------------------------------------


def speed_up(wide: tuple[Recipe, Mapping[str, Tensor]], narrow: tuple[Recipe, Mapping[str, Tensor]]) -> float:
    """Measure how many times as fast one model scores rows as another, each in runs of a job's size.

    The two are run in turn, so that what else the machine does slows both.

    Args:
        wide: The model that is compared with, and what goes into it, [rows, ...].
        narrow: The one that is to be faster.
    """
    one, other = _run(*wide), _run(*narrow)
    one(), other()  # what is done once is not counted
    pairs: list[float] = []
    until = time.perf_counter() + _MEASURED_S
    while len(pairs) < _LEAST_PAIRS or time.perf_counter() < until:
        pairs.append(_row_s(one) / _row_s(other))
    return statistics.median(pairs)


_MEASURED_S, _LEAST_PAIRS = 0.4, 5


def _run(recipe: Recipe, rows: Mapping[str, Tensor]) -> Callable[[], int]:
    """Return what runs a model once, and gives the rows of that."""
    names = [prediction.output for prediction in recipe.predictions]
    size = recipe.batch_rows
    again = {name: tensor[np.arange(size) % len(tensor)] for name, tensor in rows.items()}
    (runs,) = scoring.runs_of(recipe)

    def once() -> int:
        runs.run(names, again)
        return size

    return once


def _row_s(once: Callable[[], int]) -> float:
    begun = time.perf_counter()
    rows = once()
    return (time.perf_counter() - begun) / rows
