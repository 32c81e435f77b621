"""Columns of lists: what one row of them holds, and all their values side by side. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Dims = tuple[int | None, ...]
"""Sizes of the dimensions of one row; None where it is not known."""


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists, nested ones and tensors included."""
    types = pa.types
    flat = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(flat or isinstance(kind, pa.FixedShapeTensorType))


def dims_of(kind: pa.DataType) -> Dims:
    """Return the dimensions of one row of a column type: () for a scalar.

    Example:
        >>> dims_of(pa.list_(pa.list_(pa.float32(), 3)))
        (None, 3)
    """
    if isinstance(kind, pa.FixedShapeTensorType):
        return tuple(kind.shape)
    if not is_list(kind):
        return ()
    size = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    return (size, *dims_of(kind.value_type))


def element_of(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values in a column's lists."""
    return element_of(kind.value_type) if is_list(kind) else kind


def fitted(wanted: Dims, has: Dims) -> Dims | None:
    """Return the dimensions of a row where both say some; None where they contradict each other.

    Lists as deep as the input wants are taken level by level; a flat list is taken as all its
    values in a row, if at most one dimension is not known.

    Example:
        >>> fitted((2, None), (None, 3)), fitted((2, None), (6,)), fitted((2, 3), (5,))
        ((2, 3), (2, 3), None)
    """
    if len(has) == len(wanted):
        pairs = list(zip(wanted, has, strict=True))
        if any(a is not None and b is not None and a != b for a, b in pairs):
            return None
        return tuple(b if a is None else a for a, b in pairs)
    sizes = [dim for dim in has if dim is not None]
    size = math.prod(sizes) if len(sizes) == len(has) else None
    if len(has) != 1 and size is None:
        return None
    return _filled(wanted, size)


def _filled(wanted: Dims, size: int | None) -> Dims | None:
    """Find the one unknown dimension from the number of values in a row."""
    known = math.prod(dim for dim in wanted if dim is not None)
    unknown = wanted.count(None)
    if unknown > 1 or size is None:
        return wanted if unknown <= 1 else None
    if unknown == 0:
        return wanted if known == size else None
    if known == 0 or size % known:
        return None
    return tuple(size // known if dim is None else dim for dim in wanted)


def sized(column: pa.Array, wanted: Dims) -> tuple[int, ...]:
    """Return the dimensions of a row; the first row whose lists say so decides what nobody knows."""
    for row in range(len(column)):
        if column[row].is_valid and (found := fitted(wanted, _measured(column[row].as_py()))):
            return tuple(1 if dim is None else dim for dim in found)
    return tuple(1 if dim is None else dim for dim in wanted)


def _measured(value: Any) -> Dims:
    if not isinstance(value, list):
        return ()
    return (len(value), *(_measured(value[0]) if value else ()))


@dataclass(frozen=True)
class Values:
    """The values of all rows, one after the other: as many per row as its dimensions say."""

    flat: pa.Array
    """Null where a value is, or a list that should hold it, or where the row's sizes are wrong."""
    wrong: dict[int, str]
    """Rows whose lists have other sizes, with what they have."""


def unpacked(column: pa.Array, shape: Sequence[int]) -> Values:
    """Return the values of all rows of a list column.

    Where all rows have the right sizes this is a slice of what Arrow holds: nothing is copied.

    Args:
        column: Lists, nested as deep as `shape` or flat, of any list type; or tensors.
        shape: Dimensions of one row.
    """
    if pa.types.is_null(column.type):
        return Values(pa.nulls(len(column) * math.prod(shape)), {})
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    deep = len(dims_of(column.type)) == len(shape)
    wrong: dict[int, str] = {}
    per_row = 1
    for size in shape if deep else (math.prod(shape),):
        column, bad, lengths = _level(column, size)
        for entry in bad:
            which = "" if per_row == 1 else f"its list {entry % per_row} "
            wrong.setdefault(int(entry // per_row), which + _sizes(int(lengths[entry]), size))
        per_row *= size
    return Values(column, wrong)


def _sizes(has: int, wanted: int) -> str:
    return f"has {has} value{'s' * (has != 1)}, {wanted} {'is' if wanted == 1 else 'are'} wanted"


def _level(lists: pa.Array, size: int) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64]]:
    """Take one level off; return the entries, which lists had another size, and all their sizes."""
    rows = len(lists)
    starts, lengths = _extents(lists)
    valid = _bits(lists.is_valid()) if lists.null_count else np.ones(rows, dtype=bool)
    right = valid & (lengths == size)
    if right.all():
        first = int(starts[0]) if rows else 0
        return lists.values.slice(first, rows * size), np.zeros(0, np.int64), lengths
    index = (np.where(right, starts, 0)[:, None] + np.arange(size)).reshape(-1)
    taken = lists.values.take(_nullable(index, np.repeat(right, size)))
    return taken, np.flatnonzero(valid & ~right), lengths


def _extents(lists: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each list starts among the values, and how many it has."""
    if pa.types.is_fixed_size_list(lists.type):
        size = lists.type.list_size
        starts = (np.arange(len(lists)) + lists.offset) * size
        return starts, np.full(len(lists), size)
    dtype = np.int64 if pa.types.is_large_list(lists.type) else np.int32
    raw = np.frombuffer(lists.buffers()[1] or bytes(dtype(0).nbytes), dtype)
    offsets = raw[lists.offset : lists.offset + len(lists) + 1].astype(np.int64)
    return offsets[:-1], np.diff(offsets)


def _bits(flags: pa.BooleanArray) -> NDArray[np.bool_]:
    raw = np.frombuffer(flags.buffers()[1], np.uint8)
    bits = np.unpackbits(raw, bitorder="little")[flags.offset : flags.offset + len(flags)]
    return bits.astype(bool)


def _nullable(index: NDArray[np.int64], valid: NDArray[np.bool_]) -> pa.Array:
    """Return numbers as an Arrow array, null where they are not valid."""
    mask = pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(pa.int64(), len(index), [mask, pa.py_buffer(index)])
