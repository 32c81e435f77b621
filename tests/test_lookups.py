"""Text inputs that only look-ups read are given as codes: every bit stays as it was."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import batchserve as bs
import models
from batchserve import lookups, modelfile
from batchserve import model as model_
from batchserve.lookups import Codes, Shortcut
from models import KINDS
from workbench import EXAMPLES

FLIGHTS = EXAMPLES / "flights" / "model.onnx"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model by codes after the first run."""
    monkeypatch.setattr(lookups, "_WORTH_ROWS", 1)
    monkeypatch.setattr(model_, "_sessions", {})


def text_model(path: Path, nodes: Sequence[Any], *dims: int | str | None, text_out: bool = False) -> Path:
    """Write a model of one text input `kind` of these dimensions."""
    kind = TensorProto.STRING if text_out else TensorProto.FLOAT
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("kind", TensorProto.STRING, dims)],
        [helper.make_tensor_value_info("score", kind, None)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    return path


def labels(source: str, target: str) -> Any:
    return helper.make_node(
        "LabelEncoder", [source], [target], domain="ai.onnx.ml", keys_strings=list(KINDS),
        values_floats=[0.1, 0.7, -1.3, 2.9], default_float=-9.0,
    )  # fmt: skip


def hot(source: str, target: str) -> Any:
    return helper.make_node(
        "OneHotEncoder", [source], [target], domain="ai.onnx.ml", cats_strings=list(KINDS)
    )


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", ["named", "texts", "flights"])
def test_a_job_by_codes_has_the_same_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose texts are given as codes publishes the same bits as one by the texts."""
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
        source, path, options = tmp_path / "in.parquet", getattr(models, name)(tmp_path), {}
        pq.write_table(table, source)
    bs.score(str(source), str(tmp_path / "by_codes.parquet"), model=path, workers=1, **options)
    by_codes = pq.read_table(tmp_path / "by_codes.parquet")
    assert any(used)

    monkeypatch.setattr(Shortcut, "run", lambda *_: None)
    bs.score(str(source), str(tmp_path / "plain.parquet"), model=path, workers=1, **options)
    assert by_codes.equals(pq.read_table(tmp_path / "plain.parquet"))


@pytest.mark.parametrize("dims", [(None, 1), ("N",), (None, 3)], ids=["column", "vector", "three"])
@pytest.mark.parametrize("node", [labels, hot])
@given(data=st.data())
def test_a_gather_behind_a_look_up_changes_nothing(
    node: Callable[[str, str], Any], dims: tuple[int | str | None, ...], data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """Whatever the texts, known or not, the model by codes gives what the model itself gives."""
    path = text_model(tmp_path_factory.mktemp("m") / "m.onnx", [node("kind", "score")], *dims)
    model = onnx.load(path)
    assert lookups.coded(model) == ("kind",)
    wide = [dim for dim in dims[1:] if isinstance(dim, int)]
    known = data.draw(st.lists(st.text(max_size=3) | st.sampled_from(KINDS), min_size=1, max_size=6))
    rows = data.draw(st.lists(st.integers(0, len(known) - 1), min_size=1, max_size=9))
    texts = np.array(known, object)
    if wide:
        texts = np.stack([texts] * wide[0], axis=1)
    tensors = {"kind": texts[rows]}
    codes = {"kind": Codes(texts, np.array(rows, np.int32))}

    plain = ort.InferenceSession(str(path)).run(["score"], tensors)
    short = ort.InferenceSession(model.SerializeToString()).run(
        ["score"], lookups.fed(("kind",), tensors, codes)
    )

    assert plain[0].tobytes() == short[0].tobytes()
    assert plain[0].shape == short[0].shape


IDENTITY = helper.make_node("Identity", ["kind"], ["same"])
SHAPE = helper.make_node("Shape", ["kind"], ["shape"])
LEFT_ALONE = {
    "another operator reads it, too": ([labels("kind", "score"), IDENTITY], (None, 1)),
    "no look-up reads it": ([SHAPE, helper.make_node("Cast", ["shape"], ["score"], to=1)], (None, 1)),
    "the batch is fixed": ([labels("kind", "score")], (4, 1)),
    "it has no rows": ([labels("kind", "score")], ()),
}  # fmt: skip


@pytest.mark.parametrize("why", LEFT_ALONE)
def test_other_models_are_left_alone(why: str, tmp_path: Path) -> None:
    """A model is changed only where nothing but a look-up could tell the difference."""
    nodes, dims = LEFT_ALONE[why]
    model = onnx.load(text_model(tmp_path / "m.onnx", nodes, *dims))
    before = model.SerializeToString()

    assert lookups.coded(model) == ()
    assert model.SerializeToString() == before


def test_a_text_that_is_an_output_is_left_alone() -> None:
    """An input that the model hands out as it is stays as it is."""
    graph = helper.make_graph(
        [labels("kind", "score")], "g",
        [helper.make_tensor_value_info("kind", TensorProto.STRING, [None, 1])],
        [helper.make_tensor_value_info(n, k, None) for n, k in (("score", 1), ("kind", 8))],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]

    assert lookups.coded(helper.make_model(graph, opset_imports=opsets)) == ()
    del opsets[0]
    assert lookups.coded(helper.make_model(graph, opset_imports=opsets)) == ()


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
        (np.array(["a"], object), False), ([{"a": 1.0}], False),
    ],
    ids=["same", "sign", "dtype", "shape", "texts", "dicts"],
)  # fmt: skip
def test_where_a_bit_differs_it_is_never_used(given_: Any, used: bool) -> None:
    """The first run by codes is compared with one of the model itself; only where all is equal it is used."""
    shortcut = Shortcut(str(FLIGHTS), lambda _: Fake(given_))
    shortcut._made = lambda: (Fake(given_), ("kind",))  # type: ignore[method-assign]  # a stand-in

    assert shortcut.run(["score"], TENSORS, CODES, None) is None
    shortcut.consider(["score"], TENSORS, CODES, None, [RIGHT])
    assert (shortcut.run(["score"], TENSORS, CODES, None) is not None) == used
    assert shortcut.run(["score"], TENSORS, {}, None) is None
    few = {"kind": TENSORS["kind"][:1]}
    assert shortcut.run(["score"], few, {"kind": CODES["kind"].slice(0, 1)}, None) is None


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("fault", [MemoryError(), RuntimeError("refused")])
def test_a_model_by_codes_that_fails_is_forgotten(fault: Exception) -> None:
    """Whatever is wrong with the model by codes, the model itself goes on."""

    def opened(_: bytes) -> Any:
        raise fault

    shortcut = Shortcut(str(FLIGHTS), opened)
    shortcut.consider(["score"], TENSORS, CODES, None, [RIGHT])

    assert shortcut.run(["score"], TENSORS, CODES, None) is None


@pytest.mark.usefixtures("at_once")
def test_a_large_model_is_not_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model over the limit is never made by codes: its weights would be in memory twice."""
    monkeypatch.setattr(lookups, "_MOST_BYTES", 1_000)
    shortcut = Shortcut(str(FLIGHTS), lambda _: Fake(RIGHT))
    shortcut.consider(["score"], TENSORS, CODES, None, [RIGHT])

    assert shortcut.run(["score"], TENSORS, CODES, None) is None


def test_it_is_made_once_and_after_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many threads make the model by codes once, and a small job never does."""
    made: list[int] = []
    monkeypatch.setattr(lookups, "_WORTH_ROWS", 40)
    shortcut = Shortcut(str(FLIGHTS), lambda _: Fake(RIGHT))

    def make() -> tuple[Any, tuple[str, ...]]:
        made.append(1)
        return Fake(RIGHT), ("kind",)

    shortcut._made = make  # type: ignore[method-assign]  # a stand-in

    for _ in range(9):
        shortcut.consider(["score"], TENSORS, CODES, None, [RIGHT])
    assert made == []
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: shortcut.consider(["score"], TENSORS, CODES, None, [RIGHT]), range(50)))
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

    assert session._shortcut._session is not None
    assert plain[0].tobytes() == first[0].tobytes() == second[0].tobytes()
