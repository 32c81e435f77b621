"""Files to rows: which files, which types, which records, and that nothing is changed on the way."""

import gzip
import json
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchserve as bs
from batchserve.errors import BatchserveError, DataError
from workbench import run

Score = Callable[..., pa.Table]
Late = Callable[[str], Path]


@pytest.fixture
def score(tmp_path: Path, model: Path) -> Score:
    """Score inputs (a path, several, or the text of a file with its name) into a table."""

    def scored(inputs: Any, name: str = "", **options: Any) -> pa.Table:
        if name:
            path = tmp_path / name
            path.write_bytes(inputs if isinstance(inputs, bytes) else inputs.encode())
            inputs = path
        bs.score(inputs, tmp_path / "out.parquet", model=model, overwrite=True, **options)
        return pq.read_table(tmp_path / "out.parquet")

    return scored


# -- which files, in which order --------------------------------------------------------------


def numbered(folder: Path, *names: str) -> list[Path]:
    """Write one CSV per name, whose one row is its position among the names."""
    paths = [folder / name for name in names]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"x\n{i}\n")
    return paths


def test_a_folder_is_read_in_natural_order(tmp_path: Path, score: Score) -> None:
    """Within a folder, numbers in names sort as numbers."""
    numbered(tmp_path / "in", "p1.csv", "p2.csv", "p10.csv", "q/a1.csv", "q/a20.csv")

    assert score(tmp_path / "in")["x"].to_pylist() == [0, 1, 2, 3, 4]


def test_a_glob_is_read_in_natural_order(tmp_path: Path, score: Score) -> None:
    """Within a glob, numbers in names sort as numbers, and ** goes down."""
    numbered(tmp_path / "in", "2024-9.csv", "2024-10.csv", "deep/er/2025-1.csv")

    assert score(str(tmp_path / "in" / "*.csv"))["x"].to_pylist() == [0, 1]
    assert sorted(score(str(tmp_path / "in" / "**" / "*.csv"))["x"].to_pylist()) == [0, 1, 2]


def test_several_inputs_keep_the_order_given(tmp_path: Path, score: Score) -> None:
    """Inputs named one by one are read in the order they were named."""
    a, b, c = numbered(tmp_path, "a.csv", "b.csv", "c.csv")

    assert score([c, a, b])["x"].to_pylist() == [2, 0, 1]


def test_a_folder_leaves_out_what_is_hidden(tmp_path: Path, score: Score) -> None:
    """Names that start with a dot or an underscore, and files of other kinds, are no inputs."""
    numbered(tmp_path / "in", "a.csv", ".b.csv", "_c.csv", ".d/e.csv", "_temporary/f.csv", "notes.txt")

    assert score(tmp_path / "in")["x"].to_pylist() == [0]


def test_a_name_with_magic_characters_is_a_name(tmp_path: Path, score: Score) -> None:
    """A file that exists is taken as it is, even when its name reads like a glob."""
    numbered(tmp_path, "x[1].csv", "x1.csv")

    assert score(tmp_path / "x[1].csv")["x"].to_pylist() == [0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("A.CSV", b"x\n3\n"),
        ("a.csv.gz", gzip.compress(b"x\n3\n")),
        ("a.csv", gzip.compress(b"x\n3\n")),
        ("a.jsonl", b'{"x": 3}\n'),
        ("a.ndjson", b'{"x": 3}\n'),
        ("a.jsonl.gz", gzip.compress(b'{"x": 3}\n')),
        ("a.csv.gz", gzip.compress(b"x\n") + gzip.compress(b"3\n")),
    ],
    ids=["upper", "gzip", "gzip-unsaid", "jsonl", "ndjson", "jsonl-gzip", "gzip-members"],
)
def test_the_suffix_says_the_format(name: str, content: bytes, score: Score) -> None:
    """Formats go by suffix, whatever its case; gzip goes by its magic bytes, members one after another."""
    assert score(content, name)["y"].to_pylist() == [6.0]


# -- CSV: types -------------------------------------------------------------------------------

