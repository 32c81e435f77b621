"""Two columns of scores of the same rows: where they differ, as sums that can be put together. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchserve.arrays import raw_values

Kind = Literal["numbers", "integers", "labels"]
"""Numbers have differences; labels are the same or not; integers are both."""
MOST_FLIPS = 1_000
"""Different pairs of labels that are counted apart; what is met later is counted together."""


@dataclass(frozen=True)
class Pair:
    """Two outputs that can be compared.

    Attributes:
        output: Their name.
        first: Number of the first one's column.
        second: Number of the second one's.
    """

    output: str
    kind: Kind
    first: int
    second: int


def paired(
    first: Mapping[str, pa.DataType], second: Mapping[str, pa.DataType]
) -> tuple[dict[str, Kind], dict[str, str]]:
    """Pair outputs of one name and kind.

    Args:
        first: Output to type, of one model.
        second: The same, of the other.

    Returns:
        What can be compared, with its kind; and what cannot, with the reason.

    Example:
        >>> paired({"y": pa.float32(), "z": pa.string()}, {"y": pa.float64(), "z": pa.int64()})
        ({'y': 'numbers'}, {'z': 'is text in a, integers in b'})
    """
    pairs: dict[str, Kind] = {}
    alone: dict[str, str] = {}
    for name in dict.fromkeys([*first, *second]):
        if name not in first or name not in second:
            alone[name] = f"only {'a' if name in first else 'b'} has it"
        elif kind := _kind(first[name], second[name]):
            pairs[name] = kind
        else:
            alone[name] = f"is {_word(first[name])} in a, {_word(second[name])} in b"
    return pairs, alone


def _kind(first: pa.DataType, second: pa.DataType) -> Kind | None:
    if _is_label(first) and _word(first) == _word(second):
        return "labels"
    if pa.types.is_integer(first) and pa.types.is_integer(second):
        return "integers"
    shape = _shape(first)
    return "numbers" if shape is not None and shape == _shape(second) else None


def _is_label(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_boolean(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _shape(kind: pa.DataType) -> tuple[Any, ...] | None:
    """Return the sizes or names of what a row of numbers holds: none for one number; None if no numbers."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return tuple(kind.shape) if _is_number(kind.value_type) else None
    if pa.types.is_fixed_size_list(kind):
        return (kind.list_size,) if _is_number(kind.value_type) else None
    if pa.types.is_struct(kind):
        return tuple(each.name for each in kind) if all(_is_number(each.type) for each in kind) else None
    return () if _is_number(kind) else None


def _word(kind: pa.DataType) -> str:
    words = {"string": "text", "bool": "booleans"}
    if pa.types.is_integer(kind):
        return "integers"
    return "floats" if pa.types.is_floating(kind) else words.get(str(kind), str(kind))


# -- sums -------------------------------------------------------------------------------------


@dataclass
class Sums:
    """What is known of a pair of outputs over some rows; `+` puts those of other rows to it.

    Differences are those of b less a. A value of lists is counted by itself, a row once.
    """

    rows: int = 0
    differ: int = 0
    """Rows that differ by more than is allowed."""
    nonfinite: int = 0
    """Values that are infinite or NaN in one, and not the same in the other; they are in no sum."""
    numbers: int = 0
    """Values in the sums."""
    total: float = 0.0
    total_absolute: float = 0.0
    largest_absolute: float = 0.0
    largest_relative: float = 0.0
    """|b - a| / max(|a|, |b|), 0 where both are 0."""
    flips: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Labels that are not the same, as pairs of what a and b say."""
    other_flips: int = 0
    """Flips to more pairs than are counted apart."""

    def __add__(self, other: "Sums") -> "Sums":
        flips = self.flips + other.flips
        kept = Counter(dict(list(flips.items())[:MOST_FLIPS]))
        return Sums(
            self.rows + other.rows, self.differ + other.differ, self.nonfinite + other.nonfinite,
            self.numbers + other.numbers, self.total + other.total,
            self.total_absolute + other.total_absolute,
            max(self.largest_absolute, other.largest_absolute),
            max(self.largest_relative, other.largest_relative),
            kept, self.other_flips + other.other_flips + flips.total() - kept.total(),
        )  # fmt: skip

    @property
    def mean(self) -> float:
        """The mean of b less a."""
        return self.total / self.numbers if self.numbers else 0.0

    @property
    def mean_absolute(self) -> float:
        """The mean of |b - a|."""
        return self.total_absolute / self.numbers if self.numbers else 0.0


def between(kind: Kind, first: pa.Array, second: pa.Array, tolerance: float) -> tuple[Sums, NDArray[Any]]:
    """Compare two columns.

    Args:
        kind: What they hold.
        first: Scores of a, [rows].
        second: Scores of b, [rows].
        tolerance: Numbers differ if |b - a| is more than this.

    Returns:
        The sums, and how far each row is apart, float64 [rows]: 0 where it does not differ, 1 for
        labels, infinite where only one is a number.

    Example:
        >>> sums, apart = between("numbers", pa.array([1.0, 2.0]), pa.array([1.0, 2.5]), 0.0)
        >>> sums.differ, sums.largest_relative, apart.tolist()
        (1, 0.2, [0.0, 0.5])
    """
    if kind == "labels":
        return _labels(first, second)
    sums, apart = _numbers(_matrix(first), _matrix(second), tolerance)
    if kind == "integers":
        flips, _ = _labels(first, second)
        sums.flips, sums.other_flips = flips.flips, flips.other_flips
    return sums, apart


def _labels(first: pa.Array, second: pa.Array) -> tuple[Sums, NDArray[Any]]:
    differ = raw_values(pc.not_equal(first, second)).astype(bool)
    a, b = (each.filter(pa.array(differ)).to_pylist() for each in (first, second))
    flips = Counter((str(x), str(y)) for x, y in zip(a, b, strict=True))
    sums = Sums(rows=len(first), differ=int(differ.sum()))
    return sums + Sums(flips=flips), differ.astype(np.float64)


def _matrix(column: pa.Array) -> NDArray[Any]:
    """Return numbers as an array [rows, values of a row]."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_struct(column.type):
        return np.stack([raw_values(each) for each in column.flatten()], axis=1)
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(raw_values(column.flatten())).reshape(len(column), column.type.list_size)
    return np.asarray(raw_values(column)).reshape(-1, 1)


def _numbers(first: NDArray[Any], second: NDArray[Any], tolerance: float) -> tuple[Sums, NDArray[Any]]:
    if not first.size:
        return Sums(rows=len(first)), np.zeros(len(first))
    whole = first.dtype.kind in "iu" and second.dtype.kind in "iu"
    wide: type[Any] = np.longdouble if whole else np.float64  # which holds every int64
    a: NDArray[Any] = first.astype(wide)
    b: NDArray[Any] = second.astype(wide)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        difference = (b - a).astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        difference[same] = 0.0
        finite = np.isfinite(a) & np.isfinite(b)
        absolute = np.where(finite | same, np.abs(difference), np.inf)
        relative = np.where(finite & ~same, np.abs(difference) / np.maximum(np.abs(a), np.abs(b)), 0.0)
    apart = absolute.max(axis=1)
    apart[apart <= tolerance] = 0.0
    sums = Sums(
        rows=len(a), differ=int(np.count_nonzero(apart)), nonfinite=int((~(finite | same)).sum()),
        numbers=int(finite.sum()), total=float(difference[finite].sum()),
        total_absolute=float(absolute[finite].sum()),
        largest_absolute=float(absolute[finite].max(initial=0.0)),
        largest_relative=float(relative.max()),
    )  # fmt: skip
    return sums, apart
