"""Where the output may go: checked before any work, links followed, nothing of others replaced."""

import fnmatch
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from batchserve import storage
from batchserve.errors import NotFoundError, OutputError, UsageError
from batchserve.inputs import Source
from batchserve.outputs import PLAN_KEY
from batchserve.planning import Plan
from batchserve.storage import translated

META_DIR = "_batchserve"
_SHOWN = 3
_RECORD_BYTES = 64 << 10
"""A record of a rejects file is shorter."""
_DATA_SUFFIXES = {
    ".csv", ".json", ".jsonl", ".ndjson", ".arrow", ".arrows", ".feather", ".ipc", ".tsv", ".tab", ".txt",
    ".gz", ".bz2", ".zst", ".xz", ".xlsx",
}  # fmt: skip
_PARQUET_SUFFIXES = {".parquet", ".pq"}


@dataclass(frozen=True)
class Target:
    """Where the output goes, links followed."""

    path: Path
    dataset: bool
    """True for a folder of parts, False for one file."""
    rejects_path: Path | None = None
    """Where rejects go if the user said where."""

    @property
    def workspace(self) -> Path:
        """The folder beside the output for what is not finished; one per output."""
        return self.path.parent / f".{self.path.name}.batchserve"

    @property
    def receipt(self) -> Path:
        """Where the output's receipt goes."""
        if self.dataset:
            return self.path / META_DIR / "receipt.json"
        return self.path.with_name(f"{self._stem}.receipt.json")

    @property
    def rejects(self) -> Path:
        """Where the rejects of the output go; a run without rejects removes those of an earlier one."""
        if self.rejects_path:
            return self.rejects_path
        if self.dataset:
            return self.path / META_DIR / "rejects.jsonl"
        return self.path.with_name(f"{self._stem}.rejects.jsonl")

    @property
    def rejects_beside(self) -> Path:
        """Where rejects go while the output is not there: beside it, also for a dataset."""
        return self.rejects_path or self.path.with_name(f"{self._stem}.rejects.jsonl")

    @property
    def _stem(self) -> str:
        """`out` for out.parquet; out.pq keeps its suffix, or the two would share a receipt."""
        return self.path.stem if self.path.suffix.lower() == ".parquet" else self.path.name


class DatasetPart(BaseModel, frozen=True):
    """One file of a dataset."""

    name: str
    rows: int
    size_bytes: int
    sha256: str


class Manifest(BaseModel, frozen=True):
    """The parts of a dataset, in input order."""

    plan_id: str
    """The plan of the last run that added parts."""
    parts: tuple[DatasetPart, ...]


def manifest(found: Target) -> Manifest:
    """Return the manifest of a dataset.

    Raises:
        OutputError: It is not there or is damaged.
    """
    path = found.path / META_DIR / "manifest.json"
    try:
        with translated(path):
            data = storage.disk.read(path)
        return Manifest.model_validate_json(storage.unseal(data))
    except (NotFoundError, ValueError) as error:
        hint = "it is no whole dataset any more: score it again with --overwrite"
        raise OutputError(f"{path}: is missing or damaged", hint) from error


def locate(
    output: str, given: Sequence[str], sources: Sequence[Source], *, if_exists: str,
    rejects: str | None = None,
) -> Target:  # fmt: skip
    """Check where the output is to go, before any work.

    Args:
        output: The path as the user gave it; a suffix makes a file, none or a `/` a dataset.
        given: The inputs as the user gave them.
        sources: The input files.
        if_exists: What to do with an output that is there: error, skip, overwrite or append.
        rejects: Where rejected rows go, or None for beside the output.

    Raises:
        UsageError: The suffix is that of another format, or one file is to be appended to.
        OutputError: The output is an input, exists, or its folder does not.
        AccessError: Its folder cannot be written to.
    """
    found = at(output, rejects)
    if if_exists == "append" and not found.dataset:
        message = f"{output}: one file cannot be appended to"
        raise UsageError(message, f"name a dataset folder: {Path(output).with_suffix('')}")
    _check_not_input(output, found, given, sources)
    storage.check_writable(found.path.parent)
    _check_free(output, found, if_exists)
    _check_rejects(found, given, sources)
    return found