TYPES: tuple[tuple[str, Sequence[str], pa.DataType, Sequence[Any]], ...] = (
    ("integers", ["1", "-20", "0"], pa.int64(), [1, -20, 0]),
    ("integers-and-nulls", ["1", "", "NA", "null", "NaN"], pa.int64(), [1, None, None, None, None]),
    ("largest-integer", [str(2**63 - 1), str(-(2**63))], pa.int64(), [2**63 - 1, -(2**63)]),
    ("beyond-64-bits", [str(2**63)], pa.string(), [str(2**63)]),
    ("leading-zero", ["007", "8"], pa.string(), ["007", "8"]),
    ("plus-sign", ["+1", "2"], pa.string(), ["+1", "2"]),
    ("thousands-mark", ['"1,000"'], pa.string(), ["1,000"]),
    ("minus-zero", ["-0", "1"], pa.float64(), [-0.0, 1.0]),
    ("doubles", ["1.5", "-2e3", "3"], pa.float64(), [1.5, -2000.0, 3.0]),
    ("trailing-zero", ["1.10"], pa.float64(), [1.1]),
    ("17-digits", ["0.12345678901234567"], pa.float64(), [0.12345678901234567]),
    ("18-digits", ["1.23456789012345678"], pa.string(), ["1.23456789012345678"]),
    ("overflow", ["1e400"], pa.string(), ["1e400"]),
    ("hexadecimal", ["0x10"], pa.string(), ["0x10"]),
    ("infinity", ["inf"], pa.string(), ["inf"]),
    ("spaces", [" 1"], pa.string(), [" 1"]),
    ("dates", ["2013-01-31"], pa.date32(), [date(2013, 1, 31)]),
    ("no-such-date", ["2013-02-30"], pa.string(), ["2013-02-30"]),
    ("timestamps", ["2013-01-31 05:06:07"], pa.timestamp("us"), [datetime(2013, 1, 31, 5, 6, 7)]),
    ("nanoseconds", ["2013-01-31T05:06:07.123456789"], pa.string(), ["2013-01-31T05:06:07.123456789"]),
    ("offset", ["2013-01-31T05:06:07+02:00"], pa.string(), ["2013-01-31T05:06:07+02:00"]),
    ("booleans", ["true", "false", ""], pa.bool_(), [True, False, None]),
    ("python-booleans", ["True", "False"], pa.string(), ["True", "False"]),
    ("texts", ["NA", "", "nan", "Namibia"], pa.string(), ["NA", None, "nan", "Namibia"]),
    ("nulls-only", ["", ""], pa.string(), [None, None]),
)


@pytest.mark.parametrize(
    ("texts", "kind", "values"), [row[1:] for row in TYPES], ids=[row[0] for row in TYPES]
)
def test_a_column_keeps_its_own_type(
    texts: Sequence[str], kind: pa.DataType, values: Sequence[Any], score: Score
) -> None:
    """A column is typed only where that changes no value; everything else stays the text it was."""
    rows = "".join(f"1,{text}\n" for text in texts)

    column = score(f"x,c\n{rows}", "a.csv")["c"]

    assert column.type == kind
    assert [repr(value) for value in column.to_pylist()] == [repr(value) for value in values]


def test_timestamps_with_z_are_in_utc(score: Score) -> None:
    """A timestamp that ends in Z becomes an instant in UTC."""
    column = score("x,c\n1,2013-01-31T05:06:07.25Z\n", "a.csv")["c"]

    assert column.type == pa.timestamp("us", "UTC")
    assert column.cast(pa.int64()).to_pylist() == [1_359_608_767_250_000]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("text", "7", "7"), ("string", "7", "7"), ("int", "7", 7), ("int32", "7", 7), ("double", "7", 7.0),
        ("float", "0.5", 0.5), ("bool", "true", True), ("date", "2013-01-31", date(2013, 1, 31)),
        ("timestamp", "2013-01-31 05:06:07", datetime(2013, 1, 31, 5, 6, 7)),
    ],
)  # fmt: skip
def test_type_decides(kind: str, text: str, value: object, score: Score) -> None:
    """--type gives a column the type named, whatever its texts look like."""
    assert score(f"x,c\n1,{text}\n", "a.csv", type={"c": kind})["c"].to_pylist() == [value]


def test_a_model_column_keeps_its_type_in_the_output(score: Score) -> None:
    """The model gets a float32 copy of an integer column; the column itself stays int64."""
    scored = score("x\n16777217\n", "a.csv")

    assert scored["x"].to_pylist() == [16_777_217]
    assert scored["y"].to_pylist() == [2 * 16_777_216.0]


def test_infer_full_reads_every_row(tmp_path: Path, late: Late) -> None:
    """--infer full sees the one odd text that samples miss, and needs no second start."""
    path = late("0123")

    report = bs.score(path, tmp_path / "full.parquet", model=tmp_path / "model.onnx", infer="full")

    assert report.amended == {}
    assert pq.read_schema(tmp_path / "full.parquet").field("zip").type == pa.string()


