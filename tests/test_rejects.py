"""Rows that cannot be scored: counted, shown with their place, and nothing published."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchserve as bs
from batchserve.errors import DataError
from workbench import IRIS_HEADER, IRIS_MODEL, Outcome, doubler, run

HEADER = f"{IRIS_HEADER},note"
GOOD = "5.1,3.5,1.4,0.2,fine"
QUOTED = '5.1,3.5,1.4,0.2,"two\nlines"'


def csv_file(path: Path, records: Sequence[str]) -> Path:
    """Write a CSV of the iris columns and a note."""
    text = "\n".join([HEADER, *records]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str | Path) -> Outcome:
    """Score into `folder`, which must fail for the data's sake and leave rejects and finished parts alone."""
    before = {path.name for path in folder.iterdir()}

    done = run(capsys, "score", *arguments[:1], folder / "out.parquet", "-m", IRIS_MODEL, *arguments[1:])

    assert done.code == 65, done.err
    left = {path.name for path in folder.iterdir()} - before
    assert left == {".out.parquet.batchserve", "out.rejects.jsonl"}
    assert done.out == ""
    assert "Traceback" not in done.err
    return done


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_every_class_of_reject_has_its_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A null, a text, a ragged line and an overflow are told with count, column and line, packed or not."""
    records = [
        GOOD, "small,3.5,1.4,0.2,text", QUOTED, "5.1,3.5", GOOD,
        "5.1,3.5,1e39,0.2,big", "NA,3.5,1.4,0.2,null", "5.1,3.5,1.4,0.2,more,fields",
    ]  # fmt: skip
    path = csv_file(tmp_path / name, records)

    done = refused(capsys, tmp_path, path)

    assert "every one is in" in done.err
    assert "--max-errors 5 publishes the other rows at once" in done.err
    assert "5 of 8 rows cannot be scored; nothing was published" in done.err
    assert "CAST sepal_length: 1 row\n" in done.err
    assert f"{name}:3: 'small' is no number" in done.err
    assert "PARSE: 2 rows\n" in done.err
    assert f"{name}:6: '5.1,3.5' has 2 fields, not 5" in done.err
    assert f"{name}:10: '5.1,3.5,1.4,0.2,more,fields' has 6 fields, not 5" in done.err
    assert "RANGE petal_length: 1 row\n" in done.err
    assert f"{name}:8: '1e+39' does not fit in float32" in done.err
    assert "MISSING sepal_length: 1 row\n" in done.err
    assert f"{name}:9: null in a model column" in done.err
    assert "--on-null sepal_length:nan or --on-null sepal_length:fill=VALUE" in done.err
    assert "correct these records" in done.err


def test_only_the_first_three_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of many rejects of one class all are counted and the first three are shown."""
    path = csv_file(tmp_path / "rows.csv", [GOOD, ",1,1,1,", GOOD, *[",1,1,1,"] * 1_500])

    done = refused(capsys, tmp_path, path)

    assert "1,501 of 1,503 rows" in done.err
    assert "MISSING sepal_length: 1,501 rows" in done.err
    shown = [line.strip().rpartition(":")[0] for line in done.err.splitlines() if "null in a" in line]
    assert [place.rpartition("/")[2] for place in shown] == ["rows.csv:3", "rows.csv:5", "rows.csv:6"]


def test_lines_are_right_beyond_the_first_partition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines count from the file's start in whichever partition a reject is met."""
    records = [QUOTED if i % 3 == 0 else GOOD for i in range(3_000)]
    records[2_990] = "5.1,,1.4,0.2,null"
    path = csv_file(tmp_path / "rows.csv", records)
    line = 2 + sum(1 + record.count("\n") for record in records[:2_990])

    done = refused(capsys, tmp_path, path, "--partition-size", "16k", "--workers", "2")

    assert "1 of 3,000 rows" in done.err
    assert f"rows.csv:{line}: null in a model column" in done.err


def test_parquet_rejects_name_the_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For Parquet the place is the row in its file, beyond the first row group too."""
    numbers: list[float | None] = [5.0] * 5_000
    numbers[4_321] = None
    columns = {name: pa.array(numbers) for name in IRIS_HEADER.split(",")}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=1_000)

    done = refused(capsys, tmp_path, path, "--partition-size", "8k")

    assert "rows.parquet row 4,322: null in a model column" in done.err


def test_jsonl_rejects_name_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For JSON lines a null, a text, an array and a broken line are told with their line."""
    rows: list[object] = [dict.fromkeys(IRIS_HEADER.split(","), 1.5) for _ in range(6)]
    texts = [json.dumps(row) for row in rows]
    texts[1] = texts[1].replace("1.5", "null", 1)
    texts[2] = '{"sepal_length": '
    texts[4] = "[1, 2]"
    texts[5] = texts[5].replace("1.5", '"wide"', 1)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(texts) + "\n\n")

    done = refused(capsys, tmp_path, path)

    assert "4 of 6 rows" in done.err
    assert "rows.jsonl:2: null in a model column" in done.err
    assert "rows.jsonl:3: '{\"sepal_length\": ' is no JSON" in done.err
    assert "rows.jsonl:5: '[1, 2]' is no JSON object" in done.err
    assert "rows.jsonl:6: 'wide' is no number" in done.err


