"""Columns <-> tensors, as the binding says. Pure: no files, no model."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel

from batchserve.binding import Binding, Feed, NullPolicy, is_text
from batchserve.errors import ModelError
from batchserve.model import Tensor
from batchserve.rejects import RejectClass

# -- arrays without pandas ----------------------------------------------------------------------
# `pa.array` and every compute call with a Python scalar import pandas where it is installed,
# which costs a small job half of its time. These few go by buffers instead.


def text_array(texts: Sequence[str]) -> pa.StringArray:
    """Return texts as an Arrow array."""
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def array_of(values: Tensor) -> pa.Array:
    """Return a numpy vector as an Arrow array; numbers are not copied."""
    if values.dtype.kind in "OUS":
        return text_array([str(value) for value in values])
    bits = values.dtype == bool
    data = np.packbits(values, bitorder="little") if bits else np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(data)])


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """Return a record batch of no rows."""
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def only_where(texts: pa.StringArray, valid: pa.BooleanArray) -> pa.StringArray:
    """Return texts with null wherever `valid` is not true."""
    if texts.offset:
        texts = pa.concat_arrays([texts])
    valid = pc.and_(valid, texts.is_valid()) if texts.null_count else valid
    _, offsets, data = texts.buffers()
    return pa.StringArray.from_buffers(len(texts), offsets, data, valid.buffers()[1])


def raw_values(column: pa.Array) -> Tensor:
    """Return a number column as numpy without copying; what stands under a null is arbitrary."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    dtype = np.dtype(column.type.to_pandas_dtype())
    values = np.frombuffer(column.buffers()[1] or b"", dtype)
    return values[column.offset : column.offset + len(column)]


NULL_TEXTS = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
"""Texts that mean null where a number is wanted: the ones pandas knows."""
_NULL_SET = text_array(NULL_TEXTS)


def without_null_texts(texts: pa.Array) -> pa.StringArray:
    """Return texts with null for every text that means null."""
    texts = texts.cast(pa.string())
    return only_where(texts, pc.invert(pc.is_in(texts, value_set=_NULL_SET)))


def empty_to_null(texts: pa.Array) -> pa.StringArray:
    """Return texts with null for every empty text."""
    texts = texts.cast(pa.string())
    return only_where(texts, pc.binary_length(texts).cast(pa.bool_()))


@dataclass(frozen=True)
class Misfit:
    """A cell that cannot become a number of the model: row within its batch, and why."""

    row: int
    column: str
    kind: RejectClass
    value: str
    reason: str


# -- columns to tensors -----------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """Rows ready for the model, beside the columns that pass through."""

    kept: pa.RecordBatch
    tensors: dict[str, Tensor]

    @property
    def rows(self) -> int:
        """Rows held; every tensor has as many."""
        return len(next(iter(self.tensors.values())))

    def slice(self, start: int, stop: int) -> "Encoded":
        """Return rows `start` to `stop` without copying."""
        tensors = {name: tensor[start:stop] for name, tensor in self.tensors.items()}
        return Encoded(self.kept.slice(start, stop - start), tensors)

    def take(self, good: NDArray[np.bool_]) -> "Encoded":
        """Return only the rows where `good` is true."""
        tensors = {name: tensor[good] for name, tensor in self.tensors.items()}
        return Encoded(self.kept.filter(array_of(good)), tensors)

    def joined(self, other: "Encoded") -> "Encoded":
        """Return these rows followed by those of `other`."""
        tensors = {n: np.concatenate((t, other.tensors[n])) for n, t in self.tensors.items()}
        return Encoded(pa.concat_batches([self.kept, other.kept]), tensors)


def encode(batch: pa.RecordBatch, binding: Binding, keep: Sequence[str]) -> tuple[Encoded, list[Misfit]]:
    """Turn columns into tensors.

    Args:
        batch: Rows as read; holds every column of `binding` and of `keep`.
        binding: Which column fills which input.
        keep: The columns that pass through to the output.

    Returns:
        All rows encoded, and the cells at fault; the caller takes their rows out.
    """
    misfits: list[Misfit] = []
    tensors = {feed.input: _fill(feed, batch, misfits) for feed in binding.feeds}
    return Encoded(batch.select(list(keep)), tensors), misfits


def _fill(feed: Feed, batch: pa.RecordBatch, misfits: list[Misfit]) -> Tensor:
    dtype = np.dtype(feed.dtype)
    cells = [
        _column_tensor(batch.column(name), name, dtype, policy, misfits)
        for name, policy in zip(feed.columns, feed.nulls, strict=True)
    ]
    if feed.rank == 1:
        return cells[0]
    if len(cells) == 1:
        return cells[0].reshape(-1, 1)
    return np.stack(cells, axis=1)


