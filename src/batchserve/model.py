"""The model: its signature, one session per process, and every runtime error translated.

The only module that imports onnxruntime; for export `reducing` and `simplifying` use its tools for graphs.
"""

import ctypes
import functools
import math
import os
import re
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from batchserve import watch
from batchserve.errors import BatchserveError, MemoryShortError, ModelError, RunError
from batchserve.lookups import NO_CODES, Codes
from batchserve.modelfile import ModelSpec, identify
from batchserve.shortcut import Shortcut
from batchserve.zipmaps import tabled

if TYPE_CHECKING:
    import onnxruntime as ort

# onnxruntime 1.32 keeps a database of what it was used for in the user's cache, to send it to its
# makers. That is nobody's business but the user's, who may set this to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Tensor = NDArray[Any]
"""A tensor; strings are object arrays of `str`."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Device to the execution provider that is asked for, alone."""
FEATURES_KEY = "batchserve.features"
"""Key of the model metadata that lists the columns of a wide input (JSON or comma-separated)."""
COLUMNS_KEY = "batchserve.columns"
"""Key of the model metadata that has the columns it was exported with, and their types (JSON)."""
NULLS_KEY = "batchserve.on_null"
"""Key of the model metadata that says what a null becomes where the user does not: `nan`."""


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


class Signature(BaseModel, frozen=True):
    """What the model takes and gives."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: dict[str, str]
    optional: tuple[Port, ...] = ()
    """Inputs that have a value in the model: left out unless somebody names them."""

    @property
    def fixed_batch(self) -> int | None:
        """The batch size fixed in the model, or None when any size will do."""
        sizes = [port.shape[0] for port in self.inputs if port.shape]
        return max((size for size in sizes if isinstance(size, int)), default=None)

    def naming(self, names: Collection[str]) -> "Signature":
        """Return the signature with those optional inputs that are named."""
        named = tuple(port for port in self.optional if port.name in names)
        return self.model_copy(update={"inputs": self.inputs + named, "optional": ()})

    def without(self, names: Collection[str]) -> "Signature":
        """Return the signature without the inputs of these names."""
        rest = tuple(port for port in self.inputs if port.name not in names)
        return self.model_copy(update={"inputs": rest})


class Session:
    """An onnxruntime session that gives only our errors. Threads may share it."""

    def __init__(self, spec: ModelSpec) -> None:
        with translated_errors(spec.path), warnings.catch_warnings():
            # "provider is not in available provider names" is only a warning to onnxruntime.
            warnings.simplefilter("error", UserWarning)
            self._session = _open(spec)
            self._signature = _signature(self._session)  # names and metadata may not be UTF-8
        self._shortcut = Shortcut(spec.path, partial(_open, spec))
        self._bfloats = {port.name for port in self._signature.outputs if port.type == _BFLOAT16}

    def run(
        self, outputs: Sequence[str], tensors: Mapping[str, Tensor], timeout_s: float | None = None,
        codes: Mapping[str, Codes] = NO_CODES,
    ) -> list[Any]:  # fmt: skip
        """Run the model once.

        Args:
            outputs: Names of the outputs to compute.
            tensors: One tensor per model input.
            timeout_s: Stop the run, inside the model, after so many seconds.
            codes: Of inputs of texts, the same in a shorter form; bits are the same with and without.

        Returns:
            One array (or `Maps`, for ZipMap) per name in `outputs`; bfloat16 as float32.

        Raises:
            MemoryShortError: Memory ran out; the session can go on.
            StallError: The run took longer than `timeout_s`.
            RunError: The runtime refused the tensors or failed.
        """
        import onnxruntime as ort

        options = ort.RunOptions()
        with translated_errors("the model", RunError), watch.watched(options, timeout_s):
            if not self._bfloats.isdisjoint(outputs):
                return self._widened(outputs, tensors, options)
            if (short := self._shortcut.run(outputs, tensors, codes, options)) is not None:
                return short
            result = [tabled(each) for each in self._session.run(list(outputs), dict(tensors), options)]
            self._shortcut.consider(outputs, tensors, codes, options, result)
        return result

    def _widened(self, outputs: Sequence[str], tensors: Mapping[str, Tensor], options: Any) -> list[Any]:
        """Run by onnxruntime's own values: it hands bfloat16, which numpy lacks, out no other way."""
        import onnxruntime as ort

        if any(tensor.dtype.kind == "O" for tensor in tensors.values()):
            raise ModelError(_TEXT_TO_BFLOAT16, "convert the output to float32 in the model")
        given = {name: ort.OrtValue.ortvalue_from_numpy(tensor) for name, tensor in tensors.items()}
        values = self._session.run_with_ort_values(list(outputs), given, options)
        return [_float32(v) if v.data_type() == _BFLOAT16 else v.numpy() for v in values]

    def signature(self) -> Signature:
        """Return the inputs, outputs and metadata the model declares."""
        return self._signature


