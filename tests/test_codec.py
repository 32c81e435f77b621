"""Columns to tensors and back: which column fills what, what is cast, and what is refused."""

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from batchserve.arrays import NULL_TEXTS, array_of
from batchserve.binding import Binding, Feed, Wish, bind, stored_features, wanted_columns
from batchserve.codec import Encoded, Misfit, encode, number_or_none
from batchserve.errors import ModelError
from batchserve.model import FEATURES_KEY, Port, Signature, Tensor
from batchserve.nulls import NullPolicy
from batchserve.predictions import Prediction, check_rows, decode, joined, observe
from batchserve.zipmaps import Maps

SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
FLOATS = ("float16", "float32", "float64")
NUMBERS = (*SIGNED, *UNSIGNED, *FLOATS)


def port(name: str = "x", kind: str = "float", *shape: int | str | None) -> Port:
    """Return an input of a model; [batch, 1] unless told."""
    return Port(name=name, type=f"tensor({kind})", shape=shape or (None, 1))


def signature(*inputs: Port, **metadata: str) -> Signature:
    """Return the signature of a model with these inputs."""
    return Signature(inputs=inputs, outputs=(), metadata=metadata)


def schema(**columns: pa.DataType) -> pa.Schema:
    """Return an Arrow schema."""
    return pa.schema(list(columns.items()))


def feed(dtype: str, rule: str = "reject", fill: str = "", rank: int = 1) -> Feed:
    """Return a feed of input x from column x."""
    policy = NullPolicy(rule=rule, fill=fill)
    return Feed(input="x", dtype=dtype, columns=("x",), nulls=(policy,), rank=rank)


def encoded(
    column: pa.Array, dtype: str, rule: str = "reject", fill: str = ""
) -> tuple[Tensor, list[Misfit]]:
    """Encode one column for one input [batch]."""
    batch = pa.RecordBatch.from_arrays([column], names=["x"])
    rows, misfits = encode(batch, Binding(feeds=(feed(dtype, rule, fill),)), ())
    return rows.tensors["x"], misfits


# -- the binding ------------------------------------------------------------------------------


def test_named_inputs_take_the_columns_of_their_names() -> None:
    """Inputs [batch] and [batch, 1] take the column of their own name, or the one mapped to them."""
    model = signature(port("a", "float", None, 1), port("b", "string", "N"), port("c", "int64", 64, 1))
    columns = schema(a=pa.float64(), b=pa.string(), other=pa.int32())

    binding = bind(model, columns, Wish(map={"c": "other"}))

    assert [(f.input, f.dtype, f.columns, f.rank) for f in binding.feeds] == [
        ("a", "float32", ("a",), 2), ("b", "object", ("b",), 1), ("c", "int64", ("other",), 2),
    ]  # fmt: skip
    assert binding.columns == ("a", "b", "other")
    assert set(binding.numeric) == {"a", "other"}


@pytest.mark.parametrize("width", [3, None, "features"])
def test_a_wide_input_takes_the_features_in_order(width: int | str | None) -> None:
    """One wide input takes the named columns, in the order named, whatever their order in the file."""
    columns = schema(a=pa.int64(), b=pa.bool_(), c=pa.decimal128(5, 2))

    binding = bind(signature(port("x", "float", None, width)), columns, Wish(features=("c", "a", "b")))

    assert binding.feeds[0].columns == ("c", "a", "b")


@pytest.mark.parametrize("text", ['["b", "a"]', "b, a", "b,a", ' ["b","a"] '])
def test_features_may_stand_in_the_model(text: str) -> None:
    """Without --features the list in the model's metadata is used, as JSON or with commas."""
    model = signature(port("x", "float", None, 2), **{FEATURES_KEY: text})

    binding = bind(model, schema(a=pa.int64(), b=pa.int64()), Wish())

    assert binding.feeds[0].columns == ("b", "a")
    assert wanted_columns(model, Wish()) == ["b", "a"]
    assert wanted_columns(model, Wish(features=("a", "b"))) == ["a", "b"]


@pytest.mark.parametrize("text", ["", "[", "[1", "  "])
def test_an_odd_list_in_the_model_is_no_list(text: str) -> None:
    """Metadata that holds no list names no columns."""
    assert stored_features(signature(**{FEATURES_KEY: text})) == ()


