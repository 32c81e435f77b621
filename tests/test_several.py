"""Several models in one scan: the columns of each are those of a job of its own, to the bit."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

import batchserve as bs
import models
from batchserve import batches, config, spelling, tune, verify
from batchserve.errors import BatchserveError, NotFoundError, OutputError, UsageError
from conftest import Command, digest, environment
from workbench import divider, doubler, run

ALL: dict[str, Any] = {"max_errors": "100%", "workers": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models that read some columns in common, in other types."""
    made = tmp_path_factory.mktemp("several")
    models.named(made)
    models.picker(made)
    models.heavy(made, layers=6)
    return made


@pytest.fixture(scope="module")
def both(home: Path) -> dict[str, str]:
    return {"champion": str(home / "named.onnx"), "challenger": str(home / "picker.onnx")}


def table_of(path: Path) -> Any:
    return pq.read_table(path)


# -- equal to the single scores ---------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What a file may hold in a row: texts as they are written, nothing for a null."""

    a: str
    b: str
    k: str
    kind: str


NUMBERS = st.floats(-1e3, 1e3, width=32).map(str)
CELLS = st.one_of(NUMBERS, st.sampled_from(["", "bad", "1e39", "nan", "16777217", "-0.0"]))
ROWS = st.lists(
    st.builds(Row, CELLS, NUMBERS, st.sampled_from([*"0123456789", "10", "-11", "", "3.5"]),
              st.sampled_from([*models.KINDS, "", "violet"])),
    min_size=1, max_size=80,
)  # fmt: skip


def written(folder: Path, rows: Sequence[Row], form: str) -> Path:
    """Write rows to a CSV, or as texts to a Parquet file."""
    path = folder / f"in.{form}"
    if form == "csv":
        lines = [f"{i},{row.a},{row.b},{row.k},{row.kind}\n" for i, row in enumerate(rows)]
        path.write_text("row,a,b,k,kind\n" + "".join(lines))
        return path
    columns = {name: [getattr(row, name) or None for row in rows] for name in ("a", "b", "k", "kind")}
    table = pa.table({"row": pa.array(range(len(rows)), pa.int64())} | {
        name: pa.array(texts, pa.string()) for name, texts in columns.items()
    })  # fmt: skip
    pq.write_table(table, path, row_group_size=17)
    return path


