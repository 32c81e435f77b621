"""Folders like year=2013 give columns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchserve.errors import DataError
from batchserve.inputs import files, folders
from workbench import PACK, Score, run

NULL = "__HIVE_DEFAULT_PARTITION__"


def laid(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write files below a folder: a path and its rows, CSV text or columns of Parquet."""
    for name, rows in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, str):
            path.write_text(rows)
        else:
            pq.write_table(pa.table(rows), path)
    return folder


def test_folders_give_columns_after_those_of_the_files(tmp_path: Path, score: Score) -> None:
    """Every row gets the values of the folders above its file: integers where all are, else text, or null."""
    home = laid(tmp_path, {
        "year=2013/month=2/a.parquet": {"x": [1, 2]},
        "year=2013/month=10/b.parquet": {"x": [3]},
        f"year=2014/month={NULL}/c.parquet": {"x": [4]},
    })  # fmt: skip

    found = score(home)

    assert found.column_names == ["x", "year", "month", "y"]
    assert found.schema.field("year").type == pa.int64()
    assert found.drop_columns("y").to_pylist() == [
        {"x": 1, "year": 2013, "month": 2}, {"x": 2, "year": 2013, "month": 2},
        {"x": 3, "year": 2013, "month": 10}, {"x": 4, "year": 2014, "month": None},
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl", "arrow", "parquet"])
@pytest.mark.parametrize("size", ["1k", "64MB"])
def test_every_format_takes_columns_from_folders(
    suffix: str, size: str, tmp_path: Path, score: Score
) -> None:
    """Whatever the format and the split, each row has the values of its own folder."""
    from test_formats import written

    for day in (1, 2):
        folder = tmp_path / "in" / f"day={day}"
        folder.mkdir(parents=True)
        path = written(folder / f"a.{suffix.removesuffix('.gz')}", pa.table({"x": range(300)}))
        if suffix.endswith(".gz"):
            path.rename(f"{path}.gz").write_bytes(PACK[".gz"](Path(f"{path}.gz").read_bytes()))

    found = score(tmp_path / "in", partition_size=size, workers=2)

    assert found["day"].to_pylist() == [1] * 300 + [2] * 300
    assert found["x"].to_pylist() == [*range(300)] * 2


@pytest.mark.parametrize(
    ("names", "kind", "values"),
    [
        (["1", "20"], pa.int64(), [1, 20]),
        (["-5", "0"], pa.int64(), [-5, 0]),
        (["01", "20"], pa.string(), ["01", "20"]),
        (["-0", "1"], pa.string(), ["-0", "1"]),
        (["9223372036854775808", "1"], pa.string(), ["1", "9223372036854775808"]),
        (["1.5", "2"], pa.string(), ["1.5", "2"]),
        (["New%20York", "a%2Fb"], pa.string(), ["New York", "a/b"]),
        ([NULL, "b"], pa.string(), [None, "b"]),
        ([NULL], pa.string(), [None]),
        (["", "b"], pa.string(), [None, "b"]),
    ],
)
def test_a_folder_value_is_an_integer_or_text(
    names: list[str], kind: pa.DataType, values: list[Any], tmp_path: Path, score: Score
) -> None:
    """Values are integers only where all are written as we write them; texts are decoded."""
    found = score(laid(tmp_path / "in", {f"c={name}/a.csv": "x\n1\n" for name in names}))

    assert found.schema.field("c").type == kind
    assert sorted(found["c"].to_pylist(), key=str) == sorted(values, key=str)


def test_a_model_may_read_a_folder(tmp_path: Path, score: Score) -> None:
    """A column of a folder can feed the model, and --keep can leave it out."""
    home = laid(tmp_path / "in", {"x=4/a.csv": "s\nt\n", "x=5/a.csv": "s\nu\n"})

    assert score(home, keep="none")["y"].to_pylist() == [8.0, 10.0]
    assert score(home, keep="s").column_names == ["s", "y"]


def test_a_glob_gives_the_columns_of_what_it_matches(tmp_path: Path, score: Score) -> None:
    """Only folders from the first part of the pattern on that matches anything give columns."""
    home = laid(tmp_path, {"year=2013/month=1/a.csv": "x\n1\n", "year=2013/month=2/a.csv": "x\n2\n"})

    assert score(home / "year=2013" / "month=*" / "a.csv").column_names == ["x", "month", "y"]
    assert score(home / "*" / "*" / "*.csv").column_names == ["x", "year", "month", "y"]
    assert score(home / "year=2013" / "month=1").column_names == ["x", "y"]
    assert score(home / "year=2013" / "month=1" / "a.csv").column_names == ["x", "y"]


def test_type_decides_for_a_folder(tmp_path: Path, score: Score) -> None:
    """--type sets the type of a folder's column, in Parquet too; a text that is none is told."""
    home = laid(tmp_path, {"c=1/a.parquet": {"x": [1]}, "c=02/a.parquet": {"x": [2]}})

    assert score(home, type={"c": "text"})["c"].to_pylist() == ["1", "02"]
    assert score(home, type={"c": "int64"})["c"].to_pylist() == [1, 2]
    with pytest.raises(DataError, match=r"c=1/a\.parquet: its folder c=1 is no date32"):
        score(home, type={"c": "date"})


def test_a_column_of_the_file_and_of_a_folder_is_an_error(tmp_path: Path, score: Score) -> None:
    """Which of the two would count nobody knows."""
    with pytest.raises(DataError, match=r"a\.csv: column x is in the file and in the name of a folder"):
        score(laid(tmp_path, {"x=1/a.csv": "x\n1\n"}))


def test_folders_of_other_names_are_drift(tmp_path: Path, score: Score) -> None:
    """Every file that lacks a folder of the first file, or has one more, is told."""
    home = laid(tmp_path, {
        "a=1/p.csv": "x\n1\n", "b=1/p.csv": "x\n1\n", "p.csv": "x\n1\n", "a=2/b=2/p.csv": "x\n1\n",
    })  # fmt: skip

    with pytest.raises(DataError) as refused:
        score(home)

    said = refused.value.message
    assert "3 files have other columns than" in said
    assert f"{home}/p.csv: no folder a= above it" in said
    assert f"{home}/b=1/p.csv: no folder a= above it; a folder b= above it" in said
    assert f"{home}/a=2/b=2/p.csv: a folder b= above it" in said


def test_two_folders_of_one_name_are_an_error(tmp_path: Path, score: Score) -> None:
    """a=1/a=2 gives no value that would be the right one."""
    with pytest.raises(DataError, match="two of its folders give one column"):
        score(laid(tmp_path, {"a=1/a=2/p.csv": "x\n1\n"}))


def test_the_order_of_folders_may_differ(tmp_path: Path, score: Score) -> None:
    """Columns go by name, whichever folder is above the other."""
    home = laid(tmp_path, {"a=1/b=2/p.csv": "x\n1\n", "b=4/a=3/p.csv": "x\n2\n"})

    assert score(home).select(["a", "b"]).to_pylist() == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


def test_a_plan_names_the_folders(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plan` says which columns folders give, and of which type."""
    home = laid(tmp_path / "in", {"year=2013/a.csv": "x\n1\n"})

    done = run(capsys, "plan", home, tmp_path / "out.parquet", "-m", model)

    assert done.code == 0, done.err
    assert "year (int64) by their names" in done.out


def test_appended_folders_are_new_files(tmp_path: Path, model: Path) -> None:
    """A dataset takes the files of a new folder; those that are in it stay there once."""
    home = laid(tmp_path / "in", {"day=1/a.csv": "x\n1\n"})
    import batchserve as bs

    for day in (1, 2):
        laid(home, {f"day={day}/a.csv": "x\n1\n"} if day == 2 else {})
        bs.score(home, tmp_path / "out", model=model, if_exists="append")

    assert sorted(pq.read_table(tmp_path / "out")["day"].to_pylist()) == [1, 2]


def test_duckdb_reads_the_same(tmp_path: Path, score: Score) -> None:
    """DuckDB's reading of the same folders has the same rows and types."""
    home = laid(tmp_path / "in", {
        f"year={year}/city={city}/a.parquet": {"x": [year, 1]}
        for year in (2013, 2014) for city in ("A%20b", "c")
    })  # fmt: skip

    found = score(home).drop_columns("y")

    query = f"from read_parquet('{home}/**/*.parquet', hive_partitioning = true) select x, year, city"
    expected = duckdb.sql(query).fetchall()
    assert sorted(tuple(row.values()) for row in found.to_pylist()) == sorted(expected)


def test_a_source_holds_its_folders(tmp_path: Path) -> None:
    """Names and texts of folders stand in the source, decoded, in the order of the path."""
    home = laid(tmp_path, {"a%3D=1/b=x%3Dy/p.csv": "x\n1\n"})

    (source,) = files.resolve([str(home)])

    assert source.folders == (("a=", "1"), ("b", "x=y"))
    assert folders.folders_of(Path("in/p.csv"), Path("in")) == ()
