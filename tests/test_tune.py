"""The batch size and threads that a model runs fastest with: measured, and written down."""

import tomllib
from pathlib import Path
from typing import Any

import onnx
import pytest

import batchserve as bs
import models
from batchserve import config, machine, tune
from batchserve import model as model_
from batchserve.errors import DataError, UsageError
from workbench import EXAMPLES, run

FLIGHTS = EXAMPLES / "flights"
Rates = dict[tuple[int, int], float]


def job(**options: Any) -> config.Job:
    return config.load({"model": str(FLIGHTS / "model.onnx"), "on_null": "nan"} | options, []).job


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Rates:
    """Say how fast each way is: 100 rows a second unless a test says more."""
    said: Rates = {}

    def rate(_: Any, given: tune.Given, batch_rows: int, intra_op: int, *_more: Any) -> float:
        assert {len(tensor) for tensors in given for tensor in tensors.values()} == {max(tune.SIZES)}
        return said.get((batch_rows, intra_op), 100.0)

    monkeypatch.setattr(tune, "_rate", rate)
    monkeypatch.setattr(machine, "usable_cpus", lambda: 4)
    return said


@pytest.mark.parametrize(
    ("faster", "best", "changes"),
    [
        ({}, (1024, 1), {}), ({(64, 1): 109.0}, (1024, 1), {}),
        ({(64, 1): 111.0}, (64, 1), {"batch_rows": 64}), ({(1024, 4): 111.0}, (1024, 4), {"intra_op": 4}),
        ({(64, 1): 150.0, (256, 4): 160.0}, (256, 4), {"batch_rows": 256, "intra_op": 4}),
    ],
)  # fmt: skip
def test_what_is_a_tenth_faster_is_taken(
    faster: Rates, best: tuple[int, int], changes: dict[str, int], rates: Rates
) -> None:
    """The fastest way is taken if it is a tenth faster than what a job does now; else that stays."""
    rates |= faster

    found = tune.tuned(job(), [str(FLIGHTS / "flights.csv")])

    assert (found.now.batch_rows, found.now.intra_op) == (1024, 1)
    assert (found.best.batch_rows, found.best.intra_op) == best
    assert found.changes == changes
    assert {(t.batch_rows, t.intra_op) for t in found.trials} == {(b, i) for b in tune.SIZES for i in (1, 4)}


def test_what_is_compared_with_is_as_configured(rates: Rates) -> None:
    """A config that says something slow is what the others are compared with, and it is changed."""
    rates |= dict.fromkeys([(192, 2)], 50.0)

    found = tune.tuned(job(batch_rows=192, intra_op=2), [str(FLIGHTS / "flights.csv")])

    assert (found.now.batch_rows, found.now.intra_op) == (192, 2)
    assert set(found.changes) == {"batch_rows", "intra_op"}


def test_a_model_is_really_run(tmp_path: Path) -> None:
    """Without any script every way has a rate; a model of a fixed batch is run in that one."""
    found = tune.tuned(job(), [str(FLIGHTS / "flights.csv")], trial_s=0.002)
    assert all(trial.rows_per_s > 0 for trial in found.trials)

    model = onnx.load(models.wide(tmp_path))
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 32
    onnx.save(model, tmp_path / "fixed.onnx")
    (tmp_path / "in.csv").write_text("a,b,c,d\n1,2,3,4\n")
    fixed = job(model=str(tmp_path / "fixed.onnx"), features="a,b,c,d", on_null="reject")
    found = tune.tuned(fixed, [str(tmp_path / "in.csv")], trial_s=0.002)
    assert {trial.batch_rows for trial in found.trials} == {32}
    assert "batch_rows" not in found.changes


