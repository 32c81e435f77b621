"""Columns as labels and predictions: as numbers, as probabilities, as classes; pure.

Classes are compared as texts: 1, 1.0 and true are `1`, 0, 0.0 and false `0`.
"""

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from batchserve.arrays import raw_values
from batchserve.errors import DataError
from batchserve.metrics import Bools, Codes
from batchserve.sums import Floats

Kind = Literal["float", "integer", "bool", "text", "vector", "struct", "other"]
NUMBERS = {"float", "integer"}
CLASSES = 1000
"""Classes that a label or a prediction may have."""


def kind_of(kind: pa.DataType) -> Kind:
    """Return what a column of a type can be.

    Example:
        >>> kind_of(pa.int8()), kind_of(pa.list_(pa.float32(), 3)), kind_of(pa.date32())
        ('integer', 'vector', 'other')
    """
    types = pa.types
    kind = storage_type(kind)
    tests: list[tuple[Kind, bool]] = [
        ("float", types.is_floating(kind) or types.is_decimal(kind)),
        ("integer", types.is_integer(kind)),
        ("bool", types.is_boolean(kind)),
        ("text", types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)),
        ("vector", _is_vector(kind)),
        ("struct", types.is_struct(kind) and all(kind_of(f.type) in NUMBERS for f in kind)),
    ]
    return next((name for name, true in tests if true), "other")


def _is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return lists and kind_of(kind.value_type) in NUMBERS


def storage_type(kind: pa.DataType) -> pa.DataType:
    """Return the type without an extension or a dictionary."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def plain(column: pa.Array) -> pa.Array:
    """Return a column without an extension type or a dictionary."""
    if isinstance(column, pa.ExtensionArray):
        return column.storage
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def numbers(column: pa.Array) -> Floats:
    """Return a column of numbers as floats; a null is NaN."""
    column = plain(column)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    values = raw_values(column).astype(np.float64)
    if column.null_count:
        values[~valid(column)] = np.nan
    return values


def valid(column: pa.Array) -> Bools:
    """Return which rows are not null."""
    return raw_values(column.is_valid()).astype(bool)


def chances_of(column: pa.Array, count: int) -> Floats:
    """Return probabilities as floats, [n, count]; a null among them is NaN.

    Args:
        column: Lists or structs, none of them null.
        count: How many each has.

    Raises:
        DataError: A list has another length.
    """
    if pa.types.is_struct(column.type):
        return np.stack([numbers(each) for each in column.flatten()], axis=1)
    lengths = raw_values(column.value_lengths())
    if odd := [size for size in lengths.tolist() if size != count][:1]:
        raise DataError(f"a row has {odd[0]} probabilities, others {count}", "score it with another output")
    return numbers(column.flatten()).reshape(-1, count)


def class_text(value: Any) -> str:
    """Return the name of a class.

    Example:
        >>> [class_text(value) for value in (1, 1.0, True, 0.5, "a")]
        ['1', '1', '1', '0.5', 'a']
    """
    if isinstance(value, float | bool) and value == int(value or 0):
        return str(int(value))
    return str(value)


def coded(column: pa.Array, name: str) -> tuple[Codes, list[str]]:
    """Return classes as places in a list of names; -1 for NaN.

    Args:
        column: Labels, none of them null.
        name: The column's name.

    Raises:
        DataError: There are too many classes.
    """
    encoded = column.dictionary_encode()
    values = encoded.dictionary.to_pylist()
    check_classes(name, len(values))
    texts = [None if value != value else class_text(value) for value in values]  # noqa: PLR0124  is NaN
    names = list(dict.fromkeys(text for text in texts if text is not None))
    places = np.array([-1 if text is None else names.index(text) for text in texts], np.int64)
    return places[raw_values(encoded.indices)] if len(values) else np.zeros(0, np.int64), names


def check_classes(name: str, count: int) -> None:
    """Check how many classes a column has.

    Raises:
        DataError: There are too many.
    """
    if count > CLASSES:
        raise DataError(f"{name}: more than {CLASSES:,} classes", "is it a number? say --task regression")
