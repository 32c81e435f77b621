"""`compare`: what two models differ in over all rows, against numbers worked out from all scores at once."""

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

import batchserve as bs
import models
import oracle
from batchserve import comparison, differences
from batchserve.comparison import Comparison
from batchserve.errors import ModelError, UsageError
from workbench import doubler, run

ROWS = 5_000


def moved(path: Path, name: str, by: float) -> Path:
    """Return a copy of a model with one of its weights a little different."""
    model = onnx.load(path)
    for weights in model.graph.initializer:
        values = numpy_helper.to_array(weights).copy()
        if values.dtype.kind == "f":
            values.flat[0] += by
            weights.CopyFrom(numpy_helper.from_array(values, weights.name))
            break
    other = path.with_name(name)
    onnx.save(model, other)
    return other


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and rows."""
    made = tmp_path_factory.mktemp("compare")
    moved(models.named(made), "named2.onnx", 0.25)
    moved(models.wide(made), "wide2.onnx", 1e-3)
    random = np.random.default_rng(2)
    frame = pd.DataFrame(random.standard_normal((ROWS, 2)), columns=["a", "b"])
    frame.assign(kind=random.choice(models.KINDS, ROWS), k=random.integers(0, 10, ROWS)).to_csv(
        made / "in.csv", index=False
    )
    return made


def of(found: Comparison, output: str) -> comparison.Compared:
    return next(pair for pair in found.pairs if pair.output == output)


# -- against all scores at once ---------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_numbers_are_those_of_all_scores_at_once(tolerance: float, home: Path) -> None:
    """Counts, largest and mean differences and the worst rows are those that numpy finds in all scores."""
    frame = pd.read_csv(home / "in.csv", keep_default_na=False)
    a, b = (
        oracle.predict(home / name, frame)["score"].astype(np.float64).reshape(-1)
        for name in ("named.onnx", "named2.onnx")
    )
    absolute = np.abs(b - a)

    found = bs.compare(
        home / "named.onnx", home / "named2.onnx", home / "in.csv", tolerance=tolerance, top=7,
        partition_size=9_000, workers=2,
    )  # fmt: skip

    pair = of(found, "score")
    assert (found.rows, pair.sums.rows) == (ROWS, ROWS)
    assert pair.sums.differ == int((absolute > tolerance).sum()) > 0
    assert pair.sums.largest_absolute == absolute.max()
    relative = absolute / np.maximum(np.abs(a), np.abs(b))
    assert pair.sums.largest_relative == pytest.approx(relative.max(), rel=1e-12)
    assert pair.sums.mean == pytest.approx((b - a).mean(), rel=1e-9)
    assert pair.sums.mean_absolute == pytest.approx(absolute.mean(), rel=1e-9)
    worst = np.argsort(-absolute, kind="stable")[:7]
    assert [case.record for case in pair.most] == [int(row) + 1 for row in worst]
    for case, row in zip(pair.most, worst, strict=True):
        assert (case.difference, case.a, case.b) == (absolute[row], a[row], b[row])
        assert case.inputs == {name: frame[name][row] for name in ("a", "b", "kind")}


def test_lists_are_compared_value_by_value(home: Path, tmp_path: Path) -> None:
    """A row of several values differs by its largest; a difference that only one output has stays there."""
    numbers = np.random.default_rng(4).standard_normal((700, 4)).astype(np.float32)
    pq.write_table(pa.table(dict(zip("abcd", numbers.T, strict=True))), tmp_path / "in.parquet")
    frame = pd.DataFrame(numbers, columns=list("abcd"))
    scores = [oracle.predict(home / name, frame, list("abcd")) for name in ("wide.onnx", "wide2.onnx")]

    found = bs.compare(
        home / "wide.onnx", home / "wide2.onnx", tmp_path / "in.parquet", features=list("abcd")
    )

    for output in ("total", "logits"):
        a, b = (each[output].astype(np.float64) for each in scores)
        apart = np.abs(b - a).reshape(700, -1)
        pair = of(found, output)
        assert pair.sums.differ == int((apart.max(axis=1) > 0).sum())
        assert pair.sums.numbers == apart.size
        assert pair.sums.largest_absolute == apart.max()
    assert {of(found, "total").sums.differ == 0, of(found, "logits").sums.differ == 0} == {True, False}


def test_labels_flip(home: Path, tmp_path: Path) -> None:
    """Labels are counted by what one says and the other, and the first flips are shown."""
    old, new = models.picker(tmp_path), tmp_path / "new.onnx"
    model = onnx.load(old)
    (encoder,) = (node for node in model.graph.node if node.op_type == "LabelEncoder")
    for attribute in encoder.attribute:
        if attribute.name == "values_strings":
            attribute.strings[1] = b"warm"
    onnx.save(model, new)
    frame = pd.read_csv(home / "in.csv", keep_default_na=False)
    green = np.flatnonzero(frame["kind"] == "green")

    found = bs.compare(old, new, home / "in.csv", top=3)

    pair = of(found, "label")
    assert pair.kind == "labels"
    assert pair.sums.flips == Counter({("cold", "warm"): len(green)})
    assert pair.sums.differ == len(green)
    assert [case.record for case in pair.most] == [int(row) + 1 for row in green[:3]]
    assert of(found, "score").sums.differ == 0


# -- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "csv.gz"])
def test_rows_are_where_they_are_said_to_be(form: str, home: Path, tmp_path: Path) -> None:
    """Files, records and rejects are right in any format, cut anywhere, with bad rows among the good."""
    named, other = home / "named.onnx", home / "named2.onnx"
    frame = pd.DataFrame({"a": np.linspace(0, 1, 300), "b": 1.0, "kind": 'r"\n,d', "row": range(1, 301)})
    frame.loc[[10, 250], "a"] = None
    frame.loc[123, "a"] = 50.0
    for name in ("one", "two"):
        path = tmp_path / f"{name}.{form}"
        if form == "parquet":
            pq.write_table(pa.Table.from_pandas(frame), path, row_group_size=50)
        elif form == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            text = frame.to_csv(index=False).encode()
            path.write_bytes(gzip.compress(text) if form.endswith("gz") else text)
        frame.loc[123, "a"] = 40.0

    found = bs.compare(named, other, str(tmp_path / f"*.{form}"), top=2, partition_size=1_500, workers=2)

    assert (found.rows_in, found.rows) == (600, 596)
    assert found.rejected_by == {"MISSING a": 4}
    most = of(found, "score").most
    assert [(Path(case.file).name, case.record, case.inputs["a"]) for case in most] == [
        (f"one.{form}", 124, 50.0), (f"two.{form}", 124, 40.0),
    ]  # fmt: skip


def test_workers_change_nothing(home: Path) -> None:
    """The same partitions give the same numbers to the bit, however many are scanned at once."""
    files = (home / "named.onnx", home / "named2.onnx", home / "in.csv")

    facts = [bs.compare(*files, workers=n, partition_size=20_000).facts() for n in (1, 3)]

    assert facts[0] == facts[1]


def test_a_limit_is_kept(home: Path) -> None:
    """Only the first records are read if so many are asked for."""
    assert bs.compare(home / "named.onnx", home / "named2.onnx", home / "in.csv", limit=77).rows == 77


def test_a_column_that_becomes_text_is_read_again(home: Path, tmp_path: Path) -> None:
    """A text column that the sample took for numbers is compared as text, every row once."""
    kinds = ["7"] * 600_000
    kinds[220_000] = "x"
    (tmp_path / "in.csv").write_text("a,b,kind\n" + "".join(f"1,2,{kind}\n" for kind in kinds))
    sampled = bs.plan(tmp_path / "in.csv", model=home / "named.onnx").plan.recipe.reading.schema_
    assert sampled.field("kind").type == pa.int64()

    found = bs.compare(home / "named.onnx", home / "named2.onnx", tmp_path / "in.csv", workers=2)

    assert (found.rows, found.rejected_by) == (600_000, {})
    assert of(found, "score").most[0].inputs["kind"] == "7"


# -- what cannot be compared ------------------------------------------------------------------


def test_models_without_a_common_output_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models with no output of one name and kind are exit 70; every output is named."""
    models.picker(tmp_path)
    doubler(tmp_path / "double.onnx", "a")

    done = run(capsys, "compare", tmp_path / "picker.onnx", tmp_path / "double.onnx", home / "in.csv")

    assert done.code == 70
    assert "score only a has it; label only a has it; y only b has it" in done.err


