"""Where records start and end: any text, cut anywhere, gives the rows of a slow reader."""

import contextlib
import csv
import io
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import batchserve as bs
import models
from batchserve import chain, inputs
from batchserve.inputs import (
    BadRecord,
    Block,
    Extent,
    Partition,
    Reading,
    Wish,
    cutting,
    files,
    quotes,
    records,
)
from batchserve.inputs.dialect import Asked, Dialect

# -- a slow reference -------------------------------------------------------------------------


COMMON = Dialect()
DIALECTS = (
    COMMON,
    Dialect(delimiter=";", quote="'"),
    Dialect(delimiter="\t", quote=None),
    Dialect(delimiter="|", escape="\\"),
    Dialect(escape="\\", quote=None),
    Dialect(delimiter="^", quote="-", escape="]"),
    Dialect(line_end="CR"),
    Dialect(delimiter=";", escape="\\", line_end="CR"),
)


def slow_ends(text: bytes, dialect: Dialect = COMMON, *, rows: bool = False) -> list[int]:
    """Walk byte by byte: a quote opens only at the start of a field, two inside one stand for one.

    A carriage return ends a row for Arrow, as a line feed does; but files are cut only at one of them,
    and give the ends of `rows` only where they are asked for.
    """
    ends, state, taken = [], "start", False
    for i, byte in enumerate(text.decode("latin-1")):
        if taken or byte == dialect.escape:
            taken, state = not taken, "plain" if state in {"start", "closed"} else state
        elif state == "quoted":
            state = "closed" if byte == dialect.quote else "quoted"
        elif byte == dialect.quote and state in {"start", "closed"}:
            state = "quoted"
        elif byte in "\r\n":
            ends += [i + 1] if rows or byte == dialect.terminator.decode() else []
            state = "start"
        else:
            state = "start" if byte == dialect.delimiter else "plain"
    return ends


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (b"", []),
        (b"a,b", []),
        (b"a\nb\n", [2, 4]),
        (b'"a\nb"\nc', [6]),
        (b'"a""\n"\n', [7]),
        (b'a"b\n"c\n"\n', [4, 9]),
        (b'"a"b"\n', [6]),
        (b'x,"never closed\n\n', []),
        (b'"",""\r\n,\r\n', [7, 10]),
    ],
)
def test_the_slow_reference_ends_records_as_worked_by_hand(text: bytes, ends: list[int]) -> None:
    """The reference that the properties below rest on is right where a person can check it."""
    assert slow_ends(text) == ends


# -- texts ------------------------------------------------------------------------------------

PIECES = (
    "a", "bc", '"', '""', ",", '",', ',"', "\n", "\r\n", '"\n', '\n"', '",\n"', " ", "7", "\u00e9",
    "\\", '\\"', "\\\\", "\r",
)  # fmt: skip
"""What a text is made of: mostly what misleads a reader that guesses."""

dialects = st.sampled_from(DIALECTS)
field_texts = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
pieces = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


def in_dialect(text: str, dialect: Dialect) -> bytes:
    """Write what misleads a reader of the common CSV so that it misleads one of this dialect."""
    end = "\r" if dialect.line_end == "CR" else "\n"
    marks = {",": dialect.delimiter, '"': dialect.quote or '"', "\\": dialect.escape or "\\", "\n": end}
    return "".join(marks.get(character, character) for character in text).encode()


@st.composite
def tables(draw: st.DrawFn, dialect: Dialect = COMMON) -> tuple[bytes, list[list[str]]]:
    """Draw a CSV as a careful writer gives it, and the rows in it."""
    width = draw(st.integers(2, 4))
    rows = draw(st.lists(st.lists(field_texts, min_size=width, max_size=width), min_size=1, max_size=30))
    if not dialect.quote and not dialect.escape:
        special = str.maketrans(dict.fromkeys(f"{dialect.delimiter}\r\n", "_"))
        rows = [[field.translate(special) for field in row] for row in rows]
    end = "\r" if dialect.line_end == "CR" else draw(st.sampled_from(["\n", "\r\n"]))
    names = [f"c{i}" for i in range(width)]
    lines = [
        dialect.delimiter.join(written(field, dialect, always=draw(st.booleans())) for field in row)
        for row in [names, *rows]
    ]
    text = end.join(lines) + draw(st.sampled_from([end, ""]))
    mark = draw(st.sampled_from(["", "\ufeff"])) if dialect.encoding == "utf-8" else ""
    return (mark + text).encode(dialect.encoding), rows


