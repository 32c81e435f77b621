"""What the command line tests share: one way to run it, the two examples, and tiny models."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import helper, numpy_helper

import batchserve as bs
from batchserve import cli

EXAMPLES = Path(__file__).parent.parent / "examples"
IRIS = EXAMPLES / "iris" / "iris.csv"
IRIS_MODEL = EXAMPLES / "iris" / "model.onnx"
FLIGHTS = EXAMPLES / "flights" / "flights.csv"
IRIS_HEADER = "sepal_length,sepal_width,petal_length,petal_width"

Score = Callable[..., pa.Table]
"""Scores inputs with the options of `bs.score` into a table."""
ScoreText = Callable[..., list[dict[str, Any]]]
"""Scores the text of a file, by its name, with the options of `bs.score` into rows."""


def zstd(data: bytes) -> bytes:
    """Pack into one zstd frame."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd,
}  # fmt: skip
"""Suffix of a packed file -> what packs it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Outcome:
    """Run batchserve in this process."""
    capsys.readouterr()
    code = _exit_code([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def _exit_code(arguments: Sequence[str]) -> int:
    def call() -> NoReturn:
        cli.main(list(arguments))

    with pytest.raises(SystemExit) as stopped:
        call()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def scored(model: Path, inputs: Any, **options: Any) -> pa.Table:
    """Score inputs into a file beside the model and read it back."""
    output = model.parent / "out.parquet"
    bs.score(inputs, output, model=model, overwrite=True, **options)
    return pq.read_table(output)


def spawn(*arguments: str | Path, environment: Mapping[str, str] | None = None, before: str = "") -> Outcome:
    """Run batchserve in a process of its own, after the Python statements `before`."""
    program = f"{before}\nfrom batchserve.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def listing(folder: Path) -> dict[str, bytes | str]:
    """Return every name below `folder` with what it holds."""
    return {str(path.relative_to(folder)): _held(path) for path in sorted(folder.rglob("*"))}


def _held(path: Path) -> bytes | str:
    if path.is_symlink():
        return str(path.readlink())
    return path.read_bytes() if path.is_file() else "folder"


def save_model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | None]]],
    outputs: Mapping[str, tuple[int, Sequence[int | None]]],
    constants: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model made by hand.

    Args:
        path: Where it goes.
        nodes: The graph.
        inputs: Name to element type and shape; None is the batch.
        outputs: The same, for outputs.
        constants: Name to array.
    """
    graph = helper.make_graph(
        list(nodes), "tiny", _ports(inputs), _ports(outputs),
        [numpy_helper.from_array(np.asarray(v), name) for name, v in (constants or {}).items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def _ports(named: Mapping[str, tuple[int, Sequence[int | None]]]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, kind, ["rows" if dim is None else dim for dim in shape])
        for name, (kind, shape) in named.items()
    ]


def doubler(path: Path, name: str = "x", kind: int = onnx.TensorProto.FLOAT) -> Path:
    """Write a model with the output `y` that is twice its one input column."""
    node = helper.make_node("Add", [name, name], ["y"])
    return save_model(path, [node], {name: (kind, [None, 1])}, {"y": (kind, [None, 1])})


def echo(path: Path, name: str = "x", kind: int = onnx.TensorProto.STRING) -> Path:
    """Write a model with the output `y` that is its one input column."""
    node = helper.make_node("Identity", [name], ["y"])
    return save_model(path, [node], {name: (kind, [None, 1])}, {"y": (kind, [None, 1])})


def mixer(path: Path, name: str = "x") -> Path:
    """Write a model whose rows change each other's scores: each less the mean of the batch."""
    nodes = [
        helper.make_node("ReduceMean", [name, "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", [name, "mean"], ["y"]),
    ]
    port = (onnx.TensorProto.FLOAT, [None, 1])
    return save_model(path, nodes, {name: port}, {"y": port}, {"axes": np.array([0], np.int64)})


def divider(path: Path) -> Path:
    """Write a model that divides integers: the least one by -1 kills the process (SIGFPE)."""
    port = (onnx.TensorProto.INT64, [None, 1])
    node = helper.make_node("Div", ["a", "b"], ["y"])
    return save_model(path, [node], {"a": port, "b": port}, {"y": port})
