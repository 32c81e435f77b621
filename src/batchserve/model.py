"""The model: its signature, one session per process, and every runtime error translated.

The only module that imports onnxruntime to score. `onnx` is imported by `operators` alone,
to look into a graph.
"""

import functools
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from batchserve import watch
from batchserve.errors import BatchserveError, MemoryShortError, ModelError, NotFoundError, RunError
from batchserve.storage import file_sha256, translated

if TYPE_CHECKING:
    import onnxruntime as ort

Tensor = NDArray[Any]
"""A tensor; strings are object arrays of `str`."""

PROVIDERS = ("CPUExecutionProvider",)
FEATURES_KEY = "batchserve.features"
"""Key of the model metadata that lists the columns of a wide input (JSON or comma-separated)."""


class Port(BaseModel, frozen=True):
    """One input or output of the model, as its graph declares it."""

    name: str
    type: str
    """onnxruntime's words: `tensor(float)`, `seq(map(string,tensor(float)))`."""
    shape: tuple[int | str | None, ...]
    """Fixed dimensions as numbers, symbolic ones as names or None; the first is the batch."""

    def __str__(self) -> str:
        dims = ", ".join(str(dim) if dim is not None else "?" for dim in self.shape)
        return f"{self.name}: {self.type} [{dims}]"


class ModelSpec(BaseModel, frozen=True):
    """Which model: what a worker needs to open the same one."""

    path: str
    sha256: str