WIDE = port("x", "float", None, 2)
BAD_BINDINGS: tuple[tuple[str, tuple[Port, ...], Wish, Sequence[str]], ...] = (
    ("missing", (port("aa"),), Wish(), ("input aa: no column aa", "--map aa=COLUMN")),
    ("near", (port("number"),), Wish(), ("no column number", "did you mean numbers?")),
    ("wide-missing", (WIDE,), Wish(features=("a", "zz")), ("no column zz", "columns are: a,")),
    ("unnamed", (WIDE,), Wish(), ("which columns fill it?", "--features a,numbers")),
    ("count", (WIDE,), Wish(features=("a",)), ("takes 2 columns, 1", "named are: a")),
    ("two-wide", (WIDE, port("y", "float", None, 2)), Wish(features=("a", "a")), ("inputs x, y",)),
    (
        "rank",
        (port("x", "float", None, 2, 2),),
        Wish(),
        ("input x: tensor(float) [?, 2, 2]: no column x", "--map x=COLUMN"),
    ),
    (
        "scalar",
        (Port(name="x", type="tensor(float)", shape=()),),
        Wish(),
        ("input x: tensor(float) []: is a single", "--set x=VALUE"),
    ),
    (
        "kind",
        (port("a", "complex64"),),
        Wish(),
        ("input a: tensor(complex64)", "no column type is complex64"),
    ),
    ("date", (port("day"),), Wish(), ("wants numbers (float32), column day is date32", "convert")),
    ("number-as-text", (port("a", "string"),), Wish(), ("wants text, column a is double", "--type a=text")),
    ("map", (port("number"),), Wish(map={"numbr": "a"}), ("--map numbr=...", "did you mean number?")),
    ("map-far", (port("a"),), Wish(map={"zzz": "a"}), ("--map zzz=...", "its inputs are: a")),
    ("null-rule", (port("a"),), Wish(on_null=("drop",)), ("--on-null drop: not understood", "fill=VALUE")),
    ("null-fill", (port("a"),), Wish(on_null=("fill",)), ("--on-null fill: not understood",)),
    ("null-value", (port("a"),), Wish(on_null=("nan=1",)), ("--on-null nan=1: not understood",)),
    ("null-column", (port("a"),), Wish(on_null=("b:nan",)), ("the model reads no column b",)),
    ("nan-int", (port("a", "int64"),), Wish(on_null=("nan",)), ("int64 has no NaN", "COLUMN:fill=VALUE")),
    ("nan-text", (port("text", "string"),), Wish(on_null=("text:nan",)), ("text has no NaN",)),
    ("fill-word", (port("a"),), Wish(on_null=("a:fill=x",)), ("'x' is no float32",)),
    ("fill-large", (port("a", "int8"),), Wish(on_null=("fill=300",)), ("'300' is no int8",)),
)


@pytest.mark.parametrize(
    ("ports", "wish", "says"), [b[1:] for b in BAD_BINDINGS], ids=[b[0] for b in BAD_BINDINGS]
)
def test_what_does_not_fit_is_told(ports: tuple[Port, ...], wish: Wish, says: Sequence[str]) -> None:
    """Each way in which model, columns and wishes do not fit is told with its way out."""
    columns = schema(a=pa.float64(), numbers=pa.int32(), text=pa.string(), day=pa.date32())

    with pytest.raises(ModelError) as told:
        bind(signature(*ports), columns, wish)

    assert [piece for piece in says if piece not in str(told.value)] == []


