"""How a CSV is written: found by itself, overridable, and told by `plan` with how sure it is."""

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import batchserve as bs
import messy
from batchserve import inputs, verify
from batchserve.errors import BatchserveError
from batchserve.inputs import Block, Reading, Wish, cutting, detection, files
from batchserve.inputs.dialect import Asked, Dialect
from messy import CORPUS, Messy
from workbench import ScoreText, run

# -- found by itself --------------------------------------------------------------------------


@pytest.mark.parametrize("each", CORPUS, ids=lambda each: each.name)
def test_a_dialect_that_is_surely_found_is_right(each: Messy) -> None:
    """Of every messy file either the whole dialect is found, or it is said that it is not sure."""
    found = messy.found(each)

    assert messy.right(each, found) or not found.sure


def test_most_messy_files_are_found_right() -> None:
    """All 52 files are found right, as docs/input.md says, and 46 of them surely."""
    found = [messy.found(each) for each in CORPUS]

    assert len(CORPUS) == 52
    assert sum(messy.right(each, seen) for each, seen in zip(CORPUS, found, strict=True)) == 52
    assert sum(seen.sure for seen in found) == 46


@pytest.mark.parametrize("each", CORPUS, ids=lambda each: each.name)
@pytest.mark.parametrize("size", [40, 1 << 20])
def test_a_messy_file_whose_dialect_is_said_is_read(each: Messy, size: int, tmp_path: Path) -> None:
    """With its dialect said, every messy file has its columns and its rows, however it is cut."""
    path = tmp_path / "in.csv"
    path.write_bytes(each.bytes_)
    known = each.dialect
    asked = Asked(
        delimiter=known.delimiter, quote=known.quote, escape=known.escape or "none", header=known.header,
        skip_lines=known.skip_lines, encoding=known.encoding,
    )  # fmt: skip
    sources = files.resolve([str(path)])
    look = inputs.look(sources, Wish("full", asked=asked))
    names = tuple(look.schema.names)
    reading = Reading(schema_=look.schema, columns=names, batch_rows=64, dialect=look.found.dialect)

    partitions = cutting.settled(cutting.partitions(sources, size, known), known)
    slices = [part for partition in partitions for part in partition.slices]
    items = [item for part in slices for item in inputs.read(part, reading)]

    rejected = sum(isinstance(item, inputs.BadRecord) for item in items)
    assert names == tuple(each.columns)
    assert sum(item.batch.num_rows for item in items if isinstance(item, Block)) + rejected == each.rows
    assert rejected == (each.name == "a ragged row") + 2 * (each.name == "one column of sentences")


