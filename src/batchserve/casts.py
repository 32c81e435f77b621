"""Numbers to another type: which do not survive it, and which only lose digits. Pure."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchserve import lists
from batchserve.model import Tensor


def exact_integers(source: np.dtype[Any], target: np.dtype[Any]) -> int | None:
    """Return up to which integer a float type holds all of an integer type; None if all are held.

    Example:
        >>> exact_integers(np.dtype("int64"), np.dtype("float32"))
        16777216
    """
    if source.kind not in "iu" or target.kind != "f":
        return None
    limit = 2 ** (np.finfo(target).nmant + 1)
    return limit if np.iinfo(source).max > limit else None


def number_dtype(kind: pa.DataType) -> np.dtype[Any] | None:
    """Return the numpy dtype of a column of numbers, or of the numbers in its lists; else None."""
    kind = lists.element_of(kind)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_decimal(kind):
        return np.dtype("float64")
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return np.dtype(kind.to_pandas_dtype()) if plain else None


def rounded(source: Tensor, tensor: Tensor, valid: NDArray[np.bool_] | None) -> int:
    """Count integers that changed their value: two passes over small ones, more where some are large.

    Args:
        source: The numbers as read, [rows].
        tensor: What they became.
        valid: Which of them count, or None for all.
    """
    limit = exact_integers(source.dtype, tensor.dtype)
    if limit is None or not len(source) or (source.max() <= limit and source.min() >= -limit):
        return 0
    with np.errstate(invalid="ignore", over="ignore"):
        past_the_end = tensor >= float(int(np.iinfo(source.dtype).max) + 1)
        changed = (tensor.astype(source.dtype) != source) | past_the_end
    if valid is not None:
        changed &= valid
    return int(np.count_nonzero(changed & np.isfinite(tensor)))


def _has_range(floats: np.dtype[Any], source: np.dtype[Any]) -> bool:
    """Whether no number of `source` is infinite as a float of this type."""
    if source.kind == "f":
        return source.itemsize < floats.itemsize
    return floats != np.float16 or np.can_cast(source, floats)


def lost(source: Tensor, tensor: Tensor) -> NDArray[np.bool_] | None:
    """Return where a cast overflowed or cut a fraction off; rounding to a float is no loss."""
    wrong: NDArray[np.bool_]
    if tensor.dtype.kind == "f":
        if _has_range(tensor.dtype, source.dtype):
            return None
        wrong = np.isinf(tensor)
        return wrong & np.isfinite(source) if wrong.any() else None
    if tensor.dtype == bool:
        return None if source.dtype == bool else (source != 0) & (source != 1)
    limits = np.iinfo(tensor.dtype)
    if source.dtype.kind == "f":
        wide = source.astype(np.float64)
        within = (wide >= float(limits.min)) & (wide < float(limits.max) + 1) & (np.trunc(wide) == wide)
        wrong = ~within
        return wrong
    wrong = (source < int(limits.min)) | (source > int(limits.max))
    return wrong
