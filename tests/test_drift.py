"""Files with other columns than the first: every one is told, or all are made to fit."""

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchserve.errors import DataError
from batchserve.inputs import schemas
from workbench import Score, run

WIDEN = {"schema_drift": "widen"}


def texts(folder: Path, **files: str) -> list[Path]:
    """Write CSV files: a name and what is in it."""
    paths = [folder / f"{name}.csv" for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.write_text(text)
    return paths


def tables(folder: Path, **files: dict[str, Any]) -> list[Path]:
    """Write Parquet files: a name and its columns."""
    paths = [folder / f"{name}.parquet" for name in files]
    for path, columns in zip(paths, files.values(), strict=True):
        pq.write_table(pa.table(columns), path)
    return paths


# -- an error by default ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("x,a", "no column b"),
        ("x,a,b,c,d", "a column c, d more"),
        ("b,x,a", "its columns in another order"),
        ("x,A,b", "column A instead of a"),
        ("x,c,b", "no column a; a column c more"),
        ("B,x", "no column a; column B instead of b; its columns in another order"),
        ("x,a,A,b", "a column A more"),
    ],
)
def test_a_file_with_other_columns_is_told_with_what_differs(
    header: str, says: str, tmp_path: Path, score: Score
) -> None:
    """Missing, extra, reordered and differently cased columns are named, and the way on."""
    row = ",".join("1" for _ in header.split(","))
    paths = texts(tmp_path, first="x,a,b\n1,2,3\n", other=f"{header}\n{row}\n")

    with pytest.raises(DataError) as refused:
        score(paths)

    assert refused.value.message == f"{paths[1]}: {says}, unlike {paths[0]}"
    assert "--schema-drift widen" in refused.value.hint


