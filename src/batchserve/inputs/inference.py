"""Which type a column of texts keeps: one that can be written back as the same text."""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchserve.arrays import one_array, only_where, without_null_texts
from batchserve.errors import BatchserveError, UsageError, did_you_mean, raise_all
from batchserve.inputs.dialect import Dialect

TYPES: dict[str, pa.DataType] = {
    "text": pa.string(), "string": pa.string(), "int64": pa.int64(), "int": pa.int64(),
    "int32": pa.int32(), "double": pa.float64(), "float64": pa.float64(), "float": pa.float32(),
    "float32": pa.float32(), "bool": pa.bool_(), "date": pa.date32(),
    "timestamp": pa.timestamp("us"), "timestamptz": pa.timestamp("us", "UTC"),
}  # fmt: skip
"""The names `--type COLUMN=TYPE` knows."""


def named_types(types: dict[str, str], hints: dict[str, str], names: Sequence[str]) -> dict[str, pa.DataType]:
    """Return the Arrow types that `--type` asks for, and those that are hinted at for columns that are there.

    Raises:
        UsageError: A column or a type is unknown.
    """
    problems: list[BatchserveError] = []
    for column, kind in types.items():
        if column not in names:
            near = did_you_mean(column, names) or f"columns are: {', '.join(names)}"
            problems.append(UsageError(f"--type {column}={kind}: no column {column}", near))
        if kind not in TYPES:
            near = did_you_mean(kind, TYPES) or f"types are: {', '.join(TYPES)}"
            problems.append(UsageError(f"--type {column}={kind}: no type {kind}", near))
    raise_all(problems)
    hinted = {column: kind for column, kind in hints.items() if column in names}
    return {column: TYPES[kind] for column, kind in (hinted | types).items()}


_INTEGER = r"^-?(0|[1-9][0-9]{0,18})$"
_DOUBLE = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_TIMESTAMP = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"
_FEW_DIGITS = r"^[0-9]{0,17}$"


def classify(texts: pa.ChunkedArray) -> pa.DataType:
    """Return the type a column of texts keeps; text where any other would change a text.

    Example:
        >>> classify(pa.chunked_array([["1", "", "20"]])), classify(pa.chunked_array([["007"]]))
        (DataType(int64), DataType(string))
    """
    values = without_null_texts(one_array(texts)).drop_null()
    if len(values) == 0:
        return pa.string()
    candidates: list[tuple[str, pa.DataType]] = [
        (_INTEGER, pa.int64()), (_DOUBLE, pa.float64()), ("^(true|false)$", pa.bool_()),
        (_DATE, pa.date32()), (_TIMESTAMP + "$", pa.timestamp("us")),
        (_TIMESTAMP + "Z$", pa.timestamp("us", "UTC")),
    ]  # fmt: skip
    for pattern, kind in candidates:
        if _all(pc.match_substring_regex(values, pattern)) and _faithful(values, kind):
            return kind
    return pa.string()


_ANY_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def number_type(texts: pa.ChunkedArray) -> pa.DataType | None:
    """Return the type that a column of texts would keep without those that are no numbers, or None.

    Example:
        >>> number_type(pa.chunked_array([["1.5", "bad"]])), number_type(pa.chunked_array([["007", "bad"]]))
        (DataType(double), None)
    """
    values = without_null_texts(one_array(texts)).drop_null()
    numbers = values.filter(pc.match_substring_regex(values, _ANY_NUMBER))
    kind = classify(pa.chunked_array([numbers]))
    return kind if pa.types.is_integer(kind) or pa.types.is_floating(kind) else None