def _column_tensor(
    column: pa.Array, name: str, dtype: np.dtype[Any], policy: NullPolicy, misfits: list[Misfit]
) -> Tensor:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if dtype.kind == "O":
        return _strings(column, name, policy, misfits)
    if is_text(column.type):
        column = _parsed(column, name, dtype, misfits)
    if pa.types.is_null(column.type):
        column = column.cast(pa.float64())
    if column.null_count == 0:
        return _cast(column, name, dtype, misfits)
    missing = raw_values(column.is_null()).astype(bool)
    if policy.rule == "reject":
        parsed = {m.row for m in misfits if m.column == name}
        rows = [int(row) for row in np.flatnonzero(missing) if int(row) not in parsed]
        misfits += [Misfit(row, name, "MISSING", "", "null in a model column") for row in rows]
    found: list[Misfit] = []
    tensor = np.array(_cast(column, name, dtype, found))
    misfits += [misfit for misfit in found if not missing[misfit.row]]
    tensor[missing] = _null_value(dtype, policy)
    return tensor


def _null_value(dtype: np.dtype[Any], policy: NullPolicy) -> Any:
    if policy.rule == "fill":
        return dtype.type(policy.fill)
    return np.nan if dtype.kind == "f" else dtype.type(0)


def _strings(column: pa.Array, name: str, policy: NullPolicy, misfits: list[Misfit]) -> Tensor:
    column = column if pa.types.is_string(column.type) else column.cast(pa.string())
    if column.null_count:
        if policy.rule == "reject":
            rows = np.flatnonzero(raw_values(column.is_null()))
            misfits += [Misfit(int(r), name, "MISSING", "", "null in a model column") for r in rows]
        column = column.fill_null(policy.fill)
    # One Python object per distinct text instead of one per row.
    coded = column.dictionary_encode()
    texts = np.empty(len(coded.dictionary), dtype=object)
    texts[:] = coded.dictionary.to_pylist()
    strings: Tensor = texts[raw_values(coded.indices)]
    return strings


def _parsed(column: pa.Array, name: str, dtype: np.dtype[Any], misfits: list[Misfit]) -> pa.Array:
    """Read a text column as numbers; a text that is none becomes null and a CAST misfit."""
    column = without_null_texts(column)
    try:
        return _numbers(column, dtype)
    except pa.ArrowInvalid:
        texts = column.to_pylist()
    for row, text in enumerate(texts):
        if text is not None and number_or_none(text) is None:
            misfits.append(Misfit(row, name, "CAST", text, "is no number"))
            texts[row] = None
    return _numbers(pa.array(texts, pa.string()), dtype)


def _numbers(texts: pa.StringArray, dtype: np.dtype[Any]) -> pa.Array:
    """Read texts as integers where the model wants some: a double would cut digits off large ones."""
    if dtype.kind in "iu":
        with suppress(pa.ArrowInvalid):
            return texts.cast(pa.from_numpy_dtype(dtype))
    return texts.cast(pa.float64())


def number_or_none(text: str | None) -> float | None:
    """Return the number a text says, or None.

    Example:
        >>> number_or_none("1e3"), number_or_none("1,000")
        (1000.0, None)
    """
    try:
        return float(pa.scalar(text).cast(pa.float64()).as_py()) if text is not None else None
    except pa.ArrowInvalid:
        return None


def _cast(column: pa.Array, name: str, dtype: np.dtype[Any], misfits: list[Misfit]) -> Tensor:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    source = raw_values(column)
    if source.dtype == dtype:
        return source
    with np.errstate(over="ignore", invalid="ignore"):
        tensor: Tensor = source.astype(dtype)
        lost = _lost(source, tensor)
    if lost is not None and lost.any():
        reason = f"does not fit in {dtype.name}"
        rows = np.flatnonzero(lost)
        misfits += [Misfit(int(row), name, "RANGE", str(source[row]), reason) for row in rows]
    return tensor


def _lost(source: Tensor, tensor: Tensor) -> NDArray[np.bool_] | None:
    """Return where a cast overflowed or cut a fraction off; rounding to a float is no loss."""
    lost: NDArray[np.bool_]
    if tensor.dtype.kind == "f":
        if source.dtype.kind == "f" and source.dtype.itemsize < tensor.dtype.itemsize:
            return None
        lost = np.isinf(tensor) & np.isfinite(source)
        return lost
    if tensor.dtype == bool:
        return None if source.dtype == bool else (source != 0) & (source != 1)
    limits = np.iinfo(tensor.dtype)
    if source.dtype.kind == "f":
        wide = source.astype(np.float64)
        within = (wide >= float(limits.min)) & (wide < float(limits.max) + 1) & (np.trunc(wide) == wide)
        lost = ~within
        return lost
    lost = (source < int(limits.min)) | (source > int(limits.max))
    return lost


# -- tensors to columns -----------------------------------------------------------------------


class Prediction(BaseModel, frozen=True):
    """One output of the model and the column it becomes."""

    output: str
    column: str
    kind: Literal["scalar", "list", "tensor", "struct"]
    shape: tuple[int, ...] = ()
    """Trailing dimensions of one row: () for a scalar."""
    keys: tuple[str, ...] = ()
    """Field names of a ZipMap's struct."""