def written(field: str, dialect: Dialect, *, always: bool) -> str:
    """Write a field so that any reader of the dialect gives it back."""
    escape = dialect.escape
    if escape:
        field = field.replace(escape, escape * 2)
    if dialect.quote and (always or any(c in field for c in f"{dialect.delimiter}{dialect.quote}\r\n")):
        quote = dialect.quote
        return quote + field.replace(quote, (escape or quote) + quote) + quote
    special = f"{dialect.delimiter}\r\n"
    return "".join(f"{escape}{c}" if c in special else c for c in field)


# -- the parts of the reader ------------------------------------------------------------------


@settings(max_examples=400)
@given(pieces, dialects, st.integers(0, 60))
def test_end_at_is_the_first_record_end_from_there(text: str, dialect: Dialect, least: int) -> None:
    """`end_at` finds the end that the slow reference finds, in any text however malformed."""
    raw = in_dialect(text, dialect)
    expected = next((end for end in slow_ends(raw, dialect) if end >= max(least, 1)), -1)

    assert quotes.of(dialect).end_at(raw, least) == expected


@settings(max_examples=400)
@given(pieces, dialects)
def test_last_end_is_the_end_of_the_last_whole_record(text: str, dialect: Dialect) -> None:
    """`last_end` finds the last end of the slow reference: an open quote at the end hides later lines."""
    raw = in_dialect(text, dialect)

    assert quotes.of(dialect).last_end(raw) == (slow_ends(raw, dialect) or [-1])[-1]


@settings(max_examples=400)
@given(pieces, dialects)
def test_records_are_what_arrow_reads_as_rows(text: str, dialect: Dialect) -> None:
    """Each record by itself is a row for Arrow, the row that it is among the others; blank ones are none."""
    raw = in_dialect(text, dialect)
    whole = raw[: max(0, quotes.of(dialect).last_end(raw))]
    edges = [*quotes.of(dialect).starts(whole), len(whole)]
    alone = [arrow_row(whole[a:b], dialect) for a, b in itertools.pairwise(edges)]
    assert None not in alone
    width = len(alone[0] or ()) if alone else 0
    widths = quotes.of(dialect).widths(whole, edges[:-1])
    assert widths.tolist() == [len(row or ()) for row in alone]

    if len(alone) > 0 and all(row is not None and len(row) == width for row in alone):
        assert arrow_rows(whole, width, dialect) == alone


def arrow_rows(raw: bytes, width: int, dialect: Dialect) -> list[tuple[str, ...]]:
    names = [f"c{i}" for i in range(width)]
    table = pacsv.read_csv(
        pa.BufferReader(raw),
        read_options=pacsv.ReadOptions(use_threads=False, block_size=len(raw) + 1, column_names=names),
        parse_options=pacsv.ParseOptions(
            delimiter=dialect.delimiter, quote_char=dialect.quote or False,
            escape_char=dialect.escape or False, newlines_in_values=True,
        ),
        convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )  # fmt: skip
    return [tuple(row[name] for name in names) for row in table.to_pylist()]


def arrow_row(raw: bytes, dialect: Dialect) -> tuple[str, ...] | None:
    """Return the fields of the one row that Arrow reads, or None if it reads another number of rows."""
    for width in range(1, 60):
        with contextlib.suppress(pa.ArrowInvalid):
            rows = arrow_rows(raw, width, dialect)
            return rows[0] if len(rows) == 1 else None
    return None


@given(tables(), st.data())
def test_the_first_record_is_a_line_start_at_or_after_the_target(
    table: tuple[bytes, list[list[str]]], data: st.DataObject
) -> None:
    """The guess of a record's start is after a line end or the end of the file, never before its target."""
    text, _ = table
    target = data.draw(st.integers(1, len(text)))

    found = quotes.of(COMMON).first_record(io.BytesIO(text), target)

    assert target <= found <= len(text)
    assert found == len(text) or text[found - 1 : found] == b"\n"


