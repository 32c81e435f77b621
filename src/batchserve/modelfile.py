"""Which model: every file that changes its scores, and one sha256 over them all.

Nothing here loads a model. `onnx` is imported by `operators` and `external_files` alone, to look into one.
"""

import hashlib
import mmap
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from batchserve import references, storage
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
    path: str, device: Device = "cpu", custom_ops: str | None = None, intra_op: int = 1,
    sha256: str | None = None,
) -> ModelSpec:  # fmt: skip
    """Return the absolute path and the sha256 of a model, and of the library it needs.

    Args:
        path: The model's file; or a reference, whose model is kept in the cache.
        device: Where it is to run.
        custom_ops: A library of custom operators, `extensions`, or None.
        intra_op: Threads of one run.
        sha256: What its sha256 must be, or None.

    Raises:
        NotFoundError: There is no such file.
        ModelError: The package of the library is not installed, or the sha256 is another.
    """
    file = _fetched(path, sha256) if references.is_reference(path) else _local(path)
    library = _library(custom_ops) if custom_ops else None
    with translated(path):
        spec = ModelSpec(
            path=str(file), sha256=_sha256(file), device=device, custom_ops=str(library or ""),
            custom_ops_sha256=file_sha256(library) if library else "", intra_op=intra_op,
        )  # fmt: skip
    if sha256 and spec.sha256 != sha256:
        raise references.other_sha256(path, spec.sha256, sha256)
    return spec


def _local(path: str) -> Path:
    file = Path(path).absolute()
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*.onnx")] if file.parent.is_dir() else []
        raise NotFoundError.of("model", path, siblings)
    return file


# -- references -------------------------------------------------------------------------------


def _fetched(name: str, sha256: str | None) -> Path:
    """Return the file in the cache that holds the model of a reference."""
    with references.located(name, sha256) as file, translated(name):
        if references.is_url(name):
            _check_alone(name, file)
            return file
        return _kept(file)


def _check_alone(url: str, file: Path) -> None:
    """Check that a model needs no other file.

    Raises:
        ModelError: It keeps its weights in other files, which a URL does not give.
    """
    if weights_files(file) and (others := external_files(str(file))):
        message = f"{url}: keeps its weights in other files ({', '.join(others)})"
        raise ModelError(message, "download it with them, and name the file; or save it as one file")


def _kept(file: Path) -> Path:
    """Copy a model, and the files of its weights, into the cache, if it is not there; return its file."""
    sha256 = _sha256(file)
    others = [place for place in weights_files(file) if (file.parent / place).is_file()]
    cache = references.cache_folder()
    home = cache / sha256 if others else cache
    kept = home / (_MODEL_NAME if others else f"{sha256}.onnx")
    if kept.is_file() and _sha256(kept) == sha256:
        return kept
    with tempfile.TemporaryDirectory(dir=cache, prefix=".copy-") as folder:
        whole = Path(folder) / "whole"
        for place, name in [(file.name, _MODEL_NAME), *((place, place) for place in others)]:
            _copy(file.parent / place, whole / name)
        if others and home.is_dir():  # damaged: what is in it is not what it was named for
            storage.remove_tree(home)
        storage.replace(whole if others else whole / _MODEL_NAME, home if others else kept)
    return kept


def _copy(file: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, copy)
    storage.disk.sync_file(copy)


_MODEL_NAME = "model.onnx"


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
    counts: dict[str, int] = {}
    for node in _parsed(path).graph.node:
        name = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return counts


def external_files(path: str) -> list[str]:
    """Return the names of the files beside a model that hold its weights, by parsing it.

    Raises:
        ModelError: The file is not an ONNX model.
    """
    import onnx

    tensors = (each for each in _messages(_parsed(path)) if isinstance(each, onnx.TensorProto))
    pairs = (pair for tensor in tensors for pair in tensor.external_data)
    return sorted({pair.value for pair in pairs if pair.key == "location"})


def _messages(message: Any) -> Iterator[Any]:
    """Give a protobuf message and all that are in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(each)


def _parsed(path: str) -> Any:
    import onnx

    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf and onnx raise classes without a common base
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{path}: {text[0]}", "export the model again") from error
