"""Fewer digits only by choice: what they cost and gain is measured, told and recorded; rows stay apart."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import batchserve as bs
from batchserve import bypass, gate, parity, reducing
from batchserve.model import Tensor
from batchserve.parity import Outputs
from networks import COLUMNS, SCORE, WIDE, WIDTH, model, network, sample, weights
from workbench import run

ENOUGH = {"float16": 0.01, "int8": 1.0}
"""What the network differs by: int8 ends where the sample's range does, and rows are added far beyond."""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """Write the network, and its sample beside it."""
    onnx.save(network(), tmp_path / "net.onnx")
    pq.write_table(pa.Table.from_batches([sample()]), tmp_path / "in.parquet")
    return tmp_path / "net.onnx"


def forward(rows: pa.RecordBatch) -> Tensor:
    """Compute the network in float64, by numpy alone."""
    w = weights()
    hidden = rows.to_pandas().to_numpy(np.float64)
    for name in ("w0", "w1"):
        hidden = np.maximum(hidden @ w[name], 0)
    scores: Tensor = 1 / (1 + np.exp(-hidden @ w["w2"]))
    return scores[:, 0]


@pytest.mark.parametrize(("precision", "close"), [("float16", 1e-3), ("int8", 0.05)])
def test_a_reduced_network_scores_nearly_as_its_source(precision: Any, close: float, net: Path) -> None:
    """Through `score`, on rows that the export never saw: near to what numpy computes in float64."""
    out = net.with_name("small.onnx")
    unseen = sample(500, seed=9)

    done = bs.export(net, out, sample=sample(), precision=precision, tolerance=ENOUGH[precision])

    scores = bs.Model(out).predict(unseen)["score"].to_numpy()
    np.testing.assert_allclose(scores, forward(unseen), atol=close)
    assert not np.array_equal(scores, bs.Model(net, features=COLUMNS).predict(unseen)["score"].to_numpy())
    assert done.size_bytes < net.stat().st_size * 0.6