def as_numbers(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return texts as numbers of the type that `number_type` gave; null for those that are none."""
    texts = without_null_texts(texts)
    return only_where(texts, pc.match_substring_regex(texts, _ANY_NUMBER)).cast(kind)


def as_texts(schema: pa.Schema) -> pa.Schema:
    """Return a schema with every column as text."""
    return pa.schema([pa.field(name, pa.string()) for name in schema.names])


_ALTERED_INTEGER = "-?0[0-9xX]|[+ ]|-0([^.]|$)"
_ALTERED_DOUBLE = "-?[0.]*[1-9]([0-9.]{18}|[0-9]{17})"
"""18 digits; only from the start of a field on, or RE2 has a state for every mix of digits and is ten
times as slow."""


@lru_cache(maxsize=8)
def _odd(dialect: Dialect, *, doubles: bool) -> pc.MatchSubstringOptions:
    """Return what finds a field that starts like a number nobody would write back so."""
    marks = [dialect.delimiter, dialect.quote or ""]
    field = rf"(^|[\n\r{re.escape(''.join(marks))}])"
    if not doubles:
        return pc.MatchSubstringOptions(f"{field}({_ALTERED_INTEGER})")
    return pc.MatchSubstringOptions(rf"{field}({_ALTERED_INTEGER}|{_ALTERED_DOUBLE})|[eE]\+?[0-9]{{3}}")


def may_alter(raw: bytes, dialect: Dialect, *, doubles: bool) -> bool:
    """Whether some field looks like a number that would not be written back: 007, +5, 18 digits.

    One pass of RE2 over the raw text, two fifths of what parsing it costs; for integers alone a few
    of numpy first, which take a third of that.
    """
    if dialect.escape and dialect.escape.encode() in raw:
        return True
    if not doubles and not may_be_odd(raw, dialect):
        return False
    offsets = pa.py_buffer(np.array([0, len(raw)], np.int32))
    text = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(raw)])
    return _all(pc.match_substring_regex(text, options=_odd(dialect, doubles=doubles)))


_PIECE_BYTES = 256 << 10
"""Of text that numpy looks at, which stays in the cache."""
_PLUS, _COMMA, _MINUS, _DOT, _ZERO, _SPACE = (np.uint8(ord(mark)) for mark in "+,-.0 ")


def may_be_odd(raw: bytes, dialect: Dialect) -> bool:
    """Whether some field may start like `_ALTERED_INTEGER`; where none does, that is certain.

    A field starts after its delimiter or a quote; any mark up to a comma, line ends among them, counts
    as one. Ends of the text are not looked at: what is there counts as odd.

    Example:
        >>> may_be_odd(b"12,0,-50", Dialect()), may_be_odd(b"12,007,-50", Dialect())
        (False, True)
    """
    if raw[:1] in _ODD_STARTS or raw[-2:-1] == b"-":
        return True
    text = np.frombuffer(raw, np.uint8)
    others = [np.uint8(ord(mark)) for mark in (dialect.delimiter, dialect.quote or ",") if ord(mark) > _COMMA]
    return any(
        _is_odd(text[max(0, at - 3) : at + _PIECE_BYTES], others) for at in range(0, len(text), _PIECE_BYTES)
    )


_ODD_STARTS = {b"0", b"-", b"+", b" "}


def _is_odd(text: NDArray[np.uint8], marks: Sequence[np.uint8]) -> bool:
    """Look at what follows a mark: a zero before a digit, a sign or a space, a minus before a zero."""
    before = text <= _COMMA
    for mark in marks:
        before |= text == mark
    zero, minus = text == _ZERO, text == _MINUS
    padded = before[:-2] & zero[1:-1] & (text[2:] >= _ZERO)
    signed = before[:-1] & ((text[1:] == _PLUS) | (text[1:] == _SPACE))
    negative = before[:-3] & minus[1:-2] & zero[2:-1] & (text[3:] != _DOT)
    return bool(padded.any() or signed.any() or negative.any())


def first_altered(texts: pa.StringArray, kind: pa.DataType) -> int | None:
    """Return the first row whose text a number of type `kind` would not give back, or None."""
    texts = without_null_texts(texts)
    plain = pc.match_substring_regex(texts, _INTEGER if pa.types.is_integer(kind) else _DOUBLE)
    typed = only_where(texts, plain).cast(kind)
    kept = pc.coalesce(_kept(texts, typed), pc.invert(texts.is_valid()))
    altered = pc.indices_nonzero(pc.invert(kept))
    return int(altered[0].as_py()) if len(altered) else None


def _all(flags: pa.BooleanArray) -> bool:
    return bool(pc.all(flags).as_py())


def _faithful(values: pa.StringArray, kind: pa.DataType) -> bool:
    """Whether texts of the right pattern keep their value as `kind`."""
    try:
        typed = values.cast(kind)
    except pa.ArrowInvalid:
        return False  # 2^63, 30 February
    return _all(_kept(values, typed))


def _kept(texts: pa.StringArray, typed: pa.Array) -> pa.BooleanArray:
    """Return for each text whether its typed value says all of it."""
    if pa.types.is_integer(typed.type):
        return pc.equal(typed.cast(pa.string()), texts)  # "-0" is no integer
    if not pa.types.is_floating(typed.type):
        return texts.is_valid()
    mantissa = pc.replace_substring_regex(texts, r"[eE].*$", "")
    digits = pc.ascii_ltrim(pc.replace_substring_regex(mantissa, r"[-.]", ""), characters="0")
    return pc.and_(pc.match_substring_regex(digits, _FEW_DIGITS), pc.is_finite(typed))