def test_all_misfits_are_told_at_once() -> None:
    """A missing column, a wrong type and two wrong wishes are one message of four problems."""
    model = signature(port("aa"), port("day"))
    wish = Wish(map={"zzz": "a"}, on_null=("drop",))

    with pytest.raises(ModelError, match=r"^4 problems") as told:
        bind(model, schema(a=pa.float64(), day=pa.date32()), wish)

    for problem in ("no column aa", "column day is date32", "--map zzz", "--on-null drop"):
        assert problem in told.value.message


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (pa.string(), "float"), (pa.large_string(), "int64"), (pa.string_view(), "string"),
        (pa.null(), "float"), (pa.dictionary(pa.int8(), pa.string()), "float"),
        (pa.dictionary(pa.int8(), pa.int64()), "float"), (pa.int64(), "string"),
        (pa.decimal128(9, 2), "double"), (pa.bool_(), "bool"), (pa.float16(), "float"),
    ],
    ids=str,
)  # fmt: skip
def test_what_can_be_cast_is_bound(kind: pa.DataType, wanted: str) -> None:
    """Texts, dictionaries, nulls, decimals, booleans and integers as text are no misfits."""
    assert bind(signature(port("x", wanted)), schema(x=kind), Wish()).columns == ("x",)


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ((), ["reject", "reject", "reject"]),
        (("nan",), ["nan", "nan", "reject"]),
        (("fill=0",), ["fill=0", "fill=0", "fill=0"]),
        (("nan", "a:reject"), ["reject", "nan", "reject"]),
        (("b:fill=1", "c:fill=a:fill=b"), ["reject", "fill=1", "fill=a:fill=b"]),
        (("a:fill=-1e3",), ["fill=-1e3", "reject", "reject"]),
    ],
    ids=str,
)
def test_null_rules_per_column(wishes: tuple[str, ...], expected: list[str]) -> None:
    """--on-null is the rule of all columns or of one; nan for all leaves strings at reject."""
    model = signature(port("a"), port("b"), port("c", "string"))
    columns = schema(a=pa.float64(), b=pa.float64(), c=pa.string())

    binding = bind(model, columns, Wish(on_null=wishes))

    assert [str(f.nulls[0]) for f in binding.feeds] == expected


# -- numbers ----------------------------------------------------------------------------------


def columns_of(dtype: str) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """Give numpy columns of a dtype."""
    return hnp.arrays(dtype, st.integers(0, 8))


@pytest.mark.parametrize("target", NUMBERS)
@settings(max_examples=60, deadline=None)
@given(values=st.sampled_from(NUMBERS).flatmap(columns_of))
def test_numbers_are_cast_as_numpy_casts(target: str, values: Tensor) -> None:
    """A number reaches the model as numpy's cast of it, or is a RANGE misfit because that would lie."""
    tensor, misfits = encoded(array_of(values), target)

    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(target)
    bad = {misfit.row for misfit in misfits}
    good = [row for row in range(len(values)) if row not in bad]
    assert tensor.dtype == np.dtype(target)
    np.testing.assert_array_equal(tensor[good], expected[good])
    assert bad == {row for row in range(len(values)) if lies(values[row], expected[row])}
    assert {misfit.kind for misfit in misfits} <= {"RANGE"}


def lies(value: Any, cast: Any) -> bool:
    """Whether a cast number is another number than rounding to the type explains."""
    if isinstance(cast, np.floating):
        return bool(np.isinf(cast)) and bool(np.isfinite(value))
    if isinstance(value, np.floating) and not np.isfinite(value):
        return True
    return bool(int(cast) != value.item())


@pytest.mark.parametrize(
    ("value", "source", "target"),
    [
        (-1, "int64", "uint64"), (-1, "int8", "uint8"), (2**64 - 1, "uint64", "int64"),
        (2**32 - 1, "uint32", "int32"), (2**31, "int64", "int32"), (1.5, "float64", "int64"),
        (-0.5, "float32", "uint8"), (2.0**63, "float64", "int64"), (float("nan"), "float64", "int64"),
        (float("inf"), "float32", "int32"), (float("-inf"), "float16", "int64"), (1e39, "float64", "float32"),
        (2, "int64", "bool"), (1e5, "float32", "float16"),
    ],
)  # fmt: skip
def test_a_number_the_model_cannot_hold_is_a_range_misfit(value: float, source: str, target: str) -> None:
    """A number that would wrap round, be cut or overflow is told, never fed to the model."""
    _, misfits = encoded(array_of(np.array([0, value], source)), target)

    assert [(m.row, m.column, m.kind, m.reason) for m in misfits] == [
        (1, "x", "RANGE", f"does not fit in {target}")
    ]


def test_rounding_is_no_misfit() -> None:
    """A number that only loses digits to float32 is fed as the nearest one."""
    tensor, misfits = encoded(pa.array([16_777_217, 2**53 + 1]), "float32")

    assert tensor.tolist() == [16_777_216.0, float(np.float32(2**53))]
    assert misfits == []