def test_an_unclosed_quote_is_a_reject(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quote that is never closed is told with the line it opens in, and swallows nothing silently."""
    path = csv_file(tmp_path / "rows.csv", [GOOD, QUOTED, '5.1,3.5,1.4,0.2,"open', GOOD, GOOD])

    done = refused(capsys, tmp_path, path)

    assert r"""rows.csv:5: '5.1,3.5,1.4,0.2,"open\n""" in done.err
    assert "a quote opened in this record is never closed: the 64 bytes" in done.err


def test_bytes_that_are_not_utf8_are_a_reject(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record that is not UTF-8 is told with its line and its bytes escaped."""
    path = tmp_path / "rows.csv"
    path.write_bytes(f"{HEADER}\n{GOOD}\n5.1,3.5,1.4,0.2,caf\xe9\n{GOOD}\n".encode("latin-1"))

    done = refused(capsys, tmp_path, path)

    assert "1 of 3 rows" in done.err
    assert r"rows.csv:3: '5.1,3.5,1.4,0.2,caf\\xe9' is not UTF-8" in done.err


def test_a_type_the_user_set_rejects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text that is not of the type that --type gave is a reject, not a reason to amend the plan."""
    path = csv_file(tmp_path / "rows.csv", ["5.1,3.5,1.4,0.2,7", "5.1,3.5,1.4,0.2,seven"])

    done = refused(capsys, tmp_path, path, "--type", "note=int")

    assert "CAST note: 1 row" in done.err
    assert "rows.csv:3: 'seven' is no int64, the type that --type gave" in done.err


def test_examples_come_in_the_order_of_the_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first three are the first in input order: p2.csv stands before p10.csv."""
    (tmp_path / "data").mkdir()
    for name in ("p2.csv", "p10.csv"):
        csv_file(tmp_path / "data" / name, [GOOD, ",1,1,1,", ",1,1,1,"])

    done = refused(capsys, tmp_path, tmp_path / "data")

    shown = [line.strip() for line in done.err.splitlines() if "null in a" in line]
    assert [line.rpartition("/")[2].partition(": ")[0] for line in shown] == [
        "p2.csv:3",
        "p2.csv:4",
        "p10.csv:3",
    ]


@pytest.mark.parametrize(("rule", "expected", "told"), [("fill=9", 18.0, "9"), ("nan", None, "NaN")])
def test_what_the_message_advises_works(
    rule: str, expected: float | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The --on-null that a refusal advises lets the same rows through."""
    path = tmp_path / "rows.csv"
    path.write_text("x\n1\nNA\n")
    model = doubler(tmp_path / "model.onnx")
    refusal = run(capsys, "score", path, tmp_path / "out.parquet", "-m", model)
    assert f"--on-null x:{rule.partition('=')[0]}" in refusal.err

    done = run(capsys, "score", path, tmp_path / "out.parquet", "-m", model, "--on-null", f"x:{rule}")

    assert done.code == 0, done.err
    scores = pq.read_table(tmp_path / "out.parquet")["y"].to_pandas()
    assert scores[0] == 2.0
    assert scores[1] == expected if expected is not None else scores.isna()[1]
    assert f"x: 1 null became {told}" in done.err


def test_a_row_at_fault_in_two_columns_is_counted_once(tmp_path: Path) -> None:
    """A row with a null in two model columns is one row."""
    path = csv_file(tmp_path / "rows.csv", [GOOD, ",,1.4,0.2,null"])

    with pytest.raises(DataError, match=r"^1 of 2 rows"):
        bs.score(path, tmp_path / "out.parquet", model=IRIS_MODEL)


@pytest.mark.parametrize("at", [1, 90_000])
def test_a_bad_row_changes_no_type(at: int, tmp_path: Path) -> None:
    """Sampled or not, a text where the model reads numbers is a reject; the column stays one of numbers."""
    values = ["1.5"] * 100_000
    values[at] = "bad"
    (tmp_path / "in.csv").write_text("x\n" + "\n".join(values) + "\n")
    model = doubler(tmp_path / "model.onnx")

    report = bs.score(tmp_path / "in.csv", tmp_path / "out.parquet", model=model, max_errors=1)

    assert pq.read_schema(tmp_path / "out.parquet").field("x").type == pa.float64()
    assert report.amended == {}
    assert report.receipt.rejected_by == {"CAST x": 1}


def test_rejects_of_many_small_files_are_at_their_places(tmp_path: Path) -> None:
    """Rows of small files are bound together; each reject is still of its own file, record and line."""
    expected = []
    for i in range(40):
        rows = [f"{i},{j}" for j in range(5 + i % 3)]
        bad = i % 5
        rows[bad] = ("x,bad", "1,2,3", "")[i % 3] if i % 4 else rows[bad]
        (tmp_path / f"f{i:02d}.csv").write_text("x,c\n" + "\n".join(rows) + "\n")
        if i % 4 and i % 3 < 2:
            expected.append((f"f{i:02d}.csv", bad + 1, bad + 2))
    model = doubler(tmp_path / "model.onnx")

    report = bs.score(str(tmp_path / "*.csv"), str(tmp_path / "out.parquet"), model=model, max_errors="100%")

    lines = [json.loads(line) for line in (tmp_path / "out.rejects.jsonl").read_text().splitlines()]
    assert report.partitions == 1
    assert [(Path(each["file"]).name, each["record"], each["line"]) for each in lines] == expected
    table = pq.read_table(tmp_path / "out.parquet")
    files = [i for i in range(40) for j in range(5 + i % 3) if j != i % 5 or not i % 4]
    assert table["x"].cast("int64").to_pylist() == files
    assert table["y"].to_pylist() == [2.0 * i for i in files]
