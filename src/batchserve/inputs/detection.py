"""Finds how a text file is written, from its first bytes.

The common CSV (commas, `"`, a header on line 1) is told by a look at its first rows. Only where
that look is not sure is a detector imported: CleverCSV, which tries dialects and keeps the one
whose rows are most alike and whose fields look most like data.
"""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from batchserve.inputs import quotes
from batchserve.inputs.dialect import NONE, Asked, Dialect, Found, LineEnd

HEAD_BYTES = 64 << 10
_ROWS = 100
_LOOKED_AT_CHARACTERS = 16_000
_DELIMITERS = ",;\t|"
_RARE_DELIMITERS = ": ^~"
_ALIKE = 0.9
"""The share of rows of one width from which on a table is taken for one."""
_TELLING_ROWS = 3
"""Rows of one width that make a rare delimiter believed."""


@dataclass(frozen=True)
class _Row:
    """A record that is not blank."""

    line: int
    """Lines before it."""
    fields: list[str]


@dataclass(frozen=True)
class _Marks:
    """What separates and quotes fields."""

    delimiter: str
    quote: str | None
    escape: str | None


def find(head: bytes, encoding: str, asked: Asked) -> Found:
    r"""Find the dialect of a text file.

    Args:
        head: Its first bytes, up to `HEAD_BYTES`; UTF-8 if the encoding is one that is streamed.
        encoding: Its encoding.
        asked: What the user said of it.

    Example:
        >>> print(find(b"report of May\n\na;b\r\n1;2,5\r\n3;4,5\r\n", "utf-8", Asked()))
        ';' between fields, '"' quotes, header on line 3, CRLF, utf-8; found, sure
    """
    text = _text(head, Dialect(encoding=encoding))
    text = text if len(head) < HEAD_BYTES else text[: _last_line(text)]
    body = _without_lines(text, asked.skip_lines or 0)
    marks = _common(body, asked)
    surely = marks is not None
    if marks is None:
        marks, surely = _detected(body, asked)
    rows = _rows(body, marks)
    # Lines are left out only where that is sure: elsewhere their records are read, and rejected.
    seek = surely and asked.skip_lines is None and not _is_common(rows)
    first = _first(rows) if seek else 0
    header, told = (asked.header, True) if asked.header is not None else _has_header(rows[first:])
    preamble = rows[first].line if first else 0
    dialect = Dialect(
        delimiter=marks.delimiter, quote=marks.quote, escape=marks.escape, header=header,
        skip_lines=(asked.skip_lines or 0) + preamble, encoding=encoding,
    )  # fmt: skip
    dialect = dialect.model_copy(update={"line_end": _line_end(body, dialect)})
    fits = len(rows) == first or len(rows[first].fields) == _width(rows[first:])
    return Found(dialect=dialect, sure=surely and told and fits, said=asked.said)


def _text(head: bytes, dialect: Dialect) -> str:
    name = "utf-8" if dialect.streamed else dialect.encoding
    return head.decode(name, "replace").removeprefix("\ufeff")


def _last_line(text: str) -> int:
    return max(text.rfind("\n"), text.rfind("\r")) + 1 or len(text)


def _without_lines(text: str, count: int) -> str:
    at = lines_end(text.encode(), count)
    return text.encode()[at:].decode()


_LINE_END = re.compile(rb"\r\n|\n|\r")


def lines_end(text: bytes, count: int) -> int:
    r"""Return where the first `count` lines of a text end; its own end if it has fewer.

    Example:
        >>> lines_end(b"a\r\nb\nc\n", 2)
        5
    """
    at = 0
    for _ in range(count):
        end = _LINE_END.search(text, at)
        at = end.end() if end else len(text)
    return at


def _line_end(text: str, dialect: Dialect) -> LineEnd:
    """Return what ends records; lone carriage returns count only where no record ends in a line feed."""
    feeds = text.count("\n")
    if "\r" in text.replace("\r\n", ""):
        raw = text.encode()
        feeds = sum(raw[stop - 1] == ord("\n") for _, stop in quotes.of(dialect).spans(raw))
    if not feeds:
        return "CR" if "\r" in text else "LF"
    return "CRLF" if text.count("\r\n") * 2 > feeds else "LF"


