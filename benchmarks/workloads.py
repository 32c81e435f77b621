"""The jobs that are measured: a model and its files, made in a folder; all by fixed seeds."""

import gzip
import json
import runpy
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

FLIGHTS = Path(__file__).resolve().parents[1] / "examples" / "flights"
NUMBERS = ("month", "day", "hour", "minute", "sched_arr_time", "distance", "dep_delay")
TEXTS = ("carrier", "origin", "dest")
FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


@dataclass(frozen=True)
class Workload:
    """Files, their model, and how batchserve is told about them."""

    name: str
    files: list[Path]
    model: Path
    read: Callable[[pa.BufferReader], pa.Table]
    """pyarrow's reader of a block of the files, at its best."""
    options: dict[str, Any] = field(default_factory=dict)


# -- models -----------------------------------------------------------------------------------


def _write(path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any],
           weights: Sequence[Any]) -> Path:  # fmt: skip
    graph = helper.make_graph(list(nodes), path.stem, list(inputs), list(outputs), list(weights))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _weights(name: str, *shape: int) -> Any:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values / np.float32(shape[0] ** 0.5), name)


def _port(name: str, kind: int, *dims: int | None) -> Any:
    return helper.make_tensor_value_info(name, kind, [None, *dims])


def linear(folder: Path) -> Path:
    """A linear model of the flights: seven numbers, three texts one-hot, a missing number is 0."""
    table = pacsv.read_csv(FLIGHTS / "flights.csv")
    nodes, width = [], len(NUMBERS)
    for name in TEXTS:
        known = sorted(set(table[name].to_pylist()))
        width += len(known)
        nodes.append(helper.make_node("OneHotEncoder", [name], [f"{name}_hot"], domain="ai.onnx.ml",
                                      cats_strings=known, zeros=1))  # fmt: skip
        nodes.append(helper.make_node("Flatten", [f"{name}_hot"], [f"{name}_flat"], axis=1))
    nodes += [
        helper.make_node("Concat", list(NUMBERS), ["raw"], axis=1),
        helper.make_node("Imputer", ["raw"], ["numbers"], domain="ai.onnx.ml",
                         imputed_value_floats=[0.0] * len(NUMBERS), replaced_value_float=float("nan")),
        helper.make_node("Concat", ["numbers", *(f"{n}_flat" for n in TEXTS)], ["x"], axis=1),
        helper.make_node("Gemm", ["x", "weights", "bias"], ["score"]),
    ]  # fmt: skip
    ports = [_port(n, FLOAT, 1) for n in NUMBERS] + [_port(n, STRING, 1) for n in TEXTS]
    weights = [_weights("weights", width, 1), _weights("bias", 1)]
    return _write(folder / "linear.onnx", nodes, ports, [_port("score", FLOAT, 1)], weights)


LAYERS = 3


def network(folder: Path) -> Path:
    """Three layers over 200 floats."""
    nodes, before, sizes = [], "X", [200, 256, 128, 1]
    weights = []
    for i in range(LAYERS):
        weights += [_weights(f"w{i}", sizes[i], sizes[i + 1]), _weights(f"bias{i}", sizes[i + 1])]
        nodes.append(helper.make_node("Gemm", [before, f"w{i}", f"bias{i}"], [f"y{i}"]))
        before = f"z{i}"
        nodes.append(helper.make_node("Relu" if i + 1 < LAYERS else "Sigmoid", [f"y{i}"], [before]))
    nodes.append(helper.make_node("Identity", [before], ["score"]))
    ports = [_port("X", FLOAT, 200)], [_port("score", FLOAT, 1)]
    return _write(folder / "network.onnx", nodes, *ports, weights)


LENGTH, WIDTH, WORDS = 32, 64, 1000


