"""Tensors to columns: what the model gave, one entry per row. Pure: no files, no model."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

from batchserve.arrays import array_of, raw_values
from batchserve.errors import ModelError
from batchserve.model import Port, Tensor, element, tensor_dtype
from batchserve.zipmaps import Maps

Kind = Literal["scalar", "list", "tensor", "struct", "varlist"]


class Prediction(BaseModel, frozen=True):
    """One output of the model and the column it becomes."""

    output: str
    column: str
    kind: Kind
    shape: tuple[int, ...] = ()
    """Trailing dimensions of one row: () for a scalar."""
    keys: tuple[str, ...] = ()
    """Field names of a ZipMap's struct."""
    depth: int = 0
    """How deep the lists of a varlist are nested."""


def refusal(port: Port) -> ModelError | None:
    """Return why an output can be no column whatever the data is, or None.

    Example:
        >>> str(refusal(Port(name="y", type="tensor(int4)", shape=(None, 2))).message)
        'output y: is of type tensor(int4), which no column type holds'
    """
    kind = port.type.removeprefix("seq(").removesuffix(")") if port.type.startswith("seq(") else port.type
    inner = port.model_copy(update={"type": kind})
    if kind.startswith("map(") or tensor_dtype(inner) is not None or element(port) == "bfloat16":
        return None
    message = f"output {port.name}: is of type {port.type}, which no column type holds"
    return ModelError(message, f"{_CHOOSE}, or convert it in the model: float32 holds all smaller floats")


def varies(port: Port) -> bool:
    """Whether the model leaves open how many values a row of an output has."""
    return any(not isinstance(dim, int) for dim in port.shape[1:])


def observe(output: str, column: str, values: Any, rows: int, *, open_sizes: bool = False) -> Prediction:
    """Decide the column for an output from what one run of `rows` rows gave.

    [N] and [N, 1] become a scalar column, [N, k] a fixed-size list, deeper ones a fixed-shape
    tensor, a ZipMap's maps a struct. A sequence of N tensors becomes a column of lists.

    Args:
        output: Name of the output.
        column: Name of the column.
        values: What the run gave.
        rows: Rows of the run.
        open_sizes: Whether another run may give rows of other sizes: lists of any size then.

    Raises:
        ModelError: The output is not one value per row.
    """
    check_rows(output, values, rows)
    if isinstance(values, Maps):
        return Prediction(output=output, column=column, kind="struct", keys=values.keys)
    shape = tuple(values[0].shape if isinstance(values, list) else values.shape[1:])
    if shape and (open_sizes or isinstance(values, list) or 0 in shape):
        return Prediction(output=output, column=column, kind="varlist", depth=len(shape))
    if shape in {(), (1,)}:
        return Prediction(output=output, column=column, kind="scalar")
    kind: Kind = "list" if len(shape) == 1 else "tensor"
    return Prediction(output=output, column=column, kind=kind, shape=shape)


_CHOOSE = "leave it out: --outputs NAMES"


def check_rows(output: str, values: Any, rows: int) -> None:
    """Check that an output has one entry per row.

    Raises:
        ModelError: It has another number of rows.
    """
    if values is None:
        raise ModelError(f"output {output}: is optional, and the model gave none", _CHOOSE)
    listed = isinstance(values, list | Maps)
    got = len(values) if listed or values.ndim else 0
    if got != rows:
        shape = [got] if listed else list(values.shape)
        message = f"output {output}: has shape {shape} for a batch of {rows} rows"
        raise ModelError(message, "each output must have one entry per row; " + _CHOOSE)


def joined(runs: Sequence[Any]) -> Any:
    """Put the rows of several runs one after the other: a list where their sizes differ.

    Example:
        >>> joined([np.zeros((1, 2)), np.ones((1, 2))]).shape
        (2, 2)
    """
    if isinstance(runs[0], Maps):
        return Maps.joined(runs)
    if any(isinstance(run, list) for run in runs) or len({run.shape[1:] for run in runs}) > 1:
        return [row for run in runs for row in run]
    return runs[0] if len(runs) == 1 else np.concatenate(runs)


