"""What is wrong with CSV records: each fault is exact rejects or one error with its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batchserve as bs
from batchserve import inputs
from batchserve.errors import BatchserveError
from batchserve.inputs import BadRecord, Block, Reading, Wish, cutting, files, inference, records
from batchserve.inputs.dialect import Asked, Dialect
from workbench import doubler, echo, run

Score = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that doubles column x and one that gives back column c."""
    home = tmp_path_factory.mktemp("models")
    doubler(home / "double.onnx")
    echo(home / "echo.onnx", "c")
    return home


@pytest.fixture
def score(tmp_path: Path, models: Path) -> Score:
    """Score the text of a CSV into rows."""

    def scored(text: str | bytes, model: str = "double.onnx", **options: Any) -> list[dict[str, Any]]:
        (tmp_path / "in.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        output = tmp_path / "out.parquet"
        bs.score(tmp_path / "in.csv", output, model=models / model, overwrite=True, **options)
        rows: list[dict[str, Any]] = pq.read_table(output).to_pylist()
        return rows

    return scored


GOOD = "".join(f"{i},t{i}\n" for i in range(1, 5))


def told(score: Score, text: str | bytes, code: int = 65, **options: Any) -> str:
    with pytest.raises(BatchserveError) as caught:
        score(text, **options)
    assert caught.value.exit_code == code, caught.value
    return str(caught.value)


# -- what is no fault -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('x,c\n1,"a\nb"\n2,"c\r\nd"\n', ["a\nb", "c\r\nd"]),
        ('x,c\n1,"a ""b"" c"\n2,""""\n', ['a "b" c', '"']),
        ('x,c\n1,6" pipe\n2,a "b"\n', ['6" pipe', 'a "b"']),
        ('x,c\n1,"a"b\n2,"c" \n', ["ab", "c "]),
        ("x,c\n1,a\0b\n2,\0\n", ["a\0b", "\0"]),
        ("\nx,c\n\n1,a\n\n\r\n2,b\n\n", ["a", "b"]),
        ("x,c\n1,a\n2,b", ["a", "b"]),
        ("x,c\n1,\n2,b\n", [None, "b"]),
        ('x,c\n1,""\n2,b\n', [None, "b"]),
    ],
    ids=["quoted-line-ends", "doubled-quotes", "stray-quotes", "text-after-quote", "nul", "empty-lines",
         "no-last-line-end", "empty", "empty-quoted"],
)  # fmt: skip
def test_odd_records_are_read(text: str, rows: list[str | None], score: Score) -> None:
    """What looks odd but has one meaning is read with that meaning."""
    assert [row["c"] for row in score(text)] == rows


@pytest.mark.parametrize(
    "text", ["007", "+5", "1e400", str(2**63 + 1), "1 234", "1,234", "N/A", "0x1F", "-0"]
)
def test_odd_numbers_pass_through_as_the_texts_they_are(text: str, score: Score) -> None:
    """A column that the model does not read keeps the digits of an odd number, whatever it means."""
    rows = score(f'x,c,d\n1,"{text}",a\n2,"5x",b\n')

    assert [row["c"] for row in rows] == [text, "5x"]


@pytest.mark.parametrize(("text", "value"), [("007", 14.0), ("+5", 10.0), ("1e3", 2000.0)])
def test_odd_numbers_are_numbers_for_the_model(text: str, value: float, score: Score) -> None:
    """What has one meaning as a number is that number for the model."""
    assert score(f"x,c\n{text},a\n1,b\n")[0]["y"] == value


@pytest.mark.parametrize("text", ["1 234", "1,234", "3,14", "1\0", "12a", "   ", "0x1F"])
def test_what_is_no_number_is_a_reject_of_its_column(text: str, score: Score) -> None:
    """Thousands marks, decimal commas and the like are guessed by nobody: CAST, with line and column."""
    message = told(score, f'x,c\n{GOOD}"{text}",e\n')

    assert "1 of 5 rows cannot be scored" in message
    assert "CAST x" in message
    assert f"in.csv:6: {text!r} is no number" in message


def test_a_number_past_every_double_is_a_reject_of_its_column(score: Score) -> None:
    """1e400 is RANGE where the model needs a number, and not the infinity that it would be read as."""
    message = told(score, f"x,c\n{GOOD}1e400,e\n")

    assert "RANGE x" in message
    assert "in.csv:6: '1e400' does not fit in float64" in message


@pytest.mark.parametrize("text", ["", "NA", "N/A", "null", "NaN", "nan", "None", "#N/A", "<NA>"])
def test_a_missing_number_is_a_null(text: str, score: Score) -> None:
    """Every usual spelling of a missing number is a null, which is rejected unless it is said what it is."""
    assert "MISSING x" in told(score, f"x,c\n{GOOD}{text},e\n")
    assert score(f"x,c\n{GOOD}{text},e\n", on_null="fill=3")[-1]["y"] == 6.0


