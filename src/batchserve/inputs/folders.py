"""Columns from the names of folders: `year=2013/month=1/part.parquet`."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from batchserve.arrays import text_array
from batchserve.errors import DataError
from batchserve.inputs import Folders, Source
from batchserve.inputs.inference import TYPES
from batchserve.inputs.schemas import raise_drift

_NULL = "__HIVE_DEFAULT_PARTITION__"
_KEY_VALUE = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_INTEGER = re.compile(r"-?[1-9][0-9]{0,18}|0")
_LARGEST_INTEGER = 2**63 - 1


def folders_of(path: Path, base: Path) -> Folders:
    """Return the names and texts that the folders between `base` and a file give.

    Raises:
        DataError: Two of the folders give one name.

    Example:
        >>> folders_of(Path("in/year=2013/city=New%20York/a.csv"), Path("in"))
        (('year', '2013'), ('city', 'New York'))
    """
    names = path.relative_to(base).parent.parts
    pairs = [match.groups() for name in names if (match := _KEY_VALUE.fullmatch(name))]
    found = tuple((unquote(key), None if text in {_NULL, ""} else unquote(text)) for key, text in pairs)
    if len(dict(found)) < len(found):
        raise DataError(f"{path}: two of its folders give one column", "rename one of the folders")
    return found


def columns(
    sources: Sequence[Source], types: dict[str, str], hints: dict[str, str]
) -> dict[str, pa.DataType]:
    """Return the columns that folders give, with their types.

    Integers where every value is one as we write them, without leading zeros; else text.

    Raises:
        DataError: Files lie in folders of other names, or a text is not of the type wished for.
    """
    expected = [name for name, _ in sources[0].folders]
    differ = {s.path: _differs(expected, [name for name, _ in s.folders]) for s in sources}
    hint = "score the folders one at a time, or name their files one by one"
    raise_drift({path: words for path, words in differ.items() if words}, sources[0].path, hint)
    found = {}
    for name in expected:
        texts = {text: s.path for s in sources for key, text in s.folders if key == name and text is not None}
        whole = texts and all(_is_integer(text) for text in texts)
        wished = types.get(name) or (hints.get(name) if whole else None)
        found[name] = TYPES.get(wished or "", pa.int64() if whole else pa.string())
        _check_type(name, found[name], texts)
    return found


def value(text: str | None, kind: pa.DataType) -> pa.Array:
    """Return a folder's text as an array of one value."""
    return pa.nulls(1, kind) if text is None else text_array([text]).cast(kind)


def _differs(expected: Sequence[str], names: Sequence[str]) -> str:
    missing = [f"{name}=" for name in expected if name not in names]
    extra = [f"{name}=" for name in names if name not in expected]
    words = [f"no folder {', '.join(missing)} above it"] if missing else []
    return "; ".join(words + ([f"a folder {', '.join(extra)} above it"] if extra else []))


def _is_integer(text: str) -> bool:
    return bool(_INTEGER.fullmatch(text)) and abs(int(text)) <= _LARGEST_INTEGER


def _check_type(name: str, kind: pa.DataType, texts: dict[str, str]) -> None:
    for text, path in texts.items():
        try:
            value(text, kind)
        except pa.ArrowInvalid as error:
            message = f"{path}: its folder {name}={text} is no {kind}"
            raise DataError(message, f"say --type {name}=text") from error