def test_the_common_csv_imports_no_detector() -> None:
    """A CSV with commas and a header is known without importing the detector."""
    program = (
        "import sys\n"
        "from batchserve.inputs import detection\n"
        "from batchserve.inputs.dialect import Asked\n"
        "found = detection.find(b'a,b\\n1,x\\n2,y\\n', 'utf-8', Asked())\n"
        "assert found.sure and 'clevercsv' not in sys.modules\n"
        "detection.find(b'a;b\\n1;x\\n2;y\\n', 'utf-8', Asked())\n"
        "assert 'clevercsv' in sys.modules\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_detector_that_fails_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the detector fail on a text, commas are assumed and it is said that this is not sure."""
    from clevercsv.detect import Detector

    monkeypatch.setattr(Detector, "detect", lambda *_, **__: 1 / 0)

    found = detection.find(b"a;b\n1;2\n3;4\n", "utf-8", Asked())

    assert (found.dialect.delimiter, found.sure) == (",", False)


def test_the_first_file_says_how_all_are_written(tmp_path: Path, model: Path) -> None:
    """A second file with other marks has other columns, which is drift, not another dialect."""
    (tmp_path / "a.csv").write_text("x;c\n1;a\n2;b\n")
    (tmp_path / "b.csv").write_text("x,c\n1,a\n2,b\n")

    with pytest.raises(BatchserveError, match=r"b\.csv: no column x, c; a column x,c more") as refused:
        bs.score([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "out.parquet", model=model)

    assert refused.value.exit_code == 65


def test_rows_without_a_header_are_numbered_columns(score_text: ScoreText) -> None:
    """Without a header no row is lost, and columns are column_1, column_2, ..."""
    rows = score_text("3,a\n4,b\n", map={"x": "column_1"})

    assert rows == [{"column_1": 3, "column_2": "a", "y": 6.0}, {"column_1": 4, "column_2": "b", "y": 8.0}]


def test_a_header_too_narrow_for_its_rows_is_still_one(score_text: ScoreText) -> None:
    """Rows that end in one delimiter too many are rejects of their number of fields, with the header kept."""
    with pytest.raises(BatchserveError, match=r"in\.csv:2: '1,a,' has 3 fields, not 2"):
        score_text("x,c\n1,a,\n2,b,\n")


ODD = "a report\n\nx;c\r" + "".join(f"{i};'t;{i}'\r" for i in range(40))


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_frames_and_verify_read_any_dialect(encoding: str, tmp_path: Path, model: Path) -> None:
    """A lazy frame has the rows of an odd file, and verify scores some of them again and finds them equal."""
    path, output = tmp_path / "in.csv", tmp_path / "out.parquet"
    path.write_bytes(ODD.replace("\n", "\r").encode(encoding))
    said: dict[str, Any] = {} if encoding == "utf-16" else {"encoding": encoding}

    bs.score(path, output, model=model, partition_size=100, **said)
    frame = bs.scored(path, model=model, partition_size=100, **said).compute()
    verdict = verify.verify(str(output))

    expected = [f"t;{i}" for i in range(40)]
    assert pq.read_table(output)["c"].to_pylist() == expected
    assert frame["c"].to_list() == expected
    assert (verdict.differences, verdict.skipped) == ([], [])
    assert verdict.rows_scored > 0


# -- overridable ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text", "rows"),
    [
        ({"delimiter": ":"}, "x:c\n1:a\n", [(1, "a")]),
        ({"delimiter": "tab"}, "x\tc\n1\ta,b\n", [(1, "a,b")]),
        ({"delimiter": "\\t"}, "x\tc\n1\ta,b\n", [(1, "a,b")]),
        ({"format": "tsv"}, "x\tc\n1\ta,b\n", [(1, "a,b")]),
        ({"quote": "'"}, "x,c\n1,'a,b'\n", [(1, "a,b")]),
        ({"quote": "none"}, 'x,c\n1,"a\n2,b"\n', [(1, '"a'), (2, 'b"')]),
        ({"escape": "!"}, "x,c\n1,a!,b\n", [(1, "a,b")]),
        ({"escape": "!"}, "x,c\n1,a!\n2\n3,b\n", [(1, "a\n2"), (3, "b")]),
        ({"escape": "none"}, 'x,c\n1,"a\\"\n', [(1, "a\\")]),
        ({"escape": '"'}, 'x,c\n1,"a""b"\n', [(1, 'a"b')]),
        ({"skip_lines": 2}, "y,z\n5,d\nx,c\n1,a\n", [(1, "a")]),
        ({"skip_lines": 1, "delimiter": ";"}, "a;b\r\nx;c\r\n1;a\r\n", [(1, "a")]),
        ({"skip_lines": 1}, '"two\nx,c\n1,a\n', [(1, "a")]),
    ],
    ids=range(13),
)
def test_what_is_said_of_a_dialect_holds(
    options: dict[str, Any], text: str, rows: list[tuple[int, str]], score_text: ScoreText
) -> None:
    """Every part of the dialect can be said, and the rest is found beside it."""
    assert [(row["x"], row["c"]) for row in score_text(text, **options)] == rows


def test_a_header_can_be_said_to_be_a_row_and_a_row_to_be_a_header(score_text: ScoreText) -> None:
    """--header decides, whatever the first record looks like."""
    assert len(score_text("x,c\n1,a\n", header="no", map={"x": "column_1"}, type={"column_1": "text"},
                     on_null="nan", keep="none", limit=1, skip_lines=1)) == 1  # fmt: skip
    assert score_text("1,2\n3,4\n", header="yes", map={"x": "1"}) == [{"1": 3, "2": 4, "y": 6.0}]


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz", "A.TSV"])
def test_the_suffix_tsv_says_tabs(name: str, tmp_path: Path) -> None:
    """A file named .tsv has tabs between its fields, even where commas would do, and it is not guessed."""
    path = tmp_path / name
    text = b"a,b\tc\n1,2\t3\n"
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    look = inputs.look(files.resolve([str(path)]), Wish())

    assert look.schema.names == ["a,b", "c"]
    assert look.found.said == ("delimiter",)


# -- told -------------------------------------------------------------------------------------


SURE = "header on line 1, LF, utf-8; found, sure"


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("x,c\n1,a\n", {}, f"""',' between fields, '"' quotes, {SURE}"""),
        ("x;c\n1;a\n2;b\n3;c\n", {}, f"""';' between fields, '"' quotes, {SURE}"""),
        ("a report\n\nx;c\r\n1;a\r\n2;b\r\n3;c\r\n", {},
         """';' between fields, '"' quotes, header on line 3, CRLF, utf-8; found, sure"""),
        ("x;c\n1;a\n2;b\n3;c\n", {"encoding": "latin-1", "quote": "none"},
         "';' between fields, no quotes, header on line 1, LF, iso8859-1; quote, encoding as said, the rest"),
        ("x\n1\n2\n3, 4\n", {}, "header on line 1, LF, utf-8; found, not sure"),
    ],
    ids=["common", "semicolon", "preamble", "said", "unsure"],
)  # fmt: skip
def test_plan_says_what_was_found_and_how_sure(
    text: str, options: Any, says: str, tmp_path: Path, model: Path
) -> None:
    """`plan` has one line for the dialect: what it is, what of it was said, and whether it is sure."""
    (tmp_path / "in.csv").write_bytes(text.encode())

    planned = bs.plan(tmp_path / "in.csv", model=model, **options)

    assert says in planned.facts()["dialect"]


