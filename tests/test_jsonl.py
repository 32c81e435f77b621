"""What is one JSON line: an object between two line feeds, in UTF-8; Arrow alone is less strict."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import batchserve as bs
import models

GOOD = '{"kind": "red", "n": 1}'


def refused(folder: Path, lines: bytes) -> list[tuple[int, int, str]]:
    """Score lines; return number, offset and reason of those that are rejects."""
    (folder / "in.jsonl").write_bytes(lines)
    report = bs.score(
        folder / "in.jsonl", folder / "out.parquet", model=models.texts(folder), max_errors="100%",
        overwrite=True,
    )  # fmt: skip
    rejects = folder / "out.rejects.jsonl"
    found = [json.loads(line) for line in rejects.read_text().splitlines()] if rejects.exists() else []
    assert report.rows == pq.read_metadata(folder / "out.parquet").num_rows
    return [(each["record"], each["byte_offset"], each["reason"]) for each in found]


@pytest.mark.parametrize("between", ["", " ", "\r", "\t"])
def test_two_objects_in_a_line_are_no_record(between: str, tmp_path: Path) -> None:
    """Two objects that nothing or a blank parts are one reject: rows are never counted by objects."""
    lines = f"{GOOD}\n{GOOD}{between}{GOOD}\n{GOOD}\n"

    assert refused(tmp_path, lines.encode()) == [(2, 24, "is no JSON")]


def test_an_object_over_two_lines_is_two_bad_records(tmp_path: Path) -> None:
    """A line end inside an object ends the record, even where two objects in a line make up for it."""
    lines = f'{GOOD}\n{{"kind": "red",\n"n": 2}}\n{GOOD}{GOOD}\n{GOOD}\n'

    assert [record for record, _, _ in refused(tmp_path, lines.encode())] == [2, 3, 4]


@pytest.mark.parametrize(
    "bad", [b'{"kind": "r\xe9d", "n": 2}', b'{"kind": "red", "n\xe9": 2}', b'{"k\xff": {"\xfe": 1}}']
)
def test_a_line_that_is_not_utf8_is_a_reject(bad: bytes, tmp_path: Path) -> None:
    """Malformed text in a value or a key never comes out as it is."""
    lines = GOOD.encode() + b"\n" + bad + b"\n" + GOOD.replace("red", "caf\u00e9").encode() + b"\n"

    assert refused(tmp_path, lines) == [(2, 24, "is not UTF-8")]


def test_blank_lines_and_blanks_round_objects_are_no_fault(tmp_path: Path) -> None:
    """Blank lines, CRLF and blanks before and after objects leave every object a record."""
    assert refused(tmp_path, f"\n {GOOD}\r\n\r\n\t{GOOD} \n\n{GOOD}".encode()) == []
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == 3