def test_every_file_that_differs_is_told_at_once(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several files each has a line of its own, and nothing is written."""
    paths = texts(tmp_path, a="x,k\n1,2\n", b="x\n1\n", c="x,k\n1,2\n", d="k,x\n1,2\n")

    done = run(capsys, "score", *paths, tmp_path / "out.parquet", "-m", model)

    assert done.code == 65
    assert f"2 files have other columns than {paths[0]}" in done.err
    assert f"{paths[1]}: no column k" in done.err
    assert f"{paths[3]}: its columns in another order" in done.err
    assert str(paths[2]) not in done.err
    assert not (tmp_path / "out.parquet").exists()


def test_of_many_files_those_that_are_alike_are_told_together(tmp_path: Path, score: Score) -> None:
    """Past 20 files, equal differences are one line: how many, what, the first three files."""
    files = {f"p{i}": "x\n1\n" for i in range(30)} | {"p0": "x,k\n1,2\n", "p7": "X,k\n1,2\n"}
    texts(tmp_path, **files)

    with pytest.raises(DataError) as refused:
        score(tmp_path / "*.csv")

    names = [str(tmp_path / f"p{i}.csv") for i in (1, 2, 3)]
    assert refused.value.message.splitlines() == [
        f"29 files have other columns than {tmp_path}/p0.csv",
        f"  28 files: no column k: {', '.join(names)} and 25 more",
        f"  1 file: column X instead of x: {tmp_path}/p7.csv",
    ]


def test_parquet_types_are_compared(tmp_path: Path, score: Score) -> None:
    """A column of another type is drift in files that have types."""
    paths = tables(tmp_path, a={"x": [1], "t": ["2"]}, b={"x": [1.5], "t": [2]})

    with pytest.raises(DataError, match=r"column x is double, not int64; column t is int64, not string"):
        score(paths)


def test_json_lines_may_lack_keys_in_whole_files(tmp_path: Path, score: Score) -> None:
    """JSON has no header: a key that a file lacks is null there, without --schema-drift."""
    (tmp_path / "a.jsonl").write_text('{"x": 1, "k": 2}\n')
    (tmp_path / "b.jsonl").write_text('{"x": 2, "l": "t"}\n')

    assert score([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]).drop_columns("y").to_pylist() == [
        {"x": 1, "k": 2, "l": None},
        {"x": 2, "k": None, "l": "t"},
    ]


# -- widen ------------------------------------------------------------------------------------


def test_widen_fills_reorders_and_adds(tmp_path: Path, score: Score) -> None:
    """Missing columns are null, new ones come last, others are put in order, whatever their case."""
    paths = texts(tmp_path, a="x,s,k\n1,a,7\n", b="S,x,z\nb,2,9\n", c="z,k,s,x\n8,6,c,3\n")

    found = score(paths, **WIDEN)

    assert found.column_names == ["x", "s", "k", "z", "y"]
    assert found.to_pylist() == [
        {"x": 1, "s": "a", "k": 7, "z": None, "y": 2.0},
        {"x": 2, "s": "b", "k": None, "z": 9, "y": 4.0},
        {"x": 3, "s": "c", "k": 6, "z": 8, "y": 6.0},
    ]


@pytest.mark.parametrize("size", ["1k", "64MB"])
def test_widen_holds_in_every_partition(size: str, tmp_path: Path, score: Score) -> None:
    """Slices of a file that differs are read by its own columns, and rejects are told by their line."""
    rows = "".join(f"{i},t{i}\n" for i in range(500))
    turned = "".join(f"t{i},{i}\n" for i in range(500))
    paths = texts(tmp_path, a=f"x,s\n{rows}", b=f"s,x\n{turned}")

    found = score(paths, partition_size=size, workers=2, **WIDEN)

    assert found["x"].to_pylist() == [*range(500)] * 2
    assert found["s"].to_pylist() == [f"t{i}" for i in range(500)] * 2
    paths[1].write_text(f"s,x\n{turned}t,none\n")
    with pytest.raises(DataError, match=r"b\.csv:502: 'none' is no number"):
        score(paths, partition_size=size, workers=2, **WIDEN)


def test_widen_says_what_it_does(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan and the summary have a line for each file that differs."""
    paths = texts(tmp_path, a="x,k\n1,2\n", b="X,z\n1,2\n")
    told = (
        f"{paths[0]}: no column z (null)",
        f"{paths[1]}: no column k (null); a column z more (null where it is missing)",
        "; column X is taken for x",
    )

    planned = run(capsys, "plan", *paths, tmp_path / "o.parquet", "-m", model, "--schema-drift", "widen")
    done = run(capsys, "score", *paths, tmp_path / "o.parquet", "-m", model, "--schema-drift", "widen")

    assert [line for line in told if line not in planned.out] == []
    assert [line for line in told if line not in done.err] == []
    assert done.err.count("  drift: ") == 2


MOMENT = datetime(2013, 1, 31, 5, 6, 7)


@pytest.mark.parametrize("turned", ["", "turned"])
@pytest.mark.parametrize(
    ("one", "other", "wide"),
    [
        (pa.array([1], pa.int32()), pa.array([2**40]), pa.int64()),
        (pa.array([1]), pa.array([0.5]), pa.float64()),
        (pa.array([0.5], pa.float32()), pa.array([0.1]), pa.float64()),
        (pa.array([MOMENT], pa.timestamp("ms")), pa.array([MOMENT], pa.timestamp("ns")), pa.timestamp("ns")),
        (pa.array(["a"]), pa.array(["b"], pa.large_string()), pa.large_string()),
        (pa.array(["a"]), pa.array(["b"]).dictionary_encode(), pa.string()),
        (pa.nulls(1), pa.array(["b"]), pa.string()),
    ],
)
def test_widen_casts_to_the_type_that_holds_both(
    one: pa.Array, other: pa.Array, wide: pa.DataType, turned: str, tmp_path: Path, score: Score
) -> None:
    """Columns of two types become one of the wider type, with every value as it was."""
    first, second = (other, one) if turned else (one, other)
    paths = tables(tmp_path, a={"x": [1], "c": first}, b={"c": second, "x": [2]})

    column = score(paths, **WIDEN)["c"]

    assert column.type == wide
    assert column.to_pylist() == first.to_pylist() + second.to_pylist()


def test_types_that_no_type_holds_are_an_error_all_the_same(tmp_path: Path, score: Score) -> None:
    """A text cannot become a number: every such column is told, with both files."""
    paths = tables(tmp_path, a={"x": [1], "c": ["t"]}, b={"x": [1], "c": [2]}, d={"x": [1], "c": [True]})

    with pytest.raises(DataError) as refused:
        score(paths, **WIDEN)

    says = f"column c is int64, and no type holds that and the string of {paths[0]}"
    assert f"{paths[1]}: {says}" in refused.value.message
    assert str(paths[2]) in refused.value.message


def test_a_value_that_the_wider_type_cannot_hold_is_an_error(tmp_path: Path, score: Score) -> None:
    """2^53 + 1 has no double: the file, the column and the rows are told, and no digit is lost."""
    paths = tables(tmp_path, a={"x": [0.5]}, b={"x": [1, 2**53 + 1]})

    with pytest.raises(DataError, match=r"b\.parquet.* column x"):
        score(paths, **WIDEN)


def test_case_is_matched_only_where_it_is_plain(tmp_path: Path, score: Score) -> None:
    """A file with both K and k keeps both: neither is guessed to be the other."""
    paths = texts(tmp_path, a="x,k\n1,2\n", b="x,K,k\n1,3,4\n", c="x,K\n1,5\n")

    assert score(paths, **WIDEN).drop_columns("y").to_pylist() == [
        {"x": 1, "k": 2, "K": None},
        {"x": 1, "k": 4, "K": 3},
        {"x": 1, "k": None, "K": 5},
    ]


def test_a_name_that_a_later_file_splits_is_not_read_twice(tmp_path: Path, score: Score) -> None:
    """A column X taken for x in one file is not also the column X that a later file brings."""
    paths = tables(tmp_path, a={"x": [1]}, b={"X": [2]}, c={"x": [3], "X": [4]})

    assert score(paths, **WIDEN).select(["x", "X"]).to_pylist() == [
        {"x": 1, "X": None}, {"x": 2, "X": None}, {"x": 3, "X": 4},
    ]  # fmt: skip


def test_widen_changes_nothing_where_nothing_differs(tmp_path: Path, score: Score) -> None:
    """Files of one layout give the same rows with widen, and no word of drift."""
    paths = texts(tmp_path, a="x,k\n1,2\n", b="x,k\n3,4\n")

    assert score(paths, **WIDEN).equals(score(paths))


COLUMNS = st.lists(st.sampled_from(["a", "b", "c", "d"]), unique=True)


@given(st.lists(COLUMNS, min_size=1, max_size=4))
def test_widened_columns_are_all_there_once(layouts: list[list[str]]) -> None:
    """Whatever files have, the job has every name once, in order of appearance, and each file its own."""
    found = {f"{i}": pa.schema([(n, pa.int64()) for n in names]) for i, names in enumerate(layouts)}

    agreed = schemas.agree(found, widen=True)

    assert agreed.schema.names == list(dict.fromkeys(n for names in layouts for n in names))
    for path, schema in found.items():
        own = agreed.layouts.get(path, tuple((n, n) for n in agreed.schema.names))
        assert [name for name, _ in own] == schema.names


def test_widened_parquet_reads_as_polars_reads_it(tmp_path: Path, score: Score) -> None:
    """Polars' diagonal concatenation of the same files has the same rows."""
    files: dict[str, dict[str, Any]] = {
        "a": {"x": [1, 2], "s": ["p", "q"]}, "b": {"x": [3], "n": [0.5]},
        "c": {"n": [1.5], "x": [4], "s": ["r"]},
    }  # fmt: skip
    paths = tables(tmp_path, **files)

    found = score(paths, **WIDEN).drop_columns("y")

    expected = pl.concat([pl.read_parquet(path) for path in paths], how="diagonal")
    assert pl.DataFrame(found).equals(expected.select(found.column_names))