def refused(output: Path) -> dict[int, tuple[str, str]]:
    """Return the record of every reject, with its class and column."""
    path = output.with_suffix("").with_suffix(".rejects.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert len({line["record"] for line in lines}) == len(lines)
    return {line["record"]: (line["class"], line["column"]) for line in lines}


def outcome(folder: Path, source: Path, model: Any, **options: Any) -> tuple[Any, dict[int, Any]] | str:
    """Score a file; give the rows and the rejects, or what was wrong."""
    output = folder / "out.parquet"
    try:
        bs.score(source, output, model=model, overwrite=True, **ALL, **options)
    except BatchserveError as error:
        return str(error.message)
    return table_of(output), refused(output)


@pytest.mark.parametrize("form", ["csv", "parquet"])
@settings(max_examples=8)
@given(rows=ROWS, size=st.integers(60, 2_000), options=st.sampled_from([{}, {"on_null": "a:nan"}]))
def test_the_columns_are_those_of_single_scores(
    form: str, rows: list[Row], size: int, options: dict[str, str], both: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """Two models at once give, for rows that both can take, the bits of each alone; rejects are the union."""
    folder = tmp_path_factory.mktemp("equal")
    source = written(folder, rows, form)
    single = {name: outcome(folder, source, path, keep="row", **options) for name, path in both.items()}

    found = outcome(folder, source, both, keep="row", partition_size=size, **options)

    if isinstance(found, str):
        assert any(isinstance(each, str) for each in single.values())
        return
    table, rejects = found
    assert set(rejects) == {record for each in single.values() for record in each[1]}
    for name, each in single.items():
        assert not isinstance(each, str)
        alone = each[0].filter(pa.compute.is_in(each[0]["row"], table["row"].combine_chunks()))
        assert alone["row"].equals(table["row"])
        for column in alone.column_names[1:]:
            mine = table[f"{name}_{column}"].combine_chunks()
            assert verify.same(mine, alone[column].combine_chunks()), (name, column)
    assert table.column_names == ["row", "champion_score", "challenger_score", "challenger_label"]


def test_a_row_is_rejected_once_by_the_first_fault(both: dict[str, str], tmp_path: Path) -> None:
    """A row that both models refuse is one reject; one that only one of them fails on is class MODEL."""
    good = [Row("1", "2", "3", "red")] * 100
    rows = [*good, Row("bad", "2", "x", "red"), Row("1", "", "3", "red"), Row("1", "2", "11", "red"), *good]

    found = outcome(tmp_path, written(tmp_path, rows, "csv"), both)

    assert not isinstance(found, str)
    assert found[1] == {101: ("CAST", "a"), 102: ("MISSING", "b"), 103: ("MODEL", "")}
    assert found[0].num_rows == 200
    told = (tmp_path / "out.rejects.jsonl").read_text().splitlines()[2]
    assert json.loads(told)["reason"].startswith("challenger: the model")


def test_a_row_that_kills_one_model_is_a_reject(tmp_path: Path) -> None:
    """A row that kills the process in one of the models is found and left out, as for one model."""
    divider(tmp_path / "divider.onnx")
    doubler(tmp_path / "doubler.onnx", "a", onnx.TensorProto.INT64)
    least = -(1 << 63)
    rows = [f"{a},{b}\n" for a, b in [(7, 2), (least, -1), (9, 3), *[(i, 5) for i in range(300)]]]
    (tmp_path / "in.csv").write_text("a,b\n" + "".join(rows))
    arguments = ["score", "in.csv", "out.parquet", "--max-errors", "1", "--batch-rows", "64"]
    named = ["--model", "d=divider.onnx", "--model", "t=doubler.onnx"]

    done = subprocess.run(
        [sys.executable, "-m", "batchserve", *arguments, *named], cwd=tmp_path, env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "CRASH" in done.stderr
    table = table_of(tmp_path / "out.parquet")
    assert table["d_y"].to_pylist()[:2] == [3, 3]
    assert table["t_y"].to_pylist()[:2] == [14, 18]
    assert table.num_rows == 302


def test_nonfinite_scores_of_one_model_reject_the_row(home: Path, tmp_path: Path) -> None:
    """--on-nonfinite reject looks at the scores of every model, and names the column."""
    rows = [Row("1", "2", "3", "red"), Row("nan", "2", "3", "red"), Row("1", "nan", "3", "red")]
    both = {"x": str(home / "named.onnx"), "y": str(home / "picker.onnx")}
    said = {"on_null": ["a:nan", "b:nan"], "on_nonfinite": "reject"}

    found = outcome(tmp_path, written(tmp_path, rows, "csv"), both, **said)

    assert not isinstance(found, str)
    assert found[1] == {2: ("NONFINITE", "x_score"), 3: ("NONFINITE", "x_score")}


def test_a_text_for_one_model_is_a_number_for_another(tmp_path: Path) -> None:
    """A column that one model reads as text keeps its texts, whatever number the other makes of them."""
    models.echo(tmp_path, "object", 1).rename(tmp_path / "text.onnx")
    models.echo(tmp_path, "float32", 1).rename(tmp_path / "number.onnx")
    (tmp_path / "in.csv").write_text("X\n" + "".join(f"{text}\n" for text in ["1.50", "2", "no", "3.25"]))
    both = {"t": tmp_path / "text.onnx", "n": tmp_path / "number.onnx"}

    found = outcome(tmp_path, tmp_path / "in.csv", both, keep="none")

    assert not isinstance(found, str)
    assert found[0].to_pydict() == {"t_same": ["1.50", "2", "3.25"], "n_same": [1.5, 2.0, 3.25]}
    assert found[1] == {3: ("CAST", "X")}


@pytest.mark.parametrize("batch", [3, 64, 100])
def test_a_fixed_batch_stays_beside_an_open_one(batch: int, tmp_path: Path) -> None:
    """A model with a batch of its own is run in that, the other in the job's: both give their own bits."""
    models.echo(tmp_path, "float32", 1, batch=batch).rename(tmp_path / "fixed.onnx")
    models.wide(tmp_path)
    numbers = np.random.default_rng(8).standard_normal((1_500, 4)).astype(np.float32)
    pq.write_table(pa.table(dict(zip("Xbcd", numbers.T, strict=True))), tmp_path / "in.parquet")
    both = {"fixed": tmp_path / "fixed.onnx", "open": tmp_path / "wide.onnx"}
    wide: dict[str, Any] = {"features": "X,b,c,d", "keep": "none"}

    found = outcome(tmp_path, tmp_path / "in.parquet", both, **wide)
    alone = outcome(tmp_path, tmp_path / "in.parquet", tmp_path / "wide.onnx", **wide)

    assert not isinstance(found, str)
    assert found[0]["fixed_same"].to_pylist() == numbers[:, 0].tolist()
    assert not isinstance(alone, str)
    for name in ("total", "logits"):
        assert verify.same(found[0][f"open_{name}"].combine_chunks(), alone[0][name].combine_chunks())
    shown = bs.plan(tmp_path / "in.parquet", model=both, **wide).facts()["batch rows"]
    assert shown == f"1,024 in every run of the model; fixed takes {batch}, fixed in the model"


# -- a model without a name -------------------------------------------------------------------


def test_one_model_without_a_name_is_planned_as_ever(home: Path, tmp_path: Path) -> None:
    """The plan of one model is written as before there could be several, and read again to the same plan."""
    source = written(tmp_path, [Row("1", "2", "3", "red")], "csv")

    plan = bs.plan(source, model=home / "named.onnx").plan

    content = plan.model_dump(mode="json")
    assert list(content["recipe"]) == [
        "model", "reading", "binding", "predictions", "keep", "schema_", "coded", "batch_rows", "limit",
        "rows_depend", "on_nonfinite", "effort", "size_matters", "row_bytes",
    ]  # fmt: skip
    again = type(plan).model_validate_json(plan.model_dump_json())
    assert (again, again.plan_id) == (plan, plan.plan_id)


def test_one_model_with_a_name_has_it_in_its_columns(home: Path, tmp_path: Path) -> None:
    """A name is a name, even of one model; the prefix comes before it."""
    source = written(tmp_path, [Row("1", "2", "3", "red")], "csv")

    found = outcome(tmp_path, source, {"only": home / "named.onnx"}, prefix="p_", keep="none")

    assert not isinstance(found, str)
    assert found[0].column_names == ["p_only_score"]


# -- what is said of models -------------------------------------------------------------------


def test_wishes_are_about_the_models_that_have_them(home: Path, tmp_path: Path) -> None:
    """--map, --outputs and --on-null may name what only one of the models has."""
    source = written(tmp_path, [Row("1", "", "3", "red")], "csv")
    both = {"x": home / "named.onnx", "y": home / "picker.onnx"}
    said = {"map": {"k": "k", "b": "b"}, "outputs": ["score", "label"], "on_null": ["b:fill=7"]}

    found = outcome(tmp_path, source, both, keep="none", **said)

    assert not isinstance(found, str)
    assert found[0].column_names == ["x_score", "y_score", "y_label"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"map": {"z": "a"}}, "x: --map z=...: the model has no input z"),
        ({"outputs": ["scores"]}, "y: --outputs scores: the model has no such output"),
        ({"outputs": ["label"]}, "x: --outputs label: the model has no such output"),
        ({"on_null": ["q:nan"]}, "x: --on-null q:...: the model reads no column q"),
    ],
)
def test_what_no_model_has_is_told_with_its_name(
    said: dict[str, Any], message: str, home: Path, tmp_path: Path
) -> None:
    """What is wrong with a model is told under its name; what no model has is told of each."""
    source = written(tmp_path, [Row("1", "2", "3", "red")], "csv")

    with pytest.raises(BatchserveError) as told:
        bs.plan(source, model={"x": home / "named.onnx", "y": home / "picker.onnx"}, **said)

    assert message in told.value.message