@given(pieces, dialects, st.data())
def test_without_a_quote_the_first_record_is_no_guess(
    text: str, dialect: Dialect, data: st.DataObject
) -> None:
    """In a text without quotes the record found is the one that the slow reference finds."""
    raw = in_dialect("a\n" + text.replace('"', "").replace("\\", ""), dialect)
    target = data.draw(st.integers(1, len(raw)))
    expected = next((end for end in slow_ends(raw, dialect) if end >= target), len(raw))

    assert quotes.of(dialect).first_record(io.BytesIO(raw), target) == expected


def test_a_target_inside_a_quoted_text_finds_the_next_record() -> None:
    """The line ends of a quoted text are not taken for record ends where its quotes show what it is."""
    text = b'1,"one\ntwo\nthree",x\n2,"four",y\n'

    found = [quotes.of(COMMON).first_record(io.BytesIO(text), target) for target in (5, 9, 14, 20, 21)]

    assert found == [20, 20, 20, 20, 31]


# -- whole files ------------------------------------------------------------------------------

SAID = Asked(quote='"', escape="none", header=True, skip_lines=0, delimiter=",")
"""What is asked for where the dialect is not to be found: texts made to mislead are not alike."""


def rows_of(path: Path, size: int, asked: Asked = SAID) -> list[dict[str, Any]]:
    """Read a file in partitions of `size` bytes as a job does, wrong guesses corrected."""
    sources = files.resolve([str(path)])
    asked = asked if path.suffix == ".csv" else Asked()
    found = inputs.look(sources, Wish("full", asked=asked))
    if path.suffix == ".csv":
        texts = dict.fromkeys(found.schema.names, "text")
        found = inputs.look(sources, Wish("full", types=texts, asked=asked))
    dialect = found.found.dialect
    columns = tuple(found.schema.names)
    reading = Reading(schema_=found.schema, columns=columns, batch_rows=64, dialect=dialect)
    partitions = cutting.partitions(sources, size, dialect)
    read = {p.index: scanned(p, reading) for p in partitions}
    receipts: Any = {i: receipt(extents) for i, (_, extents) in read.items()}
    for _ in partitions:
        if (wrong := chain.misguessed(partitions, receipts)) is None:
            break
        read[wrong.index] = scanned(wrong, reading)
        receipts[wrong.index] = receipt(read[wrong.index][1])
    assert chain.misguessed(partitions, receipts) is None
    return [row for p in partitions for row in read[p.index][0]]


def receipt(extents: list[tuple[int, int]]) -> Any:
    return SimpleNamespace(facts=SimpleNamespace(extents=extents))


def scanned(partition: Partition, reading: Reading) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """Return the rows of one partition and the extent of each of its slices."""
    items = [item for part in partition.slices for item in inputs.read(part, reading)]
    rows = [row for item in items if isinstance(item, Block) for row in item.batch.to_pylist()]
    return rows, [(item.start, item.stop) for item in items if isinstance(item, Extent)]


def expected_rows(text: bytes) -> list[dict[str, Any]]:
    """Read a CSV with Python's own reader; an empty text is a null."""
    names, *rows = csv.reader(io.StringIO(text.decode("utf-8-sig"), newline=""))
    return [dict(zip(names, (field or None for field in row), strict=True)) for row in rows]


def test_the_careful_writer_is_understood_by_pythons_reader() -> None:
    """What the tables below are written with gives Python's csv module the fields that were written."""
    fields = ["a", "", 'b"', '"', ",", "x,\ny", '""', " "]

    line = ",".join(written(field, COMMON, always=False) for field in fields)

    assert next(csv.reader(io.StringIO(line, newline=""))) == fields


def test_a_wrong_guess_in_a_second_slice_costs_the_first_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file a byte larger than a partition is two slices of one: the first keeps its rows."""
    monkeypatch.setattr(quotes, "_WINDOW_BYTES", 16)
    text = b'c0,c1,c2\n,"aa"","",","aaa"",\n""\\"""\n,"abc""""""\n",""",""\n""\n"",\n"""",\n"""\n'
    path = tmp_path / "in.csv"
    path.write_bytes(text)
    asked = Asked(delimiter=",", quote='"', escape="none", header=True, skip_lines=0)

    assert rows_of(path, 64, asked) == rows_of(path, 1 << 30, asked)
    assert len(rows_of(path, 64, asked)) == 2


