"""Columns to tensors, as the binding says. Pure: no files, no model."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchserve import casts, lists
from batchserve.arrays import array_of, raw_values, without_null_texts
from batchserve.binding import Binding, Feed, is_text
from batchserve.lookups import Codes
from batchserve.model import Tensor
from batchserve.nulls import NullPolicy
from batchserve.rejects import RejectClass


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
    nulls: Counter[str] = field(default_factory=Counter)
    """Rows with a null, or a null in their list, per model column; of the rows as they were read."""
    rounded: Counter[str] = field(default_factory=Counter)
    """Integers that the model's float type has no digits for, per column; of the rows as read."""
    codes: dict[str, Codes] = field(default_factory=dict)
    """Of inputs that one column of texts fills: the same texts, each once."""

    @property
    def rows(self) -> int:
        """Rows held; every tensor has as many."""
        return len(next(iter(self.tensors.values())))

    def slice(self, start: int, stop: int) -> "Encoded":
        """Return rows `start` to `stop` without copying."""
        tensors = {name: tensor[start:stop] for name, tensor in self.tensors.items()}
        codes = {name: each.slice(start, stop) for name, each in self.codes.items()}
        return Encoded(self.kept.slice(start, stop - start), tensors, codes=codes)

    def take(self, good: NDArray[np.bool_]) -> "Encoded":
        """Return only the rows where `good` is true."""
        tensors = {name: tensor[good] for name, tensor in self.tensors.items()}
        codes = {name: each.take(good) for name, each in self.codes.items()}
        return Encoded(self.kept.filter(array_of(good)), tensors, codes=codes)

    def joined(self, other: "Encoded") -> "Encoded":
        """Return these rows followed by those of `other`; their texts are in the tensors alone."""
        tensors = {n: np.concatenate((t, other.tensors[n])) for n, t in self.tensors.items()}
        return Encoded(pa.concat_batches([self.kept, other.kept]), tensors)


@dataclass
class _Found:
    """What is met while columns are encoded."""

    misfits: list[Misfit] = field(default_factory=list)
    nulls: Counter[str] = field(default_factory=Counter)
    rounded: Counter[str] = field(default_factory=Counter)
    codes: dict[str, Codes] = field(default_factory=dict)
    """Of columns of texts."""


def encode(batch: pa.RecordBatch, binding: Binding, keep: Sequence[str]) -> tuple[Encoded, list[Misfit]]:
    """Turn columns into tensors.

    Args:
        batch: Rows as read; holds every column of `binding` and of `keep`.
        binding: Which column fills which input.
        keep: The columns that pass through to the output.

    Returns:
        All rows encoded, and the cells at fault; the caller takes their rows out.
    """
    found = _Found(nulls=_nulls(batch, binding))
    tensors = {feed.input: _fill(feed, batch, found) for feed in binding.feeds}
    codes = {
        feed.input: found.codes[feed.columns[0]]
        for feed in binding.feeds
        if feed.dtype == "object" and len(feed.columns) == 1 and not feed.packed
    }
    return Encoded(batch.select(list(keep)), tensors, found.nulls, found.rounded, codes), found.misfits


def _nulls(batch: pa.RecordBatch, binding: Binding) -> Counter[str]:
    counts = {name: batch.column(name).null_count for name in binding.columns}
    return Counter({name: count for name, count in counts.items() if count})


def settled(binding: Binding, sample: pa.RecordBatch) -> Binding:
    """Fix the dimensions of rows that the model leaves open: those of the first rows.

    Args:
        binding: As it was bound to the columns.
        sample: The first rows.
    """
    feeds = [
        feed.model_copy(update={"shape": lists.sized(sample.column(feed.columns[0]), feed.shape)})
        if None in feed.shape
        else feed
        for feed in binding.feeds
    ]
    return binding.model_copy(update={"feeds": tuple(feeds)})


