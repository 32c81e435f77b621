"""Text inputs that only look-ups read are given as codes: every bit stays as it was."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from batchserve import lookups
from batchserve.lookups import Codes
from models import KINDS
from workbench import EXAMPLES

FLIGHTS = EXAMPLES / "flights" / "model.onnx"


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
