# ruff: noqa: INP001, S101  what tests may do
"""A model with operators of onnxruntime-extensions: scored only when its library is asked for.

Needs that package: `nox -s extras` runs it.
"""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from onnxruntime_extensions import get_library_path

import batchserve as bs


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """Write a model that turns the text `s` into upper case, and two rows for it."""
    node = helper.make_node("StringUpper", ["s"], ["t"], domain="ai.onnx.contrib")
    ports = [[helper.make_tensor_value_info(name, TensorProto.STRING, ["N", 1])] for name in "st"]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.contrib", 1)]
    graph = helper.make_graph([node], "upper", *ports)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    (tmp_path / "upper.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "in.csv").write_text("s\nabc\nx y\n")
    return tmp_path


@pytest.mark.parametrize("library", ["extensions", "onnxruntime-extensions", get_library_path()])
def test_the_library_is_used_when_it_is_asked_for(library: str, upper: Path) -> None:
    """`extensions` and the path of the library both make the operators known."""
    bs.score(upper / "in.csv", upper / "out.parquet", model=upper / "upper.onnx", custom_ops=library)

    assert pq.read_table(upper / "out.parquet")["t"].to_pylist() == ["ABC", "X Y"]


def test_a_frame_is_scored_with_a_library_that_was_moved(upper: Path) -> None:
    """`Model` takes the library too, wherever it is."""
    moved = shutil.copy(get_library_path(), upper / "ops.so")

    model = bs.Model(upper / "upper.onnx", custom_ops=moved)

    assert model.predict(pq.read_table(_parquet(upper)))["t"].to_pylist() == ["ABC", "X Y"]


def _parquet(folder: Path) -> Path:
    bs.score(folder / "in.csv", folder / "o.parquet", model=folder / "upper.onnx", custom_ops="extensions")
    return folder / "o.parquet"


def test_operators_are_not_known_unasked(upper: Path) -> None:
    """Without the flag the model is refused, though the package is installed."""
    with pytest.raises(bs.BatchserveError, match="not a registered function/op") as caught:
        bs.score(upper / "in.csv", upper / "out.parquet", model=upper / "upper.onnx")

    assert "--custom-ops extensions" in caught.value.hint
