"""Which files: paths, globs and folders, in the order the job will read them."""

import glob
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

from batchserve.errors import (
    BatchserveError,
    DataError,
    NotFoundError,
    OutputError,
    UsageError,
    raise_all,
)
from batchserve.inputs import TEXT_FORMATS, Codec, Format, Source, folders, packed, patient
from batchserve.storage import translated

Given = Literal["csv", "tsv", "jsonl", "parquet", "arrow"]
"""Formats as users name them; TSV is a CSV with tabs."""
SUFFIXES: dict[str, Given] = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
    ".arrow": "arrow", ".arrows": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
_FORMATS: dict[str, Format] = {"tsv": "csv"}
_DELIMITERS = {"tsv": "\t"}


@dataclass(frozen=True)
class _Found:
    """A file, and the folder under which folders like `year=2013` count; None for one named itself."""

    path: Path
    base: Path | None = None


def resolve(inputs: Sequence[str], given: Given | None = None) -> list[Source]:
    """Turn paths, globs and folders into files, in the order the job will read them.

    Inputs keep the order given; within a glob or folder names sort with numbers as numbers.
    Folders like `year=2013` below a folder, or that a glob matches, give columns.

    Args:
        inputs: What the user named.
        given: The format of all files, whatever their suffixes are; None to go by suffix.

    Raises:
        NotFoundError: A path, glob or folder gives no file.
        UsageError: A file has no format batchserve reads.
        DataError: A file is not what its suffix says.
        OutputError: The same file is given twice.
    """
    problems: list[BatchserveError] = []
    files: list[_Found] = []
    for name in inputs:
        try:
            files += _expand(name, given)
        except BatchserveError as problem:
            problems.append(problem)
    problems += _twice([found.path for found in files])
    sources = []
    for found in files:
        try:
            sources.append(patient(found.path, partial(_source, found, given)))
        except BatchserveError as problem:
            problems.append(problem)
    raise_all(problems)
    return sources


def _expand(name: str, given: Given | None) -> list[_Found]:
    path = Path(name)
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path))]
        matches = [p for p in files if given or suffix_format(p)]
        if not matches:
            raise NotFoundError(f"{name}: no input file in this folder", _KNOWN)
        return [_Found(p, path) for p in sorted(matches, key=natural)]
    if path.exists():
        return [_Found(path)]
    if glob.has_magic(name):
        names = glob.glob(name, recursive=True)  # noqa: PTH207  Path.glob refuses absolute patterns
        matches = [p for p in map(Path, names) if p.is_file()]
        if not matches:
            raise NotFoundError(f"{name}: no file matches", "check the pattern")
        return [_Found(p, _fixed(path)) for p in sorted(matches, key=natural)]
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise NotFoundError.of("input", name, siblings)


def _fixed(pattern: Path) -> Path:
    """Return the folder before the first part of a pattern that matches anything."""
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))


_KNOWN = (
    f"batchserve reads {', '.join(SUFFIXES)}, text also with {', '.join(packed.SUFFIXES)}; or say --format"
)


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Return a key that sorts numbers in names as numbers.

    Example:
        >>> sorted(map(Path, ["p10.csv", "p2.csv"]), key=natural)[0].name
        'p2.csv'
    """
    pieces = re.split(r"(\d+)", str(path))
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in pieces]


def _twice(paths: Sequence[Path]) -> Iterator[OutputError]:
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        identity = _identity(path)
        if identity in seen:
            hint = "its rows would be in the output twice: name it once"
            yield OutputError(f"{path}: is the same file as {seen[identity]}", hint)
        seen[identity] = path


def _identity(path: Path) -> tuple[int, int]:
    with translated(path):
        status = path.stat()
    return status.st_dev, status.st_ino


def suffix_format(path: Path) -> Given | None:
    """Return the format that a file's suffix says, a codec's suffix left out; None if it says none."""
    name = path.name.lower()
    name = name.removesuffix(_packed_suffix(path))
    return next((form for suffix, form in SUFFIXES.items() if name.endswith(suffix)), None)


def _packed_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    return suffix if suffix in packed.SUFFIXES else ""


def _source(found: _Found, given: Given | None) -> Source:
    path = found.path
    form = given or suffix_format(path)
    if form is None:
        raise UsageError(f"{path}: not a format batchserve reads", _KNOWN)
    with translated(path):
        status = path.stat()
        with path.open("rb") as file:
            magic = file.read(packed.MAGIC_BYTES)
    kind = _FORMATS.get(form, cast("Format", form))
    codec = packed.codec_of(magic)
    _check_magic(path, kind, codec, magic)
    return Source(
        path=str(path.absolute()), format=kind, delimiter=_DELIMITERS.get(form), codec=codec,
        folders=folders.folders_of(path, found.base) if found.base else (),
        size_bytes=status.st_size, mtime_ns=status.st_mtime_ns,
    )  # fmt: skip


_MAGICS = (
    (b"PAR1", "a Parquet file"), (b"ARROW1", "an Arrow file"), (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"FEA1", "a Feather file of version 1"), (b"PK\x03\x04", "a ZIP archive or an Excel file"),
    (b"ORC", "an ORC file"), (b"Obj\x01", "an Avro file"), (b"\x04\x22\x4d\x18", "packed with lz4"),
)  # fmt: skip
_MEANT: dict[Format, tuple[str, ...]] = {
    "parquet": ("a Parquet file",), "arrow": ("an Arrow file", "an Arrow stream")
}  # fmt: skip


def _check_magic(path: Path, form: Format, codec: Codec | None, magic: bytes) -> None:
    """Check that a file's first bytes fit what it is taken for.

    Raises:
        DataError: They are of something else.
    """
    known = f"packed ({codec})" if codec else _known(magic, form)
    meant = _MEANT.get(form)
    suffix = _packed_suffix(path)
    if meant and known not in meant:
        is_ = known or f"something else (it starts with {magic[:4]!r})"
        raise DataError(f"{path}: is no {meant[0].partition(' ')[2]}, but {is_}", _hint(known))
    if meant is None and known and not codec:
        raise DataError(f"{path}: is {known}, not {form}", _hint(known))
    if suffix and codec != packed.SUFFIXES[suffix]:
        message = f"{path}: is not {packed.SUFFIXES[suffix]} (it starts with {magic[:4]!r})"
        raise DataError(message, _hint(None))


def _known(magic: bytes, form: Format) -> str | None:
    """Return what a file is by its first bytes; a CSV whose first column is FEA1 is no Feather."""
    if form in TEXT_FORMATS and not any(
        byte < ord("\t") or ord("\r") < byte < ord(" ") or byte == ord("\xff") for byte in magic
    ):
        return None
    return next((what for start, what in _MAGICS if magic.startswith(start)), None)


def _hint(known: str | None) -> str:
    if known and known.startswith(("packed", "a ZIP")):
        return "unpack it"
    return "give it the suffix of what it is, or say --format"


def check_unchanged(sources: Sequence[Source]) -> None:
    """Check that no input was written to since the plan was made.

    Raises:
        DataError: A file has another size or time: its rows may be of two versions.
    """
    problems: list[BatchserveError] = []
    for source in sources:
        with translated(source.path):
            status = Path(source.path).stat()
        if (status.st_size, status.st_mtime_ns) != (source.size_bytes, source.mtime_ns):
            message = f"{source.path}: was changed while it was read"
            problems.append(DataError(message, "run it again when nobody writes to it"))
    raise_all(problems)