# -- CSV: an odd text late in the file --------------------------------------------------------

LATE_ROWS = 100_000
ODD_ROW = 15_000


@pytest.fixture
def late(tmp_path: Path, model: Path) -> Late:
    """Write 4 MB of CSV whose column zip is an integer in all rows but one, between the sampled windows."""
    (tmp_path / "model.onnx").write_bytes(model.read_bytes())

    def written(odd: str) -> Path:
        zips = [odd if i == ODD_ROW else str(10_000 + i % 80_000) for i in range(LATE_ROWS)]
        rows = "".join(f"{i % 100},{code},some_words_here_{i % 7}\n" for i, code in enumerate(zips))
        path = tmp_path / "late.csv"
        path.write_text(f"x,zip,note\n{rows}")
        assert path.stat().st_size > 2_500_000
        return path

    return written


@pytest.mark.parametrize("odd", ["EC1A 1BB", "0123", "+123", "9223372036854775808", "1.5"])
@pytest.mark.parametrize("size", ["64MB", "700k"], ids=["one-partition", "several"])
def test_an_odd_text_late_in_the_file_amends_the_plan(
    odd: str, size: str, tmp_path: Path, late: Late, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pass-through column sampled as integer becomes text, the summary says so, no value changes."""
    path = late(odd)
    common = ("-m", tmp_path / "model.onnx", "--partition-size", size, "--workers", "2")

    done = run(capsys, "score", path, tmp_path / "out.parquet", *common)
    told = run(capsys, "score", path, tmp_path / "told.parquet", *common, "--type", "zip=text")

    assert (done.code, told.code) == (0, 0), done.err + told.err
    zips = pq.read_table(tmp_path / "out.parquet")["zip"].slice(ODD_ROW, 2).to_pylist()
    assert zips == [odd, str(10_001 + ODD_ROW % 80_000)]
    assert "zip" in done.err.splitlines()[-1]
    assert f"late.csv:{ODD_ROW + 2}" in done.err.splitlines()[-1]
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "told.parquet").read_bytes()


@pytest.mark.parametrize("odd", ["1.23456789012345678", "1e400", " 0.5", "00.5", "free"])
def test_a_double_late_in_the_file_keeps_its_digits(odd: str, tmp_path: Path, late: Late) -> None:
    """A text that a double would not give back makes a column sampled as double text."""
    path = late("0")
    path.write_text(
        path.read_text().replace(",some_words_here_", ".25,words_here_").replace(",0.25,", f",{odd},")
    )

    report = bs.score(path, tmp_path / "out.parquet", model=tmp_path / "model.onnx", workers=1)

    zips = pq.read_table(tmp_path / "out.parquet")["zip"].slice(ODD_ROW, 2).to_pylist()
    assert zips == [odd, f"{10_001 + ODD_ROW % 80_000}.25"]
    assert list(report.amended) == ["zip"]


# -- CSV: records -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (b"\xef\xbb\xbfx,c\n1,a\n2,b\n", ["a", "b"]),
        (b"x,c\r\n1,a\r\n2,b\r\n", ["a", "b"]),
        (b"x,c\n1,a\n2,b", ["a", "b"]),
        (b"x,c\n\n1,a\n\n\n2,b\n\n", ["a", "b"]),
        (b"\nx,c\n1,a\n", ["a"]),
        (b'x,c\n1,"a\nb"\n2,"c\r\nd"\n', ["a\nb", "c\r\nd"]),
        (b'x,c\n1,"say ""a"""\n', ['say "a"']),
        (b'x,c\n1,a "b" c\n2,d"\n', ['a "b" c', 'd"']),
        (b'"x","c"\n"1","a,b"\n', ["a,b"]),
        (b'x,"c"\n1,\xc3\xa9\n', ["\xe9"]),
    ],
    ids=[
        "bom", "crlf", "no-last-line-end", "blank-lines", "blank-first-line", "quoted-line-ends",
        "doubled-quotes", "stray-quotes", "quoted-commas", "utf8",
    ],
)  # fmt: skip
def test_records_are_read_as_they_are_written(content: bytes, notes: list[str], score: Score) -> None:
    """Marks, line ends, blank lines and quotes give the records that a CSV reader expects."""
    scored = score(content, "a.csv")

    assert scored["c"].to_pylist() == notes
    assert scored["y"].to_pylist() == [2.0 * (i + 1) for i in range(len(notes))]