def test_the_digits_are_what_was_asked_for(net: Path) -> None:
    """Inputs and outputs stay float32; the weights are float16, or int8 of seven bits."""
    kinds, largest = {}, {}
    asked: dict[Any, int] = {"float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
    for precision, kind in asked.items():
        out = net.with_name(f"{precision}.onnx")
        bs.export(net, out, sample=sample(), precision=precision, tolerance=1)
        graph = onnx.load(out).graph
        held = [onnx.numpy_helper.to_array(each) for each in graph.initializer if each.data_type == kind]
        kinds[precision] = {each.type.tensor_type.elem_type for each in (*graph.input, *graph.output)}
        largest[precision] = max(int(np.abs(each).max()) for each in held if each.size >= 256)

    assert kinds == {"float16": {TensorProto.FLOAT}, "int8": {TensorProto.FLOAT}}
    assert largest["int8"] <= 64


def test_a_refusal_tells_what_is_lost_and_gained(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The default tolerance refuses: the difference, that in the sample alone and the speed-up are told."""
    done = run(
        capsys, "export", net, "o.onnx", "--sample", net.with_name("in.parquet"), "--precision", "int8"
    )

    assert done.code == 70
    assert "matrix products in int8: score: largest difference" in done.err
    assert "in the sample's own rows: 0.0" in done.err
    assert "times as fast (runs of 1,024 rows" in done.err
    assert "--accept-drift" in done.err
    assert not Path("o.onnx").exists()


@pytest.mark.parametrize("choice", [("--tolerance", "1"), ("--accept-drift",)])
def test_what_is_chosen_is_told_and_recorded(
    choice: tuple[str, ...], net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both numbers stand in the output of the command, in the metadata and in `inspect`."""
    out = net.with_name("o.onnx")
    data = net.with_name("in.parquet")

    said = run(capsys, "export", net, out, "--sample", data, "--precision", "int8", *choice).out
    shown = run(capsys, "inspect", out).out

    record = parity.stored(bs.Model(out).signature.metadata)
    assert record is not None
    assert record.reduction is not None
    assert (record.reduction.precision, record.drift_accepted) == ("int8", choice == ("--accept-drift",))
    for text in (said, shown):
        assert f"int8, {record.reduction.speed_up:.2f} times as fast" in text
        assert f"{record.gaps[0].sample_relative:.2g} of the spread" in text
        assert f"{record.gaps[0].largest_relative:.2g} of the spread" in text
    assert 0 < record.gaps[0].sample_relative < record.gaps[0].largest_relative


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_row_of_nan_is_nan_and_changes_no_other(precision: Any, net: Path) -> None:
    """Scales are fixed: with NaN or an outlier beside them, rows keep every bit; int8 keeps NaN, too."""
    out = net.with_name("o.onnx")
    bs.export(net, out, sample=sample(), precision=precision, tolerance=1)
    rows = sample(300).to_pandas()
    scorer = bs.Model(out)
    before = scorer.predict(rows)["score"].to_numpy()
    rows.loc[7, "c"], rows.loc[11, "a"] = np.nan, 1e6

    after = scorer.predict(rows)["score"].to_numpy()

    assert np.isnan(after[7])
    others = np.setdiff1d(np.arange(300), [7, 11])
    assert np.array_equal(before[others], after[others])


def test_int8_keeps_the_range_of_its_sample(net: Path) -> None:
    """Beyond the values of the sample int8 stands still, which the added rows show."""
    out = net.with_name("o.onnx")

    done = bs.export(net, out, sample=sample(), precision="int8", tolerance=1)

    far = pa.RecordBatch.from_pydict({name: [50.0, 5000.0] for name in COLUMNS})
    scores = bs.Model(out).predict(far)["score"].to_pylist()
    assert scores[0] == scores[1]
    assert done.parity.gaps[0].largest_relative > 10 * done.parity.gaps[0].sample_relative


def test_one_product_is_off_by_no_more_than_its_digits(tmp_path: Path) -> None:
    """Of `x w`: half a step of 255 of x and of y, half a step of 127 of w, worked out by hand."""
    w = np.array([[1.0], [-0.5], [0.25], [2.0], [-1.0], [0.125]], np.float32)
    onnx.save(
        model([helper.make_node("MatMul", ["x", "w"], ["score"])], {"x": WIDE}, {"score": SCORE}, w=w),
        tmp_path / "line.onnx",
    )
    rows = sample()
    x = rows.to_pandas().to_numpy(np.float64)
    y = (x @ w)[:, 0]
    step_x, step_w, step_y = np.ptp(x) / 255, 2 * np.abs(w).max() / 127, np.ptp(y) / 255

    done = bs.export(tmp_path / "line.onnx", tmp_path / "o.onnx", sample=rows, precision="int8", tolerance=2)

    off = np.abs(bs.Model(done.path).predict(rows)["score"].to_numpy() - y)
    bound = np.abs(w).sum() * step_x / 2 + np.abs(x).sum(axis=1) * step_w / 2 + step_y / 2
    assert off.max() > 0
    assert (off <= 1.1 * bound + step_x).all()


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["int8-dynamic", "dynamic"])
def test_dynamic_quantisation_is_refused_and_why(
    said: str, net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its scales are those of the batch: a wrong command, exit 2."""
    done = run(capsys, "export", net, "o.onnx", "--sample", net.with_name("in.parquet"), "--precision", said)

    assert done.code == 2
    assert "scales from the whole batch, so one row changes the scores of others" in done.err


def test_an_unknown_precision_is_told(net: Path) -> None:
    """A slip of the pen is answered with what was meant."""
    with pytest.raises(bs.BatchserveError, match="there is no such precision") as caught:
        bs.export(net, net.with_name("o.onnx"), sample=sample(), precision="float61")  # type: ignore[arg-type]  # wrong on purpose

    assert "float16" in caught.value.hint


def test_rows_that_depend_are_refused_whatever_made_them_so(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool that would take scales from the batch is caught by the proof, even when drift is accepted."""
    from onnxruntime.quantization import quantize_dynamic

    def dynamic(graph: onnx.ModelProto, file: Path, *_: object, **__: object) -> onnx.ModelProto:
        onnx.save(graph, file.with_suffix(".wide.onnx"))
        quantize_dynamic(file.with_suffix(".wide.onnx"), file.with_suffix(".narrow.onnx"))
        return onnx.load(file.with_suffix(".narrow.onnx"))

    monkeypatch.setattr(reducing, "reduced", dynamic)

    with pytest.raises(bs.BatchserveError, match="takes its scale from the whole batch"):
        bs.export(net, net.with_name("o.onnx"), sample=sample(), precision="int8", accept_drift=True)


def tree() -> onnx.ModelProto:
    """`score` is 1 where `a` <= 2, else 7."""
    node = helper.make_node(
        "TreeEnsembleRegressor", ["a"], ["score"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[2.0, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0], target_treeids=[0, 0],
        target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 7.0], post_transform="NONE",
    )  # fmt: skip
    return model([node], {"a": SCORE}, {"score": SCORE})


NO_GAIN = {
    "trees": (tree(), 2, r"no MatMul, Gemm, Conv to reduce \(it has TreeEnsembleRegressor\)"),
    "float64": (network(np.float64), 70, "computes in float32: nothing to reduce"),
    "float16": (network(np.float16), 70, "computes in float32: nothing to reduce"),
}


@pytest.mark.parametrize("name", NO_GAIN)
def test_what_gains_nothing_is_refused(name: str, tmp_path: Path) -> None:
    """Trees have nothing to multiply, and products of other types are not reduced: both are told."""
    graph, exit_code, says = NO_GAIN[name]
    onnx.save(graph, tmp_path / "m.onnx")

    with pytest.raises(bs.BatchserveError, match=says) as caught:
        bs.export(tmp_path / "m.onnx", tmp_path / "o.onnx", sample=sample(), precision="int8")

    assert caught.value.exit_code == exit_code


def test_a_sample_without_a_whole_row_gives_no_range(net: Path) -> None:
    """Rows with NaN are left out of what int8 takes its ranges from; if all have one it is refused."""
    rows = sample(8).to_pandas()
    rows["a"] = np.nan

    with pytest.raises(bs.BatchserveError, match="int8 has no range to take"):
        bs.export(net, net.with_name("o.onnx"), sample=pa.table(rows), precision="int8")


# -- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tolerances", "passes"), [({}, False), ({"": 1.0}, False), ({"label": 0.25}, True)])
def test_labels_may_differ_only_where_that_is_said_of_them(
    tolerances: Mapping[str, float], passes: bool
) -> None:
    """One of four labels is other: allowed by `label=0.25`, not by a tolerance of numbers."""
    one, other = (Outputs({"label": np.array(labels)}, 4) for labels in ([0, 1, 1, 0], [0, 1, 0, 0]))

    gap, _ = parity.compared(one, other, tolerances)["label"]

    assert (gap.passes, gap.in_sample) == (passes, "1 labels differ")


# -- ONNX models as sources -------------------------------------------------------------------------


def test_a_model_is_exported_as_it_is(net: Path) -> None:
    """Without a precision the copy scores the same bits, and knows its columns."""
    bs.export(net, net.with_name("o.onnx"), sample=sample())

    rows = sample(50)
    copied, own = bs.Model(net.with_name("o.onnx")), bs.Model(net, features=COLUMNS)
    assert copied.predict(rows).equals(own.predict(rows))


def test_columns_of_their_own_and_columns_of_lists(tmp_path: Path) -> None:
    """A model with an input per column takes the columns of these names; a wide one takes lists, too."""
    nodes = [
        helper.make_node("Concat", list(COLUMNS), ["x"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["score"]),
    ]
    each = model(nodes, dict.fromkeys(COLUMNS, SCORE), {"score": SCORE}, w=np.ones((WIDTH, 1), np.float32))
    onnx.save(each, tmp_path / "each.onnx")
    onnx.save(network(), tmp_path / "net.onnx")
    table = pa.Table.from_batches([sample()]).append_column("other", pa.array(["text"] * 2000))
    lists = pa.table({"x": pa.FixedSizeListArray.from_arrays(_flat(sample()), WIDTH)})

    for name, data in (("each", table), ("net", lists)):
        done = bs.export(
            tmp_path / f"{name}.onnx", tmp_path / f"{name}8.onnx", sample=data, precision="int8", tolerance=1
        )
        assert done.parity.sample_rows == 2000
        assert bs.Model(done.path).predict(data)["score"].null_count == 0


def _flat(rows: pa.RecordBatch) -> pa.Array:
    return pa.array(rows.to_pandas().to_numpy(np.float32).reshape(-1))


def test_models_that_cannot_be_exported_are_told(tmp_path: Path) -> None:
    """A fixed batch and maps of scores are refused with what to do."""
    fixed = network()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    maps = network()
    maps.graph.node.append(
        helper.make_node("ZipMap", ["score"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0])
    )
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, []))
    maps.graph.output.append(helper.make_value_info("maps", helper.make_sequence_type_proto(kind)))

    for graph, says in ((fixed, "takes exactly 4 rows"), (maps, "is no tensor")):
        onnx.save(graph, tmp_path / "m.onnx")
        with pytest.raises(bs.BatchserveError, match=says):
            bs.export(tmp_path / "m.onnx", tmp_path / "o.onnx", sample=sample(), precision="int8")


# -- NaN, led around --------------------------------------------------------------------------------


def branches() -> onnx.ModelProto:
    """Two products beside each other of `a` and of `b`, a third over both, and one more of its own."""
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["left"]),
        helper.make_node("Abs", ["b"], ["size"]),
        helper.make_node("Gemm", ["size", "w"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["both"]),
        helper.make_node("MatMul", ["both", "v"], ["first"]),
        helper.make_node("MatMul", ["size", "w"], ["second"]),
    ]
    square, tall = np.eye(2, dtype=np.float32), np.ones((2, 1), np.float32)
    wide = (TensorProto.FLOAT, None, 2)
    return model(nodes, {"a": wide, "b": wide}, {"first": SCORE, "second": wide}, w=square, v=tall)


