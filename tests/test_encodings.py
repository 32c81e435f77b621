"""Encodings: the same rows whatever the text is written in, offsets that people can use, bad bytes told."""

import codecs
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchserve.errors import BatchserveError
from batchserve.inputs import encodings
from workbench import ScoreText, run

WORDS = ("Zoë", "Łódź", "Ærø", "naïve", "x")
CYRILLIC = ("Привет", "мир", "x")
JAPANESE = ("日本", "東京ソ表", "x")  # the second byte of these in Shift JIS is a backslash
SINGLE = {"latin-1": ("Zoë", "Ærø"), "cp1252": ("€uro", "Zoë"), "cp1250": ("Łódź",), "koi8-r": CYRILLIC,
          "cp437": ("naïve",), "mac-roman": ("Ærø",)}  # fmt: skip
STREAMED = {"utf-16": WORDS, "utf-16-le": WORDS, "utf-16-be": WORDS, "utf-32": WORDS, "utf-7": WORDS,
            "shift_jis": JAPANESE, "gb18030": JAPANESE, "euc-jp": JAPANESE, "big5": ("東京",),
            "iso2022_jp": JAPANESE}  # fmt: skip


def csv_of(words: tuple[str, ...], rows: int = 60) -> tuple[str, list[str]]:
    """Write rows with a text each; every third has a line end and a comma in it."""
    texts = [words[i % len(words)] + (", two\nlines" if i % 3 == 0 else "") for i in range(rows)]
    return "x,né\n".replace("é", "e") + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts)), texts


@pytest.mark.parametrize("encoding", SINGLE)
@pytest.mark.parametrize("size", [100, 1 << 20])
def test_text_of_one_byte_per_character_is_cut_anywhere(
    encoding: str, size: int, score_text: ScoreText
) -> None:
    """An encoding of one byte per character gives the same texts in one partition and in many."""
    text, texts = csv_of(SINGLE[encoding])

    rows = score_text(text.encode(encoding), encoding=encoding, partition_size=size)

    assert [row["ne"] for row in rows] == texts
    assert [row["x"] for row in rows] == list(range(60))


@pytest.mark.parametrize("encoding", STREAMED)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_other_encodings_are_read_as_a_stream(
    encoding: str, pack: Callable[[bytes], bytes], score_text: ScoreText
) -> None:
    """Encodings that cannot be cut are read from the start of the file, packed or not."""
    text, texts = csv_of(STREAMED[encoding])

    rows = score_text(pack(text.encode(encoding)), encoding=encoding, partition_size=100)

    assert [row["ne"] for row in rows] == texts


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_a_mark_says_the_encoding(mark: str, name: str, score_text: ScoreText) -> None:
    """UTF-8, UTF-16 and UTF-32 are recognised by the mark at their start, in CSV and in JSON lines."""
    text = "x,ne\n1,Zoë\n2,€\n"
    if name == "in.jsonl":
        text = "".join(
            json.dumps({"x": i, "ne": t}, ensure_ascii=False) + "\n" for i, t in ((1, "Zoë"), (2, "€"))
        )

    rows = score_text(text.encode(mark), name)

    assert [(row["x"], row["ne"]) for row in rows] == [(1, "Zoë"), (2, "€")]


@pytest.mark.parametrize("order", [codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE], ids=["utf-16", "utf-32"])
def test_a_mark_says_the_order_of_bytes(order: bytes, score_text: ScoreText) -> None:
    """A mark in the other order of bytes is understood too."""
    name = "utf-16-be" if len(order) == 2 else "utf-32-be"

    assert score_text(order + "x,c\n1,é\n".encode(name))[0]["c"] == "é"


@pytest.mark.parametrize("encoding", ["latin-1", "shift_jis"])
def test_json_lines_may_have_an_encoding(encoding: str, score_text: ScoreText) -> None:
    """--encoding holds for JSON lines."""
    word = "é" if encoding == "latin-1" else "日本"
    text = "".join(f'{{"x": {i}, "c": "{word}"}}\n' for i in range(50))

    rows = score_text(text.encode(encoding), "in.jsonl", encoding=encoding, partition_size=100)

    assert [row["c"] for row in rows] == [word] * 50


# -- bad bytes --------------------------------------------------------------------------------


def refused(score_text: ScoreText, raw: bytes, **options: Any) -> str:
    with pytest.raises(BatchserveError) as caught:
        score_text(raw, **options)
    assert caught.value.exit_code == 65
    return str(caught.value)


ROWS = b"x,c\n1,a\n2,b\n3,c\n"


