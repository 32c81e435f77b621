"""Which files: paths, globs and folders, in the order the job will read them."""

import glob
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from batchserve.errors import (
    BatchserveError,
    DataError,
    NotFoundError,
    OutputError,
    UsageError,
    raise_all,
)
from batchserve.inputs import Codec, Format, Source, patient
from batchserve.storage import translated

SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_PARQUET_MAGIC = b"PAR1"
_GZIP_MAGIC = b"\x1f\x8b"


def resolve(inputs: Sequence[str]) -> list[Source]:
    """Turn paths, globs and folders into files, in the order the job will read them.

    Inputs keep the order given; within a glob or folder names sort with numbers as numbers.

    Raises:
        NotFoundError: A path, glob or folder gives no file.
        UsageError: A file has no format batchserve reads.
        OutputError: The same file is given twice.
    """
    problems: list[BatchserveError] = []
    paths: list[Path] = []
    for given in inputs:
        try:
            paths += _expand(given)
        except BatchserveError as problem:
            problems.append(problem)
    problems += _twice(paths)
    sources = []
    for path in paths:
        try:
            sources.append(patient(path, partial(_source, path)))
        except BatchserveError as problem:
            problems.append(problem)
    raise_all(problems)
    return sources


def _expand(given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path))]
        found = [p for p in files if _suffix_format(p)]
        if not found:
            raise NotFoundError(f"{given}: no input file in this folder", _FORMATS)
        return sorted(found, key=natural)
    if path.exists():
        return [path]
    if glob.has_magic(given):
        # Path.glob refuses absolute patterns.
        names = glob.glob(given, recursive=True)  # noqa: PTH207
        matches = [p for p in map(Path, names) if p.is_file()]
        if not matches:
            raise NotFoundError(f"{given}: no file matches", "check the pattern")
        return sorted(matches, key=natural)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise NotFoundError.of("input", given, siblings)


_FORMATS = f"batchserve reads {', '.join(SUFFIXES)}, text formats also with .gz"


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


def _suffix_format(path: Path) -> Format | None:
    name = path.name.lower().removesuffix(".gz")
    return next((form for suffix, form in SUFFIXES.items() if name.endswith(suffix)), None)


def _source(path: Path) -> Source:
    form = _suffix_format(path)
    if form is None:
        raise UsageError(f"{path}: not a format batchserve reads", _FORMATS)
    with translated(path):
        status = path.stat()
        with path.open("rb") as file:
            magic = file.read(4)
    codec: Codec | None = "gzip" if magic.startswith(_GZIP_MAGIC) else None
    if form == "parquet" and magic != _PARQUET_MAGIC:
        raise DataError(f"{path}: is no Parquet file (it starts with {magic!r})", _RENAME)
    if form != "parquet" and magic == _PARQUET_MAGIC:
        raise DataError(f"{path}: is a Parquet file, not {form}", _RENAME)
    if path.name.lower().endswith(".gz") and codec is None:
        raise DataError(f"{path}: is not gzip (it starts with {magic!r})", _RENAME)
    return Source(
        path=str(path.absolute()), format=form, codec=codec,
        size_bytes=status.st_size, mtime_ns=status.st_mtime_ns,
    )  # fmt: skip


_RENAME = "give it the suffix of what it is"


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