@settings(max_examples=200)
@given(st.data())
def test_a_csv_reads_equal_whatever_the_split(data: st.DataObject) -> None:
    """Any partition size and block size gives the rows that were written, in any dialect and encoding."""
    encoding = data.draw(st.sampled_from(["utf-8", "cp1252", "utf-16", "utf-16-le"]))
    dialect = data.draw(dialects).model_copy(update={"encoding": encoding})
    text, rows = data.draw(tables(dialect))
    expected = [{f"c{i}": field or None for i, field in enumerate(row)} for row in rows]
    asked = Asked(
        delimiter=dialect.delimiter, quote=dialect.quote or "none", escape=dialect.escape or "none",
        header=True, skip_lines=0, encoding=encoding,
    )  # fmt: skip
    sizes = data.draw(st.lists(st.integers(64, 600), min_size=1, max_size=3))
    block = data.draw(st.sampled_from([1, 7, 50, 1 << 22]))
    window = data.draw(st.sampled_from([16, 100, 1 << 18]))

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK_BYTES", block)
        patch.setattr(quotes, "_WINDOW_BYTES", window)
        path = Path(folder, "in.csv")
        path.write_bytes(text)
        found = [rows_of(path, size, asked) for size in [*sizes, 1 << 30]]

    assert all(read == expected for read in found)


@settings(max_examples=150)
@given(pieces, dialects, st.data())
def test_every_record_is_a_row_or_a_reject(text: str, dialect: Dialect, data: st.DataObject) -> None:
    """However malformed a text is, each record of the slow reference is read or rejected, at every size."""
    raw = in_dialect("c0,c1\n" + text, dialect)
    whole = raw + 2 * dialect.terminator
    last = slow_ends(whole, dialect)[-1]
    unclosed = last < len(raw)  # all from there on is one record
    ends = [end for end in slow_ends(whole, dialect, rows=True) if end <= last]
    count = sum(bool(whole[a:b].strip(b"\r\n")) for a, b in itertools.pairwise([0, *ends])) - 1
    asked = Asked(
        delimiter=dialect.delimiter, quote=dialect.quote or "none", escape=dialect.escape or "none",
        header=True, skip_lines=0,
    )  # fmt: skip
    size = data.draw(st.integers(8, 100))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.csv")
        path.write_bytes(raw)
        sources = files.resolve([str(path)])
        found = inputs.look(sources, Wish(asked=asked))
        assume(found.found.dialect.terminator == dialect.terminator)
        reading = Reading(
            schema_=found.schema, columns=("c0", "c1"), batch_rows=64, dialect=dialect, fixed=("c0", "c1")
        )
        exact = cutting.settled(cutting.partitions(sources, size, dialect), dialect)
        items = [item for each in exact for part in each.slices for item in inputs.read(part, reading)]

    rows = sum(item.batch.num_rows for item in items if isinstance(item, Block))
    rejects = sum(isinstance(item, BadRecord) for item in items)
    assert rows + rejects == count + unclosed


@settings(max_examples=100)
@given(st.lists(field_texts, min_size=1, max_size=30), st.data())
def test_json_lines_read_equal_whatever_the_split(texts: Sequence[str], data: st.DataObject) -> None:
    """Any partition size and block size gives the objects that Python's json module reads line by line."""
    escape = data.draw(st.booleans())
    end = data.draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
    lines = [json.dumps({"i": i, "t": t}, ensure_ascii=escape) for i, t in enumerate(texts)]
    raw = end.join(lines) + data.draw(st.sampled_from([end, ""]))
    sizes = data.draw(st.lists(st.integers(64, 600), min_size=1, max_size=3))
    block = data.draw(st.sampled_from([1, 7, 50, 1 << 22]))

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK_BYTES", block)
        path = Path(folder, "in.jsonl")
        path.write_bytes(raw.encode())
        found = [rows_of(path, size) for size in [*sizes, 1 << 30]]

    assert all(read == [json.loads(line) for line in lines] for read in found)


HARD = ('say ""so""', "two\nlines", 'a,"\n",b', "", "plain", '","\r\n","', '"\n', "\n\n\n", '""')


