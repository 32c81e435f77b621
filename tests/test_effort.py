"""How much work a model is for a row: counted by its graph, and what the plan makes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

import batchserve as bs
import models
from batchserve import effort, modelfile
from batchserve.binding import Binding, Feed
from batchserve.nulls import NullPolicy
from workbench import EXAMPLES

DENSE, TREE, LIGHT = effort._DENSE_NS * 1e-9, effort._TREE_NS * 1e-9, effort._LIGHT_NS * 1e-9
FLOAT = TensorProto.FLOAT


@pytest.fixture(autouse=True)
def small_models_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look into small models, too."""
    monkeypatch.setattr(effort, "_SMALL_BYTES", 0)


def work_of(path: Path, **shapes: tuple[int, ...]) -> effort.Effort:
    feeds = [
        Feed(input=name, dtype="float32", columns=("x",), nulls=(NullPolicy(),), rank=1 + len(shape),
             packed=True, shape=shape)
        for name, shape in shapes.items()
    ]  # fmt: skip
    return effort.of(modelfile.identify(str(path)), Binding(feeds=tuple(feeds)))


def write(
    path: Path, node: Any, ports: dict[str, list[int | None]], weights: dict[str, tuple[int, ...]]
) -> Path:
    """Write a model of one node that gives `y`."""
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(n, FLOAT, dims) for n, dims in ports.items()],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.ones(shape, np.float32), n) for n, shape in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


Case = tuple[Any, dict[str, list[int | None]], dict[str, tuple[int, ...]], float, int]


def product(kind: str, *inputs: str) -> Any:
    return helper.make_node(kind, ["x", *inputs], ["y"])


NODES: dict[str, Case] = {
    "a product": (product("MatMul", "w"), {"x": [None, 30]}, {"w": (30, 5)}, 150 * DENSE, 5),
    "a layer": (product("Gemm", "w", "b"), {"x": [None, 30]}, {"w": (30, 5), "b": (5,)}, 150 * DENSE, 5),
    "a batch of four": (product("MatMul", "w"), {"x": [4, 30]}, {"w": (30, 5)}, 150 * DENSE, 5),
    "a convolution": (
        product("Conv", "w"), {"x": [None, 3, 8, 8]}, {"w": (6, 3, 3, 3)}, 6 * 36 * 27 * DENSE, 216,
    ),
    "a sum": (product("Add", "w"), {"x": [None, 30]}, {"w": (30,)}, 30 * LIGHT, 30),
}  # fmt: skip


@pytest.mark.parametrize("name", NODES)
def test_operations_are_counted_as_by_hand(name: str, tmp_path: Path) -> None:
    """Each kind of operator counts the multiplications that a person counts, for one row."""
    node, ports, weights, seconds, widest = NODES[name]
    path = write(tmp_path / "m.onnx", node, ports, weights)
    fixed = next(iter(ports.values()))[0]
    work = effort.of(modelfile.identify(str(path)), Binding(feeds=(), fixed_batch=fixed))

    assert work.seconds == pytest.approx(seconds)
    assert work.widest_bytes == 4 * widest


def test_a_recurrence_counts_its_steps(tmp_path: Path) -> None:
    """A recurrent layer counts all its weights once for each step of the sequence."""
    node = helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=4)
    path = write(tmp_path / "m.onnx", node, {"x": [7, None, 3]}, {"w": (1, 12, 3), "r": (1, 12, 4)})

    assert work_of(path).seconds == pytest.approx(7 * 84 * DENSE)


def test_a_forest_counts_the_way_down_its_trees() -> None:
    """A forest is as much work as its trees are deep, not as they have nodes."""
    model = onnx.load(EXAMPLES / "flights" / "model.onnx")
    (forest,) = [node for node in model.graph.node if node.op_type.startswith("TreeEnsemble")]
    (ids,) = [each.ints for each in forest.attribute if each.name == "nodes_treeids"]
    trees = len(set(ids))
    work = work_of(EXAMPLES / "flights" / "model.onnx")

    assert trees * TREE < work.seconds < trees * 10 * TREE