def decode(prediction: Prediction, values: Any) -> pa.Array:
    """Turn one output of one run into a column.

    Args:
        prediction: The column, as planned.
        values: An array [N], [N, 1], [N, k] or deeper, a ZipMap's N maps, or a list of N tensors.

    Raises:
        ModelError: The output has another shape or other keys than when it was planned.
    """
    if prediction.kind == "struct":
        return _struct(prediction, values)
    if prediction.kind == "varlist":
        return _lists(prediction, values)
    if isinstance(values, list):
        values = _stacked(prediction, values)
    if prediction.kind == "scalar":
        if values.size != len(values):
            raise _other_shape(prediction, values.shape[1:])
        return array_of(values.reshape(-1))
    if tuple(values.shape[1:]) != prediction.shape:
        raise _other_shape(prediction, values.shape[1:])
    flat = array_of(values.reshape(-1))
    size = int(np.prod(prediction.shape))
    storage = pa.FixedSizeListArray.from_arrays(flat, size)
    if prediction.kind == "list":
        return storage
    kind = pa.fixed_shape_tensor(flat.type, prediction.shape)
    return pa.ExtensionArray.from_storage(kind, storage)


def _other_shape(prediction: Prediction, shape: Sequence[int]) -> ModelError:
    message = f"output {prediction.output}: rows of shape {list(shape)}, planned {list(prediction.shape)}"
    return ModelError(message, "rows of a job must all give the same; " + _CHOOSE)


def _stacked(prediction: Prediction, rows: Sequence[Any]) -> Tensor:
    """Put rows of one shape together; the planned one, or the first row's that is another."""
    wanted = prediction.shape if prediction.kind != "scalar" else rows[0].shape
    for row in rows:
        if tuple(row.shape) != tuple(wanted):
            raise _other_shape(prediction, row.shape)
    return np.stack(rows)


def _lists(prediction: Prediction, values: Any) -> pa.Array:
    """Return lists of any size, nested as deep as the rows have dimensions."""
    rows: Sequence[Any] = values
    if wrong := [row.shape for row in rows if row.ndim != prediction.depth]:
        raise _other_shape(prediction, wrong[0])
    nested = array_of(np.concatenate([row.reshape(-1) for row in rows]))
    for level in reversed(range(prediction.depth)):
        lengths = [np.full(math.prod(row.shape[:level]), row.shape[level], np.int32) for row in rows]
        offsets = np.concatenate((np.zeros(1, np.int32), np.cumsum(np.concatenate(lengths), dtype=np.int32)))
        nested = pa.ListArray.from_arrays(array_of(offsets), nested)
    return nested


def _struct(prediction: Prediction, values: Maps) -> pa.Array:
    if values.keys != prediction.keys:
        got = ", ".join(values.keys)
        raise ModelError(f"output {prediction.output}: keys {got}, planned {prediction.keys}")
    columns = [array_of(column) for column in np.ascontiguousarray(values.values.T)]
    return pa.StructArray.from_arrays(columns, names=list(prediction.keys))


# -- scores -----------------------------------------------------------------------------------


def nonfinite(column: pa.Array) -> NDArray[np.bool_] | None:
    """Return in which rows of a column of scores there is an infinity or a NaN; None if in none.

    Example:
        >>> nonfinite(pa.array([1.0, float("nan")])), nonfinite(pa.array([1, 2]))
        (array([False,  True]), None)
    """
    wrong = _nonfinite(column)
    return wrong if wrong is not None and wrong.any() else None


def _nonfinite(column: pa.Array) -> NDArray[np.bool_] | None:
    """The same, but all false where the type could hold one."""
    if isinstance(column, pa.ExtensionArray):
        return _nonfinite(column.storage)
    if pa.types.is_struct(column.type):
        fields = [each for field in column.flatten() if (each := _nonfinite(field)) is not None]
        return np.asarray(np.any(fields, axis=0)) if fields else None
    if pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
        values = _nonfinite(column.flatten())
        return None if values is None else _any_of(values, raw_values(column.value_lengths()))
    return ~np.isfinite(raw_values(column)) if pa.types.is_floating(column.type) else None


def _any_of(values: NDArray[np.bool_], lengths: Tensor) -> NDArray[np.bool_]:
    """Return for each list whether one of its values is true."""
    before = np.concatenate(([0], np.cumsum(values)))
    stops = np.cumsum(lengths)
    found: NDArray[np.bool_] = before[stops] > before[stops - lengths]
    return found


def filtered(column: pa.Array, good: NDArray[np.bool_]) -> pa.Array:
    """Return only the entries of a column where `good` is true."""
    if isinstance(column, pa.ExtensionArray):
        return pa.ExtensionArray.from_storage(column.type, filtered(column.storage, good))
    return column.filter(array_of(good))
