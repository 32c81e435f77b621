"""A session that gives the same for less is used only where every bit is the same."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

import batchserve as bs
import models
from batchserve import model as model_
from batchserve import modelfile, shortcut, zipmaps
from batchserve.lookups import Codes
from batchserve.shortcut import Shortcut
from batchserve.zipmaps import Maps
from models import KINDS
from workbench import EXAMPLES

FLIGHTS = EXAMPLES / "flights" / "model.onnx"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model by codes after the first run."""
    monkeypatch.setattr(shortcut, "_WORTH_ROWS", 1)
    monkeypatch.setattr(model_, "_sessions", {})


def classes(folder: Path, labels: Sequence[str] = ("no", "yes", "")) -> Path:
    """Write a model of one text input `kind` whose output `chance` is maps of three classes."""
    hot = helper.make_node(
        "OneHotEncoder", ["kind"], ["hot"], domain="ai.onnx.ml", cats_strings=list(KINDS)
    )  # fmt: skip
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [4, 3], np.linspace(-1, 1, 12).tolist())
    nodes = [
        helper.make_node("Reshape", ["hot", "wide"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        helper.make_node("ZipMap", ["scores"], ["chance"], domain="ai.onnx.ml", classlabels_strings=labels),
    ]
    wide = helper.make_tensor("wide", TensorProto.INT64, [2], [-1, 4])
    kind = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    out = helper.make_value_info("chance", helper.make_sequence_type_proto(kind))
    graph = helper.make_graph(
        [hot, *nodes], "g", [helper.make_tensor_value_info("kind", TensorProto.STRING, [None, 1])], [out],
        [weights, wide],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    path = folder / "classes.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    return path


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", ["named", "texts", "flights", "classes"])
def test_a_job_by_a_shortcut_has_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job with texts as codes and maps as tensors publishes the same bits as one without."""
    used: list[bool] = []
    run = Shortcut.run

    def spied(*arguments: Any) -> Any:
        result = run(*arguments)
        used.append(result is not None)
        return result

    monkeypatch.setattr(Shortcut, "run", spied)
    rows = 5_000
    chance = np.random.default_rng(3)
    kinds = chance.choice([*KINDS, "other", ""], rows).tolist()
    table = pa.table({"a": chance.random(rows), "b": chance.random(rows), "kind": kinds})
    options: dict[str, Any]
    if name == "flights":
        source, path, options = EXAMPLES / "flights/flights.csv", FLIGHTS, {"on_null": "nan"}
    else:
        made = {"named": models.named, "texts": models.texts, "classes": classes}[name]
        source, path, options = tmp_path / "in.parquet", made(tmp_path), {}
        pq.write_table(table, source)
    bs.score(str(source), str(tmp_path / "short.parquet"), model=path, workers=1, **options)
    short = pq.read_table(tmp_path / "short.parquet")
    assert any(used)

    monkeypatch.setattr(Shortcut, "run", lambda *_: None)
    bs.score(str(source), str(tmp_path / "plain.parquet"), model=path, workers=1, **options)
    assert short.equals(pq.read_table(tmp_path / "plain.parquet"))


class Fake:
    """A session that gives what it was made with."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def run(self, *_: Any) -> list[Any]:
        return list(self.values)


TENSORS = {"kind": np.array([["red"], ["red"], ["blue"], ["red"]], object)}
CODES = {"kind": Codes(np.array(["red", "blue"], object), np.array([0, 0, 1, 0], np.int32))}
RIGHT = np.array([1, 2, 3, np.nan], np.float32)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("given_", "used"),
    [
        (RIGHT, True), (-RIGHT, False), (RIGHT.astype(np.float64), False), (RIGHT[:3], False),
        (np.array(["a"], object), False), (Maps.of([{"a": 1.0}]), False),
    ],
    ids=["same", "sign", "dtype", "shape", "texts", "maps"],
)  # fmt: skip
def test_where_a_bit_differs_it_is_never_used(
    given_: Any, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run by codes is compared with one of the model itself; only where all is equal it is used."""
    short = Shortcut(str(FLIGHTS), lambda _: Fake(given_))
    made = shortcut._Changed(Fake(given_), ("kind",), {})
    monkeypatch.setattr(short, "_changed", lambda _: made)

    assert short.run(["score"], TENSORS, CODES, None) is None
    short.consider(["score"], TENSORS, CODES, None, [RIGHT])
    assert (short.run(["score"], TENSORS, CODES, None) is not None) == used
    assert short.run(["score"], TENSORS, {}, None) is None
    few = {"kind": TENSORS["kind"][:1]}
    assert short.run(["score"], few, {"kind": CODES["kind"].slice(0, 1)}, None) is None


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("fault", [MemoryError(), RuntimeError("refused")])
def test_a_model_short_that_fails_is_forgotten(fault: Exception) -> None:
    """Whatever is wrong with the model by codes, the model itself goes on."""

    def opened(_: bytes) -> Any:
        raise fault

    short = Shortcut(str(FLIGHTS), opened)
    short.consider(["score"], TENSORS, CODES, None, [RIGHT])

    assert short.run(["score"], TENSORS, CODES, None) is None


@pytest.mark.usefixtures("at_once")
def test_a_large_model_is_not_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model over the limit is never made by codes: its weights would be in memory twice."""
    monkeypatch.setattr(shortcut, "_MOST_BYTES", 1_000)
    short = Shortcut(str(FLIGHTS), lambda _: Fake(RIGHT))
    short.consider(["score"], TENSORS, CODES, None, [RIGHT])

    assert short.run(["score"], TENSORS, CODES, None) is None


def test_it_is_made_once_and_after_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many threads make the model by codes once, and a small job never does."""
    made: list[int] = []
    monkeypatch.setattr(shortcut, "_WORTH_ROWS", 40)
    short = Shortcut(str(FLIGHTS), lambda _: Fake(RIGHT))

    def make(_: Any) -> Any:
        made.append(1)
        return shortcut._Changed(Fake(RIGHT), ("kind",), {})

    monkeypatch.setattr(short, "_changed", make)

    for _ in range(9):
        short.consider(["score"], TENSORS, CODES, None, [RIGHT])
    assert made == []
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: short.consider(["score"], TENSORS, CODES, None, [RIGHT]), range(50)))
    assert made == [1]


@pytest.mark.usefixtures("at_once")
def test_a_session_takes_codes_beside_tensors() -> None:
    """A session gives the same with codes as without, before and after the model by codes is made."""
    session = model_.session_for(modelfile.identify(str(FLIGHTS)))
    signature = session.signature()
    rows, texts = np.arange(64, dtype=np.int32) % 3, np.array(["UA", "nowhere", "EWR"], object)
    tensors = {
        port.name: texts[rows].reshape(-1, 1) if port.type == "tensor(string)" else
        np.arange(64, dtype=np.float32).reshape(-1, 1)
        for port in signature.inputs
    }  # fmt: skip
    codes = {p.name: Codes(texts, rows) for p in signature.inputs if p.type == "tensor(string)"}

    plain = session.run(["predicted_delay"], tensors)
    first, second = (session.run(["predicted_delay"], tensors, codes=codes) for _ in range(2))

    assert session._shortcut._made is not None
    assert plain[0].tobytes() == first[0].tobytes() == second[0].tobytes()


@pytest.mark.parametrize("labels", [("no", "yes", ""), ("b", "a", "c"), ("é", "z", "Z")])
@pytest.mark.usefixtures("at_once")
def test_maps_are_the_tensor_beneath(labels: Sequence[str], tmp_path: Path) -> None:
    """Before and after the maps are cut off the graph a run gives the same, whatever the labels' order."""
    session = model_.session_for(modelfile.identify(str(classes(tmp_path, labels))))
    texts = np.array([*KINDS, "other"], object)
    tensors = {"kind": np.resize(texts, 64).reshape(-1, 1)}
    codes = {"kind": Codes(texts, np.arange(64, dtype=np.int32) % len(texts))}

    (first,), (second,) = (session.run(["chance"], tensors, codes=codes) for _ in range(2))

    assert session._shortcut._made is not None
    assert first.keys == second.keys == tuple(sorted(labels, key=str.encode))
    assert first.values.tobytes() == second.values.tobytes()
    assert first.values.dtype == second.values.dtype == np.float32


def twice(model: onnx.ModelProto) -> None:
    (node,) = [node for node in model.graph.node if node.op_type == "ZipMap"]
    node.attribute[0].strings[:] = [b"no", b"no", b"yes"]


def renamed(model: onnx.ModelProto) -> None:
    (node,) = [node for node in model.graph.node if node.op_type == "ZipMap"]
    node.attribute[0].strings[:] = [b"no", b"yes", b"other"]


def without_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[0]


@pytest.mark.parametrize("change", [twice, renamed, without_opset])
def test_maps_of_other_labels_are_left_alone(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    """A ZipMap whose labels are not the keys that were seen stays in the graph."""
    model = onnx.load(classes(tmp_path))
    change(model)
    before = model.SerializeToString()

    assert zipmaps.cut(model, {"chance": ("", "no", "yes")}) == {}
    assert model.SerializeToString() == before


def test_maps_that_nobody_asked_for_are_left_alone(tmp_path: Path) -> None:
    """Only outputs whose keys were seen are cut, and integers are labels, too."""
    model = onnx.load(classes(tmp_path))
    (node,) = [node for node in model.graph.node if node.op_type == "ZipMap"]
    node.attribute[0].CopyFrom(helper.make_attribute("classlabels_int64s", [10, 9, 1]))

    assert zipmaps.cut(model, {}) == {}
    assert zipmaps.cut(model, {"chance": ("1", "9", "10")}) == {"chance": [2, 1, 0]}