def test_lists_have_the_size_that_the_data_have(tmp_path: Path) -> None:
    """An input of open length is as long as the lists that fill it."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = write(tmp_path / "m.onnx", node, {"x": [None, None, 8]}, {"w": (8, 8)})

    assert work_of(path, x=(50, 8)).seconds == pytest.approx(50 * 64 * DENSE)


def test_what_cannot_be_told_counts_as_nothing(tmp_path: Path) -> None:
    """A model that onnx cannot read is no reason to refuse it: the usual sizes are taken."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x09" + b"\xff" * 40)

    assert work_of(path) == effort.NONE


def test_small_models_are_not_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model costs no import of onnx, unless its weights lie beside it."""
    monkeypatch.undo()

    assert (
        effort.of(modelfile.identify(str(models.heavy(tmp_path, layers=1))), Binding(feeds=())) != effort.NONE
    )
    assert effort.of(modelfile.identify(str(models.wide(tmp_path))), Binding(feeds=())) == effort.NONE


# -- what the plan makes of it ----------------------------------------------------------------


def heavy_job(folder: Path, rows: int, form: str) -> str:
    """Write rows for the model `heavy`."""
    table = pa.table({"a": [0.5] * rows, "b": [0.25] * rows})
    if form == "parquet":
        pq.write_table(table, folder / "in.parquet", row_group_size=500)
    else:
        text = "a,b\n" if form == "csv" else ""
        line = "0.5,0.25\n" if form == "csv" else '{"a": 0.5, "b": 0.25}\n'
        (folder / f"in.{form}").write_text(text + line * rows)
    return str(folder / f"in.{form}")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_heavy_model_has_more_partitions(form: str, tmp_path: Path) -> None:
    """A small file of much work is cut finer, into half seconds; a light model takes it whole."""
    source = heavy_job(tmp_path, 40_000, form)
    heavy = bs.plan(source, model=models.heavy(tmp_path)).plan
    light = bs.plan(source, model=models.integers(tmp_path), map={"i": "a", "y": "b"}, on_null="fill=1").plan
    seconds = heavy.recipe.effort.seconds * 40_000

    assert len(light.partitions) == 1
    assert seconds / 0.5 * 0.7 < len(heavy.partitions) < seconds / 0.5 * 1.4


def test_a_share_of_the_work_is_a_thirty_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much work there is, all cores are busy to the end; and a crash costs half a minute at most."""
    source = heavy_job(tmp_path, 40_000, "csv")
    monkeypatch.setattr(effort, "_DENSE_NS", 2.0)
    assert 30 <= len(bs.plan(source, model=models.heavy(tmp_path)).plan.partitions) <= 36

    monkeypatch.setattr(effort, "_DENSE_NS", 40.0)
    plan = bs.plan(source, model=models.heavy(tmp_path)).plan
    assert plan.recipe.effort.seconds * 40_000 / len(plan.partitions) < 33


def test_said_sizes_are_taken(tmp_path: Path) -> None:
    """--partition-size is taken as it is said, whatever the work."""
    source = heavy_job(tmp_path, 40_000, "csv")

    assert len(bs.plan(source, model=models.heavy(tmp_path), partition_size="1G").plan.partitions) == 1


@pytest.mark.parametrize(
    ("width", "rows"), [(100, 1024), (600, 512), (2_000, 256), (9_000, 64), (99_000, 64)]
)
def test_a_wide_tensor_makes_small_batches(width: int, rows: int, tmp_path: Path) -> None:
    """The widest tensor of a run stays within two megabytes, so in the cache, down to 64 rows."""
    node = helper.make_node("Mul", ["x", "w"], ["y"])
    path = write(tmp_path / "m.onnx", node, {"x": [None, 1]}, {"w": (width,)})
    pq.write_table(pa.table({"x": [1.0] * 10}), tmp_path / "in.parquet")

    assert bs.plan(str(tmp_path / "in.parquet"), model=path).plan.recipe.batch_rows == rows