def pictures() -> onnx.ModelProto:
    """A convolution of pictures of one row of four dots."""
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    ports = {"x": (TensorProto.FLOAT, None, 1, 1, 4)}, {"y": (TensorProto.FLOAT, None, 1, 1, 3)}
    return model([node], *ports, w=np.ones((1, 1, 1, 2), np.float32))


def ran(graph: onnx.ModelProto, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Run a graph."""
    import onnxruntime as ort

    onnx.checker.check_model(graph)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, dict(tensors))]


@given(st.lists(st.sampled_from([0.0, 1.0, -2.0, np.nan]), min_size=12, max_size=12))
def test_leading_nan_around_changes_no_number(values: list[float]) -> None:
    """Rows without NaN score as before; rows with NaN in any product's input score NaN."""
    a, b = np.array(values, np.float32).reshape(2, 3, 2)

    before = ran(branches(), {"a": a, "b": b})
    after = ran(bypass.with_nan(branches(), reducing.REDUCIBLE), {"a": a, "b": b})

    bad = np.isnan(a).any(axis=1) | np.isnan(b).any(axis=1)
    for was, now in zip(before, after, strict=True):
        assert np.array_equal(was[~bad], now[~bad])
        assert np.isnan(now[bad]).all()


def test_nan_is_led_around_products_of_more_dimensions() -> None:
    """A picture with one NaN gives NaN for itself, and the one beside it keeps its values."""
    x = np.arange(8, dtype=np.float32).reshape(2, 1, 1, 4)
    x[1, 0, 0, 0] = np.nan

    (found,) = ran(bypass.with_nan(pictures(), reducing.REDUCIBLE), {"x": x})

    assert found[0].ravel().tolist() == [1.0, 3.0, 5.0]
    assert np.isnan(found[1]).all()


def turned() -> onnx.ModelProto:
    """A network that has its rows in the second dimension, as attention of torch has."""
    square = np.random.default_rng(3).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Unsqueeze", ["x", "first"], ["one"]),
        helper.make_node("Concat", ["one", "one"], ["two"], axis=0),
        helper.make_node("MatMul", ["two", "w"], ["product"]),
        helper.make_node("ReduceMax", ["product", "first"], ["score"], keepdims=0),
    ]
    return model(nodes, {"x": WIDE}, {"score": WIDE}, w=square, first=np.array([0]))