def _rows(text: str, marks: _Marks, most: int = _ROWS) -> list[_Row]:
    """Return the first rows that are not blank."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=marks.delimiter, quotechar=marks.quote,
        escapechar=marks.escape, quoting=csv.QUOTE_MINIMAL if marks.quote else csv.QUOTE_NONE,
    )  # fmt: skip
    rows: list[_Row] = []
    line = 0
    try:
        for fields in reader:
            if fields:
                rows.append(_Row(line, fields))
            line = reader.line_num
            if len(rows) == most:
                break
    except csv.Error:  # a field of more than 128 KiB: what was read has to do
        pass
    return rows


# -- what separates and quotes ----------------------------------------------------------------


def _as_asked(asked: Asked, found: _Marks) -> _Marks:
    """Return marks with what the user said put in place of what was found."""
    quote = found.quote if asked.quote is None else asked.quote
    escape = found.escape if asked.escape is None else asked.escape
    return _Marks(
        asked.delimiter or found.delimiter,
        None if quote == NONE else quote,
        None if escape == NONE else escape,
    )


_ESCAPES = re.compile(r"\\[,;|\t]|\\\"(?=[^\",;|\t\s])")
"""An escaped delimiter, or a quote escaped in the middle of a text (`"C:\\"` is none)."""


def _common(text: str, asked: Asked) -> _Marks | None:
    """Return the marks of the common CSV, with what the user said, if the first rows fit them."""
    marks = _as_asked(asked, _Marks(",", '"', None))
    if _is_unlike(text[:_LOOKED_AT_CHARACTERS], marks, asked):
        return None
    rows = _rows(text, marks)
    if not _is_common(rows):
        return None
    if asked.delimiter is None and _may_be_of_another(rows):
        return None
    return marks


def _is_unlike(text: str, marks: _Marks, asked: Asked) -> bool:
    """Whether there are escape characters or single quotes that nobody said anything of."""
    if asked.escape is None and _ESCAPES.search(text):
        return True
    single = rf"(?m)(^|{re.escape(marks.delimiter)})'[^'\n]*'(?=\W|$)"
    return asked.quote is None and bool(re.search(single, text))


def _is_common(rows: Sequence[_Row]) -> bool:
    """Whether nearly all rows are as wide as the first, and that is no comment."""
    if not rows:
        return True
    unlike = sum(len(row.fields) != len(rows[0].fields) for row in rows)
    return unlike <= len(rows) // 4 and not rows[0].fields[0].startswith("#")


def _may_be_of_another(rows: Sequence[_Row]) -> bool:
    """Whether another delimiter could be meant: one stands in the header, or there is one column."""
    width = len(rows[0].fields) if rows else 0
    if width == 1:
        lines = [",".join(row.fields) for row in rows]
        return any(c in line for line in lines for c in _DELIMITERS) or any(
            all(c in line for line in lines) for c in _RARE_DELIMITERS
        )
    return any(c in field for field in (rows[0].fields if rows else ()) for c in _DELIMITERS[1:])


def _detected(text: str, asked: Asked) -> tuple[_Marks, bool]:
    """Ask the detector; what it says is believed where it makes rows of one width."""
    candidates = [asked.delimiter] if asked.delimiter else list(_DELIMITERS)
    found = _told_by_detector(text, candidates)
    if found is None and not asked.delimiter:
        found = _told_by_detector(text, list(_RARE_DELIMITERS))
        rows = _rows(text, _as_asked(asked, found)) if found else []
        if found and len(rows) >= _TELLING_ROWS and len({len(row.fields) for row in rows}) == 1:
            return _as_asked(asked, found), False
        found = None
    marks = _as_asked(asked, found or _Marks(",", '"', None))
    rivals = [_Marks(each, marks.quote, marks.escape) for each in candidates if each != marks.delimiter]
    alike = _share(_rows(text, marks)) >= _ALIKE and all(_share(_rows(text, r)) < 1 for r in rivals)
    return marks, found is not None and alike


def _told_by_detector(text: str, delimiters: list[str]) -> _Marks | None:
    """Return what CleverCSV says, or None if it does not know or sees one column."""
    from clevercsv.detect import Detector

    try:
        found = Detector().detect(_sample(text), delimiters=delimiters)
    except Exception:  # noqa: BLE001  it is asked about any text there is; a guess may fail
        return None
    if found is None or found.delimiter not in delimiters:
        return None
    quote = "'" if found.quotechar == "'" else '"'
    return _Marks(found.delimiter, quote, "\\" if found.escapechar == "\\" else None)


def _sample(text: str) -> str:
    """Return the first lines, up to one that closes the quotes before it."""
    lines = text[:_LOOKED_AT_CHARACTERS].splitlines(keepends=True)[:_ROWS]
    open_ = [count % 2 for count in itertools.accumulate(line.count('"') for line in lines)]
    closed = next((i for i in range(len(lines), len(lines) // 2, -1) if not open_[i - 1]), len(lines))
    return "".join(lines[:closed])


def _width(rows: Sequence[_Row]) -> int:
    return Counter(len(row.fields) for row in rows).most_common(1)[0][0] if rows else 0


def _share(rows: Sequence[_Row]) -> float:
    """Return how many of the rows from the first of the table on are as wide as it."""
    body = rows[_first(rows) :]
    width = _width(body)
    return sum(len(row.fields) == width for row in body) / len(body) if body and width > 1 else 0.0


# -- where the table begins -------------------------------------------------------------------


def _first(rows: Sequence[_Row]) -> int:
    """Return the first row of the table: as wide as most, as are most of those after it; no comment."""
    width = _width(rows)
    wide = [len(row.fields) == width for row in rows]
    starts = (i for i in range(len(rows)) if wide[i] and _mean(wide[i : i + _NEIGHBOURS]) > _MOST)
    first = after = next(starts, 0)
    while after < len(rows) and rows[after].fields[0].startswith("#"):
        after += 1
    named = after < len(rows) and _has_header(rows[after:])[0]
    before = after - 1
    # What stands over rows without names may name them: "#id,x" over numbers, or a header that is
    # too narrow for all of its rows.
    if (
        before >= 0
        and not named
        and len(rows[before].fields) > 1
        and not any(map(_is_value, rows[before].fields))
    ):
        return before
    return after if after < len(rows) else first


_NEIGHBOURS = 10
_MOST = 0.6


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


_NUMBER = re.compile(r"\s*[+-]?(\d[\d.,' ]*|\.\d+)([eE][+-]?\d+)?\s*%?\s*")
_DATE = re.compile(r"\s*\d{1,4}[-/.:]\d{1,2}([-/.: T]\d{1,4}.*)?")
_JUDGED_ROWS = 30
_MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "?"}


def _has_header(rows: Sequence[_Row]) -> tuple[bool, bool]:
    """Say whether the first row names the columns, and whether that is sure.

    A name over values is a header; a value over values is none. Where all is text, a first row
    whose texts do not come again is taken for names.
    """
    first, *others = rows[:_JUDGED_ROWS] or [_Row(0, [])]
    body = [row.fields for row in others if len(row.fields) == len(first.fields)]
    if not body:
        valued = bool(first.fields) and all(map(_is_value, first.fields))
        return not valued, not valued
    if first.fields in body:  # files joined, each with its header
        return True, True
    columns = list(zip(first.fields, zip(*body, strict=True), strict=True))
    typed = [name for name, values in columns if _are_values(values) and not _is_missing(name)]
    valued_names = [name for name in typed if _is_value(name)]
    if typed and _count_on(typed):
        return True, False
    if typed:
        return len(valued_names) < len(typed), len(valued_names) in {0, len(typed)}
    again = any(name in values for name, values in columns if name)
    return not again, not again


def _is_missing(text: str) -> bool:
    return text.strip().lower() in _MISSING


def _is_value(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text) or _DATE.fullmatch(text))


def _are_values(texts: Sequence[str]) -> bool:
    """Whether texts are numbers or dates; of three and more one in four may be something else."""
    values = [text for text in texts if not _is_missing(text)]
    others = sum(not _is_value(text) for text in values)
    return bool(values) and others <= (len(values) + 1) // 4


def _count_on(names: Sequence[str]) -> bool:
    """Whether names that are numbers count on by one: years over columns, or 0, 1, 2 as pandas writes."""
    if not names[1:] or not all(re.fullmatch(r"(1[89]|20)\d\d|\d{1,3}", name) for name in names):
        return False
    first = int(names[0])
    likely = first == 0 or first > _FIRST_YEAR
    return likely and list(map(int, names)) == list(range(first, first + len(names)))


_FIRST_YEAR = 1799