def test_the_only_outputs_are_compared_whatever_their_names(home: Path, tmp_path: Path) -> None:
    """A champion and a challenger of other libraries seldom call their output the same."""
    doubler(tmp_path / "double.onnx", "a")

    found = bs.compare(home / "named.onnx", tmp_path / "double.onnx", home / "in.csv")

    assert ([pair.output for pair in found.pairs], found.not_compared) == (["score and y"], {})
    rows = pd.read_csv(home / "in.csv", keep_default_na=False)
    scores = bs.Model(home / "named.onnx").predict(rows)["score"].to_numpy(np.float64)
    twice = bs.Model(tmp_path / "double.onnx").predict(rows)["y"].to_numpy(np.float64)
    assert found.pairs[0].sums.largest_absolute == np.abs(twice - scores).max()


def test_what_is_not_compared_is_said(home: Path, tmp_path: Path) -> None:
    """Outputs that only one model has, or of another kind, are named; the others are compared."""
    models.picker(tmp_path)

    found = bs.compare(home / "named.onnx", tmp_path / "picker.onnx", home / "in.csv")

    assert found.not_compared == {"label": "only b has it"}
    assert [pair.output for pair in found.pairs] == ["score"]


def test_a_negative_tolerance_is_refused(home: Path) -> None:
    """A tolerance is a number from 0 on."""
    for tolerance in (-1.0, math.nan):
        with pytest.raises(UsageError, match="may not be less than 0"):
            bs.compare(home / "named.onnx", home / "named2.onnx", home / "in.csv", tolerance=tolerance)


