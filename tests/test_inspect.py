"""`inspect` of data files: what they hold and how it is stored."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather, ipc

import batchserve as bs
from batchserve import survey
from workbench import FLIGHTS, IRIS_MODEL, doubler, run


def facts(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Inspect a file and return what was printed, name by name."""
    done = run(capsys, "inspect", path)
    assert done.code == 0, done.err
    pairs = [line.strip().partition("  ") for line in done.out.splitlines()[1:]]
    return {name.strip(): value.strip() for name, _, value in pairs}


def test_a_csv_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    """Format, size, rows, columns with types and nulls, and the first three rows."""
    found = facts(FLIGHTS, capsys)

    assert (found["format"], found["rows"], found["columns"]) == ("CSV", "5,027", "19")
    assert found["size"] == "464 kB"
    assert "sure" in found["dialect"]
    assert found["year"] == "int64"
    assert found["dep_delay"] == "int64, 116 of the first 4,096 null"
    assert found["row 1"].startswith("year 2013, month 1, day 1, dep_time 517, ")
    assert "row 3" in found
    assert "row 4" not in found


def test_a_packed_csv_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The codec is named; records of a small file are counted."""
    path = tmp_path / "a.csv"
    path.write_bytes(gzip.compress(b'x,s\n1,"a\nb"\n2,c\n'))

    found = facts(path, capsys)

    assert (found["format"], found["rows"]) == ("CSV, packed with gzip", "2")


def test_rows_of_a_long_text_are_estimated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a text that is too long to count, the beginning tells about how many rows there are."""
    monkeypatch.setattr(survey, "_COUNTED_BYTES", 1000)
    monkeypatch.setattr(survey, "_SAMPLE_BYTES", 1000)
    text = b"x,s\n" + b"12345,abcd\n" * 1000
    (tmp_path / "a.csv").write_bytes(text)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text, 0))

    assert facts(tmp_path / "a.csv", capsys)["rows"] == "about 1,000"
    assert facts(tmp_path / "a.csv.gz", capsys)["rows"] == "not known without unpacking it"


def test_a_parquet_file_is_described_by_its_footer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows, row groups, compression and key-values are those of the footer."""
    table = pa.table({"x": range(100), "s": pa.array(["a"] * 100).dictionary_encode()})
    table = table.replace_schema_metadata({"made": "by hand"})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30, compression="zstd")

    found = facts(tmp_path / "a.parquet", capsys)

    assert (found["format"], found["rows"]) == ("Parquet", "100")
    assert found["row groups"] == "4, the largest of 30 rows"
    assert found["compression"].startswith("zstd; ")
    assert found["made"] == "by hand"
    assert found["s"].startswith("dictionary<")


def test_an_output_is_described_with_its_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An output of batchserve shows which plan and model made it."""
    (tmp_path / "a.csv").write_text("x\n1\n")
    report = bs.score(tmp_path / "a.csv", tmp_path / "o.parquet", model=doubler(tmp_path / "m.onnx"))

    found = facts(tmp_path / "o.parquet", capsys)

    assert found["batchserve.plan_id"] == report.receipt.plan_id
    assert found["batchserve.version"] == bs.__version__


def test_arrow_files_and_streams_are_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows and record batches are counted, of a stream by reading it."""
    table = pa.table({"s": ["a"] * 100, "x": range(100)}).replace_schema_metadata({"made": "by hand"})
    feather.write_feather(table, str(tmp_path / "a.feather"), chunksize=40)
    with ipc.new_stream(str(tmp_path / "a.arrows"), table.schema) as writer:
        writer.write_table(table, max_chunksize=40)

    stored, streamed = (facts(tmp_path / name, capsys) for name in ("a.feather", "a.arrows"))

    assert (stored["rows"], streamed["rows"]) == ("100", "100")
    assert stored["record batches"] == "3, the largest of 40 rows"
    assert streamed["record batches of a stream"] == "3, the largest of 40 rows"
    assert stored["made"] == "by hand"


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (b"x,s\n1,2\n", "CSV"),
        (b'{"x": 1}\n', "JSON lines"),
        (gzip.compress(b' {"x": 1}\n', mtime=0), "JSON lines, packed with gzip"),
    ],
)
def test_a_file_without_a_suffix_is_known_by_what_is_in_it(
    content: bytes, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Content decides where the name says nothing."""
    (tmp_path / "data").write_bytes(content)

    assert facts(tmp_path / "data", capsys)["format"] == form


def test_binary_files_without_a_suffix_are_known_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parquet and Arrow are known by their first bytes."""
    table = pa.table({"x": [1]})
    pq.write_table(table, tmp_path / "p")
    feather.write_feather(table, str(tmp_path / "f"))

    assert facts(tmp_path / "p", capsys)["format"] == "Parquet"
    assert facts(tmp_path / "f", capsys)["format"] == "Arrow"


def test_a_model_of_any_name_is_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An ONNX model is told by its first byte, not by its suffix."""
    (tmp_path / "model").write_bytes(IRIS_MODEL.read_bytes())

    assert "tensor(float) [?, 4]" in facts(tmp_path / "model", capsys)["in"]


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("a.parquet", b"PAR1 cut", 65, "a.parquet: is damaged or cut off"),
        ("a.csv", b"", 65, "a.csv: is empty"),
        ("a.csv.gz", b"x\n1\n", 65, "is not gzip"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(
    name: str, content: bytes, code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damage has the exit code of bad data, and nothing is printed."""
    (tmp_path / name).write_bytes(content)

    done = run(capsys, "inspect", tmp_path / name)

    assert (done.code, done.out) == (code, "")
    assert says in done.err


def test_a_folder_and_a_missing_file_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder is a wrong argument, a missing file is told with its nearest name."""
    (tmp_path / "flights.csv").write_text("x\n1\n")

    assert run(capsys, "inspect", tmp_path).code == 2
    missing = run(capsys, "inspect", tmp_path / "flihgts.csv")
    assert (missing.code, "did you mean flights.csv?" in missing.err) == (66, True)


def test_what_is_said_of_a_csv_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inspect takes the flags of the dialect, as score does."""
    (tmp_path / "a.txt").write_bytes("né;x\n1;2\n".encode("latin-1"))

    done = run(capsys, "inspect", tmp_path / "a.txt", "--format", "csv", "--encoding", "latin-1")

    assert done.code == 0, done.err
    assert "né     int64" in done.out
    assert "iso8859-1; encoding as said, the rest found" in done.out