_BFLOAT16 = "tensor(bfloat16)"
_TEXT_TO_BFLOAT16 = "this onnxruntime gives no bfloat16 output to a model with text inputs"


def _float32(value: Any) -> Tensor:
    """Return a bfloat16 value as float32: its bits are the upper half of one, so none is lost."""
    shape = value.shape()
    size = math.prod(shape)
    if not size:
        return np.zeros(shape, np.float32)
    halves = np.frombuffer((ctypes.c_uint16 * size).from_address(value.data_ptr()), np.uint16)
    wide: Tensor = (halves.astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return wide


def _signature(session: "ort.InferenceSession") -> Signature:
    meta = session.get_modelmeta()
    described = {"producer": meta.producer_name, "graph": meta.graph_name}
    return Signature(
        inputs=_ports(session.get_inputs()),
        outputs=_ports(session.get_outputs()),
        metadata={k: v for k, v in described.items() if v} | dict(meta.custom_metadata_map),
        optional=_ports(session.get_overridable_initializers()),
    )


def _ports(nodes: Sequence[Any]) -> tuple[Port, ...]:
    return tuple(Port(name=n.name, type=n.type, shape=tuple(n.shape)) for n in nodes)


def _open(spec: ModelSpec, model: bytes | None = None) -> "ort.InferenceSession":
    """Open a session of the model's file, or of what was made of it."""
    import onnxruntime as ort

    provider = PROVIDERS[spec.device]
    if provider not in ort.get_available_providers():
        here = ", ".join(ort.get_available_providers())
        hint = "use an onnxruntime that was built for it (onnxruntime-gpu), or --device cpu"
        raise ModelError(f"--device {spec.device}: this onnxruntime has no {provider}, only {here}", hint)
    session = ort.InferenceSession(model or spec.path, _options(spec), providers=[provider])
    session.disable_fallback()
    used = session.get_providers()
    if used[0] != provider:
        raise ModelError(f"{spec.path}: onnxruntime chose {', '.join(used)}, not {provider}")
    return session


def _options(spec: ModelSpec) -> "ort.SessionOptions":
    import onnxruntime as ort

    options = ort.SessionOptions()
    # One thread per session unless the plan says otherwise: more made bits depend on their number, and
    # workers x threads would exceed the cores. Spinning would steal cycles from the readers.
    options.intra_op_num_threads, options.inter_op_num_threads = spec.intra_op, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    if spec.device != "cpu":  # or operators that the device lacks would run on the CPU, in silence
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    _register_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    if spec.custom_ops:
        options.register_custom_ops_library(spec.custom_ops)
    return options


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
    if "is not a registered function/op" in str(error):
        return (
            "if the operator comes from a library: --custom-ops LIB, or --custom-ops extensions "
            "for onnxruntime-extensions; the library's code is run"
        )
    if "Failed to load library" in str(error):
        return "--custom-ops wants a library of operators that was built for onnxruntime"
    if "xternal" in str(error) and "data" in str(error):
        return "weights that lie in files beside the model must be there, under their own names"
    if name in {"InvalidProtobuf", "InvalidGraph", "UnicodeDecodeError"}:
        return "the file is damaged or is not an ONNX model: export it again"
    if name == "NotImplemented":
        return "this onnxruntime has no kernel for the operator: see batchserve --version"
    return "batchserve inspect MODEL shows what the model takes and gives"


_sessions: dict[tuple[str, ...], Session] = {}
_lock = threading.Lock()


def session_for(spec: ModelSpec) -> Session:
    """Return this process's session for `spec`, opening it at the first call.

    A dict under a lock and not `lru_cache`, which let four threads load a model four times.

    Raises:
        ModelError: The file at `spec.path` is not the model that was planned, or cannot be run.
    """
    with _lock:
        if spec.key not in _sessions:
            if identify(spec.path, spec.device, spec.custom_ops, spec.intra_op).key != spec.key:
                raise ModelError(
                    f"{spec.path}: is not the model that was planned (sha256 {spec.sha256[:12]})",
                    "run the command again to plan with the new model",
                )
            _sessions[spec.key] = Session(spec)
        return _sessions[spec.key]


_NUMPY_OF = {
    "float": "float32", "double": "float64", "bool": "bool", "string": "object",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
    "float16": "float16",
}  # fmt: skip


def element(port: Port) -> str:
    """Return the name of a tensor's elements, or all of its type where it is no tensor.

    Example:
        >>> element(Port(name="x", type="tensor(float)", shape=(None, 1)))
        'float'
    """
    return port.type.removeprefix("tensor(").removesuffix(")")


def tensor_dtype(port: Port) -> np.dtype[Any] | None:
    """Return the numpy dtype of a tensor input, or None when we cannot feed its type.

    Example:
        >>> tensor_dtype(Port(name="x", type="tensor(float)", shape=(None, 1)))
        dtype('float32')
    """
    kind = element(port)
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