def test_a_column_name_twice_is_told_by_name(score: Score) -> None:
    """Two columns of one name are exit 65 with the name, as nobody knows which is meant."""
    assert "column c is there twice" in told(score, "x,c,c\n1,a,b\n")
    assert score("x,c,C\n1,a,b\n")[0]["C"] == "b"


# -- nothing there ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x,c\n", "x,c", "x,c\r\n\r\n", "\ufeffx,c\n", '"x","c"\n'])
def test_a_header_alone_is_an_output_of_no_rows(
    text: str, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A header without rows gives a valid output without rows, and the summary says that there are none."""
    (tmp_path / "in.csv").write_bytes(text.encode())

    done = run(capsys, "score", tmp_path / "in.csv", tmp_path / "out.parquet", "-m", models / "double.onnx")

    assert done.code == 0, done.err
    assert "0 rows" in done.err
    assert pq.read_table(tmp_path / "out.parquet").column_names == ["x", "c", "y"]


@pytest.mark.parametrize("text", ["", "\n", "\r\n\n  \n", " ", "\ufeff", "\ufeff\n"])
def test_a_file_of_nothing_is_refused(text: str, score: Score) -> None:
    """A file that is empty, or has nothing but blanks, is exit 65."""
    assert "in.csv: is empty, without even a header" in told(score, text)


# -- rejects ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("5", "'5' has 1 field, not 2"),
        ("5,a,b", "'5,a,b' has 3 fields, not 2"),
        ("5,a,", "'5,a,' has 3 fields, not 2"),
        ("   ", "'   ' has 1 field, not 2"),
        ('"5"', "'\"5\"' has 1 field, not 2"),
        ('"5,a"', "'\"5,a\"' has 1 field, not 2"),
        (b"5,\xff", r"'5,\\xff' is not UTF-8"),
        (b"5,\xed\xa0\x80", r"'5,\\xed\\xa0\\x80' is not UTF-8"),
    ],
    ids=["short", "long", "long-empty", "blanks", "quoted-short", "quoted-whole", "latin-1", "surrogate"],
)
@pytest.mark.parametrize("size", [1 << 20, 16])
def test_a_record_that_is_none_is_one_reject_with_its_line(
    record: str | bytes, says: str, size: int, score: Score
) -> None:
    """A record of another width or encoding is one reject, with line and text; all others are read."""
    raw = record if isinstance(record, bytes) else record.encode()

    message = told(score, b"x,c\n" + GOOD.encode() + raw + b"\n" + GOOD.encode(), partition_size=size)

    assert "1 of 9 rows cannot be scored" in message
    assert "PARSE" in message
    assert f"in.csv:6: {says}" in message


@pytest.mark.parametrize(
    ("record", "line"),
    [('5,"open', 6), ('"5,open', 6), ('5,"a\n"" b', 6), ('5,"a""', 6)],
    ids=["text", "first-field", "over-lines", "doubled-at-end"],
)
@pytest.mark.parametrize("size", [1 << 20, 16])
def test_an_unclosed_quote_swallows_nothing_in_silence(
    record: str, line: int, size: int, score: Score
) -> None:
    """A quote that is never closed is told with its line and with how much of the file it takes."""
    rest = f"{record}\n{GOOD}"

    message = told(score, f"x,c\n{GOOD}{rest}", partition_size=size)

    assert "1 of 5 rows cannot be scored" in message
    assert f"in.csv:{line}:" in message
    assert f"never closed: the {len(rest)} bytes to the end of the file are one record" in message


@pytest.mark.parametrize("size", [1 << 20, 16])
def test_no_budget_covers_what_an_unclosed_quote_hides(size: int, score: Score, tmp_path: Path) -> None:
    """Rows after a record that does not end are unknown: --max-errors publishes no output without them."""
    text = f'x,c\n{GOOD}5,"open\n{GOOD * 10}'

    message = told(score, text, partition_size=size, max_errors="50%")

    assert "in.csv:6:" in message
    assert "no --max-errors allows for them" in message
    assert "close its quote" in message
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lines_of_a_file_with_carriage_returns_are_counted_by_them(encoding: str, score: Score) -> None:
    """In a file whose lines end in carriage returns, the line of a reject is counted by these alone."""
    text = "x,c\r" + '1,"a\nb"\r' * 4 + "5\r6,f\r"

    message = told(score, text.encode(encoding))

    assert "1 of 6 rows cannot be scored" in message
    assert "in.csv:6: '5' has 1 field, not 2" in message


def test_a_record_that_is_too_long_is_told_with_bounded_memory(
    score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record over the limit is not read to its end: the place and the likely cause are told."""
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 5 << 20)
    long = "word\n" * 4_000_000

    message = told(score, f'x,c\n{GOOD}5,"{long}', type={"c": "text"})

    assert "in.csv:6:" in message
    assert "is longer than 5 MiB: is a quote in it never closed?" in message


