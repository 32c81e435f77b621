"""torch modules and exported programs, by torch.onnx."""

import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchserve import surgery
from batchserve.errors import ModelError, UsageError
from batchserve.model import Tensor
from batchserve.sources import OPSETS, Candidate, kinds, library, matrix, reason, title, versions

if TYPE_CHECKING:
    import onnx


def of_file(path: Path) -> "Module":
    """Open a program that torch.export wrote.

    Raises:
        ModelError: torch is not installed; or it is no such program; or its batch is fixed.
    """
    torch = library("torch", "torch")
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises what the archive's parts raise
        message = f"{path}: is no program of torch.export ({reason(error)})"
        raise ModelError(message, "torch.export.save(program, 'model.pt2') writes one") from error
    if not program.range_constraints:
        message = f"{path}: its batch is fixed, rows cannot be scored in batches of another size"
        raise ModelError(message, _DYNAMIC)
    return Module(program.module(), program)


_DYNAMIC = "export it with dynamic_shapes={'x': {0: torch.export.Dim('rows')}}, x being the argument's name"


def of_factory(name: str, weights: str | None) -> "Module":
    """Make a module by `package.module:factory`, and fill in its weights.

    Args:
        name: What is imported and called without arguments.
        weights: A file of safetensors, or of torch.save; no code in it is run.

    Raises:
        UsageError: There is no such factory, or it makes no module.
        ModelError: The weights cannot be read or do not fit.
    """
    torch = library("torch", "torch")
    module = _made(name)
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{name}: makes a {type(module).__name__}, not a torch.nn.Module", "name a factory")
    if weights:
        try:
            module.load_state_dict(_state(weights))
        except Exception as error:  # unpicklers and load_state_dict raise classes without a common base
            message = f"{weights}: its weights cannot be put into {name} ({reason(error)})"
            raise ModelError(message, "save module.state_dict() of the same class") from error
    return of_object(module)


def _made(name: str) -> Any:
    place, _, factory = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: a package in this folder can be named
    try:
        return getattr(importlib.import_module(place), factory)()
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(f"{name}: cannot be imported and called ({reason(error)})", _FACTORY) from error


_FACTORY = "name package.module:factory, a function or class that needs no arguments"


def _state(weights: str) -> Any:
    if weights.endswith(".safetensors"):
        return library("safetensors.torch", "torch").load_file(weights)
    return library("torch", "torch").load(weights, weights_only=True)


def of_object(module: Any) -> "Module":
    """Open a module that is in memory.

    Raises:
        ModelError: torch or its ONNX exporter's library is not installed.
    """
    library("torch", "torch")
    library("onnxscript", "torch")
    return Module(module.eval())


@dataclass(frozen=True)
class Module:
    """A module in evaluation mode, and the program that it was loaded from, if it was."""

    module: Any
    program: Any = None

    @property
    def made_with(self) -> str:
        """Its class and torch."""
        return f"{title(self.module)} by {versions('torch', 'onnxscript')}"

    @property
    def names(self) -> tuple[str, ...]:
        """Nothing: modules do not know columns."""
        return ()

    @property
    def width(self) -> int | None:
        """Nothing: modules do not say what they take."""
        return None

    @property
    def instead(self) -> str:
        """Nothing is known beforehand."""
        return ""

    def predict(self, rows: pa.RecordBatch) -> Mapping[str, Tensor]:
        """Return `output`, or `output_0`, `output_1` and so on where it gives several."""
        import torch

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _flat(self.module(_tensor(rows)))
        return {name: value.detach().numpy() for name, value in zip(_names(len(found)), found, strict=True)}

    def candidates(self, rows: pa.RecordBatch) -> Iterator[Candidate]:
        """Give a graph by the exporter of torch.export, and by that of TorchScript."""
        wide = () if _is_list(rows) else tuple(rows.schema.names)
        yield Candidate("float32", partial(self._exported, rows, dynamo=True), wide)
        if self.program is None:
            yield Candidate("float32, traced", partial(self._exported, rows, dynamo=False), wide)

    def _exported(self, rows: pa.RecordBatch, *, dynamo: bool) -> "onnx.ModelProto":
        import torch

        # Two rows or more: torch takes a size of one for fixed.
        some = _tensor(pa.concat_batches([rows.slice(0, 1)] * _TRACED_ROWS))
        given = rows.schema.names[0] if _is_list(rows) else "X"
        names = _names(len(_flat(self.module(some))))
        options = {"input_names": [given], "output_names": names, "opset_version": OPSETS[""]}
        with _silence():
            if self.program is not None:
                return _proto(torch.onnx.export(self.program, **options, dynamo=True, verbose=False))
            if dynamo:
                batch = ({0: torch.export.Dim("rows")},)
                options |= {"dynamic_shapes": batch, "verbose": False}
                return _proto(torch.onnx.export(self.module, (some,), dynamo=True, **options))
            return self._traced(some, options | {"dynamic_axes": {name: [0] for name in (given, *names)}})

    def _traced(self, some: Any, options: dict[str, Any]) -> "onnx.ModelProto":
        import onnx
        import torch

        written = io.BytesIO()
        torch.onnx.export(self.module, (some,), written, dynamo=False, **options)
        return surgery.inferred(onnx.load_from_string(written.getvalue()))


_TRACED_ROWS = 3


def _proto(program: Any) -> "onnx.ModelProto":
    found: onnx.ModelProto = program.model_proto
    return found


def _is_list(rows: pa.RecordBatch) -> bool:
    """Whether the one column has lists.

    Raises:
        UsageError: There are several columns, not all of numbers.
    """
    found = list(kinds(rows.schema).values())
    if found == ["list"]:
        return True
    if "list" in found or "text" in found:
        message = "a module takes columns of numbers, or one column of lists of them"
        raise UsageError(message, "name its columns in order: --features A,B")
    return False


def _tensor(rows: pa.RecordBatch) -> Any:
    import torch

    if not _is_list(rows):
        return torch.from_numpy(matrix(rows).astype(np.float32))
    found = np.array(rows.column(0).to_pylist())
    return torch.from_numpy(found.astype(np.int64 if found.dtype.kind in "iu" else np.float32))


def _flat(found: Any) -> list[Any]:
    """Return the tensors that a module gave, in their order."""
    values = list(found.values()) if isinstance(found, Mapping) else found
    return list(values) if isinstance(values, list | tuple) else [values]


def _names(count: int) -> list[str]:
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep torch's exporter from telling its progress."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