def at(output: str, rejects: str | None = None) -> Target:
    """Return the target that a path means: a Parquet suffix makes a file, none or a `/` a dataset.

    Raises:
        UsageError: The suffix is that of another format.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", output):
        raise UsageError(f"{output}: is no local path", "write to a folder of this machine")
    suffix = Path(output).suffix.lower()
    if suffix in _DATA_SUFFIXES and not output.endswith("/"):
        message = f"{output}: batchserve writes Parquet"
        raise UsageError(message, f"did you mean {Path(output).with_suffix('.parquet')}?")
    try:
        path = Path(output).resolve()
    except RuntimeError as error:  # of a link that leads back to itself
        raise OutputError(f"{output}: is a link to itself", "name another output") from error
    rejects_path = Path(rejects).resolve() if rejects else None
    return Target(path, suffix not in _PARQUET_SUFFIXES or output.endswith("/"), rejects_path)


def _check_rejects(found: Target, given: Sequence[str], sources: Sequence[Source]) -> None:
    """Refuse to write rejects over a file of somebody else's, or where the next run would read them."""
    if found.rejects_path:
        storage.check_writable(found.rejects_path.parent)
    for path in {found.rejects, found.rejects_beside}:
        with translated(path):
            there = storage.disk.size_bytes(path) is not None
        if any(there and path.samefile(source.path) for source in sources):
            raise OutputError(f"{path}: is an input and would hold the rejects", "name another output")
        if there and not _plan_id_in(path):
            hint = "rejected rows go there: move it, or name another file: --rejects PATH"
            raise OutputError(f"{path}: exists and was not written by batchserve", hint)
        pattern = next((text for text in given if _would_match(text, path)), None)
        if pattern and not found.path.is_relative_to(Path(pattern).absolute()):
            message = f"{path}: rejected rows go there, and the input {pattern} would match it"
            raise OutputError(message, "write to another folder, or say where they go: --rejects PATH")


def _check_not_input(output: str, found: Target, given: Sequence[str], sources: Sequence[Source]) -> None:
    for source in sources:
        if found.path.exists() and found.path.samefile(source.path):
            raise OutputError(f"{output}: is the input {source.path}", "name another output")
        if found.dataset and Path(source.path).resolve().is_relative_to(found.path):
            raise OutputError(f"{output}: holds the input {source.path}", "name another output")
    names = [found.path, found.path / "part-000000.parquet"] if found.dataset else [found.path]
    pattern = next((text for text in given if any(_would_match(text, name) for name in names)), None)
    if pattern:
        message = f"{output}: lies inside the input {pattern}, and the next run would read it"
        raise OutputError(message, "write it to another folder")


def _would_match(given: str, path: Path) -> bool:
    if Path(given).is_dir():
        return path.is_relative_to(Path(given).resolve())
    pattern = Path(given).absolute()
    if "**" in given:
        patterns = str(pattern), str(pattern).replace("**/", "")
        return any(fnmatch.fnmatch(str(path), each) for each in patterns)
    return any(c in given for c in "*?[") and (
        pattern.parent.resolve() == path.parent and fnmatch.fnmatch(path.name, pattern.name)
    )


def _check_free(output: str, found: Target, if_exists: str) -> None:
    there = taken(found)
    if there and found.path.is_dir() != found.dataset:
        kind = "a folder" if found.path.is_dir() else "a file"
        raise OutputError(f"{output}: exists and is {kind}", "name another output")
    _check_receipt(found)
    if not there:
        return
    ours = published_plan_id(found)
    if not ours:
        remove = f"rm {'-r ' if found.dataset else ''}{shlex.quote(output)}"
        raise OutputError(f"{output}: exists and was not written by batchserve", f"to lose it: {remove}")
    if if_exists == "error" and not found.workspace.exists():
        raise exists(output)
    if if_exists in {"overwrite", "append"}:
        check_only_ours(found)


def _check_receipt(found: Target) -> None:
    """Refuse to write a receipt over a file of somebody else's."""
    with translated(found.receipt):
        there = storage.disk.size_bytes(found.receipt) is not None
        if there and b'"plan_id"' not in storage.disk.head(found.receipt, _RECORD_BYTES):
            message = f"{found.receipt}: exists and was not written by batchserve"
            raise OutputError(message, "the output's receipt goes there: move it, or name another output")