def test_a_header_alone_gives_a_valid_empty_output(score: Score) -> None:
    """A CSV with a header and no row gives a Parquet file of no rows with all columns."""
    scored = score("x,c\n", "a.csv")

    assert scored.num_rows == 0
    assert scored.column_names == ["x", "c", "y"]
    assert scored.schema.field("y").type == pa.float32()


def test_limit_counts_over_all_files(tmp_path: Path, score: Score) -> None:
    """--limit reads the first records of the job, not of every file."""
    (tmp_path / "a.csv").write_text("x\n1\n2\n")
    (tmp_path / "b.csv").write_text("x\n3\n4\n")

    assert score([tmp_path / "a.csv", tmp_path / "b.csv"], limit=3)["x"].to_pylist() == [1, 2, 3]


# -- JSON lines -------------------------------------------------------------------------------


def test_a_missing_key_is_null(score: Score) -> None:
    """A key that a line lacks is null there, whichever line comes first."""
    scored = score('{"x": 1, "a": "p"}\n{"b": true, "x": 2}\n', "a.jsonl")

    assert scored.select(["x", "a", "b"]).to_pylist() == [
        {"x": 1, "a": "p", "b": None},
        {"x": 2, "a": None, "b": True},
    ]


def test_values_keep_their_json_types(score: Score) -> None:
    """Texts stay texts, dates too; nested values stay nested; blank lines and CRLF are no rows."""
    line = {"x": 1, "when": "2013-01-31T05:06:07Z", "zip": "007", "deep": {"a": [1, 2]}, "on": True}

    scored = score(f"{json.dumps(line)}\r\n\r\n\n", "a.jsonl")

    assert scored.drop_columns(["y"]).to_pylist() == [line]


@pytest.mark.parametrize("value", [2**53 + 1, 2**63 - 1])
def test_large_json_integers_keep_every_digit(value: int, score: Score) -> None:
    """An integer of 64 bits in JSON comes out with the digits it went in with."""
    column = score(f'{{"x": 1, "c": {value}}}\n', "a.jsonl")["c"]

    assert int(column[0].as_py()) == value


@pytest.fixture
def long_jsonl(tmp_path: Path) -> Callable[[str], Path]:
    """Write JSON lines longer than any sample that end in the line given."""

    def written(last: str) -> Path:
        path = tmp_path / "long.jsonl"
        path.write_text('{"x": 1, "c": 5, "note": "some words here"}\n' * 60_000 + last + "\n")
        return path

    return written


def test_an_unknown_late_key_is_rejected(long_jsonl: Callable[[str], Path], score: Score) -> None:
    """A key that no sampled line has is told with its line and the way out; no value is dropped."""
    path = long_jsonl('{"x": 1, "c": 5, "late": 1}')

    with pytest.raises(DataError) as refused:
        score(path)

    assert "long.jsonl:60001" in str(refused.value)
    assert "late" in str(refused.value)
    assert "--infer full" in str(refused.value)
    assert score(path, infer="full")["late"][-1].as_py() == 1


def test_a_late_fraction_makes_an_integer_column_double(
    long_jsonl: Callable[[str], Path], tmp_path: Path, model: Path
) -> None:
    """An integer column that meets 1.5 late becomes double, and the report names the line."""
    path = long_jsonl('{"x": 1, "c": 1.5, "note": ""}')

    report = bs.score(path, tmp_path / "out.parquet", model=model)

    column = pq.read_table(tmp_path / "out.parquet")["c"]
    assert column.type == pa.float64()
    assert (column[0].as_py(), column[-1].as_py()) == (5.0, 1.5)
    assert list(report.amended) == ["c"]
    assert report.amended["c"].endswith("long.jsonl:60001")


def test_a_late_text_in_a_number_column_is_rejected(long_jsonl: Callable[[str], Path], score: Score) -> None:
    """A text in a column that holds numbers is told with its line and with --type."""
    path = long_jsonl('{"x": 1, "c": "five", "note": ""}')

    with pytest.raises(DataError, match=r"long\.jsonl:60001: 'five'.*--type c="):
        score(path)


def test_kinds_that_do_not_mix_are_told(score: Score) -> None:
    """A key that is a number in one line and an object in another ends in one clear message."""
    with pytest.raises(BatchserveError, match="c") as refused:
        score('{"x": 1, "c": 1}\n{"x": 2, "c": {"a": 1}}\n', "a.jsonl")

    assert refused.value.exit_code == 65


# -- Parquet ----------------------------------------------------------------------------------


