"""What is exported predicts as its source does: planted wrong graphs are refused, and nothing is written.

The sources here are plain functions and the graphs are made by hand: no library that trains is needed.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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
from batchserve import exporting, parity, probes, simplifying, sources, surgery
from batchserve.exporting import Terms
from batchserve.model import Tensor
from batchserve.parity import Outputs
from batchserve.sources import Candidate, Opening
from workbench import IRIS, run

Predict = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
SAMPLE = pa.RecordBatch.from_pydict(
    {"a": [0.5, 1.5, 2.5, -1.0, 3.0], "b": [1.0, 4.0, 2.0, 8.0, 5.0], "kind": ["x", "y", "x", "y", "x"]}
)


@dataclass(frozen=True)
class Function:
    """A function of columns as a source, with the graphs that claim to be it."""

    function: Predict
    graphs: list[onnx.ModelProto | Exception]
    names: tuple[str, ...] = ("a", "b")
    width: int | None = None
    made_with: str = "a function"
    instead: str = ""
    features: tuple[str, ...] = ()
    asked: list[pa.Schema] = field(default_factory=list)

    def predict(self, rows: pa.RecordBatch) -> Mapping[str, Tensor]:
        frame = rows.to_pandas()
        return self.function({name: frame[name].to_numpy() for name in frame.columns})

    def candidates(self, rows: pa.RecordBatch) -> Iterator[Candidate]:
        self.asked.append(rows.schema)
        for i, graph in enumerate(self.graphs):
            yield Candidate(f"way {i}", lambda graph=graph: _made(graph), self.features)  # type: ignore[misc]  # a default of a lambda


def _made(graph: onnx.ModelProto | Exception) -> onnx.ModelProto:
    if isinstance(graph, Exception):
        raise graph
    return graph


def ports(named: Mapping[str, Any]) -> list[onnx.ValueInfoProto]:
    """Return inputs or outputs of their names, types and dimensions."""
    return [helper.make_tensor_value_info(name, kind, dims) for name, (kind, *dims) in named.items()]


def model(
    nodes: list[onnx.NodeProto], inputs: Mapping[str, Any], outputs: Mapping[str, Any], **weights: Any
) -> onnx.ModelProto:
    """Build a model: names to (type, dims), weights to arrays of float32."""
    held = [onnx.numpy_helper.from_array(np.array(w, np.float32), name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "g", ports(inputs), ports(outputs), held)
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=9)


COLUMN, TEXT = (TensorProto.FLOAT, None, 1), (TensorProto.STRING, None, 1)


def linear(weight_a: float = 2, weight_b: float = 3) -> onnx.ModelProto:
    """`variable = weight_a * a + weight_b * b`."""
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["x"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["variable"]),
    ]
    return model(nodes, {"a": COLUMN, "b": COLUMN}, {"variable": COLUMN}, w=[[weight_a], [weight_b]])


def line(columns: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """What `linear` claims to be."""
    return {"variable": 2 * columns["a"] + 3 * columns["b"]}


def stump(mode: str = "BRANCH_LEQ", missing: int = 1) -> onnx.ModelProto:
    """`variable` is 1 where `a` <= 2, else 7."""
    node = helper.make_node(
        "TreeEnsembleRegressor", ["a"], ["variable"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
        nodes_modes=[mode, "LEAF", "LEAF"], nodes_values=[2.0, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=[missing, 0, 0], target_treeids=[0, 0], target_nodeids=[1, 2],
        target_ids=[0, 0], target_weights=[1.0, 7.0], post_transform="NONE",
    )  # fmt: skip
    return model([node], {"a": COLUMN}, {"variable": COLUMN})


def step(columns: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """What `stump` claims to be; NaN goes left."""
    return {"variable": np.where(columns["a"] > 2, 7.0, 1.0)}


def coded(default: float = -1.0, empty: float | None = None) -> onnx.ModelProto:
    """`variable` is a number for each `kind`, `default` for those nobody knows."""
    texts, codes = ["x", "y"], [10.0, 20.0]
    if empty is not None:
        texts, codes = [*texts, ""], [*codes, empty]
    node = helper.make_node(
        "LabelEncoder", ["kind"], ["variable"], domain="ai.onnx.ml",
        keys_strings=texts, values_floats=codes, default_float=default,
    )  # fmt: skip
    return model([node], {"kind": TEXT}, {"variable": COLUMN})


def code(columns: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """What `coded` claims to be."""
    return {"variable": np.array([{"x": 10.0, "y": 20.0}.get(kind, -1.0) for kind in columns["kind"]])}


def voted(swapped: bool = False) -> onnx.ModelProto:  # noqa: FBT002  a fact, as in a table
    """`probabilities` [1 - a, a]; `label` is the place of the greater one, `swapped` the other way round."""
    scores = ["p", "rest"] if swapped else ["rest", "p"]
    nodes = [
        helper.make_node("Identity", ["a"], ["p"]),
        helper.make_node("Sub", ["one", "p"], ["rest"]),
        helper.make_node("Concat", ["rest", "p"], ["probabilities"], axis=1),
        helper.make_node("Concat", scores, ["judged"], axis=1),
        helper.make_node("ArgMax", ["judged"], ["label"], axis=1, keepdims=0),
    ]
    outputs = {"label": (TensorProto.INT64, None), "probabilities": (TensorProto.FLOAT, None, 2)}
    return model(nodes, {"a": COLUMN}, outputs, one=[[1]])


def vote(columns: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """What `voted` claims to be."""
    scores = np.stack([1 - columns["a"], columns["a"]], axis=1)
    return {"label": scores.argmax(axis=1), "probabilities": scores}


def vote_last(columns: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """`vote`, but of two that are equal it takes the last."""
    scores = vote(columns)["probabilities"]
    return {"label": (scores[:, 1] >= scores[:, 0]).astype(int), "probabilities": scores}


RIGHT = {
    "linear": (line, linear(), ("a", "b")),
    "tree": (step, stump(), ("a",)),
    "texts": (code, coded(), ("kind",)),
    "votes": (vote, voted(), ("a",)),
}
WRONG = {
    "columns swapped": (line, linear(3, 2), ("a", "b"), "largest difference"),
    "weights of too few digits": (line, linear(2, 3.001), ("a", "b"), "largest difference"),
    "< for <=": (step, stump("BRANCH_LT"), ("a",), "a=2.0: the source gives variable 1., the graph 7."),
    "NaN to the other side": (step, stump(missing=0), ("a",), "a=None: the source gives variable 1."),
    "unknown texts": (code, coded(default=10.0), ("kind",), "kind='no such category'"),
    "empty texts": (code, coded(empty=10.0), ("kind",), "kind='': the source gives variable -1."),
    "labels swapped": (vote, voted(swapped=True), ("a",), "labels differ"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_graph_passes_and_scores_as_its_source(name: str, tmp_path: Path) -> None:
    """What is written gives the source's values through `score`, and needs no flag."""
    function, graph, names = RIGHT[name]
    source = Function(function, [graph], names)
    pq.write_table(pa.Table.from_batches([SAMPLE]), tmp_path / "in.parquet")

    done = exporting.export(source, tmp_path / "m.onnx", SAMPLE, Terms())
    bs.score(tmp_path / "in.parquet", tmp_path / "out.parquet", model=tmp_path / "m.onnx")

    assert done.parity.passes
    scored = pq.read_table(tmp_path / "out.parquet")
    for output, expected in source.predict(SAMPLE).items():
        np.testing.assert_allclose(scored[output].to_pylist(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_graph_is_refused(name: str, tmp_path: Path) -> None:
    """A planted fault is told with rows that show it, and nothing is written."""
    function, graph, names, says = WRONG[name]

    with pytest.raises(bs.BatchserveError, match="nothing is written") as caught:
        exporting.export(Function(function, [graph], names), tmp_path / "m.onnx", SAMPLE, Terms())

    assert caught.value.exit_code == 70
    assert says in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_the_first_graph_that_passes_is_written(tmp_path: Path) -> None:
    """A converter that fails and a wrong graph are passed over for a right one."""
    source = Function(line, [ValueError("no such operator"), linear(3, 2), linear()])

    done = exporting.export(source, tmp_path / "m.onnx", SAMPLE, Terms())

    assert done.parity.computes_in == "way 2"
    assert source.asked[0].names == ["a", "b"]


def test_what_no_converter_can_do_is_told_with_each_reason(tmp_path: Path) -> None:
    """Without any graph the reasons are told, and what to do instead if that is known."""
    source = Function(line, [ValueError("no such operator")], instead="train a line")

    with pytest.raises(bs.BatchserveError, match="way 0: ValueError: no such operator") as caught:
        exporting.export(source, tmp_path / "m.onnx", SAMPLE, Terms())

    assert caught.value.hint == "train a line"


def test_drift_is_accepted_only_when_that_is_said(tmp_path: Path) -> None:
    """With `accept_drift` the least bad graph is written, and its record says so."""
    terms = Terms(accept_drift=True)
    source = Function(line, [linear(30, 20), linear(2, 3.001)])

    done = exporting.export(source, tmp_path / "m.onnx", SAMPLE, terms)

    assert (done.parity.computes_in, done.parity.drift_accepted) == ("way 1", True)
    assert "accepted" in done.facts()["drift"]


def test_a_tolerance_is_a_share_of_the_spread_of_its_output(tmp_path: Path) -> None:
    """3.001 b for 3 b is off by 0.008 at 8, 4.4e-4 of the spread 18: allowed at 5e-4 of it, not at 4e-4."""
    source = Function(line, [linear(2, 3.001)])

    done = exporting.export(source, tmp_path / "m.onnx", SAMPLE, Terms(tolerances={"variable": 5e-4}))

    assert done.parity.gaps[0].spread == pytest.approx(18.0)
    with pytest.raises(bs.BatchserveError, match="nothing is written"):
        exporting.export(source, tmp_path / "n.onnx", SAMPLE, Terms(tolerances={"": 4e-4}))


def test_nan_is_stored_where_both_agreed_on_it(tmp_path: Path) -> None:
    """After export a null is NaN for `score` by itself; a rule that is said wins."""
    exporting.export(Function(step, [stump()], ("a",)), tmp_path / "m.onnx", SAMPLE, Terms())
    table = pa.table({"a": pa.array([None, 5.0])})
    pq.write_table(table, tmp_path / "in.parquet")

    bs.score(tmp_path / "in.parquet", tmp_path / "o.parquet", model=tmp_path / "m.onnx")

    assert pq.read_table(tmp_path / "o.parquet")["variable"].to_pylist() == [1.0, 7.0]
    with pytest.raises(bs.BatchserveError, match="1 of 2 rows cannot be scored"):
        bs.score(tmp_path / "in.parquet", tmp_path / "p.parquet", model=tmp_path / "m.onnx", on_null="reject")


def test_nan_is_not_stored_where_the_source_refuses_it(tmp_path: Path) -> None:
    """A source that raises on NaN leaves nulls rejected, and the record names the columns."""

    def no_nan(columns: dict[str, Tensor]) -> Mapping[str, Tensor]:
        if np.isnan(columns["b"]).any():
            raise ValueError("Input contains NaN")
        return line(columns)

    done = exporting.export(Function(no_nan, [linear()]), tmp_path / "m.onnx", SAMPLE, Terms())

    metadata = bs.Model(tmp_path / "m.onnx").signature.metadata
    assert (done.parity.refused, done.parity.takes_nan) == ({"nan": ("b",)}, False)
    assert "batchserve.on_null" not in metadata


def test_outputs_that_the_source_lacks_are_left_out(tmp_path: Path) -> None:
    """An output that cannot be compared is not in what is written, nor is what only it needed."""

    def scores(columns: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return {"probabilities": vote(columns)["probabilities"]}

    only_scores = Function(scores, [voted()], ("a",))

    exporting.export(only_scores, tmp_path / "m.onnx", SAMPLE, Terms())

    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [port.name for port in graph.output] == ["probabilities"]
    assert "ArgMax" not in {node.op_type for node in graph.node}


def test_either_label_is_right_at_a_tie(tmp_path: Path) -> None:
    """Where both scores are one float32, another label is no fault, but it is counted."""
    tied = pa.RecordBatch.from_pydict({"a": [0.5, 0.25, 0.75]})

    done = exporting.export(Function(vote_last, [voted()], ("a",)), tmp_path / "m.onnx", tied, Terms())

    (labels, _) = done.parity.gaps
    assert (labels.flips, labels.passes) == (0, True)
    assert labels.flips_at_ties > 0


def test_the_record_is_in_the_model_and_inspect_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gate's findings go with the model: columns, types, differences; no row of the data."""
    exporting.export(Function(line, [linear()]), tmp_path / "m.onnx", SAMPLE, Terms())

    shown = run(capsys, "inspect", tmp_path / "m.onnx").out

    metadata = bs.Model(tmp_path / "m.onnx").signature.metadata
    assert json.loads(metadata["batchserve.columns"]) == {"a": "double", "b": "double"}
    stored = parity.stored(metadata)
    assert stored
    assert stored.sample_rows == 5
    assert "made with           a function" in shown
    assert "rows of the sample" in shown
    assert '"gaps"' not in shown


def test_long_metadata_is_shown_short() -> None:
    """What trainers put into a model is one line each, and its length is told where it is cut."""
    told = parity.told({"params": "a long\n" * 1000, "note": "two\nlines"})

    assert told["note"] == "two lines"
    assert told["params"].startswith("a long a long")
    assert told["params"].endswith("... (6,999 characters)")
    assert len(told["params"]) < 450


def test_a_wide_input_names_its_columns(tmp_path: Path) -> None:
    """A graph of one wide input has the list of its columns in its metadata."""
    wide = model(
        [helper.make_node("MatMul", ["X", "w"], ["variable"])], {"X": (TensorProto.FLOAT, None, 2)},
        {"variable": COLUMN}, w=[[2], [3]],
    )  # fmt: skip
    exporting.export(Function(line, [wide], features=("a", "b")), tmp_path / "m.onnx", SAMPLE, Terms())

    predicted = bs.Model(tmp_path / "m.onnx").predict(SAMPLE)

    assert predicted["variable"].to_pylist() == [4.0, 15.0, 11.0, 22.0, 21.0]


def test_the_same_export_gives_the_same_bytes(tmp_path: Path) -> None:
    """Nothing in the file is of its time or by chance."""
    for name in ("one.onnx", "two.onnx"):
        exporting.export(Function(line, [linear()]), tmp_path / name, SAMPLE, Terms())

    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


# -- what is refused before anything is converted -----------------------------------------------


def roundabout(weight: float = 2) -> onnx.ModelProto:
    """Return the line with a weight that is computed, and a node that does nothing."""
    made = linear(weight)
    (name,) = {each.name for each in made.graph.output}
    for node in made.graph.node:
        node.output[:] = ["last" if each == name else each for each in node.output]
    made.graph.node.append(helper.make_node("Identity", ["last"], [name]))
    return made


def test_nodes_without_effect_are_left_out(tmp_path: Path) -> None:
    """What is written has fewer nodes than what was converted, and the same scores."""
    before, path = roundabout(), tmp_path / "m.onnx"

    exporting.export(Function(line, [before]), path, SAMPLE, Terms())

    assert len(onnx.load(path).graph.node) < len(before.graph.node)
    assert "Identity" not in [node.op_type for node in onnx.load(path).graph.node]


def test_a_simpler_graph_of_other_bits_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of one score is enough to keep the graph as it was converted."""
    nearly = float(np.nextafter(np.float32(2), np.float32(3)))
    monkeypatch.setattr(simplifying, "simplified", lambda *_: linear(nearly))

    exporting.export(Function(line, [roundabout()]), tmp_path / "m.onnx", SAMPLE, Terms())

    assert "Identity" in [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]


def no_such_column(columns: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Fail as a model does that was trained on other columns."""
    return {"variable": columns["z"]}


@pytest.mark.parametrize(
    ("source", "terms", "says"),
    [
        (Function(line, [linear()], names=("a", "c")), Terms(), "column c: the model takes it"),
        (Function(line, [linear()], names=(), width=2), Terms(), "does not know their names"),
        (Function(line, [linear()], names=(), width=3), Terms(features=("a", "b")), "takes 3 columns, 2 are"),
        (
            Function(no_such_column, [linear()]),
            Terms(),
            "the model itself cannot predict the sample",
        ),
    ],
)
def test_columns_that_do_not_fit_are_told(source: Function, terms: Terms, says: str, tmp_path: Path) -> None:
    """Missing, unknown or too few columns are a wrong command: exit 2."""
    with pytest.raises(bs.BatchserveError, match=says) as caught:
        exporting.export(source, tmp_path / "m.onnx", SAMPLE, terms)

    assert caught.value.exit_code == 2


def test_a_file_that_is_there_is_replaced_only_when_that_is_said(tmp_path: Path) -> None:
    """An existing model is exit 73 without --overwrite."""
    path = tmp_path / "m.onnx"
    path.write_text("mine")

    with pytest.raises(bs.BatchserveError, match="is there already") as caught:
        exporting.export(Function(line, [linear()]), path, SAMPLE, Terms())
    exporting.export(Function(line, [linear()]), path, SAMPLE, Terms(overwrite=True))

    assert caught.value.exit_code == 73
    assert path.read_bytes() != b"mine"


@pytest.mark.parametrize("name", ["m.joblib", "m.pkl", "m.pickle", "m.pt", "m.pth"])
def test_pickles_are_refused_and_the_message_says_why(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pickle is not even opened unless --trust-pickle is said."""
    (tmp_path / name).write_bytes(b"\x80\x04cposix\nsystem\n")

    done = run(capsys, "export", tmp_path / name, tmp_path / "m.onnx", "--sample", IRIS)

    assert done.code == 2
    assert "reading one runs whatever code is in it" in done.err
    assert "--trust-pickle" in done.err


def test_what_is_no_model_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown suffix, a missing file and an unknown object are told with what can be exported."""
    (tmp_path / "m.h5").write_text("")

    assert "LightGBM (.txt)" in run(capsys, "export", tmp_path / "m.h5", "m.onnx", "--sample", IRIS).err
    assert run(capsys, "export", tmp_path / "n.txt", "m.onnx", "--sample", IRIS).code == 66
    with pytest.raises(bs.BatchserveError, match=r"builtins\.dict: not a model"):
        bs.export({}, tmp_path / "m.onnx", sample=SAMPLE)


def test_a_missing_library_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library the error names the extra that brings it: exit 70."""
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)

    with pytest.raises(bs.BatchserveError, match="lightgbm is needed") as caught:
        sources.library("lightgbm", "lightgbm")

    assert caught.value.hint == "pip install 'batchserve[lightgbm]'"


def test_wrong_tolerances_and_names_are_told(tmp_path: Path) -> None:
    """A tolerance that is no number and a name that is no model's are a wrong command."""
    with pytest.raises(bs.BatchserveError, match="--tolerance much: not understood"):
        exporting.terms((), "much", accept_drift=False, overwrite=False)
    with pytest.raises(bs.BatchserveError, match=r"their names end in \.onnx"):
        exporting.export(Function(line, [linear()]), tmp_path / "m.bin", SAMPLE, Terms())
    with pytest.raises(bs.BatchserveError, match="is not a frame"):
        exporting.sample_of(7)


def test_frames_and_files_are_samples(tmp_path: Path) -> None:
    """pandas, Polars and Arrow frames and data files give the same rows."""
    import polars as pl

    table = pa.Table.from_batches([SAMPLE])
    pq.write_table(table, tmp_path / "a.parquet")

    frames = [table, SAMPLE, table.to_pandas(), pl.from_arrow(table), tmp_path / "a.parquet"]

    assert all(exporting.sample_of(frame).to_pydict() == SAMPLE.to_pydict() for frame in frames)


def test_opening_is_given_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """`package.module:factory` goes to torch, with its weights."""
    seen: list[tuple[str, str | None]] = []

    class Torch:
        @staticmethod
        def of_factory(name: str, weights: str | None) -> None:
            seen.append((name, weights))

    monkeypatch.setattr(sources, "_module", lambda _: Torch)

    sources.opened("nets.small:make", Opening(weights="w.safetensors"))

    assert seen == [("nets.small:make", "w.safetensors")]


# -- the arithmetic ------------------------------------------------------------------------------


def compare(expected: Any, found: Any, name: str = "variable", rows: int | None = None) -> parity.Gap:
    """Compare one output."""
    values = np.asarray(expected), np.asarray(found)
    count = len(values[0]) if rows is None else rows
    gaps = parity.compared(Outputs({name: values[0]}, count), Outputs({name: values[1]}, count), {})
    return gaps[name][0]


def test_a_difference_is_held_to_the_spread_not_to_the_size() -> None:
    """0.5 at a million is half of a spread of 1, however small it is beside a million."""
    gap = compare([1e6, 1e6 + 1], [1e6, 1e6 + 1.5])

    assert (gap.spread, gap.largest_relative, gap.passes) == (1.0, 0.5, False)


def test_each_target_has_its_own_spread_and_probabilities_share_one() -> None:
    """A small target is not hidden by a large one; a rare class is not held to its own small spread."""
    targets = compare([[0.0, 0.0], [1000.0, 2.0]], [[0.0, 0.001], [1000.0, 2.0]])
    scores = compare([[1.0, 0.0], [0.9999, 0.0001]], [[1.0, 1e-6], [0.9999, 0.0001]])

    assert targets.largest_relative == 0.0005
    assert scores.largest_relative == 1e-6


def test_a_row_far_out_is_held_to_its_distance() -> None:
    """An added row at 100 spreads from the middle may differ by a hundred times as much."""
    gap = compare([0.0, 1.0, 100.5], [0.0, 1.0, 100.6], rows=2)

    assert gap.largest_relative == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("expected", "found", "passes"),
    [
        ([np.nan, 1.0, 2], [np.nan, 1.0, 2], True),
        ([np.nan, 1.0, 2], [0.0, 1.0, 2], False),
        ([1.0, 2.0], [np.nan, 2.0], False),
        ([np.inf, 1.0, 2], [np.inf, 1.0, 2], True),
        ([np.inf, 1.0, 2], [-np.inf, 1.0, 2], False),
        ([5.0, 5.0], [5.0, 5.0], True),
        ([5.0, 5.0], [5.0, 5.1], False),
        ([np.nan, np.nan], [np.nan, np.nan], True),
    ],
)
def test_what_is_no_number_must_be_the_same(expected: Any, found: Any, passes: bool) -> None:
    """NaN and infinities agree with themselves alone; a constant output has its size for a spread."""
    assert compare(expected, found).passes is passes


@pytest.mark.parametrize(
    ("expected", "found", "flips"),
    [
        (["u", "v"], ["u", "v"], 0),
        (["u", "v"], ["v", "v"], 1),
        ([0.0, 1.0], [0, 1], 0),
        ([False, True], [0, 1], 0),
        (["0", "1"], [0, 2], 1),
    ],
)
def test_labels_are_compared_as_what_they_are(expected: Any, found: Any, flips: int) -> None:
    """A converter makes integers of 1.0 and True; texts are compared as texts."""
    assert compare(expected, found, "label").flips == flips


def test_other_widths_cannot_be_compared() -> None:
    """Two scores for three is a problem, in words."""
    gap = compare([[1.0, 2.0, 3.0]], [[1.0, 2.0]])

    assert not gap.passes
    assert str(gap) == "the source gives 3 values per row, the graph 2"


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20), st.integers(0, 19), st.floats(0, 1))
def test_the_largest_difference_is_found_wherever_it_is(values: list[float], at: int, share: float) -> None:
    """One value that is moved by a share of the spread is found, and its row is the worst one."""
    expected = np.array(values)
    spread = float(np.ptp(expected)) or max(abs(float(expected.max())), 1.2e-38)
    found = expected.copy()
    at %= len(values)
    found[at] += share * spread

    sides = Outputs({"y": expected}, len(values)), Outputs({"y": found}, len(values))
    gap, bad = parity.compared(*sides, {})["y"]

    assert gap.largest_absolute == pytest.approx(abs(found[at] - expected[at]))
    assert parity.worst_rows({"y": (gap, bad)}) == ([] if gap.passes else [at])


def test_probes_hold_what_conversions_go_wrong_on() -> None:
    """Thresholds and their neighbours in float32, both ends and beyond, unknown and empty texts, nulls."""
    found = probes.probes(SAMPLE, [2.0, 99.0])
    values = {
        (each.trait, each.column): {row[each.column] for row in each.rows.to_pylist()} for each in found
    }

    above, below = (float(np.nextafter(np.float32(2), np.float32(to))) for to in (9, -9))
    assert {2.0, above, below} <= values["tie", "a"]
    assert 99.0 not in values["tie", "a"]
    assert values["extreme", "a"] == {0.0, -1.0, 3.0, -41.0, 43.0}
    assert values["unknown", "kind"] == {probes.UNKNOWN_TEXT}
    assert values["empty", "kind"] == {""}
    assert values["nan", "b"] == {None}


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9), st.lists(st.floats(-1e9, 1e9)))
def test_probes_keep_the_type_of_a_column(values: list[int], thresholds: list[float]) -> None:
    """Integers stay integers that the column's type holds."""
    batch = pa.RecordBatch.from_arrays([pa.array(values, pa.int32())], names=["i"])

    rows = probes.joined(probes.probes(batch, sorted(thresholds)), batch.schema)

    assert rows.schema == batch.schema
    assert rows.column("i").null_count > 0


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8),
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8),
)
def test_float32_thresholds_answer_as_float64_ones(thresholds: list[float], numbers: list[float]) -> None:
    """`x <= t` is the same for every float32 x when t is cut to the float32 below it, never rounded up."""
    count = len(thresholds)
    node = helper.make_node(
        "TreeEnsembleRegressor", ["X"], ["y"], nodes_featureids=[0] * count, nodes_values=thresholds,
        nodes_modes=["BRANCH_LEQ"] * count,
    )  # fmt: skip
    graph = model([node], {"X": COLUMN}, {"y": COLUMN})
    known = {(0, float(np.float32(t))): t for t in thresholds}

    surgery.compare_exactly(graph, known, double=False)

    cut = next(each for each in graph.graph.node[0].attribute if each.name == "nodes_values").floats
    exact = [known[0, float(np.float32(t))] for t in thresholds]
    assert [[x <= t for x in numbers] for t in cut] == [[x <= t for x in numbers] for t in exact]


