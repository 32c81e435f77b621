"""How values are written in a flag, a variable or a config: sizes, times, lists, tables, models by name."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from batchserve.errors import UsageError

_SCALE = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def size(value: Any) -> Any:
    """Read a size in bytes.

    Example:
        >>> size("64k"), size("32MiB"), size("1.5M")
        (64000, 33554432, 1500000)
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", value.lower())
    if not found:
        raise ValueError("not a size: say 64k, 32MiB or 1.5M")
    return int(float(found[1]) * _SCALE[found[2] or ""])


def items(value: Any) -> Any:
    """Read a list from a list of texts, or from one text with commas.

    Example:
        >>> items(["a,b", "c"])
        ['a', 'b', 'c']
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        return value
    return [piece.strip() for text in texts for piece in str(text).split(",") if piece.strip()]


def pairs(value: Any) -> Any:
    """Read a table from a table, or from texts like A=B."""
    if isinstance(value, Mapping):
        return value
    found = [str(item).partition("=") for item in items(value)]
    return _table(found)


def constants(value: Any) -> Any:
    """Read a table of values as JSON; a comma parts two inputs only where NAME= follows it."""
    if isinstance(value, Mapping):
        return {name: each if isinstance(each, str) else json.dumps(each) for name, each in value.items()}
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        return value
    pieces = [piece for text in texts for piece in re.split(r""",(?=[^\[\],"=]+=)""", str(text))]
    return _table([piece.partition("=") for piece in pieces if piece.strip()])


def _table(pairs: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"{wrong[0]}: say NAME=VALUE")
    return {name.strip(): text.strip() for name, _, text in pairs}


MODEL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAMED = re.compile(rf"({MODEL_NAME.pattern})=(.+)", re.DOTALL)


def models(value: Any) -> Any:
    """Read the path of one model, or paths by name from NAME=PATH.

    Several stand in a list, in one text with commas, or in a table.

    Example:
        >>> models("m.onnx"), models("old=a.onnx,new=b.onnx"), models(["./a=b.onnx"])
        ('m.onnx', {'old': 'a.onnx', 'new': 'b.onnx'}, './a=b.onnx')
    """
    if isinstance(value, Mapping):
        return _well_named([(str(name), path) for name, path in value.items()])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts:
        return value
    if len(texts) == 1 and os.path.isfile(str(texts[0])):  # noqa: PTH113  of any text, it raises nothing
        return str(texts[0])  # year=2024/m.onnx, say
    pieces = [piece for text in texts for piece in _model_pieces(str(text))]
    found = [_NAMED.fullmatch(piece) for piece in pieces]
    if len(pieces) == 1 and not found[0]:
        return pieces[0]
    if not all(found):
        unnamed = next(piece for piece, match in zip(pieces, found, strict=True) if not match)
        raise ValueError(f"{unnamed}: of several models each needs a name: NAME=PATH")
    return _well_named([(match[1], match[2]) for match in found if match])


def _model_pieces(text: str) -> list[str]:
    """Cut a text at the commas before NAME=, if it begins with one: others are of a path."""
    return re.split(rf",\s*(?={MODEL_NAME.pattern}=)", text) if _NAMED.match(text) else [text]


def _well_named(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if wrong := [name for name, _ in pairs if not MODEL_NAME.fullmatch(name)]:
        raise ValueError(f"{wrong[0]!r} is no name of a model: letters, digits and _, no digit first")
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} names two models")
    if not pairs:
        raise ValueError("names no model")
    return dict(pairs)


def said_models(texts: Sequence[str]) -> str | dict[str, str]:
    """Read what `--model` said, where there is no whole job to read.

    Raises:
        UsageError: It makes no sense.
    """
    try:
        found: str | dict[str, str] = models(texts)
    except ValueError as error:
        raise UsageError(f"--model: {error}", "say --model NAME=PATH for each") from None
    return found


def unnamed(path: str) -> str:
    """Return a path of which no part will be taken for the name of a model.

    Example:
        >>> unnamed("m.onnx"), unnamed("year=2024/m.onnx")
        ('m.onnx', './year=2024/m.onnx')
    """
    return f"./{path}" if _NAMED.match(path) else path


def by_name(model: str | Mapping[str, str]) -> dict[str, str]:
    """Return paths of models under their names: one without a name under an empty one."""
    return {"": model} if isinstance(model, str) else dict(model)


def duration(value: Any) -> Any:
    """Read a time in seconds.

    Example:
        >>> duration("90"), duration("10m"), duration("1.5h")
        (90.0, 600.0, 5400.0)
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", value.lower())
    if not found:
        raise ValueError("not a time: say 90s, 10m or 1h")
    return float(found[1]) * _SECONDS[found[2]]


def sha256s(value: Any) -> Any:
    """Read one sha256, or several by the names of their models."""
    said = models(value)
    digests = by_name(said) if isinstance(said, str | dict) else {}
    if wrong := [
        each for each in digests.values() if not re.fullmatch(r"[0-9a-f]{64}", each.strip().lower())
    ]:
        raise ValueError(f"{wrong[0]} is not a sha256: 64 digits from 0 to f")
    lower = {name: each.strip().lower() for name, each in digests.items()}
    return lower.get("", lower) if lower else said
