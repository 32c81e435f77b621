"""Sums do not depend on how their terms are split: they are exact, and cells follow from the values alone."""

import itertools
from fractions import Fraction
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchserve.sums import Cells, Floats, as_float, bits, exact_squares, exact_sum, linear, ordered_bits

FINITE = st.floats(allow_nan=False, allow_infinity=False)
MODERATE = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-60)


def floats(values: list[float]) -> Floats:
    return np.array(values, dtype=np.float64)


def cut(values: Floats, at: list[int]) -> list[Floats]:
    """Cut values at places anywhere in them."""
    edges = sorted({0, len(values), *(place % (len(values) + 1) for place in at)})
    return [values[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(FINITE))
def test_a_sum_is_exact(values: list[float]) -> None:
    """The sum of any finite floats is that of the fractions that they are."""
    assert exact_sum(floats(values)) == sum(map(Fraction, values), Fraction(0))


def test_a_sum_of_many_of_all_sizes_is_exact() -> None:
    """Also of many values, from the least to nearly the largest."""
    chance = np.random.default_rng(7)
    values = chance.standard_normal(50_000) * 2.0 ** chance.integers(-1070, 890, 50_000)

    assert exact_sum(values) == sum(map(Fraction, values.tolist()))


@given(st.lists(MODERATE))
def test_a_sum_of_squares_is_exact(values: list[float]) -> None:
    """The sum of squares has no rounding at all: neither of a square nor of a sum."""
    assert exact_squares(floats(values)) == sum((Fraction(value) ** 2 for value in values), Fraction(0))


def test_squares_too_large_for_floats_add_up() -> None:
    """Squares that no float holds are exact, too; as a float their sum is an infinity."""
    total = exact_squares(floats([1e200, 3.0]))

    assert total == Fraction(1e200) ** 2 + 9
    assert (as_float(total), as_float(-total), as_float(Fraction(1, 4))) == (np.inf, -np.inf, 0.25)


@given(st.lists(FINITE, max_size=60))
def test_keys_sort_as_their_values(values: list[float]) -> None:
    """Ordered bits compare as the floats do, and are equal for equal ones alone."""
    keys = ordered_bits(floats(values)).tolist()

    pairs = list(zip(values, keys, strict=True))
    assert all((a < b) == (i < j) and (a == b) == (i == j) for a, i in pairs for b, j in pairs)


def same(one: Cells, other: Cells) -> bool:
    """Whether two histograms are the same, to the bit."""
    return (
        one.level == other.level
        and np.array_equal(one.keys, other.keys)
        and np.array_equal(one.weights, other.weights)
    )


@pytest.mark.parametrize("make", [bits, linear])
@given(values=st.lists(FINITE, min_size=1, max_size=60), at=st.lists(st.integers(0, 60), max_size=5))
def test_cells_are_the_same_in_any_split(make: object, values: list[float], at: list[int]) -> None:
    """Cells of pieces add up to the cells of the whole, with the same width, whatever the order."""
    whole, ones = floats(values), np.ones((len(values), 1))
    pieces = [make(8, piece, ones[: len(piece)]) for piece in cut(whole, at)]  # type: ignore[operator]  # of either kind

    for order in (pieces, pieces[::-1]):
        assert same(reduce(add, order), make(8, whole, ones))  # type: ignore[operator]  # as above


@given(st.lists(FINITE, min_size=1, max_size=60))
def test_cells_are_no_coarser_than_they_must_be(values: list[float]) -> None:
    """There are no more cells than the limit, and one bit more would have made too many."""
    found = bits(8, floats(values), np.ones((len(values), 1)))

    keys = ordered_bits(floats(values)).tolist()
    assert len(found.keys) == len({key >> found.level for key in keys}) <= 8
    assert found.level == 0 or len({key >> (found.level - 1) for key in keys}) > 8
    assert found.weights.sum() == len(values)


def test_linear_cells_have_one_width() -> None:
    """The numbers 0 to 15 in at most 8 cells are two in each: a cell is 2 wide."""
    found = linear(8, np.arange(16.0), np.ones((16, 1)))

    assert (found.level, found.keys.tolist(), found.weights[:, 0].tolist()) == (1, list(range(8)), [2.0] * 8)


def test_an_outlier_does_not_squash_the_rest() -> None:
    """Cells that are empty cost nothing: one far value leaves the others their cells."""
    found = linear(8, floats([0, 1, 2, 3, 4, 5, 6, 1e9]), np.ones((8, 1)))

    assert found.keys.tolist()[:-1] == [i * 2**10 for i in range(7)]
    assert found.level == -10