def test_columns_become_inputs_whatever_their_names(tmp_path: Path) -> None:
    """Columns may be called as tensors inside the graph are: the two do not meet."""
    nodes = [
        helper.make_node("Add", ["X", "X"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["variable"]),
    ]
    wide = model(nodes, {"X": (TensorProto.FLOAT, None, 2)}, {"variable": COLUMN}, w=[[1], [1.5]])

    graph = surgery.column_inputs(wide, ("a", "b"))

    done = exporting.export(Function(line, [graph]), tmp_path / "m.onnx", SAMPLE, Terms())
    assert done.parity.passes


# -- surgery ---------------------------------------------------------------------------------------


def outcome(graph: onnx.ModelProto, **columns: Any) -> list[Tensor]:
    """Run a graph on inputs [rows, k] of float32."""
    import onnxruntime as ort

    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: np.array(each, np.float32) for name, each in columns.items()})
    return [np.asarray(each) for each in found]


def test_two_graphs_are_chained_though_their_names_are_the_same() -> None:
    """What the first gives is cast and goes into the second: 2 * (2a + 3b) + 0 of the same names."""
    second = model([helper.make_node("Add", ["x", "x"], ["variable"])], {"x": COLUMN}, {"variable": COLUMN})

    both = [surgery.chained(linear(), second, kind) for kind in (None, TensorProto.FLOAT)]

    for graph in both:
        assert outcome(graph, a=[[1]], b=[[2]])[0].tolist() == [[16.0]]


