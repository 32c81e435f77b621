"""Where records start and end: any text, cut anywhere, gives the rows of a slow reader."""

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batchserve as bs
import models
from batchserve import chain, inputs
from batchserve.inputs import Block, Extent, Partition, Reading, files, quotes, records

# -- a slow reference -------------------------------------------------------------------------


def slow_ends(text: bytes) -> list[int]:
    """Walk byte by byte: a quote opens only at the start of a field, two inside one stand for one."""
    ends, state = [], "start"
    for i, byte in enumerate(text):
        if state == "quoted":
            state = "closed" if byte == ord('"') else "quoted"
        elif byte == ord('"') and state in {"start", "closed"}:
            state = "quoted"
        elif byte == ord("\n"):
            ends.append(i + 1)
            state = "start"
        else:
            state = "start" if byte == ord(",") else "plain"
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

PIECES = ("a", "bc", '"', '""', ",", '",', ',"', "\n", "\r\n", '"\n', '\n"', '",\n"', " ", "7", "\u00e9")
"""What a text is made of: mostly what misleads a reader that guesses."""

field_texts = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
raw_texts = st.lists(st.sampled_from(PIECES), max_size=40).map(lambda pieces: "".join(pieces).encode())


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, list[list[str]]]:
    """Draw a CSV as a careful writer gives it, and the rows in it."""
    width = draw(st.integers(2, 4))
    rows = draw(st.lists(st.lists(field_texts, min_size=width, max_size=width), min_size=1, max_size=30))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    names = ",".join(f"c{i}" for i in range(width))
    lines = [",".join(quoted(field, always=draw(st.booleans())) for field in row) for row in rows]
    text = end.join([names, *lines]) + draw(st.sampled_from([end, ""]))
    mark = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    return mark + text.encode(), rows


def quoted(field: str, *, always: bool) -> str:
    if always or any(c in field for c in '",\r\n'):
        return '"' + field.replace('"', '""') + '"'
    return field


def lent(text: bytes) -> bytes:
    """Return a text whose last line is ended."""
    return text if text.endswith(b"\n") else text + b"\n"


# -- the parts of the reader ------------------------------------------------------------------


@given(raw_texts, st.integers(0, 60))
def test_end_at_is_the_first_record_end_from_there(text: bytes, least: int) -> None:
    """`end_at` finds the end that the slow reference finds, in any text however malformed."""
    expected = next((end for end in slow_ends(text) if end >= max(least, 1)), -1)

    assert quotes.end_at(text, least) == expected


@given(raw_texts)
def test_last_end_is_the_end_of_the_last_whole_record(text: bytes) -> None:
    """`last_end` finds the last end of the slow reference: an open quote at the end hides later lines."""
    assert quotes.last_end(text) == (slow_ends(text) or [-1])[-1]


@given(raw_texts)
def test_record_starts_are_after_the_ends_of_records(text: bytes) -> None:
    """`record_starts` gives a start for every record that is not blank, as the reader counts rows."""
    ends = slow_ends(lent(text))
    whole = lent(text)[: (ends or [0])[-1]]
    starts = [0, *ends[:-1]] if ends else []
    spans = zip(starts, ends, strict=True)

    found = quotes.record_starts(whole)

    assert found == [start for start, end in spans if whole[start:end].strip(b"\r\n")]


@given(tables(), st.data())
def test_the_first_record_is_a_line_start_at_or_after_the_target(
    table: tuple[bytes, list[list[str]]], data: st.DataObject
) -> None:
    """The guess of a record's start is after a line end or the end of the file, never before its target."""
    text, _ = table
    target = data.draw(st.integers(1, len(text)))

    found = quotes.first_record(io.BytesIO(text), target)

    assert target <= found <= len(text)
    assert found == len(text) or text[found - 1 : found] == b"\n"


@given(raw_texts, st.data())
def test_without_a_quote_the_first_record_is_no_guess(text: bytes, data: st.DataObject) -> None:
    """In a text without quotes the record found is the one that the slow reference finds."""
    plain = b"a\n" + text.replace(b'"', b"")
    target = data.draw(st.integers(1, len(plain)))
    expected = next((end for end in slow_ends(plain) if end >= target), len(plain))

    assert quotes.first_record(io.BytesIO(plain), target) == expected


def test_a_target_inside_a_quoted_text_finds_the_next_record() -> None:
    """The line ends of a quoted text are not taken for record ends where its quotes show what it is."""
    text = b'1,"one\ntwo\nthree",x\n2,"four",y\n'

    found = [quotes.first_record(io.BytesIO(text), target) for target in (5, 9, 14, 20, 21)]

    assert found == [20, 20, 20, 20, 31]


# -- whole files ------------------------------------------------------------------------------


def rows_of(path: Path, size: int) -> list[dict[str, Any]]:
    """Read a file in partitions of `size` bytes as a job does, wrong guesses corrected."""
    sources = files.resolve([str(path)])
    found = inputs.look(sources, inputs.Wish("full"))
    if path.suffix == ".csv":
        found = inputs.look(sources, inputs.Wish("full", types=dict.fromkeys(found.schema.names, "text")))
    reading = Reading(schema_=found.schema, columns=tuple(found.schema.names), batch_rows=64)
    partitions = inputs.partitions(sources, size)
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


@settings(max_examples=100)
@given(tables(), st.data())
def test_a_csv_reads_equal_whatever_the_split(
    table: tuple[bytes, list[list[str]]], data: st.DataObject
) -> None:
    """Any partition size and block size gives the rows that Python's csv module reads from the file."""
    text, rows = table
    expected = expected_rows(text)
    assert [list(row.values()) for row in expected] == [[field or None for field in row] for row in rows]
    sizes = data.draw(st.lists(st.integers(64, 600), min_size=1, max_size=3))
    block = data.draw(st.sampled_from([1, 7, 50, 1 << 22]))
    window = data.draw(st.sampled_from([16, 100, 1 << 18]))

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK_BYTES", block)
        patch.setattr(quotes, "_WINDOW_BYTES", window)
        path = Path(folder, "in.csv")
        path.write_bytes(text)
        found = [rows_of(path, size) for size in [*sizes, 1 << 30]]

    assert all(read == expected for read in found)


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
    lines = ["row,note,kind", *(",".join(quoted(field, always=i % 2 == 0) for field in row)
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


def test_bare_carriage_returns_are_refused(tmp_path: Path) -> None:
    """A file whose lines end in bare carriage returns is exit 65, not a header without rows."""
    path = tmp_path / "in.csv"
    path.write_bytes(b"note,kind\rone,red\rtwo,green\r")
    model = models.texts(tmp_path)

    with pytest.raises(bs.BatchserveError, match=r"in\.csv") as caught:
        bs.score(path, tmp_path / "out.parquet", model=model)

    assert caught.value.exit_code == 65


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