@pytest.mark.parametrize(
    "column",
    [
        pa.array([9, 1, None, 3, 9]).slice(1, 3),
        pa.array([9.0, 1.0, None, 3.0, 9.0]).slice(1, 3),
        pa.array([Decimal(9), Decimal(1), None, Decimal(3)], pa.decimal128(4, 1)).slice(1, 3),
        pa.array([Decimal(9), Decimal(1), None, Decimal(3)], pa.decimal256(40, 1)).slice(1, 3),
        pa.array(["9", "1", "NA", "3"]).slice(1, 3),
        pa.array(["9", "1", None, "3"], pa.large_string()).slice(1, 3),
        pa.array(["9", "1", None, "3"], pa.string_view()).slice(1, 3),
        pa.array(["9", "1", None, "3"]).dictionary_encode().slice(1, 3),
        pa.array([9, 1, None, 3]).dictionary_encode().slice(1, 3),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_slices_of_any_kind_are_encoded(column: pa.Array, dtype: str) -> None:
    """A slice with nulls of any kind of number column gives its own rows, filled."""
    tensor, misfits = encoded(column, dtype, "fill", "7")

    assert tensor.tolist() == [1, 7, 3]
    assert tensor.dtype == np.dtype(dtype)
    assert misfits == []


@pytest.mark.parametrize("offset", [0, 1, 9])
@pytest.mark.parametrize("dtype", ["bool", "float32", "int64"])
def test_booleans_are_encoded(dtype: str, offset: int) -> None:
    """Booleans become 0 and 1, wherever in their bitmap a slice starts."""
    values = [i % 3 == 0 for i in range(20)]

    tensor, misfits = encoded(pa.array(values).slice(offset), dtype)

    assert tensor.tolist() == values[offset:]
    assert misfits == []


def test_a_number_may_fill_a_boolean() -> None:
    """0 and 1 fill a boolean input; nothing else does."""
    tensor, misfits = encoded(pa.array([0, 1, 2, -1]), "bool")

    assert tensor.tolist()[:2] == [False, True]
    assert [m.row for m in misfits] == [2, 3]


# -- nulls ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*NUMBERS, "object"])
def test_nulls_are_rejected_by_default(dtype: str) -> None:
    """A null in a model column is a MISSING misfit, of numbers and of texts."""
    column = pa.array([None, "1", None]) if dtype == "object" else pa.array([None, 1, None])

    _, misfits = encoded(column, dtype)

    assert [(m.row, m.kind, m.column) for m in misfits] == [(0, "MISSING", "x"), (2, "MISSING", "x")]


@pytest.mark.parametrize("dtype", FLOATS)
def test_nulls_may_become_nan(dtype: str) -> None:
    """With nan a null reaches the model as NaN and is no misfit."""
    tensor, misfits = encoded(pa.array([None, 1]), dtype, "nan")

    assert np.isnan(tensor[0])
    assert tensor[1] == 1
    assert misfits == []


@pytest.mark.parametrize("dtype", NUMBERS)
def test_nulls_may_be_filled(dtype: str) -> None:
    """With fill a null reaches the model as that value, in the model's type."""
    tensor, misfits = encoded(pa.array([None, 1]), dtype, "fill", "5")

    assert tensor.tolist() == [5, 1]
    assert misfits == []


def test_a_misfit_under_a_null_does_not_count() -> None:
    """Whatever bytes stand under a null, they are no number that does not fit."""
    values = np.array([1e300, 1.0])
    valid = pa.array([False, True])
    column = pa.Array.from_buffers(pa.float64(), 2, [valid.buffers()[1], pa.py_buffer(values)])

    tensor, misfits = encoded(column, "float32", "fill", "0")

    assert tensor.tolist() == [0.0, 1.0]
    assert misfits == []


def test_encoding_leaves_the_column_alone() -> None:
    """Filling nulls changes the model's copy, not the column that passes through."""
    column = pa.array([None, 1.0], pa.float32())
    batch = pa.RecordBatch.from_arrays([column], names=["x"])

    rows, _ = encode(batch, Binding(feeds=(feed("float32", "fill", "9"),)), ("x",))

    assert rows.tensors["x"].tolist() == [9.0, 1.0]
    assert rows.kept.column("x").to_pylist() == [None, 1.0]


# -- texts ------------------------------------------------------------------------------------


def test_texts_reach_the_model_as_texts() -> None:
    """Strings become objects of str, equal ones the same object."""
    tensor, misfits = encoded(pa.array(["a", "", "é", "a"]), "object")

    assert tensor.dtype == object
    assert tensor.tolist() == ["a", "", "é", "a"]
    assert tensor[0] is tensor[3]
    assert misfits == []


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["z", "a", None, "b"]).slice(1),
        pa.array(["z", "a", None, "b"], pa.large_string()).slice(1),
        pa.array(["z", "a", None, "b"], pa.string_view()).slice(1),
        pa.array(["z", "a", None, "b"]).dictionary_encode().slice(1),
    ],
    ids=lambda column: str(column.type),
)
def test_texts_of_any_kind_are_encoded(column: pa.Array) -> None:
    """A slice of any kind of text column gives its own texts, a null filled."""
    tensor, misfits = encoded(column, "object", "fill", "none")

    assert tensor.tolist() == ["a", "none", "b"]
    assert misfits == []