def every_type() -> pa.Table:
    """Return a table with a column of nearly every type that Parquet holds."""
    return pa.table(
        {
            "x": pa.array([1, 2, 3], pa.int16()),
            "dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
            "decimal": pa.array([Decimal("1.10"), None, Decimal("-3.00")], pa.decimal128(9, 2)),
            "instant": pa.array([0, 1, None], pa.timestamp("ms", "Europe/Amsterdam")),
            "nanoseconds": pa.array([1, 2, 3], pa.timestamp("ns")),
            "time": pa.array([1, 2, None], pa.time64("us")),
            "binary": pa.array([b"\x00", b"", None]),
            "list": pa.array([[1, None], [], None], pa.list_(pa.int32())),
            "struct": pa.array([{"a": 1}, {"a": None}, None], pa.struct([("a", pa.uint8())])),
            "boolean": pa.array([True, None, False]),
            "half": pa.array([1.5, None, 2.5], pa.float32()),
            "large": pa.array(["p", None, "q"], pa.large_string()),
        }
    )


@pytest.mark.parametrize("name", every_type().column_names)
def test_parquet_columns_pass_through_unchanged(name: str, tmp_path: Path, score: Score) -> None:
    """A Parquet column comes out with the type and the values it had."""
    table = every_type().select(list(dict.fromkeys(["x", name])))
    pq.write_table(table, tmp_path / "a.parquet")
    expected = pq.read_table(tmp_path / "a.parquet")[name]

    column = score(tmp_path / "a.parquet")[name]

    assert column.type == expected.type
    assert column.to_pylist() == expected.to_pylist()


def test_row_groups_may_be_split_and_joined(tmp_path: Path, score: Score) -> None:
    """Many row groups, one row group and files of both give every row once, in order."""
    table = pa.table({"x": list(range(5_000)), "c": [f"t{i}" for i in range(5_000)]})
    pq.write_table(table.slice(0, 3_000), tmp_path / "a.parquet", row_group_size=250)
    pq.write_table(table.slice(3_000), tmp_path / "b.parquet")

    scored = score([tmp_path / "a.parquet", tmp_path / "b.parquet"], partition_size="4k", workers=2)

    assert scored.select(["x", "c"]).equals(table)
    assert scored["y"].to_pylist() == [2.0 * i for i in range(5_000)]


@pytest.mark.parametrize(
    ("column", "scores"),
    [
        (pa.array([1, None, 3], pa.uint8()), [2.0, 0.0, 6.0]),
        (pa.array([True, None, False]), [2.0, 0.0, 0.0]),
        (pa.array([Decimal("1.5"), None, Decimal("2.5")], pa.decimal128(5, 1)), [3.0, 0.0, 5.0]),
        (pa.array(["1.5", "NA", "2"]), [3.0, 0.0, 4.0]),
        (pa.array(["1.5", None, "2"]).dictionary_encode(), [3.0, 0.0, 4.0]),
        (pa.array([1.5, None, 2.5]).dictionary_encode(), [3.0, 0.0, 5.0]),
        (pa.nulls(3), [0.0, 0.0, 0.0]),
    ],
    ids=["uint8", "boolean", "decimal", "text", "dictionary-text", "dictionary-number", "null"],
)
def test_numbers_of_any_parquet_type_feed_the_model(
    column: pa.Array, scores: list[float], tmp_path: Path, score: Score
) -> None:
    """Integers, booleans, decimals, dictionaries and texts that are numbers fill a float input."""
    pq.write_table(pa.table({"x": column}), tmp_path / "a.parquet")

    assert score(tmp_path / "a.parquet", on_null="fill=0")["y"].to_pylist() == scores


def test_an_empty_parquet_file_gives_an_empty_output(tmp_path: Path, score: Score) -> None:
    """A Parquet file of no rows gives one of no rows with the prediction added."""
    pq.write_table(pa.table({"x": pa.array([], pa.float32())}), tmp_path / "a.parquet")

    assert score(tmp_path / "a.parquet").column_names == ["x", "y"]


def test_the_writers_metadata_does_not_matter(tmp_path: Path, score: Score) -> None:
    """Files by pandas and by pyarrow, which keep other metadata, are of one layout."""
    table = pa.table({"x": [1, 2]})
    table.to_pandas().to_parquet(tmp_path / "a.parquet", index=False)
    pq.write_table(table, tmp_path / "b.parquet")

    assert score([tmp_path / "a.parquet", tmp_path / "b.parquet"])["x"].to_pylist() == [1, 2, 1, 2]