class Signature(BaseModel, frozen=True):
    """What the model takes and gives."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: dict[str, str]

    @property
    def fixed_batch(self) -> int | None:
        """The batch size fixed in the model, or None when any size will do."""
        sizes = [port.shape[0] for port in self.inputs if port.shape]
        return max((size for size in sizes if isinstance(size, int)), default=None)


class Session:
    """An onnxruntime session that gives only our errors. Threads may share it."""

    def __init__(self, spec: ModelSpec) -> None:
        with translated_errors(spec.path), warnings.catch_warnings():
            # "provider is not in available provider names" is only a warning to onnxruntime.
            warnings.simplefilter("error", UserWarning)
            self._session = _open(spec.path)

    def run(
        self, outputs: Sequence[str], tensors: Mapping[str, Tensor], timeout_s: float | None = None
    ) -> list[Any]:
        """Run the model once.

        Args:
            outputs: Names of the outputs to compute.
            tensors: One tensor per model input, each with the batch as first dimension.
            timeout_s: Stop the run, inside the model, after so many seconds.

        Returns:
            One array (or list of dicts, for ZipMap) per name in `outputs`.

        Raises:
            MemoryShortError: Memory ran out; the session can go on.
            StallError: The run took longer than `timeout_s`.
            RunError: The runtime refused the tensors or failed.
        """
        import onnxruntime as ort

        options = ort.RunOptions()
        with translated_errors("the model", RunError), watch.watched(options, timeout_s):
            result: list[Any] = self._session.run(list(outputs), dict(tensors), options)
        return result

    def signature(self) -> Signature:
        """Return the inputs, outputs and metadata the model declares."""
        meta = self._session.get_modelmeta()
        described = {"producer": meta.producer_name, "graph": meta.graph_name}
        return Signature(
            inputs=_ports(self._session.get_inputs()),
            outputs=_ports(self._session.get_outputs()),
            metadata={k: v for k, v in described.items() if v} | dict(meta.custom_metadata_map),
        )


def _ports(nodes: Sequence[Any]) -> tuple[Port, ...]:
    return tuple(Port(name=n.name, type=n.type, shape=tuple(n.shape)) for n in nodes)


def _open(path: str) -> "ort.InferenceSession":
    import onnxruntime as ort

    options = ort.SessionOptions()
    # One thread per session: more made bits depend on their number, and workers x threads
    # would exceed the cores. Spinning would steal cycles from the readers.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    _register_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    session = ort.InferenceSession(path, options, providers=list(PROVIDERS))
    session.disable_fallback()
    if tuple(session.get_providers()) != PROVIDERS:
        used = ", ".join(session.get_providers())
        raise ModelError(f"{path}: onnxruntime chose {used}, not {', '.join(PROVIDERS)}")
    return session


@functools.cache  # sessions are opened under a lock, so once is once
def _register_arena() -> None:
    """Let all sessions of this process share one arena that takes no more than is asked for.

    By default it grows by powers of two: a model that needed 256 MiB a run took 528.
    """
    import onnxruntime as ort

    kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    info = ort.OrtMemoryInfo("Cpu", kind, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg({"arena_extend_strategy": _SAME_AS_REQUESTED}))


_SAME_AS_REQUESTED = 1


@contextmanager
def translated_errors(path: str, kind: type[ModelError] = ModelError) -> Iterator[None]:
    """Turn whatever onnxruntime raises into an error of ours.

    Its exception classes share no base, and a damaged model may even raise UnicodeDecodeError,
    so every `Exception` that is not already ours is taken.
    """
    try:
        yield
    except BatchserveError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            raise MemoryShortError(f"{path}: memory ran out", "give it more, or fewer --workers") from error
        raise kind(f"{path}: {_first_line(error)}", _hint_for(error)) from error


_NO_MEMORY = ("Failed to allocate memory", "std::bad_alloc")
"""What onnxruntime says in a plain `Fail` (bfc_arena.cc, allocator.cc), and when a kernel lacks memory."""


def _first_line(error: Exception) -> str:
    """Return what an error says, without the words around it that are the same in all."""
    text = str(error).strip().splitlines()
    if not text:
        return type(error).__name__
    found = _FAILED_NODE.search(text[0])
    return f"{found[1]}: {found[2]}" if found else text[0].removeprefix("[ONNXRuntimeError] : ")


_FAILED_NODE = re.compile(
    r"returned while running (\w+) node\. Name:'.*?' Status Message: (?:\w+\.(?:cc|h):\d+ )?(.*)"
)


def _hint_for(error: Exception) -> str:
    name = type(error).__name__
    if name in {"InvalidProtobuf", "InvalidGraph", "UnicodeDecodeError"}:
        return "the file is damaged or is not an ONNX model: export it again"
    if name == "NotImplemented":
        return "this onnxruntime has no kernel for the operator: see batchserve --version"
    return "batchserve inspect MODEL shows what the model takes and gives"


class Runs:
    """Runs a session with patience: not for ever, and in smaller pieces where memory runs out.

    Attributes:
        halved: Runs that were split in two because memory ran out.
    """

    def __init__(self, session: Session, timeout_s: float | None = None) -> None:
        self._session = session
        self._timeout_s = timeout_s
        self.halved = 0

    def run(self, outputs: Sequence[str], tensors: Mapping[str, Tensor]) -> list[Any]:
        """Run the model over a batch; where memory runs out, over its halves.

        Raises:
            MemoryShortError: There is not even memory for one row.
            StallError: A run took too long.
            ModelError: The runtime refused the tensors or failed.
        """
        try:
            return self._session.run(outputs, tensors, self._timeout_s)
        except MemoryShortError:
            rows = len(next(iter(tensors.values())))
            if rows == 1 or self._session.signature().fixed_batch:
                raise
        self.halved += 1
        half = rows // 2
        first = self.run(outputs, {name: tensor[:half] for name, tensor in tensors.items()})
        second = self.run(outputs, {name: tensor[half:] for name, tensor in tensors.items()})
        return [_both(a, b) for a, b in zip(first, second, strict=True)]


def _both(first: Any, second: Any) -> Any:
    return first + second if isinstance(first, list) else np.concatenate((first, second))


_sessions: dict[str, Session] = {}
_lock = threading.Lock()


def session_for(spec: ModelSpec) -> Session:
    """Return this process's session for `spec`, opening it at the first call.

    A dict under a lock and not `lru_cache`, which let four threads load a model four times.

    Raises:
        ModelError: The file at `spec.path` is not the model that was planned, or cannot be run.
    """
    with _lock:
        if spec.sha256 not in _sessions:
            if identify(spec.path) != spec:
                raise ModelError(
                    f"{spec.path}: is not the model that was planned (sha256 {spec.sha256[:12]})",
                    "run the command again to plan with the new model",
                )
            _sessions[spec.sha256] = Session(spec)
        return _sessions[spec.sha256]


def identify(path: str) -> ModelSpec:
    """Return the absolute path and the sha256 of a model file.

    Raises:
        NotFoundError: There is no such file.
    """
    file = Path(path).absolute()
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*.onnx")] if file.parent.is_dir() else []
        raise NotFoundError.of("model", path, siblings)
    with translated(path):
        return ModelSpec(path=str(file), sha256=file_sha256(file))


def operators(path: str) -> dict[str, int]:
    """Count the operators in a model's graph, by name.

    Raises:
        ModelError: The file is not an ONNX model.
    """
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf and onnx raise classes without a common base
        raise ModelError(f"{path}: {_first_line(error)}", "export the model again") from error
    counts: dict[str, int] = {}
    for node in graph.node:
        name = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return counts


_NUMPY_OF = {
    "float": "float32", "double": "float64", "bool": "bool", "string": "object",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
    "float16": "float16",
}  # fmt: skip


def tensor_dtype(port: Port) -> np.dtype[Any] | None:
    """Return the numpy dtype of a tensor input, or None when we cannot feed its type.

    Example:
        >>> tensor_dtype(Port(name="x", type="tensor(float)", shape=(None, 1)))
        dtype('float32')
    """
    kind = port.type.removeprefix("tensor(").removesuffix(")")
    return np.dtype(_NUMPY_OF[kind]) if kind in _NUMPY_OF else None


def available_providers() -> list[str]:
    """Return the execution providers this onnxruntime was built with."""
    import onnxruntime as ort

    providers: list[str] = ort.get_available_providers()
    return providers


def runtime_version() -> str:
    """Return the version of onnxruntime, on which the bits of scores depend."""
    import onnxruntime as ort

    return str(ort.__version__)