def transformer(folder: Path) -> Path:
    """Two layers of attention over lists of 32 tokens; the score is of their mean."""
    weights = [_weights("words", WORDS, WIDTH), _weights("last", WIDTH, 1),
               numpy_helper.from_array(np.array([1], np.int64), "tokens_axis")]  # fmt: skip
    nodes, at = [helper.make_node("Gather", ["words", "tokens"], ["x0"])], "x0"
    for i in range(2):
        for part in "qkv":
            weights.append(_weights(f"{part}{i}", WIDTH, WIDTH))
            nodes.append(helper.make_node("MatMul", [at, f"{part}{i}"], [f"{part}out{i}"]))
        weights += [_weights(f"up{i}", WIDTH, 4 * WIDTH), _weights(f"down{i}", 4 * WIDTH, WIDTH)]
        nodes += [
            helper.make_node("Transpose", [f"kout{i}"], [f"kt{i}"], perm=[0, 2, 1]),
            helper.make_node("MatMul", [f"qout{i}", f"kt{i}"], [f"a{i}"]),
            helper.make_node("Softmax", [f"a{i}"], [f"s{i}"], axis=-1),
            helper.make_node("MatMul", [f"s{i}", f"vout{i}"], [f"m{i}"]),
            helper.make_node("Add", [at, f"m{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", f"up{i}"], [f"u{i}"]),
            helper.make_node("Relu", [f"u{i}"], [f"g{i}"]),
            helper.make_node("MatMul", [f"g{i}", f"down{i}"], [f"d{i}"]),
            helper.make_node("Add", [f"r{i}", f"d{i}"], [f"x{i + 1}"]),
        ]
        at = f"x{i + 1}"
    nodes += [
        helper.make_node("ReduceMean", [at, "tokens_axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "last"], ["score"]),
    ]
    ports = [_port("tokens", INT64, LENGTH)], [_port("score", FLOAT, 1)]
    return _write(folder / "transformer.onnx", nodes, *ports, weights)


# -- files ------------------------------------------------------------------------------------

NULLS = pacsv.ConvertOptions(null_values=["", "NA"])


def read_csv(block: pa.BufferReader) -> pa.Table:
    """Read a block of a CSV, its header before it, on one thread."""
    options = pacsv.ReadOptions(use_threads=False, block_size=block.size() + 1)
    return pacsv.read_csv(block, options, convert_options=NULLS)


def read_jsonl(block: pa.BufferReader) -> pa.Table:
    """Read a block of JSON lines on one thread."""
    return pajson.read_json(block, pajson.ReadOptions(use_threads=False, block_size=block.size() + 1))


def read_parquet(block: pa.BufferReader) -> pa.Table:
    """Read a Parquet file on one thread."""
    return pq.read_table(block, use_threads=False)


def flights(folder: Path, times: int) -> Path:
    """Write the flights of 2013 `times` times as CSV."""
    path = folder / f"flights-{times}.csv"
    if not path.exists():
        runpy.run_path(str(FLIGHTS / "make_full.py"))["write"](path, times)
    return path


def _in_parts(table: pa.Table, folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    rows = -(-len(table) // count)
    paths = [folder / f"{i:04d}.parquet" for i in range(count)]
    for i, path in enumerate(paths):
        pq.write_table(table.slice(i * rows, rows), path, row_group_size=131_072)
    return paths


def _wide(rows: int) -> pa.Table:
    values = np.random.default_rng(1).standard_normal((200, rows)).astype(np.float32)
    return pa.table({f"f{i}": row for i, row in enumerate(values)})


def _tokens(rows: int) -> pa.Table:
    values = np.random.default_rng(2).integers(0, WORDS, rows * LENGTH)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values), LENGTH).cast(pa.list_(pa.int64()))
    return pa.table({"tokens": lists})


def _jsonl(table: pa.Table, path: Path) -> Path:
    with path.open("w") as file:
        for batch in table.to_batches(10_000):
            file.writelines(json.dumps(row, default=str) + "\n" for row in batch.to_pylist())
    return path


def all_of(folder: Path, times: int) -> dict[str, Callable[[], Workload]]:
    """Return what makes each workload; `times` is how often the flights of 2013 are repeated.

    Args:
        folder: Where files and models go.
        times: Three are a million rows.
    """
    trees, nan = FLIGHTS / "model.onnx", {"on_null": "nan"}

    def table() -> pa.Table:
        return pacsv.read_csv(flights(folder, times), convert_options=NULLS)

    def gz() -> list[Path]:
        path = folder / "flights.csv.gz"
        with flights(folder, times).open("rb") as plain, gzip.open(path, "wb", 6) as packed:
            shutil.copyfileobj(plain, packed, 1 << 20)
        return [path]

    def csv(name: str, model: Path) -> Workload:
        return Workload(name, [flights(folder, times)], model, read_csv, nan)

    def parquet(name: str, made: pa.Table, count: int, model: Path, **options: Any) -> Workload:
        return Workload(name, _in_parts(made, folder / "parts", count), model, read_parquet, options)

    def jsonl(name: str) -> Workload:
        path = _jsonl(table().slice(0, rows // 3), folder / "flights.jsonl")
        return Workload(name, [path], linear(folder), read_jsonl, nan)

    wide = [f"f{i}" for i in range(200)]
    rows = 336_776 * times
    makers: dict[str, Callable[[str], Workload]] = {
        "csv-linear": lambda name: csv(name, linear(folder)),
        "csv-trees": lambda name: csv(name, trees),
        "parquet-trees": lambda name: parquet(name, table(), 4, trees, **nan),
        "parquet-network": lambda name: parquet(name, _wide(rows // 5), 4, network(folder), features=wide),
        "tokens-transformer": lambda name: parquet(name, _tokens(rows // 40), 4, transformer(folder)),
        "jsonl-linear": jsonl,
        "gzip-trees": lambda name: Workload(name, gz(), trees, read_csv, nan),
        "small-files": lambda name: parquet(name, table(), 1000, trees, **nan),
    }
    return {name: partial(make, name) for name, make in makers.items()}


if __name__ == "__main__":
    linear(Path(sys.argv[1]))
    flights(Path(sys.argv[1]), int(sys.argv[2]))