def test_columns_of_one_name_are_refused(home: Path, tmp_path: Path) -> None:
    """Names that would give two models the same column, or that of an input, are refused before any work."""
    source = written(tmp_path, [Row("1", "2", "3", "red")], "csv")
    models.echo(tmp_path, "float32", 1)
    model = onnx.load(tmp_path / "echo.onnx")
    model.graph.output[0].name = model.graph.node[0].output[0] = "b_score"
    model.graph.input[0].name = model.graph.node[0].input[0] = "a"
    onnx.save(model, tmp_path / "echo.onnx")

    with pytest.raises(UsageError, match="column a_b_score: would be of two models"):
        bs.plan(source, model={"a": tmp_path / "echo.onnx", "a_b": home / "named.onnx"})
    with pytest.raises(NotFoundError, match=r"x=.*gone\.onnx: no such model"):
        bs.plan(source, model={"x": tmp_path / "gone.onnx", "y": home / "named.onnx"})


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("a.onnx", "a.onnx"), ("/a/b=c.onnx", "/a/b=c.onnx"), ("./x=a.onnx", "./x=a.onnx"),
        ("a,b.onnx", "a,b.onnx"), (["x=a.onnx"], {"x": "a.onnx"}),
        ("x=a.onnx,y_2=b=c.onnx", {"x": "a.onnx", "y_2": "b=c.onnx"}), ("x=a,b.onnx", {"x": "a,b.onnx"}),
        (["x=a.onnx", "y=b.onnx, z=c.onnx"], {"x": "a.onnx", "y": "b.onnx", "z": "c.onnx"}),
        ({"x": "a.onnx"}, {"x": "a.onnx"}),
    ],
)  # fmt: skip
def test_names_and_paths_are_told_apart(value: Any, meant: Any) -> None:
    """NAME=PATH names a model where NAME is a word; whatever else there is, is a path."""
    assert config.load({"model": value}, [], environment={}).job.model == meant


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["a.onnx", "b.onnx"], "a.onnx: of several models each needs a name"),
        (["x=a.onnx", "b.onnx"], "b.onnx: of several models each needs a name"),
        (["x=a.onnx", "x=b.onnx"], "x names two models"),
        ({"2x": "a.onnx"}, "'2x' is no name of a model"), ({"a-b": "a.onnx"}, "'a-b' is no name of a model"),
        ({}, "names no model"),
    ],
)  # fmt: skip
def test_wrong_names_are_refused(value: Any, reason: str) -> None:
    """Several models have names, each its own, that can stand in a column's name."""
    with pytest.raises(UsageError) as told:
        config.load({"model": value}, [], environment={})

    assert reason in told.value.message


