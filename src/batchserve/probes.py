"""Rows added to a sample, where conversions go wrong: ties, NaN, unknown and empty texts, extremes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from batchserve.binding import is_text
from batchserve.model import Tensor

Trait = Literal["tie", "jump", "extreme", "unknown", "empty", "nan"]
"""Why a row was added: its value is one a tree splits at, one beside which the source's scores jump, far out,
a text nobody trained on, no text, NaN."""

UNKNOWN_TEXT = "no such category"
_BASES = 2
"""Rows of the sample that each added value is put into."""
_MOST_TIES = 2048
"""Of all columns together, and at least `_LEAST_TIES` of each."""
_LEAST_TIES = 6
_ZERO = 1e-30
"""What is nearer to zero stands for it: LightGBM takes numbers up to 1e-35 for zero before it asks a tree."""


@dataclass(frozen=True)
class Probe:
    """Rows that have one unusual value in one column.

    Attributes:
        trait: What is unusual.
        column: Where.
        rows: In the sample's columns.
    """

    trait: Trait
    column: str
    rows: pa.RecordBatch


def probes(sample: pa.RecordBatch, thresholds: Sequence[float]) -> list[Probe]:
    """Make rows that conversions are known to get wrong, out of rows of the sample.

    Every value is one that float32 holds: what rounding an input does is seen on the sample's own rows.

    Args:
        sample: Rows with the columns of the model; at least one.
        thresholds: Values that trees of the model compare with, of any column.
    """
    bases = [row for row in sample.to_pylist() if None not in row.values()][:_BASES] or sample.to_pylist()[:1]
    most = max(_LEAST_TIES, _MOST_TIES // sample.num_columns)
    return [
        Probe(trait, field.name, _with(bases, field.name, values, sample.schema))
        for field in sample.schema
        for trait, values in _values(sample.column(field.name), thresholds, most).items()
        if values
    ]


def _with(
    bases: Sequence[Mapping[str, Any]], name: str, values: Sequence[Any], schema: pa.Schema
) -> pa.RecordBatch:
    rows = [{**base, name: value} for value in values for base in bases]
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def _values(column: pa.Array, thresholds: Sequence[float], most: int) -> dict[Trait, list[Any]]:
    if is_text(column.type):
        return {"unknown": [UNKNOWN_TEXT], "empty": [""]}
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return {}
    numbers = np.unique(column.drop_null().cast(pa.float64(), safe=False).to_numpy())
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return {"nan": [None]}
    found: dict[Trait, Tensor] = {
        "tie": _ties(numbers, thresholds, most),
        "extreme": _extremes(numbers),
    }
    return {trait: _as_type(values, column.type) for trait, values in found.items()} | {"nan": [None]}


def _extremes(numbers: Tensor) -> Tensor:
    """Return zero, both ends, and what is ten times the range beyond them."""
    least, most = numbers[0], numbers[-1]
    far = 10 * (most - least)
    return np.array([0.0, least, most, least - far, most + far])


def _ties(numbers: Tensor, thresholds: Sequence[float], most: int) -> Tensor:
    """Return the values that trees split at, those between neighbours, and what stands beside them."""
    splits = np.array([t for t in thresholds if numbers[0] <= t <= numbers[-1]])
    middles = (numbers[1:] + numbers[:-1]) / 2
    chosen = np.concatenate([_thinned(splits, most // 2), _thinned(middles, most // 6)]).astype(np.float32)
    below, above = np.nextafter(chosen, np.float32(-np.inf)), np.nextafter(chosen, np.float32(np.inf))
    every = np.concatenate([chosen, below, above]).astype(np.float64)
    return np.unique(np.where(np.abs(every) < _ZERO, 0.0, every))


def _thinned(values: Tensor, most: int) -> Tensor:
    """Return `most` of the values, evenly chosen."""
    return (
        values[np.unique(np.linspace(0, len(values) - 1, most).astype(int))] if len(values) > most else values
    )


def _as_type(values: Tensor, kind: pa.DataType) -> list[Any]:
    """Return values that a column of this type holds."""
    if pa.types.is_floating(kind):
        return list(values.astype(kind.to_pandas_dtype()).astype(float))
    held = np.iinfo(kind.to_pandas_dtype())
    whole = np.unique(np.rint(values[np.isfinite(values)]))
    return [int(value) for value in whole if held.min <= int(value) <= held.max]


def joined(found: Sequence[Probe], schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows of all probes, one after the other."""
    return pa.concat_batches([pa.RecordBatch.from_pylist([], schema=schema), *(each.rows for each in found)])


def by_trait(found: Sequence[Probe]) -> Iterator[tuple[Trait, list[Probe]]]:
    """Give the probes of each trait together."""
    for trait in dict.fromkeys(each.trait for each in found):
        yield trait, [each for each in found if each.trait == trait]