@pytest.mark.parametrize(
    ("text", "flags", "note"),
    [
        ("x,c\n1,a\n", (), ""),
        ("x;c\n1;a\n2;b\n3;c\n", (), ""),
        ("a report\n\nx;c\n1;a\n2;b\n3;c\n", (), "in.csv is read with ';' between fields"),
        ("a report\n\nx;c\n1;a\n2;b\n3;c\n", ("--skip-lines", "2"), ""),
        ("1,2\n3,4\n", ("--map", "x=column_1"), "no header, rows from line 1"),
    ],
    ids=["common", "semicolon", "preamble", "preamble-said", "nameless"],
)
def test_score_says_what_may_be_wrong(
    text: str, flags: tuple[str, ...], note: str, tmp_path: Path, model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """`score` says how a file was read where lines were left out, no header was seen, or it is not sure."""
    (tmp_path / "in.csv").write_text(text)

    done = run(capsys, "score", tmp_path / "in.csv", tmp_path / "out.parquet", "-m", model, *flags)

    assert done.code == 0, done.err
    assert (note in done.err) if note else ("is read with" not in done.err)


def test_a_column_that_is_missing_from_a_doubtful_file_is_told_with_its_dialect(
    score_text: ScoreText,
) -> None:
    """Where a column is missing because the header was taken for a row, the message says what was found."""
    with pytest.raises(BatchserveError, match=r"(?s)no column x.*no header, rows from line 1") as refused:
        score_text("1,2\n3,4\n")

    assert refused.value.exit_code == 70


def test_the_plan_is_the_same_whether_a_dialect_was_found_or_said(tmp_path: Path, model: Path) -> None:
    """Saying what would have been found changes neither the plan nor the bytes."""
    path = tmp_path / "in.csv"
    path.write_text("x;c\n1;a\n2;b\n")

    found = bs.plan(path, model=model)
    said = bs.plan(path, model=model, delimiter=";", header="yes", skip_lines=0)
    other = bs.plan(path, model=model, quote="'")

    assert found.plan_id == said.plan_id != other.plan_id


def test_a_dialect_names_its_marks() -> None:
    """Marks that are not seen are named."""
    assert str(Dialect(delimiter="\t", quote=None, escape="\\", header=False, skip_lines=2)) == (
        "tab between fields, no quotes, '\\\\' escapes, no header, rows from line 3, LF, utf-8"
    )