def test_an_output_is_renamed_though_a_tensor_has_the_name() -> None:
    """The name that an output gets may be one inside the graph."""
    graph = surgery.renamed(linear(), "variable", "x")

    assert [port.name for port in graph.graph.output] == ["x"]
    assert outcome(graph, a=[[1]], b=[[2]])[0].tolist() == [[8.0]]


def test_a_row_of_labels_becomes_a_column() -> None:
    """Labels of shape [1, rows] are flattened; other outputs stay."""
    nodes = [
        helper.make_node("Transpose", ["a"], ["label"]),
        helper.make_node("Identity", ["a"], ["probabilities"]),
    ]
    outputs = {"label": (TensorProto.FLOAT, 1, None), "probabilities": COLUMN}

    graph = surgery.flattened(model(nodes, {"a": COLUMN}, outputs), "label")

    label, scores = outcome(graph, a=[[1], [2]])
    assert (label.tolist(), scores.tolist()) == ([1.0, 2.0], [[1.0], [2.0]])


def test_scores_of_trees_are_float32_whatever_is_declared() -> None:
    """A converter that declares float64 for trees is corrected, and the graph loads."""
    graph = stump()
    graph.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE

    assert outcome(surgery.inferred(graph), a=[[1], [3]])[0].ravel().tolist() == [1.0, 7.0]