@pytest.mark.parametrize("quoted", [True, False], ids=["quoted", "plain"])
def test_a_line_of_many_megabytes_is_read(quoted: bool, score: Score) -> None:
    """A text longer than any block is one text."""
    long = "word\n" * 2_000_000 if quoted else "word " * 2_000_000

    rows = score(f'x,c\n1,"{long}"\n2,b\n' if quoted else f"x,c\n1,{long}\n2,b\n", partition_size=1 << 20)

    assert [row["c"] for row in rows] == [long, "b"]


def test_many_records_that_are_none_are_all_found(score: Score) -> None:
    """Half of 2,000 records with a field too few are 1,000 rejects, the first three with their lines."""
    message = told(score, "x,c\n" + "1,a\n2\n" * 1_000)

    assert "1,000 of 2,000 rows cannot be scored" in message
    assert "in.csv:3:" in message
    assert "in.csv:7:" in message


def test_ten_thousand_columns_are_read(score: Score) -> None:
    """A table may have 10,000 columns; those that nobody wants cost little."""
    names = ["x", *(f"c{i}" for i in range(9_999))]
    line = ",".join(["1"] * 10_000)

    rows = score(f"{','.join(names)}\n{line}\n{line}\n", keep="c9998")

    assert rows == [{"c9998": 1, "y": 2.0}] * 2


# -- others read the same ---------------------------------------------------------------------

CELLS = st.sampled_from(
    ["", "a", "b c", "7", "007", "1.50", "NA", "null", "a,b", 'say "hi"', "two\nlines", "é", " x ", "'q'"]
)


@settings(max_examples=60)
@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=20), st.data())
def test_texts_are_those_that_polars_and_duckdb_read(rows: list[list[str]], data: st.DataObject) -> None:
    """Where Polars and DuckDB agree on the texts of a file, they are ours too; an empty one is a null."""
    import tempfile

    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    lines = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    raw = end.join(["c0,c1,c2", *lines, ""]).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.csv")
        path.write_bytes(raw)
        ours = texts_of(path)
        read = duckdb.read_csv(str(path), all_varchar=True, header=True, delimiter=",", quotechar='"')
        theirs = [tuple(cell or None for cell in row) for row in read.fetchall()]
    polars = pl.read_csv(raw, infer_schema=False).rows()

    if [tuple(cell or None for cell in row) for row in polars] == theirs:
        assert ours == theirs
    assert ours == [tuple(cell or None for cell in row) for row in rows]


def texts_of(path: Path) -> list[tuple[str | None, ...]]:
    """Read a CSV as texts, as a job does; records that are none would be noticed."""
    sources = files.resolve([str(path)])
    asked = Asked(delimiter=",", quote='"', escape="none", header=True, skip_lines=0)
    look = inputs.look(sources, Wish("full", dict.fromkeys(["c0", "c1", "c2"], "text"), asked=asked))
    names = tuple(look.schema.names)
    reading = Reading(schema_=look.schema, columns=names, batch_rows=64, dialect=look.found.dialect)
    parts = [part for each in cutting.whole(sources, look.found.dialect) for part in each.slices]
    items = [item for part in parts for item in inputs.read(part, reading)]
    assert not any(isinstance(item, BadRecord) for item in items)
    blocks = [item.batch for item in items if isinstance(item, Block)]
    return [tuple(row.values()) for batch in blocks for row in batch.to_pylist()]


@given(data=st.data())
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_quick_look_misses_no_odd_integer(delimiter: str, data: st.DataObject) -> None:
    """Where the regular expression finds an integer nobody would write back so, the quick look does too."""
    marks = f"{delimiter}\n\r\"',;0079-+. xXa"
    raw = data.draw(st.text(marks, min_size=1, max_size=40)).encode()
    dialect = Dialect(delimiter=delimiter, quote=data.draw(st.sampled_from(['"', "'", None])))
    text = pa.array([raw], pa.binary())

    found = pc.match_substring_regex(text, options=inference._odd(dialect, doubles=False))[0].as_py()

    with patch.object(inference, "_PIECE_BYTES", data.draw(st.integers(1, 50))):
        assert inference.may_be_odd(raw, dialect) or not found
