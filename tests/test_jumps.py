"""Where scores jump is found by asking the source alone, whatever stands before its trees."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import batchserve as bs
from batchserve import exporting, jumps
from batchserve.exporting import Terms
from batchserve.model import Tensor
from test_export import COLUMN, Function, model

Predict = Callable[[Mapping[str, Tensor]], Tensor]
ROWS = 40
CHANCE = np.random.default_rng(4)
SAMPLE = pa.RecordBatch.from_pydict(
    {"a": CHANCE.uniform(1, 2, ROWS), "n": CHANCE.integers(0, 90, ROWS), "kind": ["x", None] * (ROWS // 2)}
)


def found(predict: Predict, sample: pa.RecordBatch = SAMPLE, **more: Any) -> dict[str, list[float]]:
    """Return the values beside the jumps of a source, by column."""

    def source(rows: pa.RecordBatch) -> dict[str, Tensor]:
        frame = rows.to_pandas()
        return {"variable": predict({name: frame[name].to_numpy() for name in frame})} | {
            name: np.repeat(value, len(frame)) for name, value in more.items()
        }

    found = jumps.found(source, sample)
    assert all(probe.trait == "jump" and probe.rows.schema == sample.schema for probe in found.probes)
    columns = {probe.column for probe in found.probes}
    near = found.near
    return {
        name: sorted({v for rows in [near, *(p.rows for p in found.probes)] for v in rows[name].to_pylist()})
        for name in columns
    }


@settings(max_examples=25)  # each asks the source some sixty times
@given(at=st.floats(1.1, 1.9))
def test_a_jump_is_found_wherever_it_is(at: float) -> None:
    """Beside a step at any number stand decimals of five digits, and of nine: too near for float32."""
    values = found(lambda row: np.where(row["a"] <= at, 0.0, 1.0))["a"]

    assert float(f"{at:.5g}") in values
    assert min(abs(value - at) for value in values) < 1e-8


def test_a_jump_at_a_decimal_is_found_exactly() -> None:
    """A threshold that a file could hold is among the values, though the source computes before it."""
    spread = (1.234 - 0.3) * 0.7

    assert 1.234 in found(lambda row: np.where((row["a"] - 0.3) * 0.7 <= spread, 0.0, 1.0))["a"]


def test_a_jump_of_integers_has_one_on_either_side() -> None:
    """Integers stay integers."""
    assert found(lambda row: np.where(row["n"] <= 41, 5.0, 6.0)) == {"n": [41, 42]}


def test_what_does_not_jump_has_no_probes() -> None:
    """Lines and curves do not jump, nor do labels, nor scores by less than the gate allows."""
    assert found(lambda row: np.exp(3 * row["a"])) == {}
    assert found(lambda row: row["a"] + 1e-9 * (row["a"] > 1.5)) == {}
    assert found(lambda row: row["a"], label="same") == {}
    assert found(lambda row: np.where(row["a"] > 1.5, "high", "low").astype(object)) == {}


def test_samples_that_cannot_be_moved_have_none() -> None:
    """A single row, texts alone, and a column of nulls give nothing to look between."""
    assert found(lambda row: row["a"] > 1.5, SAMPLE.slice(0, 1)) == {}
    assert found(lambda row: np.zeros(len(row["kind"])), SAMPLE.select(["kind"])) == {}
    nothing = pa.RecordBatch.from_pydict({"a": pa.array([None, None], pa.float64())})
    assert found(lambda row: np.zeros(len(row["a"])), nothing) == {}


def test_nan_from_a_source_is_no_jump_to_nowhere() -> None:
    """A source that is NaN on one side jumps there; one that is NaN everywhere does not."""
    assert found(lambda row: np.where(row["a"] > 1.5, np.nan, 1.0))["a"]
    assert found(lambda row: np.full(len(row["a"]), np.nan)) == {}


# -- in the gate ------------------------------------------------------------------------------

SCALE, LESS, AT = 0.7310585786300049, 0.3, 1.5


def scaled(kind: int, at: float = AT) -> Any:
    """`variable` is 1 where (a - LESS) * SCALE is more than it is at `at`, computed in float32 or float64."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    cut = (at - LESS) * SCALE
    weights = [helper.make_tensor(n, kind, [], [dtype.type(v)]) for n, v in
               {"less": LESS, "scale": SCALE, "cut": cut}.items()]  # fmt: skip
    nodes = [
        helper.make_node("Sub", ["a", "less"], ["moved"]),
        helper.make_node("Mul", ["moved", "scale"], ["scaled"]),
        helper.make_node("Greater", ["scaled", "cut"], ["over"]),
        helper.make_node("Cast", ["over"], ["variable"], to=TensorProto.FLOAT),
    ]
    made = model(nodes, {"a": (kind, None, 1)}, {"variable": COLUMN})
    made.graph.initializer.extend(weights)
    return made


def over(columns: dict[str, Tensor], at: float = AT) -> Mapping[str, Tensor]:
    """What `scaled` claims to be."""
    return {"variable": ((columns["a"] - LESS) * SCALE > (at - LESS) * SCALE).astype(np.float64)}


