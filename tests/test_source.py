"""--add-source: every row says which record of which file it was."""

import csv
import gzip
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchserve as bs
from batchserve import inputs, verify
from batchserve.errors import DataError, OutputError, UsageError
from batchserve.inputs import cutting, dialect, files, quotes
from workbench import Score, run

NOTES = ['"a\nb"', "plain", '"say ""x"", then\r\n\r\nmore"', "", '"1,2\n3,4\n5,6"']


def hard(path: Path, end: str = "\n", rows: int = 600) -> Path:
    """Write a CSV with quoted line ends and blank lines, each row with its number."""
    chance = random.Random(rows)
    blank = [end * chance.choice([0, 0, 0, 1, 2]) for _ in range(rows)]
    text = "x,s\n" + "".join(f"{i},{NOTES[i % 5]}{end}{blank[i]}" for i in range(1, rows + 1 - 1))
    path.write_text(text + f"{rows},last", newline="")
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("size", ["300", "1k", "4k", "64MB"])
def test_a_row_of_csv_knows_its_record(end: str, size: str, tmp_path: Path, score: Score) -> None:
    """Numbers count records, not lines, whatever the split and the quoted line ends in the way."""
    path = hard(tmp_path / "a.csv", end)

    found = score(path, add_source=True, partition_size=size, workers=2)

    assert found.column_names == ["x", "s", "source_file", "source_row", "y"]
    assert found["x"].to_pylist() == [*range(1, 601)]
    assert found["source_row"].to_pylist() == [*range(1, 601)]
    assert set(found["source_file"].to_pylist()) == {str(path)}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet", "a.arrow", "a.arrows"])
@pytest.mark.parametrize("size", ["1k", "64MB"])
def test_a_row_of_any_format_knows_its_record(name: str, size: str, tmp_path: Path, score: Score) -> None:
    """Each file counts from 1, in every format, whatever the split."""
    from test_formats import written

    table = pa.table({"x": range(1, 501)})
    paths = [tmp_path / folder / name for folder in ("p", "q")]
    for path in paths:
        path.parent.mkdir()
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(b"x\n" + b"".join(b"%d\n" % i for i in range(1, 501))))
        else:
            options = {"row_group_size": 70} if "parquet" in name else {"chunksize": 70}
            written(path, table, **options)

    found = score(paths, add_source=True, partition_size=size, workers=2)

    assert found["source_row"].to_pylist() == found["x"].to_pylist() == [*range(1, 501)] * 2
    assert found["source_file"].to_pylist() == [str(paths[0])] * 500 + [str(paths[1])] * 500


def test_blank_lines_of_json_are_no_records(tmp_path: Path, score: Score) -> None:
    """Blank lines count in no format."""
    (tmp_path / "a.jsonl").write_text("".join(f'{{"x": {i}}}\n\n \n' for i in range(1, 300)))

    found = score(tmp_path / "a.jsonl", add_source=True, partition_size="500", workers=2)

    assert found["source_row"].to_pylist() == found["x"].to_pylist()


def test_the_columns_are_kept_whatever_is_kept(tmp_path: Path, score: Score) -> None:
    """--keep chooses among the columns of the input; where a row is from was asked for."""
    path = hard(tmp_path / "a.csv")

    assert score(path, add_source=True, keep="none").column_names == ["source_file", "source_row", "y"]
    assert score(path, add_source=True, keep="s").column_names == ["s", "source_file", "source_row", "y"]


def test_limit_counts_from_the_first_record(tmp_path: Path, score: Score) -> None:
    """With --limit, files count from 1 just the same."""
    paths = [hard(tmp_path / "a.csv", rows=5), hard(tmp_path / "b.csv", rows=5)]

    assert score(paths, add_source=True, limit=7)["source_row"].to_pylist() == [1, 2, 3, 4, 5, 1, 2]


@pytest.mark.parametrize("name", ["source_file", "source_row"])
def test_a_column_of_that_name_is_a_usage_error(name: str, tmp_path: Path, score: Score) -> None:
    """An input that has such a column itself cannot have another one; without the flag it is a column."""
    (tmp_path / "a.csv").write_text(f"x,{name}\n1,2\n")

    with pytest.raises(UsageError, match=f"--add-source: {name} is a column of the input already"):
        score(tmp_path / "a.csv", add_source=True)
    assert score(tmp_path / "a.csv")[name].to_pylist() == [2]