def test_nan_is_led_around_all_where_rows_are_not_first(tmp_path: Path) -> None:
    """A network with its rows in another dimension is reduced, too, and has NaN where its source has."""
    onnx.save(turned(), tmp_path / "m.onnx")

    done = bs.export(tmp_path / "m.onnx", tmp_path / "o.onnx", sample=sample(), precision="int8", tolerance=2)

    rows = sample(9).to_pandas()
    rows.loc[4, "b"] = np.nan
    scores = np.stack(bs.Model(done.path).predict(rows)["score"].to_list())
    assert done.parity.takes_nan
    assert np.isnan(scores).all(axis=1).tolist() == [row == 4 for row in range(9)]


def test_a_graph_that_kills_onnxruntime_is_refused(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tool made is opened in a fork first: its death is told, and is not that of the export."""

    def dies(_: Path) -> int:
        os.kill(os.getpid(), signal.SIGSEGV)
        return 0

    monkeypatch.setattr(gate, "_opened", dies)

    with pytest.raises(bs.BatchserveError, match=r"dies of the graph in float16 \(SIGSEGV\)"):
        bs.export(net, net.with_name("o.onnx"), sample=sample(), precision="float16", tolerance=1)


# -- the measure ------------------------------------------------------------------------------------


def test_the_speed_up_is_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows in 4 ms against twenty in 2 ms is four times as fast, whatever else the machine does."""
    clock = [0.0]

    def taking(rows: int, seconds: float) -> Callable[[], int]:
        def once() -> int:
            clock[0] += seconds
            return rows

        return once

    monkeypatch.setattr(reducing, "_run", taking)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    assert reducing.speed_up((10, 0.004), (20, 0.002)) == pytest.approx(4.0)  # type: ignore[arg-type]  # stand-ins