def test_a_zipmap_is_taken_out() -> None:
    """The tensor that a ZipMap would make maps of becomes the output."""
    nodes = [
        helper.make_node("Concat", ["a", "a"], ["scores"], axis=1),
        helper.make_node("ZipMap", ["scores"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
    ]
    graph = model(nodes, {"a": COLUMN}, {"maps": (TensorProto.FLOAT, None, 2)})

    bare = surgery.without_zipmap(graph)

    assert [port.name for port in bare.graph.output] == ["scores"]
    assert outcome(bare, a=[[3]])[0].tolist() == [[3.0, 3.0]]


def test_thresholds_of_float64_answer_as_they_are() -> None:
    """With float64 inputs a stump splits at 0.1 itself, which no float32 is; its thresholds are found."""
    import onnxruntime as ort

    node = stump().graph.node[0]
    wide = model([node], {"a": COLUMN}, {"variable": COLUMN})
    wide.graph.node[0].attribute.sort(key=lambda each: each.name)
    for each in wide.graph.node[0].attribute:
        if each.name == "nodes_values":
            each.floats[0] = 0.1

    surgery.compare_exactly(wide, {(0, float(np.float32(0.1))): 0.1}, double=True)

    assert surgery.thresholds(wide) == [0.1]
    above = np.nextafter(0.1, 1)
    session = ort.InferenceSession(wide.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"a": np.array([[0.1], [above]])})[0]
    assert np.asarray(found).ravel().tolist() == [1.0, 7.0]


def test_what_converters_note_of_this_machine_is_dropped(tmp_path: Path) -> None:
    """Lines of code and paths that a converter leaves in nodes are not in what is written."""
    graph = linear()
    graph.graph.node[0].doc_string = "File /home/me/train.py"
    entry = graph.graph.node[0].metadata_props.add()
    entry.key, entry.value = "stack_trace", "/home/me/train.py"

    exporting.export(Function(line, [graph]), tmp_path / "m.onnx", SAMPLE, Terms())

    assert b"/home/me" not in (tmp_path / "m.onnx").read_bytes()