def test_a_plan_says_that_records_are_counted(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text files of several partitions are read once more, and `plan` says so; Parquet is not."""
    path = hard(tmp_path / "a.csv")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "b.parquet")
    said = "1 text file of several partitions read once more, to count records"

    several = run(capsys, "plan", path, "-m", model, "--add-source", "--partition-size", "1k")
    one = run(capsys, "plan", path, "-m", model, "--add-source")
    other = run(capsys, "plan", tmp_path / "b.parquet", "-m", model, "--add-source")

    assert said in several.out
    assert "source_file, source_row\n" in one.out
    assert "source_file, source_row\n" in other.out


def test_an_amended_run_has_the_same_numbers(tmp_path: Path, score: Score) -> None:
    """A column that becomes text late starts the job over; record numbers stay right."""
    odd = 40_000
    rows = "".join(
        f"{i},{'007' if i == odd else i},some words to make it long enough\n" for i in range(1, 60_001)
    )
    (tmp_path / "a.csv").write_text(f"x,zip,note\n{rows}")

    found = score(tmp_path / "a.csv", add_source=True, partition_size="500k", workers=2)

    assert found["zip"][odd - 1].as_py() == "007"
    assert found["source_row"].to_pylist() == [*range(1, 60_001)]


def test_rejects_do_not_shift_numbers(tmp_path: Path, score: Score) -> None:
    """A record that cannot be read is counted, too: what follows has its own number."""
    (tmp_path / "a.csv").write_text(
        "x,s\n" + "".join(f"{i},a\n" if i % 7 else "1,2,3\n" for i in range(1, 200))
    )
    sources = files.resolve([str(tmp_path / "a.csv")])
    look = inputs.look(sources, inputs.Wish(add_source=True))
    parts = cutting.laid_out(cutting.partitions(sources, 300), look, add_source=True)
    reading = inputs.Reading(schema_=look.schema, columns=("x", "source_row"), batch_rows=64)

    items = [item for each in parts for part in each.slices for item in inputs.read(part, reading)]

    rows = [row for item in items if isinstance(item, inputs.Block) for row in item.batch.to_pylist()]
    assert rows == [{"x": i, "source_row": i} for i in range(1, 200) if i % 7]
    assert sum(isinstance(item, inputs.BadRecord) for item in items) == 199 // 7
    with pytest.raises(DataError):
        score(tmp_path / "a.csv", add_source=True)


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Write files in folders that give columns, of which one has its columns in another order."""
    for day, header in (("1", "x,s"), ("2", "s,X")):
        folder = tmp_path / "in" / f"day={day}"
        folder.mkdir(parents=True)
        cells = [f"{i},t\n" if header == "x,s" else f"t,{i}\n" for i in range(1, 301)]
        (folder / "a.csv").write_text(f"{header}\n{''.join(cells)}")
    return [tmp_path / "in"]


WISH: dict[str, Any] = {"add_source": True, "schema_drift": "widen", "partition_size": "700"}
ROWS = [{"x": i, "s": "t", "day": day, "source_row": i} for day in (1, 2) for i in range(1, 301)]


def test_folders_drift_and_sources_go_together(mixed: list[Path], score: Score) -> None:
    """All that is added to rows is there at once, with several workers and partitions."""
    found = score(mixed, workers=2, **WISH)

    assert found.select(["x", "s", "day", "source_row"]).to_pylist() == ROWS


def test_an_output_with_added_columns_is_verified(mixed: list[Path], model: Path) -> None:
    """`verify` scores rows again with their folders, their layout and their numbers."""
    bs.score(mixed, model.parent / "v.parquet", model=model, workers=1, overwrite=True, **WISH)

    assert verify.verify(str(model.parent / "v.parquet")).rows_scored > 0


def test_the_lazy_frame_has_added_columns(mixed: list[Path], model: Path) -> None:
    """`scored` gives the same columns and numbers as `score`."""
    frame = bs.scored(mixed, model=model, **WISH).compute()

    assert frame[["x", "s", "day", "source_row"]].to_dict("records") == ROWS


def test_the_last_input_is_not_taken_for_the_output(tmp_path: Path, model: Path) -> None:
    """`score in/*.parquet --overwrite` without an output is found out with --add-source, too."""
    (tmp_path / "x.csv").write_text("x\n1\n")
    for name in ("a", "b"):
        bs.score(tmp_path / "x.csv", tmp_path / f"{name}.parquet", model=model, prefix="old_")

    with pytest.raises(OutputError, match=r"b\.parquet: has the columns of the inputs"):
        bs.score(tmp_path / "a.parquet", tmp_path / "b.parquet", model=model, add_source=True, overwrite=True)


COMMON = quotes.of(dialect.COMMON)
FIELDS = st.text(st.sampled_from('a,"\n\r '), max_size=6)


@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=30), st.sampled_from(["\n", "\r\n"]))
def test_records_are_counted_as_they_are_read(rows: list[tuple[str, str]], end: str) -> None:
    """The fast count of records is that of the slow splitter, for texts as writers write them."""
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows(rows)

    assert COMMON.count(text.getvalue().encode()) == len(COMMON.starts(text.getvalue().encode()))


@given(st.text(st.sampled_from('a,"\n\r'), max_size=40))
def test_records_of_any_text_are_counted_as_they_are_split(text: str) -> None:
    """For texts with stray quotes and bare returns, too, both counts agree wherever records are whole."""
    raw = text.encode()
    if COMMON.last_end(raw) == len(raw):
        assert COMMON.count(raw) == len(COMMON.starts(raw))