def _fill(feed: Feed, batch: pa.RecordBatch, found: _Found) -> Tensor:
    dtype = np.dtype(feed.dtype)
    if feed.packed:
        return _unpacked(feed, batch.column(feed.columns[0]), dtype, found)
    cells = [
        _column_tensor(batch.column(name), name, dtype, policy, found)
        for name, policy in zip(feed.columns, feed.nulls, strict=True)
    ]
    if feed.rank == 1:
        return cells[0]
    if len(cells) == 1:
        return cells[0].reshape(-1, 1)
    return np.stack(cells, axis=1)


def _unpacked(feed: Feed, column: pa.Array, dtype: np.dtype[Any], found: _Found) -> Tensor:
    """Turn lists into a tensor [rows, ...]; every value is treated as one in a column of its own."""
    name, policy, rows = feed.columns[0], feed.nulls[0], len(column)
    shape = tuple(size or 0 for size in feed.shape)
    values = lists.unpacked(column, shape)
    found.misfits += [Misfit(row, name, "CAST", "", reason) for row, reason in values.wrong.items()]
    inside = _Found()
    flat = _column_tensor(values.flat, name, dtype, policy, inside)
    per_row = max(1, len(flat) // max(1, rows))
    first: dict[int, Misfit] = {}
    for misfit in inside.misfits:
        row = misfit.row // per_row
        if row not in values.wrong:
            first.setdefault(row, replace(misfit, row=row))
    found.misfits += first.values()
    found.rounded += inside.rounded
    if values.flat.null_count:
        found.nulls[name] = _rows_with_nulls(values, rows, per_row)
    return flat.reshape(rows, *shape)


def _rows_with_nulls(values: lists.Values, rows: int, per_row: int) -> int:
    cells = raw_values(values.flat.is_null()).reshape(rows, per_row)
    missing = np.asarray(cells.any(axis=1))
    missing[list(values.wrong)] = False
    return int(missing.sum())


def _column_tensor(
    column: pa.Array, name: str, dtype: np.dtype[Any], policy: NullPolicy, found: _Found
) -> Tensor:
    misfits = found.misfits
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if dtype.kind == "O":
        return _strings(column, name, policy, found)
    if is_text(column.type):
        column = _parsed(column, name, dtype, misfits)
    if pa.types.is_decimal(column.type):
        column = _from_decimals(column, name, dtype, misfits)
    if pa.types.is_null(column.type):
        column = column.cast(pa.float64())
    if column.null_count == 0:
        return _cast(column, name, dtype, found)
    missing = raw_values(column.is_null()).astype(bool)
    if policy.rule == "reject":
        parsed = {m.row for m in misfits if m.column == name}
        rows = [int(row) for row in np.flatnonzero(missing) if int(row) not in parsed]
        misfits += [Misfit(row, name, "MISSING", "", "null in a model column") for row in rows]
    here = _Found()
    tensor = np.array(_cast(column, name, dtype, here, ~missing))
    misfits += [misfit for misfit in here.misfits if not missing[misfit.row]]
    found.rounded += here.rounded
    tensor[missing] = _null_value(dtype, policy)
    return tensor


def _null_value(dtype: np.dtype[Any], policy: NullPolicy) -> Any:
    if policy.rule == "fill":
        return dtype.type(policy.fill)
    return np.nan if dtype.kind == "f" else dtype.type(0)


def _strings(column: pa.Array, name: str, policy: NullPolicy, found: _Found) -> Tensor:
    column = column if pa.types.is_string(column.type) else column.cast(pa.string())
    if column.null_count:
        if policy.rule == "reject":
            rows = np.flatnonzero(raw_values(column.is_null()))
            found.misfits += [Misfit(int(r), name, "MISSING", "", "null in a model column") for r in rows]
        column = column.fill_null(policy.fill)
    # One Python object per distinct text instead of one per row.
    coded = column.dictionary_encode()
    texts = np.empty(len(coded.dictionary), dtype=object)
    texts[:] = coded.dictionary.to_pylist()
    rows = raw_values(coded.indices).astype(np.int32, copy=False)
    found.codes[name] = Codes(texts, rows)
    strings: Tensor = texts[rows]
    return strings


def _parsed(column: pa.Array, name: str, dtype: np.dtype[Any], misfits: list[Misfit]) -> pa.Array:
    """Read a text column as numbers; a text that is none becomes null and a CAST misfit."""
    column = without_null_texts(column)
    if dtype.kind in "iu" and not _has_hexadecimals(column):
        with suppress(pa.ArrowInvalid):
            return column.cast(pa.from_numpy_dtype(dtype))
    try:
        numbers = column.cast(pa.float64())
    except pa.ArrowInvalid:
        column, numbers = _without_words(column, name, misfits), None
    if dtype.kind in "iu":
        return _integers(column.to_pylist(), name, dtype, misfits)
    numbers = column.cast(pa.float64()) if numbers is None else numbers
    misfits += _overflown(column, numbers, name)
    return numbers


def _overflown(texts: pa.StringArray, numbers: pa.DoubleArray, name: str) -> Iterator[Misfit]:
    """Find numbers that no double holds: Arrow reads 1e400 as infinity without a word."""
    infinite = np.isinf(raw_values(numbers)) & raw_values(numbers.is_valid()).astype(bool)
    for row in map(int, np.flatnonzero(infinite)):
        text = texts[row].as_py()
        if not text.strip(" +-").lower().startswith("inf"):
            yield Misfit(row, name, "RANGE", text, "does not fit in float64")


_HEXADECIMAL = pc.MatchSubstringOptions("[xX]")


def _has_hexadecimals(texts: pa.StringArray) -> bool:
    """Whether some text has an x: Arrow reads 0x1F as an integer, and as no double."""
    return bool(pc.any(pc.match_substring_regex(texts, options=_HEXADECIMAL)).as_py())


def _without_words(column: pa.StringArray, name: str, misfits: list[Misfit]) -> pa.StringArray:
    texts = column.to_pylist()
    for row, text in enumerate(texts):
        if text is not None and number_or_none(text) is None:
            misfits.append(Misfit(row, name, "CAST", text, "is no number"))
            texts[row] = None
    return pa.array(texts, pa.string())


def _integers(
    values: Sequence[str | Decimal | None], name: str, dtype: np.dtype[Any], misfits: list[Misfit]
) -> pa.Array:
    """Read texts or decimals as integers one by one: a double would cut digits off large ones."""
    limits = np.iinfo(dtype)
    found = [None if value is None else _whole(value) for value in values]
    for row, (value, number) in enumerate(zip(values, found, strict=True)):
        if value is not None and (number is None or not limits.min <= number <= limits.max):
            misfits.append(Misfit(row, name, "RANGE", str(value), f"does not fit in {dtype.name}"))
            found[row] = None
    return pa.array(found, pa.from_numpy_dtype(dtype))


def _whole(value: str | Decimal) -> int | None:
    """Return a number of at most 20 digits as an integer; None where it is none."""
    try:
        number = Decimal(value)
    except InvalidOperation:  # "nan(1)"
        return None
    small = number.is_finite() and abs(number) < _PAST_ALL
    return int(number) if small and number == number.to_integral_value() else None


_PAST_ALL = 10**20


def _from_decimals(column: pa.Array, name: str, dtype: np.dtype[Any], misfits: list[Misfit]) -> pa.Array:
    if dtype.kind not in "iu":
        return column.cast(pa.float64())
    try:
        return column.cast(pa.from_numpy_dtype(dtype))
    except pa.ArrowInvalid:
        return _integers(column.to_pylist(), name, dtype, misfits)


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


def _cast(
    column: pa.Array, name: str, dtype: np.dtype[Any], found: _Found, valid: NDArray[np.bool_] | None = None
) -> Tensor:
    source = raw_values(column)
    if source.dtype == dtype:
        return source
    with np.errstate(over="ignore", invalid="ignore"):
        tensor: Tensor = source.astype(dtype)
        lost = casts.lost(source, tensor)
    if lost is not None and lost.any():
        reason = f"does not fit in {dtype.name}"
        rows = np.flatnonzero(lost)
        found.misfits += [Misfit(int(row), name, "RANGE", str(source[row]), reason) for row in rows]
    if count := casts.rounded(source, tensor, valid):
        found.rounded[name] += count
    return tensor