def observe(output: str, column: str, values: Any, rows: int) -> Prediction:
    """Decide the column for an output from what one run of `rows` rows gave.

    [N] and [N, 1] become a scalar column, [N, k] a fixed-size list, deeper ones a fixed-shape
    tensor, a ZipMap's list of dicts a struct.

    Raises:
        ModelError: The output is not one value per row.
    """
    check_rows(output, values, rows)
    if isinstance(values, list):
        if not isinstance(values[0], dict):
            raise ModelError(f"output {output}: is a sequence, not one value per row", _CHOOSE)
        return Prediction(output=output, column=column, kind="struct", keys=_keys(values[0]))
    shape = tuple(values.shape[1:])
    if shape in {(), (1,)}:
        return Prediction(output=output, column=column, kind="scalar")
    kind: Literal["list", "tensor"] = "list" if len(shape) == 1 else "tensor"
    return Prediction(output=output, column=column, kind=kind, shape=shape)


_CHOOSE = "leave it out: --outputs NAMES"


def _keys(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return tuple(str(key) for key in row)


def check_rows(output: str, values: Any, rows: int) -> None:
    """Check that an output has one entry per row.

    Raises:
        ModelError: It has another number of rows.
    """
    got = len(values) if isinstance(values, list) or values.ndim else 0
    if got != rows:
        shape = [got] if isinstance(values, list) else list(values.shape)
        message = f"output {output}: has shape {shape} for a batch of {rows} rows"
        raise ModelError(message, "each output must have one entry per row; " + _CHOOSE)


def decode(prediction: Prediction, values: Any) -> pa.Array:
    """Turn one output of one run into a column.

    Args:
        prediction: The column, as planned.
        values: An array [N], [N, 1], [N, k] or deeper, or a ZipMap's list of N dicts.

    Raises:
        ModelError: The output has another shape or other keys than when it was planned.
    """
    if prediction.kind == "struct":
        return _struct(prediction, values)
    if prediction.kind == "scalar":
        return array_of(values.reshape(-1))
    if tuple(values.shape[1:]) != prediction.shape:
        got, planned = list(values.shape[1:]), list(prediction.shape)
        raise ModelError(f"output {prediction.output}: rows of shape {got}, planned {planned}")
    flat = array_of(values.reshape(-1))
    size = int(np.prod(prediction.shape))
    storage = pa.FixedSizeListArray.from_arrays(flat, size)
    if prediction.kind == "list":
        return storage
    kind = pa.fixed_shape_tensor(flat.type, prediction.shape)
    return pa.ExtensionArray.from_storage(kind, storage)


def _struct(prediction: Prediction, values: list[dict[Any, Any]]) -> pa.Array:
    if _keys(values[0]) != prediction.keys:
        got = ", ".join(_keys(values[0]))
        raise ModelError(f"output {prediction.output}: keys {got}, planned {prediction.keys}")
    numbers = np.array([list(row.values()) for row in values], dtype=_value_dtype(values))
    columns = [array_of(column) for column in numbers.T]
    return pa.StructArray.from_arrays(columns, names=list(prediction.keys))


def _value_dtype(values: list[dict[Any, Any]]) -> type[Any]:
    # onnxruntime hands a map's tensor(float) values out as Python floats.
    first = next(iter(values[0].values()), 0.0)
    return np.float32 if isinstance(first, float) else type(first)


# -- scores -----------------------------------------------------------------------------------


def nonfinite(column: pa.Array) -> NDArray[np.bool_] | None:
    """Return in which rows of a column of scores there is an infinity or a NaN; None if in none.

    Example:
        >>> nonfinite(pa.array([1.0, float("nan")])), nonfinite(pa.array([1, 2]))
        (array([False,  True]), None)
    """
    if isinstance(column, pa.ExtensionArray):
        return nonfinite(column.storage)
    wrong: NDArray[np.bool_]
    if pa.types.is_struct(column.type):
        fields = [each for field in column.flatten() if (each := nonfinite(field)) is not None]
        wrong = np.asarray(np.any(fields, axis=0)) if fields else np.zeros(len(column), bool)
    elif pa.types.is_fixed_size_list(column.type):
        values = nonfinite(column.flatten())
        flat = values.reshape(len(column), -1) if values is not None else np.zeros((len(column), 1), bool)
        wrong = np.asarray(flat.any(axis=1))
    elif pa.types.is_floating(column.type):
        wrong = ~np.isfinite(raw_values(column))
    else:
        return None
    return wrong if wrong.any() else None


def filtered(column: pa.Array, good: NDArray[np.bool_]) -> pa.Array:
    """Return only the entries of a column where `good` is true."""
    if isinstance(column, pa.ExtensionArray):
        return pa.ExtensionArray.from_storage(column.type, filtered(column.storage, good))
    return column.filter(array_of(good))