def check_only_ours(found: Target) -> None:
    """Check that a dataset folder holds nothing of others: it would go with what is replaced.

    Raises:
        OutputError: It does; some of it is named.
    """
    if not found.dataset or not taken(found):
        return
    known = {META_DIR, *(part.name for part in manifest(found).parts)}
    with translated(found.path):
        others = [name for name in storage.disk.names(found.path) if name not in known]
    if others:
        more = f" and {len(others) - _SHOWN:,} more" if len(others) > _SHOWN else ""
        message = f"{found.path}: holds what batchserve did not write: {', '.join(others[:_SHOWN])}{more}"
        raise OutputError(message, "move it elsewhere: the whole folder is replaced")


def taken(found: Target) -> bool:
    """Whether there is something at the target; an empty folder is nothing."""
    with translated(found.path):
        if storage.disk.is_dir(found.path):
            return bool(storage.disk.names(found.path)) or not found.dataset
        return storage.disk.size_bytes(found.path) is not None


def exists(output: str) -> OutputError:
    """Build the error for an output of batchserve's own that is in the way."""
    return OutputError(
        f"{output}: exists", "replace it with --overwrite, leave it with --if-exists skip, or name another"
    )


def published_plan_id(found: Target) -> str:
    """Return the plan id that an existing output carries, or an empty text.

    Raises:
        StorageError: It cannot be read just now, so nobody knows.
    """
    try:
        return manifest(found).plan_id if found.dataset else _footer_plan_id(found.path)
    except (NotFoundError, OutputError, ValueError):  # there is no such file, or it is not ours
        return ""


def _footer_plan_id(path: Path) -> str:
    with translated(path):
        values = metadata(path).metadata or {}
    return str(values.get(PLAN_KEY.encode(), b"").decode())


def metadata(path: Path) -> pq.FileMetaData:
    """Return the footer of a Parquet file.

    Raises:
        ValueError: It is damaged.
        OSError: It cannot be read.
    """
    try:
        return pq.read_metadata(path)
    except MemoryError:  # Arrow's own is one of its exceptions too
        raise
    except pa.ArrowException as error:  # of many kinds: NotImplemented for an integer of 77 bits
        raise ValueError(str(error)) from error
    except OSError as error:
        if error.errno is None:  # of Arrow, not of the system
            raise ValueError(str(error)) from error
        raise


def rejects_plan_id(found: Target) -> str:
    """Return the plan id that a rejects file carries in its first record.

    Returns:
        An empty text if there is no such file, or if it is none of ours.
    """
    return _plan_id_in(found.rejects)


def _plan_id_in(path: Path) -> str:
    with translated(path):
        if storage.disk.size_bytes(path) is None:
            return ""
        first, _, _ = storage.disk.head(path, _RECORD_BYTES).partition(b"\n")
    try:
        return str(json.loads(first)["plan_id"])
    except (ValueError, KeyError, TypeError):
        return ""


def drop_refused(found: Target) -> None:
    """Remove the rejects of a run that was refused, now that the output is there."""
    path = found.rejects_beside
    if path != found.rejects and _plan_id_in(path):
        storage.remove(path)


def refused_rejects(found: Target) -> Path:
    """Return where the rejects of a run go that publishes nothing.

    Those beside an output that is there belong to it, so they stay.
    """
    return found.workspace / "rejects.jsonl" if taken(found) else found.rejects_beside


def check_not_like_input(found: Target, plan: Plan) -> None:
    """Refuse to replace a file with the inputs' own columns: it is one that a glob swept up.

    Raises:
        OutputError: `score data/*.parquet --overwrite` took its last input for the output.
    """
    if found.dataset or not found.path.exists():
        return
    with translated(found.path):
        names = pq.read_schema(found.path).names
    every = plan.recipe.reading.schema_.names
    if names in (every, [name for name in every if name not in plan.added]):
        message = f"{found.path}: has the columns of the inputs; is it the last input and no output named?"
        raise OutputError(message, "the last path is where the output goes")