def test_what_is_wrong_with_a_model_is_told_with_its_name(home: Path, tmp_path: Path) -> None:
    """A model that does not fit the columns is told as b."""
    doubler(tmp_path / "double.onnx", "z")

    with pytest.raises(ModelError, match=r"^b: input z: no column z"):
        bs.compare(home / "named.onnx", tmp_path / "double.onnx", home / "in.csv")


# -- told -------------------------------------------------------------------------------------


def test_the_command_tells_differences_and_succeeds(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Differences are a result: exit 0, words for people or one JSON object, NaN and infinity as texts."""
    (tmp_path / "in.csv").write_text("a,b,kind\n1,2,red\ninf,2,red\n1e38,2,red\n,2,red\n")
    command = ("compare", home / "named.onnx", home / "named2.onnx", tmp_path / "in.csv")

    words = run(capsys, *command, "--tolerance", "0.01", "--top", "2")
    facts = json.loads(run(capsys, *command, "--json", "--top", "2").out)

    assert words.code == 0
    assert "rejected  MISSING a 1" in words.out
    assert "2 of 3 rows (66.67%) by more than 0.01" in words.out
    assert "record 3" in words.out
    assert facts["rows_compared"] == 3
    assert facts["outputs"][0]["differ"] == 2
    assert facts["models"]["b"]["path"].endswith("named2.onnx")


# -- the sums ---------------------------------------------------------------------------------

FLOATS = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, -math.inf])


@given(
    rows=st.lists(st.tuples(FLOATS, FLOATS), max_size=30),
    cut=st.integers(0, 30),
    tolerance=st.sampled_from([0.0, 0.5, 1e30]),
)
def test_sums_of_parts_are_sums_of_all(rows: list[tuple[float, float]], cut: int, tolerance: float) -> None:
    """However rows are cut, counts and extremes are those that plain Python finds one by one."""
    a, b = (pa.array([row[i] for row in rows], pa.float32()) for i in (0, 1))

    parts = [
        differences.between("numbers", a.slice(*part), b.slice(*part), tolerance)[0]
        for part in ((0, cut), (cut, len(rows)))
    ]

    found, expected = parts[0] + parts[1], [measured(*row) for row in rows]
    finite = [each for each, pair in zip(expected, rows, strict=True) if all(map(math.isfinite, pair))]
    assert found.differ == sum(each > tolerance for each in expected)
    assert found.nonfinite == sum(each == math.inf for each in expected)
    assert (found.rows, found.numbers) == (len(rows), len(finite))
    assert found.largest_absolute == max(finite, default=0.0)
    assert found.total_absolute == pytest.approx(math.fsum(finite), rel=1e-9)


def measured(a: float, b: float) -> float:
    """Return how far two float32 are apart."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    return abs(b - a) if math.isfinite(a) and math.isfinite(b) else math.inf


def test_a_difference_that_is_allowed_is_none() -> None:
    """Rows differ that are further apart than the tolerance, not those that are just as far."""
    a, b = pa.array([0.0, 0.0, 0.0]), pa.array([0.5, 0.75, -0.5])

    sums, apart = differences.between("numbers", a, b, 0.5)

    assert (sums.differ, sums.largest_absolute, apart.tolist()) == (1, 0.75, [0.0, 0.75, 0.0])


def test_rows_that_do_not_differ_are_not_shown(home: Path) -> None:
    """A model compared with itself has no rows that differ most."""
    found = bs.compare(home / "named.onnx", home / "named.onnx", home / "in.csv")

    assert (found.rows, found.differ, of(found, "score").most) == (ROWS, 0, [])


def test_large_integers_keep_their_digits() -> None:
    """Integers that no double tells apart differ by what they differ, and count as labels too."""
    a, b = pa.array([1 << 62, 5], pa.int64()), pa.array([(1 << 62) + 1, 5], pa.int64())

    sums, apart = differences.between("integers", a, b, 0.0)

    assert (sums.differ, sums.largest_absolute, apart.tolist()) == (1, 1.0, [1.0, 0.0])
    assert sums.flips == Counter({(str(1 << 62), str((1 << 62) + 1)): 1})


def test_flips_are_bounded() -> None:
    """Texts that are all different do not fill the memory: some pairs are counted, the rest together."""
    a = pa.array([f"a{i}" for i in range(3_000)])
    sums, _ = differences.between("labels", a, pa.array(["b"] * 3_000), 0.0)
    again = sums + sums

    assert len(again.flips) == differences.MOST_FLIPS
    assert again.flips.total() + again.other_flips == again.differ == 6_000


KINDS = [
    (pa.float32(), pa.float64(), "numbers"), (pa.float32(), pa.int64(), "numbers"),
    (pa.int8(), pa.int64(), "integers"), (pa.string(), pa.string(), "labels"),
    (pa.bool_(), pa.bool_(), "labels"), (pa.bool_(), pa.string(), None),
    (pa.list_(pa.float32(), 3), pa.list_(pa.float64(), 3), "numbers"),
    (pa.list_(pa.float32(), 3), pa.list_(pa.float32(), 2), None),
    (pa.fixed_shape_tensor(pa.float32(), (2, 3)), pa.fixed_shape_tensor(pa.float32(), (3, 2)), None),
    (pa.struct({"x": pa.float32()}), pa.struct({"x": pa.float32()}), "numbers"),
    (pa.struct({"x": pa.float32()}), pa.struct({"y": pa.float32()}), None),
    (pa.list_(pa.string(), 2), pa.list_(pa.string(), 2), None), (pa.float32(), pa.string(), None),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "kind"), KINDS)
def test_what_can_be_compared(first: pa.DataType, second: pa.DataType, kind: Any) -> None:
    """Numbers of one shape are compared, texts with texts, booleans with booleans; the rest is named."""
    pairs, alone = differences.paired({"y": first}, {"y": second})

    assert pairs == ({"y": kind} if kind else {})
    assert list(alone) == ([] if kind else ["y"])


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.UINT64, TensorProto.BOOL])
def test_outputs_of_every_kind_equal_themselves(kind: int, tmp_path: Path) -> None:
    """A model compared with itself differs in nothing, whatever type its output has."""
    models.cast(tmp_path, kind)
    pq.write_table(pa.table({"p": [0.0, 1.0, 3.0], "q": [1.0, 0.0, 2.0]}), tmp_path / "in.parquet")
    model = tmp_path / "cast.onnx"

    if kind == TensorProto.BOOL:
        with pytest.raises(ModelError, match="no output that can be compared"):
            bs.compare(model, model, tmp_path / "in.parquet", features=["p", "q"])
    else:
        assert bs.compare(model, model, tmp_path / "in.parquet", features=["p", "q"]).differ == 0