def test_integers_may_be_texts() -> None:
    """An integer column fills a string input with its digits."""
    assert encoded(pa.array([1, -20]), "object")[0].tolist() == ["1", "-20"]


def test_texts_may_be_numbers() -> None:
    """A text column fills a number input where its texts are numbers; others are CAST misfits."""
    tensor, misfits = encoded(pa.array(["1.5", "x", "1e3", "1,000"]), "float32", "fill", "0")

    assert tensor[[0, 2]].tolist() == [1.5, 1000.0]
    assert [(m.row, m.kind, m.value, m.reason) for m in misfits] == [
        (1, "CAST", "x", "is no number"), (3, "CAST", "1,000", "is no number"),
    ]  # fmt: skip


def test_texts_that_are_large_integers_keep_their_digits() -> None:
    """A text that an int64 holds exactly reaches an int64 input exactly."""
    tensor, misfits = encoded(pa.array([str(2**53 + 1), "x"]), "int64")

    assert [m.row for m in misfits] == [1]
    assert tensor[0] == 2**53 + 1


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_a_hexadecimal_text_is_no_number(dtype: str) -> None:
    """0x1F is CAST for integers as for floats; the numbers beside it are read."""
    tensor, misfits = encoded(pa.array(["9007199254740993", "0x1F", None, "7"]), dtype, "fill", "5")

    assert tensor[[0, 2, 3]].tolist() == [np.dtype(dtype).type(9007199254740993), 5, 7]
    assert [(m.row, m.kind, m.value) for m in misfits] == [(1, "CAST", "0x1F")]


def test_a_text_past_every_double_is_a_range_misfit() -> None:
    """1e400 is a finite number that no double holds, so it is RANGE; infinity itself is one."""
    tensor, misfits = encoded(
        pa.array(["1e400", "-1e400", None, "-Inf", "infinity", "x", "1e308"]), "float64", "fill", "5"
    )

    assert tensor[[2, 3, 4, 6]].tolist() == [5, -np.inf, np.inf, 1e308]
    assert [(m.row, m.kind, m.value) for m in sorted(misfits, key=lambda m: m.row)] == [
        (0, "RANGE", "1e400"), (1, "RANGE", "-1e400"), (5, "CAST", "x"),
    ]  # fmt: skip


PAST = ("1.5", "9223372036854775808.0", "-9223372036854775809.0")


@pytest.mark.parametrize(
    ("kind", "odd"),
    [
        *((pa.string(), odd) for odd in (*PAST, "1e99", "nan(1)")),
        *((pa.decimal128(38, 1), odd) for odd in PAST),
    ],
    ids=str,
)
def test_a_misfit_takes_no_digits_off_its_neighbours(kind: pa.DataType, odd: str) -> None:
    """Large integers reach an int64 input exactly, also beside a number that does not fit."""
    texts = [str(2**63 - 1), str(-(2**63)), str(2**53 + 1), None, "2.0", odd]
    column = pa.array(texts if kind == pa.string() else [t and Decimal(t) for t in texts], kind)

    tensor, misfits = encoded(column, "int64", "fill", "7")

    assert tensor[:5].tolist() == [2**63 - 1, -(2**63), 2**53 + 1, 7, 2]
    assert [(m.row, m.kind, m.value) for m in misfits] == [(5, "RANGE", odd)]


@pytest.mark.parametrize("text", NULL_TEXTS)
def test_texts_that_mean_null_are_nulls_where_a_number_is_wanted(text: str) -> None:
    """Each spelling of null is MISSING in a number column, not a text that is no number."""
    _, misfits = encoded(pa.array(["1", text]), "float32")

    assert [(m.row, m.kind) for m in misfits] == [(1, "MISSING")]