def test_fewer_digits_before_a_jump_are_refused(tmp_path: Path) -> None:
    """float32 takes another branch than the source only where hardly a row is: float64 is written."""
    sample = SAMPLE.select(["a"])
    source = Function(over, [scaled(TensorProto.FLOAT), scaled(TensorProto.DOUBLE)], names=("a",))
    values = sample["a"].to_numpy()
    narrow = (values.astype(np.float32) - np.float32(LESS)) * np.float32(SCALE) > np.float32(
        (AT - LESS) * SCALE
    )
    assert np.array_equal(narrow, over({"a": values})["variable"])  # the sample alone would not tell

    done = exporting.export(source, tmp_path / "m.onnx", sample, Terms())

    assert done.parity.computes_in == "way 1"
    assert done.parity.added_rows["jump"] > 0
    row = pa.table({"a": [AT, np.nextafter(AT, 2)]})
    assert bs.Model(tmp_path / "m.onnx").predict(row)["variable"].to_pylist() == [0.0, 1.0]


@pytest.mark.parametrize("wider", [False, True])
def test_rows_too_near_for_float32_choose_among_graphs_that_pass(wider: bool, tmp_path: Path) -> None:
    """Where a jump is at no decimal, float32 is written and the record tells, unless float64 is there."""
    at = 3**0.5
    graphs: list[Any] = [scaled(TensorProto.FLOAT, at), *([scaled(TensorProto.DOUBLE, at)] if wider else [])]
    source = Function(lambda columns: over(columns, at), graphs, names=("a",))

    done = exporting.export(source, tmp_path / "m.onnx", SAMPLE.select(["a"]), Terms())

    assert done.parity.passes
    assert (done.parity.computes_in, done.parity.near_differ > 0) == (
        ("way 1", False) if wider else ("way 0", True)
    )
    assert ("of a jump come out across it" in str(done)) != wider


def test_a_label_is_asked_for_on_both_sides_of_where_it_changes(tmp_path: Path) -> None:
    """A threshold that a graph lacks shows, though the scores are right and no row of the sample is near."""
    nodes = [
        helper.make_node("Identity", ["a"], ["variable"]),
        helper.make_node("Greater", ["a", "cut"], ["over"]),
        helper.make_node("Cast", ["over"], ["label"], to=TensorProto.INT64),
    ]
    graph = model(nodes, {"a": COLUMN}, {"variable": COLUMN, "label": (TensorProto.INT64, None, 1)})
    graph.graph.initializer.append(helper.make_tensor("cut", TensorProto.FLOAT, [], [1.5]))
    values = np.array([1.0, 1.1, 1.4, 1.6, 2.0], np.float32)

    def source(at: float) -> Function:
        return Function(
            lambda c: {"variable": c["a"], "label": (c["a"] > at).astype(int)}, [graph], names=("a",)
        )

    exporting.export(source(1.5), tmp_path / "m.onnx", pa.record_batch({"a": values}), Terms())
    with pytest.raises(bs.BatchserveError, match=r"label: \d of .* labels differ"):
        exporting.export(source(1.503), tmp_path / "n.onnx", pa.record_batch({"a": values}), Terms())


@pytest.mark.parametrize("kind", ["float32", "int64"])
def test_a_column_that_float32_holds_needs_no_more(kind: str, tmp_path: Path) -> None:
    """The same graph passes in float32 where the column has no digits beyond, and nothing is computed."""
    values = np.arange(ROWS).astype(kind)
    cut = helper.make_tensor("cut", TensorProto.FLOAT, [], [17.0])
    nodes = [
        helper.make_node("Greater", ["a", "cut"], ["over"]),
        helper.make_node("Cast", ["over"], ["variable"], to=TensorProto.FLOAT),
    ]
    graph = model(nodes, {"a": COLUMN}, {"variable": COLUMN})
    graph.graph.initializer.append(cut)
    source = Function(lambda c: {"variable": (c["a"] > 17).astype(np.float64)}, [graph], names=("a",))

    done = exporting.export(source, tmp_path / "m.onnx", pa.record_batch({"a": values}), Terms())

    assert done.parity.passes
    assert done.parity.added_rows["jump"] > 0


def test_a_source_that_refuses_values_between_is_still_exported(tmp_path: Path) -> None:
    """Where a model takes the sample's values alone, the record says that jumps could not be looked for."""
    known = set(SAMPLE["a"].to_pylist())

    def picky(columns: dict[str, Tensor]) -> Mapping[str, Tensor]:
        if not known >= set(columns["a"].tolist()):
            raise ValueError("no neighbours")
        return {"variable": columns["a"]}

    graph = model([helper.make_node("Identity", ["a"], ["variable"])], {"a": COLUMN}, {"variable": COLUMN})
    source = Function(picky, [graph], names=("a",))

    done = exporting.export(source, tmp_path / "m.onnx", SAMPLE.select(["a"]), Terms())

    assert done.parity.refused["jump"] == ("a",)
    assert "source refuses jump" in str(done)
