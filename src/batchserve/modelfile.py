"""Which model: every file that changes its scores, and one sha256 over them all.

Nothing here loads a model. `onnx` is imported by `operators` alone, to look into a graph.
"""

import hashlib
import mmap
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from batchserve.errors import ModelError, NotFoundError
from batchserve.storage import file_sha256, translated

Device = Literal["cpu", "cuda"]


class ModelSpec(BaseModel, frozen=True):
    """Which model, and where it runs: what a worker needs to open the same one."""

    path: str
    sha256: str
    """Of the file; where its weights lie in files beside it, of those too."""
    device: Device = "cpu"
    custom_ops: str = ""
    """Path of a library of custom operators, or nothing."""
    custom_ops_sha256: str = ""

    intra_op: int = 1
    """Threads of one run."""

    @property
    def key(self) -> tuple[str, ...]:
        """What tells one session from another, wherever the files are."""
        return self.sha256, self.device, self.custom_ops_sha256, str(self.intra_op)


def identify(
    path: str, device: Device = "cpu", custom_ops: str | None = None, intra_op: int = 1
) -> ModelSpec:
    """Return the absolute path and the sha256 of a model, and of the library it needs.

    Args:
        path: The model's file.
        device: Where it is to run.
        custom_ops: A library of custom operators, `extensions`, or None.
        intra_op: Threads of one run.

    Raises:
        NotFoundError: There is no such file.
        ModelError: The package of the library is not installed.
    """
    file = Path(path).absolute()
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*.onnx")] if file.parent.is_dir() else []
        raise NotFoundError.of("model", path, siblings)
    library = _library(custom_ops) if custom_ops else None
    with translated(path):
        return ModelSpec(
            path=str(file), sha256=_sha256(file), device=device, custom_ops=str(library or ""),
            custom_ops_sha256=file_sha256(library) if library else "", intra_op=intra_op,
        )  # fmt: skip


EXTENSIONS = ("extensions", "onnxruntime-extensions", "onnxruntime_extensions")
"""What `--custom-ops` may say for the library of that package."""


def _library(custom_ops: str) -> Path:
    if custom_ops in EXTENSIONS:
        return _extensions()
    file = Path(custom_ops).absolute()
    if not file.is_file():
        raise NotFoundError(f"--custom-ops {custom_ops}: no such library", "give its path, or `extensions`")
    return file


def _extensions() -> Path:
    try:
        from onnxruntime_extensions import get_library_path
    except ImportError as error:
        message = "--custom-ops extensions: the package onnxruntime-extensions is not installed"
        raise ModelError(message, "pip install onnxruntime-extensions") from error
    return Path(get_library_path())


def _sha256(file: Path) -> str:
    """Return the sha256 of a model; where it names files of weights, of all their sha256."""
    own = file_sha256(file)
    others = [place for place in weights_files(file) if (file.parent / place).is_file()]
    if not others:
        return own
    lines = [own, *(f"{place} {file_sha256(file.parent / place)}" for place in others)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


_LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\x7f]|[\x80-\xff][\x00-\x7f])")
"""A protobuf pair whose key is "location", up to the length of its value: less than 16 kB."""


def weights_files(file: Path) -> list[str]:
    """Return the names of files beside the model that may hold its weights, as it writes them.

    The raw bytes are searched for the entry that names one: parsing the model would take longer
    than a small job. What only looks like an entry names no file, or one hash too many.
    """
    with file.open("rb") as opened:
        if not file.stat().st_size:
            return []
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            return sorted(set(_locations(raw)))


def _locations(raw: mmap.mmap | bytes) -> Iterator[str]:
    for found in _LOCATION.finditer(raw):
        digits = found[1]
        size = digits[0] & 0x7F | (digits[1] << 7 if len(digits) > 1 else 0)
        place = raw[found.end() : found.end() + size]
        with suppress(UnicodeDecodeError):
            if _is_below(name := place.decode()):
                yield name


def _is_below(name: str) -> bool:
    """Whether a name may be that of a file below the model's folder; onnxruntime reads no other."""
    return bool(name) and "\0" not in name and not name.startswith("/") and ".." not in Path(name).parts


def operators(path: str) -> dict[str, int]:
    """Count the operators in a model's graph, by name.

    Raises:
        ModelError: The file is not an ONNX model.
    """
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf and onnx raise classes without a common base
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{path}: {text[0]}", "export the model again") from error
    counts: dict[str, int] = {}
    for node in graph.node:
        name = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return counts
