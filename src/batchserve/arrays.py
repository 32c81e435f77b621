"""Arrow arrays made and read by their buffers, without pandas.

`pa.array` and every compute call with a Python scalar import pandas where it is installed, which
costs a small job half of its time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def text_array(texts: Sequence[str]) -> pa.StringArray:
    """Return texts as an Arrow array."""
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def array_of(values: NDArray[Any]) -> pa.Array:
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


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; a single chunk is not copied."""
    if column.num_chunks == 1:
        return column.chunk(0)
    array = column.combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def only_where(texts: pa.StringArray, valid: pa.BooleanArray) -> pa.StringArray:
    """Return texts with null wherever `valid` is not true."""
    if texts.offset:
        texts = pa.concat_arrays([texts])
    valid = pc.and_(valid, texts.is_valid()) if texts.null_count else valid
    _, offsets, data = texts.buffers()
    return pa.StringArray.from_buffers(len(texts), offsets, data, valid.buffers()[1])


def raw_values(column: pa.Array) -> NDArray[Any]:
    """Return a number column as numpy without copying; what stands under a null is arbitrary."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    dtype = np.dtype(column.type.to_pandas_dtype())
    stop = column.offset + len(column)
    data = column.buffers()[1] if stop else None
    # A buffer may be longer, and be no whole number of values: those of `pa.nulls` share one.
    values = np.frombuffer(data[: stop * dtype.itemsize] if data else b"", dtype)
    return values[column.offset : stop]


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