def test_a_byte_that_is_not_utf8_is_a_reject_with_its_line(score_text: ScoreText) -> None:
    """One bad byte is one record that cannot be scored: the file, the line, what it should be."""
    told = refused(score_text, ROWS + b"4,\xe9\n5,e\n")

    assert "1 of 5 rows cannot be scored" in told
    assert r"in.csv:5: '4,\\xe9' is not UTF-8" in told


def test_a_byte_that_is_none_of_the_encodings_is_a_reject_with_its_line(score_text: ScoreText) -> None:
    """0x81 is no character of cp1252: that record is a reject, the others are read."""
    told = refused(score_text, ROWS + b"4,\x80\x81\n5,\x80\n", encoding="cp1252")

    assert "1 of 5 rows cannot be scored" in told
    assert "in.csv:5: '4," in told
    assert "' is not cp1252" in told


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        ("x,c\n1,a\n2,b\n3,?\n4,d\n".encode("utf-16-le").replace(b"?\0", b"\x00\xd8"), "utf-16-le"),
        (b"x,c\n1,a\n2,b\n3,\x85\x21\n4,d\n", "shift_jis"),
    ],
    ids=["lone-surrogate", "shift-jis"],
)  # fmt: skip
def test_bad_bytes_of_a_streamed_encoding_are_rejects_with_their_line(
    raw: bytes, encoding: str, score_text: ScoreText
) -> None:
    """What cannot be decoded in a stream spoils the record it is in, and no other."""
    told = refused(score_text, raw, encoding=encoding)

    assert "1 of 4 rows cannot be scored" in told
    assert "in.csv:4:" in told
    assert f"is not {encoding.upper() if encoding.startswith('utf') else encoding}" in told


def test_utf16_that_is_cut_off_in_a_character_is_a_reject(score_text: ScoreText) -> None:
    """Half a character at the end of a file is not dropped in silence."""
    assert "is not UTF-16" in refused(score_text, "x,c\n1,a\n2,b\n".encode("utf-16")[:-3])


def test_a_bad_line_of_json_is_a_reject_in_any_encoding(score_text: ScoreText) -> None:
    """A byte that is no character of the encoding spoils its line alone."""
    raw = b'{"x": 1, "c": "\x80"}\n' * 3 + b'{"x": 1, "c": "\x81"}\n'

    told = refused(score_text, raw, name="in.jsonl", encoding="cp1252")

    assert "1 of 4 rows cannot be scored" in told
    assert "in.jsonl:4:" in told


def test_a_file_that_is_mostly_not_utf8_is_refused_before_the_work(score_text: ScoreText) -> None:
    """Where most lines are not UTF-8 the encoding is wrong, not the lines: --encoding is named."""
    told = refused(score_text, b"x,c\n" + "1,é\n".encode("latin-1") * 20)

    assert "in.csv: is not UTF-8" in told
    assert "--encoding cp1252" in told


def test_utf16_without_a_mark_is_refused_with_its_flag(score_text: ScoreText) -> None:
    """UTF-16 without a mark is recognised by its zero bytes, and the flag to say is named."""
    assert "--encoding utf-16-le" in refused(score_text, "x,c\n1,a\n".encode("utf-16-le"))


def test_an_encoding_that_does_not_exist_is_told(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--encoding with a name that is none, or none of text, is exit 2."""
    (tmp_path / "in.csv").write_bytes(ROWS)

    for name in ("utf-9", "rot13", "punycode"):
        done = run(capsys, "plan", tmp_path / "in.csv", "-m", model, "--encoding", name)

        assert done.code == 2
        assert f"--encoding {name}: no such encoding of text" in done.err


# -- the stream -------------------------------------------------------------------------------


@given(st.text(), st.sampled_from(["utf-16", "utf-32-be", "utf-7", "gb18030"]), st.integers(1, 9), st.data())
def test_a_decoded_file_is_its_text_in_utf8(text: str, encoding: str, size: int, data: st.DataObject) -> None:
    """Read in pieces, or wound forward and read, a decoded file gives its text as UTF-8."""
    text = text.removeprefix("\ufeff")
    expected = text.encode()
    skip = data.draw(st.integers(0, len(expected)))
    raw = text.encode(encoding)

    pieces = encodings.Utf8File(io.BytesIO(raw), encoding)
    wound = encodings.Utf8File(io.BytesIO(raw), encoding)
    wound.seek(skip)

    assert b"".join(iter(lambda: pieces.read(size), b"")) == expected
    assert wound.read() == expected[skip:] or not expected[skip:]


def test_a_decoded_file_does_not_go_back() -> None:
    """Only winding forward is possible: the text before is gone."""
    file = encodings.Utf8File(io.BytesIO("abc".encode("utf-16")), "utf-16")
    file.seek(2)

    with pytest.raises(io.UnsupportedOperation):
        file.seek(1)
    assert file.readable()