@pytest.mark.parametrize(("end", "output"), [("\n", "out.parquet"), ("\r\n", "out")], ids=["LF", "CRLF"])
def test_a_job_keeps_hard_texts_whatever_the_split(end: str, output: str, tmp_path: Path) -> None:
    """Texts full of quotes and line ends come out of `score` as they were, in order, at every size."""
    rows = [(str(i), HARD[i % len(HARD)] * (i % 3 + 1), "red") for i in range(90)]
    lines = ["row,note,kind", *(",".join(written(field, COMMON, always=i % 2 == 0) for field in row)
                                for i, row in enumerate(rows))]  # fmt: skip
    path = tmp_path / "in.csv"
    path.write_bytes(end.join(lines).encode())
    model = models.texts(tmp_path)

    for size in (64, 1_500, None):
        report = bs.score(
            path, tmp_path / output, model=model, partition_size=size, workers=2, overwrite=True
        )

        table = pq.read_table(tmp_path / output)
        assert report.partitions > (1 if size else 0)
        assert table["row"].to_pylist() == list(range(90))
        assert table["note"].to_pylist() == [note or None for _, note, _ in rows]
        assert set(table["colour"].to_pylist()) == {"rouge"}


def test_a_quoted_text_longer_than_any_window_is_no_rows(tmp_path: Path) -> None:
    """Half a megabyte of quoted lines that look like records, cut many times, stays one text."""
    path, long = tmp_path / "in.csv", "7,red\n" * 90_000
    path.write_text(f'note,kind\n1,green\n"{long}",blue\n2,red\n')

    report = bs.score(path, tmp_path / "out.parquet", model=models.texts(tmp_path), partition_size=100_000)

    table = pq.read_table(tmp_path / "out.parquet")
    assert report.partitions == 6
    assert table["note"].to_pylist() == ["1", long, "2"]
    assert table["colour"].to_pylist() == ["vert", "bleu, \u2713", "rouge"]


def test_a_stray_quote_does_not_tear_later_records(tmp_path: Path) -> None:
    """A quote in the middle of a field is a character like others, beside records with quoted lines."""
    lines = [f'{i},"first\nsecond {i}",6" pipe' for i in range(60)]
    path = tmp_path / "in.csv"
    path.write_text("row,note,size\n" + "\n".join(lines) + "\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK_BYTES", 100)
        found = [rows_of(path, size) for size in (64, 1_000, 1 << 30)]

    expected = [{"row": str(i), "note": f"first\nsecond {i}", "size": '6" pipe'} for i in range(60)]
    assert found == [expected] * 3


@pytest.mark.parametrize("stray", ["", 'a 6" pipe,\n'], ids=["", "beside a stray quote"])
def test_a_quote_that_is_never_closed_is_one_bad_record(stray: str, tmp_path: Path) -> None:
    """Rows after an unclosed quote are not lost in silence: the job says in which line it was opened."""
    before = "".join(f"{i},red\n" for i in range(10))
    after = "".join(f"{i},green\n" for i in range(10))
    path = tmp_path / "in.csv"
    path.write_text(f'note,kind\n{stray}{before}"open,red\n{after}')
    model = models.texts(tmp_path)

    with pytest.raises(bs.BatchserveError, match="never closed") as caught:
        bs.score(path, tmp_path / "out.parquet", model=model, on_null="fill=x")

    assert caught.value.exit_code == 65
    assert f"in.csv:{13 if stray else 12}" in str(caught.value)
    assert not (tmp_path / "out.parquet").exists()


def test_bare_carriage_returns_end_records(tmp_path: Path) -> None:
    """A file whose lines end in bare carriage returns is read like any other, in any number of parts."""
    path = tmp_path / "in.csv"
    path.write_bytes(b"note,kind\r" + b'one,red\r"two\rlines",green\r' * 100)
    model = models.texts(tmp_path)

    report = bs.score(path, tmp_path / "out.parquet", model=model, partition_size=500)

    assert report.partitions > 3
    assert pq.read_table(tmp_path / "out.parquet")["note"].to_pylist() == ["one", "two\rlines"] * 100


def test_the_types_of_a_table_do_not_depend_on_the_split(tmp_path: Path) -> None:
    """The schema of the output is the same at every partition size, as is every value."""
    path = tmp_path / "in.csv"
    path.write_text("row,kind\n" + "".join(f"{i},red\n" for i in range(2_000)))
    model = models.texts(tmp_path)

    for size in (500, 1 << 20):
        bs.score(path, tmp_path / f"{size}.parquet", model=model, partition_size=size)

    few, many = pq.read_table(tmp_path / f"{1 << 20}.parquet"), pq.read_table(tmp_path / "500.parquet")
    assert many.schema.field("row").type == pa.int64()
    assert many.equals(few)