def test_a_text_that_is_no_number_is_told_once() -> None:
    """A text that is no number is CAST, not MISSING as well, beside a true null."""
    _, misfits = encoded(pa.array(["x", None]), "float32")

    assert sorted((m.row, m.kind) for m in misfits) == [(0, "CAST"), (1, "MISSING")]


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1.0), ("-2.5e3", -2500.0), ("x", None), ("", None), (None, None)]
)
def test_what_a_text_says(text: str | None, number: float | None) -> None:
    """A text is a number or none."""
    assert number_or_none(text) == number


# -- rows -------------------------------------------------------------------------------------


def wide(rows: int) -> Encoded:
    """Return encoded rows of a wide input of two columns and one that passes through."""
    columns = {"a": list(range(rows)), "b": [i / 2 for i in range(rows)], "c": [f"t{i}" for i in range(rows)]}
    feeds = Feed(input="x", dtype="float32", columns=("b", "a"), nulls=(NullPolicy(), NullPolicy()), rank=2)
    return encode(pa.RecordBatch.from_pydict(columns), Binding(feeds=(feeds,)), ("c",))[0]


def test_a_wide_input_is_stacked_in_order() -> None:
    """The columns of a wide input stand side by side in the order of the feed."""
    assert wide(3).tensors["x"].tolist() == [[0.0, 0.0], [0.5, 1.0], [1.0, 2.0]]


def test_one_column_of_rank_two_stands_upright() -> None:
    """An input [batch, 1] gets a column, an input [batch] a vector."""
    batch = pa.RecordBatch.from_pydict({"x": [1.0, 2.0]})

    tall, _ = encode(batch, Binding(feeds=(feed("float32", rank=2),)), ())
    flat, _ = encode(batch, Binding(feeds=(feed("float32", rank=1),)), ())

    assert tall.tensors["x"].shape == (2, 1)
    assert flat.tensors["x"].shape == (2,)
    assert (tall.rows, tall.kept.num_columns) == (2, 0)


def test_rows_can_be_cut_taken_and_joined() -> None:
    """Cutting, taking and joining rows treats tensors and kept columns alike."""
    rows = wide(6)

    cut = rows.slice(1, 5).take(np.array([True, False, True, True])).joined(rows.slice(0, 1))

    assert cut.kept.column("c").to_pylist() == ["t1", "t3", "t4", "t0"]
    assert cut.tensors["x"][:, 1].tolist() == [1.0, 3.0, 4.0, 0.0]
    assert cut.rows == 4


# -- tensors to columns -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*NUMBERS, "bool"])
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 4), shape=st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2)]), data=st.data())
def test_arrays_come_back_as_they_were(
    dtype: str, rows: int, shape: tuple[int, ...], data: st.DataObject
) -> None:
    """Scalars, lists and tensors of every type come out of the column as the model gave them."""
    values = data.draw(hnp.arrays(dtype, (rows, *shape)))
    planned = observe("y", "p_y", values, len(values))

    column = decode(planned, values)

    assert (planned.column, len(column)) == ("p_y", len(values))
    if shape in {(), (1,)}:
        assert planned.kind == "scalar"
        back = np.asarray(column.to_numpy(zero_copy_only=False)).reshape(values.shape)
    elif len(shape) == 1:
        assert column.type == pa.list_(column.type.value_type, shape[0])
        back = column.values.to_numpy(zero_copy_only=False).reshape(values.shape)
    else:
        assert tuple(column.type.shape) == shape
        back = column.storage.values.to_numpy(zero_copy_only=False).reshape(values.shape)
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=8))
def test_texts_come_back_as_they_were(texts: list[str]) -> None:
    """Labels come out of the column as the model gave them."""
    values = np.array(texts, dtype=object)

    column = decode(observe("label", "label", values, len(texts)), values)

    assert column.type == pa.string()
    assert column.to_pylist() == texts


def test_texts_of_one_column_each_are_scalars() -> None:
    """Labels [N, 1] become a text column."""
    values = np.array([["a"], ["b"]], dtype=object)

    assert decode(observe("label", "label", values, 2), values).to_pylist() == ["a", "b"]


@given(st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), min_size=1, max_size=8))
def test_a_zipmap_comes_back_as_it_was(rows: list[tuple[float, float]]) -> None:
    """Maps become a struct of float32, keys as field names, integers too."""
    values = Maps.of([{0: first, 1: second} for first, second in rows])
    planned = observe("probability", "probability", values, len(rows))

    column = decode(planned, values)

    assert planned.keys == ("0", "1")
    assert column.type == pa.struct([("0", pa.float32()), ("1", pa.float32())])
    np.testing.assert_array_equal([list(row.values()) for row in column.to_pylist()], np.array(rows))