def test_each_model_may_have_a_sha256_to_be(home: Path, tmp_path: Path) -> None:
    """--model-sha256 is said by name of several models, plainly of one; another digest or name is refused."""
    source = written(tmp_path, [Row("1", "2", "3", "red")], "csv")
    both = {"x": home / "named.onnx", "y": home / "picker.onnx"}
    right, wrong = digest(home / "picker.onnx"), "ab" * 32

    assert bs.plan(source, model=both, model_sha256={"y": right}).plan.recipe.digests["y"] == right
    assert (
        bs.plan(source, model={"y": both["y"]}, model_sha256=right.upper()).plan.recipe.digests["y"] == right
    )
    with pytest.raises(BatchserveError, match=r"^y: "):
        bs.plan(source, model=both, model_sha256=f"y={wrong}")
    for said in (wrong, {"z": wrong}):
        with pytest.raises(UsageError, match="there is no model of that name"):
            bs.plan(source, model=both, model_sha256=said)


def test_a_config_and_a_variable_name_several(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table in the config, relative to it, and BATCHSERVE_MODEL name models as the flags do."""
    monkeypatch.chdir(home)
    (home / "several.toml").write_text('[model]\nx = "named.onnx"\ny = "picker.onnx"\n')
    source = written(tmp_path, [Row("1", "2", "3", "red")], "csv")
    monkeypatch.setenv("BATCHSERVE_MODEL", "y=picker.onnx,x=named.onnx")

    by_file = config.load({}, [], config="several.toml", environment={}).job
    by_variable = bs.plan(source).plan

    assert by_file.model == {"x": "named.onnx", "y": "picker.onnx"}
    assert list(by_variable.recipe.digests) == ["y", "x"]


def test_a_config_beside_the_inputs_names_models_below_it(tmp_path: Path) -> None:
    """Each model of a table has to lie below a config that was only found."""
    (tmp_path / "batchserve.toml").write_text('model = {x = "a.onnx", y = "../b.onnx"}\n')

    with pytest.raises(UsageError, match=r"\.\./b\.onnx lies outside the folder") as told:
        config.load({}, [str(tmp_path / "in.csv")], environment={})

    assert told.value.hint.endswith(f"--model y={tmp_path / '../b.onnx'}")


def test_a_path_in_python_is_a_path(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given to a function as a path is one, even if it looks like a name and a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "year=2024").mkdir()
    (tmp_path / "year=2024" / "m.onnx").write_bytes((home / "named.onnx").read_bytes())
    source = written(tmp_path, [Row("1", "2", "3", "red")], "csv")

    assert list(bs.plan(source, model="year=2024/m.onnx").plan.recipe.digests) == [""]
    assert spelling.said_models(["year=2024/m.onnx"]) == "year=2024/m.onnx"
    with pytest.raises(NotFoundError) as told:
        bs.plan(source, model=spelling.said_models(["a=year=2024/m.onnx", "year=2024/m.onnx"]))
    assert told.value.hint == "a path with = is said with ./ : ./year=2024/m.onnx"
    assert bs.Model(Path("year=2024/m.onnx")).signature.outputs[0].name == "score"


# -- everything else of a job -----------------------------------------------------------------


@pytest.fixture
def job(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the arguments of a job of two models over 400 rows, one of which is bad."""
    monkeypatch.chdir(tmp_path)
    rows = [Row(str(i / 8), "2", str(i % 10), "red") for i in range(400)]
    rows[57] = Row("1", "2", "12", "green")
    written(tmp_path, rows, "csv")
    named = ["--model", f"x={home / 'named.onnx'}", "--model", f"y={home / 'picker.onnx'}"]
    return ["score", "in.csv", "out.parquet", *named, "--partition-size", "1000", "--max-errors", "1"]


def test_the_summary_the_plan_and_the_footer_name_every_model(
    job: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says which models, the plan what each takes and gives, footer and receipt each sha256."""
    planned = run(capsys, "plan", *job[1:])
    done = run(capsys, *job, "--json")

    assert done.code == 0, done.err
    for name, file in (("x", "named"), ("y", "picker")):
        sha256 = digest(home / f"{file}.onnx")
        assert f"model {name}" in planned.out
        assert f"{file}.onnx (sha256 {sha256[:12]})" in planned.out
        assert json.loads(done.out)["model_sha256"][name] == sha256
        assert (
            pq.read_schema("out.parquet").metadata[f"batchserve.model_sha256.{name}".encode()].decode()
            == sha256
        )
    assert "in  x.a" in planned.out
    assert "in  y.a" in planned.out
    assert "column y_label (string)" in planned.out
    assert b"batchserve.model_sha256" not in pq.read_schema("out.parquet").metadata
    shown = run(capsys, "inspect", "out.parquet").out
    assert "batchserve.model_sha256.x" in shown
    assert f"models x={home / 'named.onnx'}, y={home / 'picker.onnx'}" in run(capsys, *job, "--overwrite").err


def test_verify_scores_both_again(
    job: list[str], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` finds both models' columns equal to the bit; a model that moved is named with its name."""
    assert run(capsys, *job).code == 0
    assert verify.verify("out.parquet").rows_scored == 399

    moved = tmp_path / "moved.onnx"
    moved.write_bytes((home / "picker.onnx").read_bytes())
    good = run(capsys, "verify", "out.parquet", "--model", f"y={moved}")
    wrong = run(capsys, "verify", "out.parquet", "--model", f"z={moved}")
    nameless = run(capsys, "verify", "out.parquet", "--model", moved)

    assert (good.code, wrong.code, nameless.code) == (0, 2, 2)
    assert "say one of: x=PATH, y=PATH" in wrong.err
    assert "the models of the output have names" in nameless.err


def test_a_wrong_score_of_the_second_model_is_noticed(
    job: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An output whose second model's column is not what that model gives differs, and the column is named."""
    right = batches.predict
    with monkeypatch.context() as patched:
        patched.setattr(batches, "predict", lambda *a: [_first(c) if len(a[1]) > 1 else c for c in right(*a)])
        assert run(capsys, *job).code == 0

    done = run(capsys, "verify", "out.parquet")

    assert done.code == 65
    assert "column y_score: rows" in done.err
    assert "column x_score" not in done.err


def _first(column: pa.Array) -> pa.Array:
    return pa.array([column[0].as_py()] * len(column), column.type)


def test_retry_scores_with_both(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A corrected record gets the columns of both models, as if it had been right."""
    assert run(capsys, *job).code == 0
    text = Path("out.rejects.jsonl").read_text()
    Path("out.rejects.jsonl").write_text(text.replace(",12,green", ",2,green"))

    done = run(capsys, "retry", "out.rejects.jsonl", "more.parquet")

    assert done.code == 0, done.err
    assert pq.read_schema("more.parquet").equals(pq.read_schema("out.parquet"))
    assert table_of(Path("more.parquet"))["y_label"].to_pylist() == ["cold"]


def test_append_takes_the_same_models_only(
    job: list[str], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files are appended with the same models under the same names; others are refused, with what differs."""
    assert run(capsys, *["out" if a == "out.parquet" else a for a in job]).code == 0
    (tmp_path / "more.csv").write_text("row,a,b,k,kind\n1,2,3,4,red\n")
    both = {"x": home / "named.onnx", "y": home / "picker.onnx"}
    options: dict[str, Any] = {"if_exists": "append"}

    assert bs.score(["in.csv", "more.csv"], "out", model=both, **options).rows == 400
    (tmp_path / "again.csv").write_text("row,a,b,k,kind\n1,2,3,4,red\n")
    with pytest.raises(OutputError, match="its rows were scored otherwise"):
        bs.score("again.csv", "out", model={"x": home / "named.onnx", "z": home / "picker.onnx"}, **options)


def test_workers_elsewhere_score_with_both(
    both: dict[str, str], tmp_path: Path, process_cluster: LocalCluster
) -> None:
    """Worker processes of a cluster give the bytes that this process gives."""
    rows = [Row(str(i / 8), "2", str(i % 11), "red") for i in range(400)]
    source = written(tmp_path, rows, "csv")
    options: dict[str, Any] = {"model": both, "partition_size": 2_000, "max_errors": "10%"}
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"

    bs.score(source, here, **options)
    report = bs.score(source, there, cluster=process_cluster, **options)

    assert report.partitions > 3
    assert report.receipt.rejected_by == {"MODEL": 36}
    assert digest(here) == digest(there)


def test_tune_runs_both(home: Path, tmp_path: Path) -> None:
    """`tune` measures all models of a job together."""
    source = written(tmp_path, [Row("1", "2", "3", "red")] * 9, "csv")
    both = {"x": str(home / "named.onnx"), "y": str(home / "picker.onnx")}

    found = tune.tuned(config.load({"model": both}, []).job, [str(source)], trial_s=0.001)

    assert all(trial.rows_per_s > 0 for trial in found.trials)


def test_rows_that_depend_want_one_batch_size(home: Path, tmp_path: Path) -> None:
    """--rows-depend is refused for models whose batches are cut at different rows."""
    models.echo(tmp_path, "float32", 1, batch=3)
    (tmp_path / "in.csv").write_text("X,a,b\n1,2,3\n")
    both = {"x": tmp_path / "echo.onnx", "y": home / "heavy.onnx"}

    with pytest.raises(UsageError, match="the models take 3, 1024 rows a run"):
        bs.plan(tmp_path / "in.csv", model=both, rows_depend=True)


def test_a_killed_job_of_two_models_continues_to_the_same_bytes(
    home: Path, tmp_path: Path, command: Command
) -> None:
    """Killed with both models at work, the same command goes on from the finished parts to the same bytes."""
    from test_resume import receipts, start, stop

    numbers = np.random.default_rng(1).random((1_000, 2))
    lines = [f"{a:.8f},{b:.8f},{i % 10},red\n" for i, (a, b) in enumerate(numbers)]
    (tmp_path / "in.csv").write_text("a,b,k,kind\n" + "".join(lines))
    named = ("--model", f"slow={home / 'heavy.onnx'}", "--model", f"other={home / 'picker.onnx'}")
    job = ("score", tmp_path / "in.csv", "out.parquet", *named, "--batch-rows", "64", "--workers", "2",
           "--partition-size", "700")  # fmt: skip
    calm = tmp_path / "calm"
    calm.mkdir()
    subprocess.run([sys.executable, "-m", "batchserve", *job], cwd=calm, env=environment(), check=True)

    stop(start(job, tmp_path), signal.SIGKILL)
    finished = receipts(tmp_path)
    again = command(*job)

    assert again.returncode == 0, again.stderr
    assert finished >= 5
    assert "continuing: " in again.stderr
    assert digest(tmp_path / "out.parquet") == digest(calm / "out.parquet")


def test_the_least_batch_is_that_of_all(tmp_path: Path) -> None:
    """A model with wide rows lowers the batch of all open models; scores are those alone in that batch."""
    models.image(tmp_path, 3, 100, 100)
    models.wide(tmp_path)
    numbers = np.random.default_rng(8).standard_normal((40, 4)).astype(np.float32)
    pixels = pa.array(np.zeros((40, 30_000), np.float32).tolist(), pa.list_(pa.float32()))
    columns = dict(zip("abcd", numbers.T, strict=True)) | {"image": pixels}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    said: dict[str, Any] = {"features": "a,b,c,d", "keep": "none"}
    both = {"image": tmp_path / "image.onnx", "wide": tmp_path / "wide.onnx"}

    lists: dict[str, Any] = {"map": {"image": "image"}}

    found = outcome(tmp_path, tmp_path / "in.parquet", both, **lists, **said)
    alone = outcome(tmp_path, tmp_path / "in.parquet", both["wide"], batch_rows=256, **said)

    assert bs.plan(tmp_path / "in.parquet", model=both, **lists, **said).plan.recipe.batch_rows == 256
    assert not isinstance(found, str)
    assert not isinstance(alone, str)
    for name in ("total", "logits"):
        assert verify.same(found[0][f"wide_{name}"].combine_chunks(), alone[0][name].combine_chunks())