def test_all_workers_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers times threads of a run are the usable CPUs, as in a job."""
    seen: set[tuple[int, int]] = set()

    def rate(_: Any, _tensors: Any, _rows: int, intra_op: int, workers: int, _s: float) -> float:
        seen.add((intra_op, workers))
        return 1.0

    monkeypatch.setattr(tune, "_rate", rate)
    monkeypatch.setattr(machine, "usable_cpus", lambda: 6)
    tune.tuned(job(), [str(FLIGHTS / "flights.csv")])

    assert seen == {(1, 6), (6, 1)}


def test_there_must_be_a_row(tmp_path: Path) -> None:
    """A file without rows that can be scored is exit 65."""
    header = (FLIGHTS / "flights.csv").read_text().split("\n", 1)[0]
    (tmp_path / "none.csv").write_text(header + "\n")

    with pytest.raises(DataError, match="no row to measure"):
        tune.tuned(job(), [str(tmp_path / "none.csv")])


TEXTS = [
    ("", {"batch_rows": 64, "intra_op": 2}),
    ('# mine\nmodel = "m.onnx"', {"model": "m.onnx", "batch_rows": 64, "intra_op": 2}),
    ("batch_rows = 1024 # old\nworkers = 2\n", {"batch_rows": 64, "workers": 2, "intra_op": 2}),
    ('intra_op=8\n[map]\nX = "a"\n', {"intra_op": 2, "map": {"X": "a"}, "batch_rows": 64}),
    ('[map]\nbatch_rows = "a"\n', {"map": {"batch_rows": "a"}, "batch_rows": 64, "intra_op": 2}),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_the_rest_of_a_config_stays(text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    """Keys are set at the top of the file, once; everything else in it is as it was."""
    path = tmp_path / "batchserve.toml"
    if text:
        path.write_text(text)

    tune.write(path, {"batch_rows": 64, "intra_op": 2})

    assert tomllib.loads(path.read_text()) == expected
    assert ("# mine" in path.read_text()) == ("# mine" in text)
    assert [each.name for each in tmp_path.iterdir()] == ["batchserve.toml"]


def test_a_file_that_is_no_toml_stays_as_it_is(tmp_path: Path) -> None:
    """A config that cannot be read is not touched, and what to write is said."""
    path = tmp_path / "batchserve.toml"
    path.write_text("model = \n")

    with pytest.raises(UsageError, match="is no TOML") as refused:
        tune.write(path, {"batch_rows": 64, "intra_op": 2})

    assert "batch_rows = 64" in refused.value.hint
    assert path.read_text() == "model = \n"


def test_the_command_writes_what_score_takes(
    rates: Rates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tune` prints what it tried and writes it to ./batchserve.toml, and the next plan has it."""
    monkeypatch.chdir(tmp_path)
    source, model = FLIGHTS / "flights.csv", FLIGHTS / "model.onnx"
    rates[256, 1] = 300.0

    done = run(capsys, "tune", source, "-m", model, "--on-null", "nan")

    assert done.code == 0, done.err
    assert "256 rows, 1 thread" in done.out
    assert "batchserve.toml: batch_rows = 256 (3.00 times as fast)" in done.out
    made = bs.plan(str(source), model=model, on_null="nan", config=tmp_path / "batchserve.toml").plan
    assert (made.recipe.batch_rows, made.recipe.scorers[0].model.intra_op) == (256, 1)

    rates.clear()
    before = Path("batchserve.toml").read_text()
    done = run(capsys, "tune", source, "-m", model, "--on-null", "nan")
    assert "all stays as it is: nothing is a tenth faster" in done.out
    assert Path("batchserve.toml").read_text() == before


@pytest.mark.parametrize("intra_op", [1, 3])
def test_threads_of_a_run_are_in_the_plan(intra_op: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """--intra-op is part of the plan, of the session, and takes as many workers away."""
    monkeypatch.setattr(machine, "usable_cpus", lambda: 6)
    asked = job(intra_op=intra_op)
    preview = bs.plan(
        str(FLIGHTS / "flights.csv"), model=FLIGHTS / "model.onnx", on_null="nan", intra_op=intra_op
    )

    assert preview.plan.recipe.scorers[0].model.intra_op == intra_op
    assert asked.workers_here == 6 // intra_op
    assert asked.model_copy(update={"workers": 5}).workers_here == 5
    assert model_._options(preview.plan.recipe.scorers[0].model).intra_op_num_threads == intra_op