def test_a_zipmap_of_integers_stays_integers() -> None:
    """A dict of integers becomes a struct of integers."""
    rows = [{"a": 1}, {"a": 2}]
    values = Maps.of(rows)

    assert decode(observe("y", "y", values, 2), values).to_pylist() == rows


@pytest.mark.parametrize(
    "values",
    [np.zeros(3), np.zeros((3, 2)), np.zeros(()), Maps.of([{"a": 1.0}] * 3), [], np.zeros((0,))],
    ids=["vector", "matrix", "scalar", "maps", "no maps", "none"],
)
def test_an_output_needs_an_entry_per_row(values: Any) -> None:
    """An output of another length than the batch is refused with its shape."""
    with pytest.raises(ModelError, match=r"output y: has shape .* for a batch of 2 rows") as told:
        check_rows("y", values, 2)

    assert "--outputs NAMES" in told.value.hint


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "object"])
def test_a_sequence_of_one_tensor_per_row_is_a_column_of_lists(dtype: str) -> None:
    """Tensors of any sizes come out as lists of any sizes, nested as deep as they have dimensions."""
    rows = [np.arange(6).reshape(2, 3), np.arange(2).reshape(1, 2), np.zeros((0, 4)), np.zeros((2, 0))]
    values = [
        row.astype(dtype) if dtype != "object" else row.astype(int).astype(str).astype(object) for row in rows
    ]

    column = decode(observe("y", "y", values, 4), values)

    assert column.to_pylist() == [row.tolist() for row in values]
    flat = [np.array([1, 2], "int32"), np.array([], "int32")]
    assert decode(observe("y", "y", flat, 2), flat).to_pylist() == [[1, 2], []]


def test_a_sequence_of_single_values_is_a_scalar_column() -> None:
    """A sequence with one value per row is a column of values."""
    values = [np.array(1.5), np.array(2.5)]

    assert decode(observe("y", "y", values, 2), values).to_pylist() == [1.5, 2.5]


def test_runs_of_other_sizes_are_a_column_of_lists() -> None:
    """Where a run may give more values per row than another, rows are lists of any size."""
    first, second = np.arange(3.0).reshape(1, 3), np.arange(2.0).reshape(1, 2)
    planned = observe("y", "y", first, 1, open_sizes=True)

    assert decode(planned, joined([first, second])).to_pylist() == [[0.0, 1.0, 2.0], [0.0, 1.0]]
    assert decode(planned, joined([first, first])).to_pylist() == [[0.0, 1.0, 2.0]] * 2
    with pytest.raises(ModelError, match=r"output y: rows of shape \[2\], planned \[3\]"):
        decode(observe("y", "y", first, 1), joined([first, second]))
    with pytest.raises(ModelError, match=r"output y: rows of shape \[2, 2\]"):
        decode(planned, [np.zeros((2, 2))])


def test_an_optional_output_that_is_not_given_is_refused() -> None:
    """No value at all is told as that."""
    with pytest.raises(ModelError, match="output y: is optional, and the model gave none"):
        check_rows("y", None, 2)


@pytest.mark.parametrize(
    ("planned", "values"),
    [
        (Prediction(output="y", column="y", kind="list", shape=(3,)), np.zeros((2, 4))),
        (Prediction(output="y", column="y", kind="tensor", shape=(2, 2)), np.zeros((2, 4))),
        (Prediction(output="y", column="y", kind="struct", keys=("a",)), Maps.of([{"b": 1.0}])),
        (Prediction(output="y", column="y", kind="scalar"), np.zeros((2, 2))),
        (Prediction(output="y", column="y", kind="scalar"), [np.zeros(1), np.zeros(2)]),
    ],
    ids=["list", "tensor", "struct", "scalar", "pieces"],
)
def test_an_output_that_changes_its_shape_is_refused(planned: Prediction, values: Any) -> None:
    """An output that has another shape or other keys than when it was planned ends the job."""
    with pytest.raises(ModelError, match=r"output y: .* planned"):
        decode(planned, values)


def test_predictions_survive_json() -> None:
    """A prediction in a stored plan is the prediction that was planned."""
    planned = Prediction(output="y", column="p_y", kind="tensor", shape=(2, 3))

    assert Prediction.model_validate(json.loads(planned.model_dump_json())) == planned
