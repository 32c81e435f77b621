"""Rows set aside: how many an output may lack, where they go, and what a run over its budget leaves."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

import batchserve as bs
import models
from batchserve import correction, events, ledger, rejects, target, verify
from batchserve.errors import CrashError, DataError, ModelError, OutputError, UsageError
from batchserve.events import Event
from batchserve.inputs.dialect import Dialect
from batchserve.rejects import Budget
from workbench import divider, doubler, run, save_model, spawn

SMALL: dict[str, Any] = {"partition_size": "40", "workers": 1}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start in an empty folder with a model that doubles x."""
    monkeypatch.chdir(tmp_path)
    doubler(Path("double.onnx"))


def rows(*values: object, name: str = "in.csv") -> Path:
    """Write a CSV of the column x and the number of the row."""
    path = Path(name)
    path.write_text("x,row\n" + "".join(f"{value},{i}\n" for i, value in enumerate(values)))
    return path


def score(
    source: Path | str | list[str] = "in.csv", output: str = "out.parquet", **options: Any
) -> bs.Report:
    """Score with the model that doubles."""
    return bs.score(source, output, **{"model": "double.onnx", **options})


def lines(path: str = "out.rejects.jsonl") -> list[dict[str, Any]]:
    """Return the records of a rejects file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


class Partitions:
    """Notes which partitions were scored and which were there already."""

    def __init__(self) -> None:
        self.scored: list[int] = []
        self.resumed: list[int] = []

    def on(self, event: Event) -> None:
        if isinstance(event, events.PartitionScored):
            (self.resumed if event.resumed else self.scored).append(event.index)


# -- within the budget ------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["2", "40%", " 2 ", 2], ids=repr)
def test_an_output_may_lack_as_many_rows_as_its_budget_says(budget: str | int) -> None:
    """Within the budget the other rows are published, in order, and the rejects stand beside them."""
    rows(1, "bad", 3, "", 5)

    report = score(max_errors=budget)

    table = pq.read_table("out.parquet")
    assert table["row"].to_pylist() == [0, 2, 4]
    assert table["y"].to_pylist() == [2.0, 6.0, 10.0]
    assert (report.receipt.rows_in, report.rows, report.receipt.rows_rejected) == (5, 3, 2)
    assert report.receipt.rejected_by == {"CAST x": 1, "MISSING x": 1}
    assert report.rejects == "out.rejects.jsonl"
    assert [(line["class"], line["record"], line["line"], line["raw"]) for line in lines()] == [
        ("CAST", 2, 3, "bad,1"),
        ("MISSING", 4, 5, ",3"),
    ]


@pytest.mark.parametrize("budget", ["1", "39.9%"])
def test_one_reject_too_many_publishes_nothing(budget: str) -> None:
    """Over the budget the run ends in exit 65, and only the rejects and the finished parts are there."""
    rows(1, "bad", 3, "", 5)

    with pytest.raises(DataError, match="2 of 5 rows cannot be scored; nothing was published"):
        score(max_errors=budget)

    assert sorted(path.name for path in Path().iterdir()) == [
        ".out.parquet.batchserve", "double.onnx", "in.csv", "out.rejects.jsonl",
    ]  # fmt: skip


def test_the_same_command_with_a_larger_budget_scores_no_row_again() -> None:
    """What was scored over budget is kept: with a larger one it is published, rejects unchanged."""
    rows(*range(10), "bad", *range(30))
    with pytest.raises(DataError):
        score(**SMALL)
    before = lines()
    seen = Partitions()

    score(max_errors=1, listener=seen, **SMALL)

    assert seen.scored == []
    assert len(seen.resumed) > 2
    assert lines() == before
    assert pq.read_metadata("out.parquet").num_rows == 40
    assert not Path(".out.parquet.batchserve").exists()


def test_only_the_owner_may_read_rejects() -> None:
    """Raw records may be personal: the file is for its owner's eyes."""
    rows(1, "bad")

    score(max_errors=1)

    assert stat.S_IMODE(Path("out.rejects.jsonl").stat().st_mode) == 0o600


def test_a_record_is_cut_after_four_thousand_bytes() -> None:
    """Of a long record the start is kept, and that it was cut."""
    Path("in.csv").write_text(f"x,note\n1,a\nbad,{'z' * 10_000}\n")

    score(max_errors=1)

    (line,) = lines()
    assert (len(line["raw"]), line["raw_truncated"]) == (4096, True)


def test_parquet_rejects_have_no_line_and_their_row_as_json() -> None:
    """A row of Parquet has a number, no line and no byte offset; its raw text is JSON."""
    numbers = pa.array([1.0] * 4_000 + [None, 2.0])
    pq.write_table(pa.table({"x": numbers, "row": range(4_002)}), "in.parquet", row_group_size=1_000)

    score("in.parquet", max_errors=1, partition_size="1k")

    (line,) = lines()
    assert (line["record"], line["line"], line["byte_offset"]) == (4_001, None, None)
    assert json.loads(line["raw"]) == {"x": None, "row": 4_000}


# -- over the budget --------------------------------------------------------------------------


def test_a_corrected_input_begins_anew_without_being_asked() -> None:
    """A run that was refused is over: the corrected file needs no --fresh, and its rejects go."""
    rows(1, "bad")
    with pytest.raises(DataError):
        score()
    rows(1, 2)

    score()

    assert pq.read_table("out.parquet")["y"].to_pylist() == [2.0, 4.0]
    assert not Path("out.rejects.jsonl").exists()


def test_rejects_of_a_refused_run_leave_those_of_the_output_alone() -> None:
    """The rejects beside an output belong to it: those of a refused overwrite go to its workspace."""
    rows(1, "bad")
    score(max_errors=1)
    before = Path("out.rejects.jsonl").read_bytes()
    rows(1, "worse", "worst")

    with pytest.raises(DataError, match=r"\.out\.parquet\.batchserve/rejects\.jsonl"):
        score(max_errors=1, overwrite=True)

    assert Path("out.rejects.jsonl").read_bytes() == before
    assert len(lines(".out.parquet.batchserve/rejects.jsonl")) == 2


def test_a_job_stops_when_its_budget_is_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the budget and ten thousand more, partitions that are left are not looked at."""
    monkeypatch.setattr(rejects, "LOOK_ON_ROWS", 3)
    rows(1, *["bad"] * 30)
    seen = Partitions()

    with pytest.raises(DataError, match="partitions were not looked at") as refused:
        score(max_errors=1, listener=seen, **SMALL)

    assert len(seen.scored) < 8
    assert "goes on with the other rows" in refused.value.hint


def test_a_share_is_judged_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose bad rows all come first is within its share when all are counted."""
    monkeypatch.setattr(rejects, "LOOK_ON_ROWS", 3)
    rows(*["bad"] * 10, *range(90))

    assert score(max_errors="10%", **SMALL).rows == 90


@pytest.mark.parametrize("budget", ["-1", "many", "5 %", "%"])
def test_a_budget_is_a_number_or_a_share(budget: str) -> None:
    """Anything else is told before any work."""
    rows(1)

    with pytest.raises(UsageError, match=r"max.errors"):
        score(max_errors=budget)


def test_a_budget_counts_to_the_row() -> None:
    """A share is of the rows that were read."""
    assert Budget.parse("0.1%").allows(1, 1_000)
    assert not Budget.parse("0.1%").allows(1, 999)
    assert Budget.parse("0").allows(0, 0)
    assert not Budget.parse("5").hopeless(10_005)
    assert Budget.parse("5").hopeless(10_006)
    assert not Budget.parse("1%").hopeless(10**9)


# -- where rejects go -------------------------------------------------------------------------


def test_rejects_go_where_the_user_says() -> None:
    """--rejects names the file; a later run without rejects removes it."""
    rows(1, "bad")
    Path("bad").mkdir()
    report = score(max_errors=1, rejects="bad/rows.jsonl")
    assert report.rejects == "bad/rows.jsonl"
    assert len(lines("bad/rows.jsonl")) == 1
    assert not Path("out.rejects.jsonl").exists()
    rows(1, 2)

    score(rejects="bad/rows.jsonl", overwrite=True)

    assert list(Path("bad").iterdir()) == []


def test_rejects_of_a_dataset_go_where_the_user_says() -> None:
    """--rejects holds for a dataset, too: its folder has none then."""
    rows(1, "bad")

    score(output="out", max_errors=1, rejects="bad.jsonl")

    assert len(lines("bad.jsonl")) == 1
    assert not Path("out/_batchserve/rejects.jsonl").exists()
    assert verify.verify("out").facts["rejects"] == "1"


def test_a_dataset_keeps_its_rejects_inside() -> None:
    """While it is not there they stand beside it; then in _batchserve, and the file beside it goes."""
    rows(1, "bad")
    with pytest.raises(DataError, match=r"every one is in out\.rejects\.jsonl"):
        score(output="out")
    assert len(lines("out.rejects.jsonl")) == 1

    score(output="out", max_errors=1)

    assert len(lines("out/_batchserve/rejects.jsonl")) == 1
    assert not Path("out.rejects.jsonl").exists()


def test_appending_adds_rejects_to_those_that_are_there() -> None:
    """A dataset that is appended to has the rejects of all its files, in order, and verifies."""
    rows(1, "bad", name="1.csv")
    score("1.csv", "out", max_errors=1)
    rows("worse", 2, name="2.csv")

    report = score(["1.csv", "2.csv"], "out", if_exists="append", max_errors=1)

    assert [line["raw"] for line in lines("out/_batchserve/rejects.jsonl")] == ["bad,1", "worse,0"]
    assert report.receipt.rejects is not None
    assert (report.receipt.rejects.rows, report.receipt.rejected_by) == (2, {"CAST x": 2})


def test_appending_files_without_rejects_keeps_those_that_are_there() -> None:
    """Rejects of earlier files stay."""
    rows(1, "bad", name="1.csv")
    score("1.csv", "out", max_errors=1)
    rows(2, name="2.csv")

    score(["1.csv", "2.csv"], "out", if_exists="append")

    assert len(lines("out/_batchserve/rejects.jsonl")) == 1


def test_rejects_never_match_the_inputs() -> None:
    """Where the next run would read the rejects as an input, the command is refused."""
    Path("data").mkdir()
    Path("data/in.jsonl").write_text('{"x": 1}\n')

    with pytest.raises(OutputError, match=r"the input data/\*\.jsonl would match it"):
        score("data/*.jsonl", "data/out.parquet")


def test_an_input_is_never_the_rejects_file() -> None:
    """--rejects may not name an input."""
    rows(1)

    with pytest.raises(OutputError, match="is an input and would hold the rejects"):
        score(rejects="in.csv")


# -- what the model refuses -------------------------------------------------------------------


def gatherer() -> str:
    """Write a model that looks x up in a table of ten, and fails where it is not there."""
    node = helper.make_node("Gather", ["table", "x"], ["y"], axis=0)
    table = np.arange(10, dtype=np.float32) / 3
    port = (TensorProto.INT64, [None])
    save_model(Path("gather.onnx"), [node], {"x": port}, {"y": (TensorProto.FLOAT, [None])}, {"table": table})
    return "gather.onnx"


@pytest.mark.parametrize("at", [[0], [1, 2, 999], [1_023, 1_024, 2_499], [*range(40, 60)]])
def test_rows_that_the_model_fails_on_are_found(at: list[int]) -> None:
    """Only the guilty rows are out, wherever they stand in a batch; the others keep their bits."""
    values = np.arange(2_500) % 10
    values[at] = 10
    rows(*values.tolist())

    report = score(model=gatherer(), max_errors="100%")

    table = pq.read_table("out.parquet")
    good = np.delete(np.arange(2_500), at)
    assert table["row"].to_pylist() == good.tolist()
    assert table["y"].to_numpy().tobytes() == (values[good].astype(np.float32) / np.float32(3)).tobytes()
    assert [line["record"] for line in lines()] == [i + 1 for i in at]
    assert {line["class"] for line in lines()} == {"MODEL"}
    assert lines()[0]["reason"].startswith("the model: Gather: indices element out of data bounds")
    assert report.receipt.runs[0].scored[0].refused == tuple(at)


def test_an_output_with_rows_that_the_model_refused_verifies() -> None:
    """Scoring rows again leaves out those that the model refused, and gives the same bits."""
    values = np.arange(5_000) % 10
    values[[7, 1_500, 4_999]] = 10
    rows(*values.tolist())
    score(model=gatherer(), max_errors=3, partition_size="8k")

    verdict = verify.verify("out.parquet")

    assert verdict.rows_scored >= 1_000
    assert verdict.facts["rejects"] == "3"


@pytest.mark.parametrize("damage", [b"", b"x"])
def test_changed_rejects_are_noticed(damage: bytes) -> None:
    """Verify compares the rejects with the receipt: gone or changed is a difference."""
    rows(1, "bad")
    score(max_errors=1)
    path = Path("out.rejects.jsonl")
    if damage:
        path.write_bytes(path.read_bytes() + damage)
    else:
        path.unlink()

    with pytest.raises(DataError, match=r"out\.rejects\.jsonl: (is not there|has other bytes)"):
        verify.verify("out.parquet")


def test_a_model_whose_rows_depend_fails_as_a_whole() -> None:
    """Where rows may change each other's scores none can be left out: exit 70."""
    rows(1, 2, 10)

    with pytest.raises(ModelError, match="out of data bounds"):
        score(model=gatherer(), rows_depend=True, max_errors="100%")


def test_a_model_that_fails_on_every_first_row_is_told_before_any_work() -> None:
    """When there is no first row to look at the model with, the job does not begin."""
    rows(*[10] * 50)

    with pytest.raises(ModelError, match="out of data bounds"):
        score(model=gatherer(), max_errors="100%")

    assert not Path(".out.parquet.batchserve").exists()


def reciprocal() -> str:
    """Write a model that gives 1/x and a list of 1/x and 1."""
    port = (TensorProto.FLOAT, [None, 1])
    nodes = [
        helper.make_node("Reciprocal", ["x"], ["y"]),
        helper.make_node("Concat", ["y", "x"], ["both"], axis=1),
    ]
    outputs = {"y": port, "both": (TensorProto.FLOAT, [None, 2])}
    save_model(Path("reciprocal.onnx"), nodes, {"x": port}, outputs)
    return "reciprocal.onnx"


def test_scores_that_are_no_finite_numbers_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """By default they stay, and the summary says how many there are."""
    rows(1, 0, 2, 0)

    done = run(capsys, "score", "in.csv", "out.parquet", "-m", reciprocal())

    assert done.code == 0
    assert "y: 2 rows have an infinite or NaN score" in done.err
    assert pq.read_metadata("out.parquet").num_rows == 4


def test_scores_that_are_no_finite_numbers_can_be_rejected() -> None:
    """With --on-nonfinite reject their rows are rejects, told once, and the others stay whole."""
    rows(1, 0, 2, 0)

    score(model=reciprocal(), on_nonfinite="reject", max_errors=2)

    table = pq.read_table("out.parquet")
    assert table["row"].to_pylist() == [0, 2]
    assert table["both"].to_pylist() == [[1.0, 1.0], [0.5, 2.0]]
    assert [(line["class"], line["column"], line["value"], line["record"]) for line in lines()] == [
        ("NONFINITE", "y", "inf", 2),
        ("NONFINITE", "y", "inf", 4),
    ]


LEAST = -(2**63)


@pytest.mark.parametrize(("at", "size"), [([3], "1G"), ([1_500, 1_501, 9_000], "60k")])
def test_a_row_that_kills_the_process_is_found(at: list[int], size: str) -> None:
    """Whatever process it kills, the row is a reject and all others are scored; the output verifies."""
    pairs = [(i, 1 + i % 7) for i in range(12_000)]
    for i in at:
        pairs[i] = (LEAST, -1)
    Path("in.csv").write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    options = ["--max-errors", "5", "--partition-size", size]

    done = spawn(
        "score",
        "in.csv",
        "out.parquet",
        "-m",
        divider(Path("divide.onnx")),
        *options,
        before="from batchserve.cli import run; import sys; run()",
    )

    assert done.code == 0, done.err
    assert [(line["record"], line["class"]) for line in lines()] == [(i + 1, "CRASH") for i in at]
    assert "kills its process on this row (SIGFPE)" in lines()[0]["reason"]
    scores = pq.read_table("out.parquet")["y"].to_pylist()
    assert scores == [a // b for i, (a, b) in enumerate(pairs) if i not in at]
    assert spawn("verify", "out.parquet").code == 0


def test_a_model_that_dies_of_every_first_row_is_told() -> None:
    """When each of the first rows kills the process, the plan says so and the process lives."""
    Path("in.csv").write_text("a,b\n" + f"{LEAST},-1\n" * 20)

    with pytest.raises(CrashError, match=r"kills its process \(SIGFPE\) on each of the first rows"):
        bs.plan("in.csv", model=divider(Path("divide.onnx")))


# -- the ledger -------------------------------------------------------------------------------


def test_rejects_of_many_files_have_their_own_counts() -> None:
    """Records and lines count from the start of each file, in whichever partition it was read."""
    Path("data").mkdir()
    for name in ("1", "2", "10"):
        rows(1, "bad", 3, name=f"data/{name}.csv")

    score("data", max_errors=3, partition_size="10")

    assert [(Path(line["file"]).name, line["record"], line["line"]) for line in lines()] == [
        ("1.csv", 2, 3), ("2.csv", 2, 3), ("10.csv", 2, 3),
    ]  # fmt: skip


def test_a_rejects_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When gathering fails in the middle, no half of a rejects file stays."""

    def broken(*_: object) -> Iterator[Any]:
        yield from ()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ledger, "lines", broken)
    files = ledger.Files("id", (), Dialect())

    with pytest.raises(OSError, match="Input/output error"):
        ledger.write(tmp_path / "r.jsonl", files, (), None)  # type: ignore[arg-type]  # nothing is read

    assert not (tmp_path / "r.jsonl").exists()


# -- retry ------------------------------------------------------------------------------------


def corrected(path: str, **changes: str) -> None:
    """Correct the raw records of a rejects file: old text to new."""
    found = lines(path)
    for line in found:
        for old, new in changes.items():
            line["raw"] = line["raw"].replace(old, new)
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in found))


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.parquet"])
def test_corrected_rejects_are_scored_as_the_others_were(name: str) -> None:
    """Retry takes the texts as they stand in the rejects file, with the model and types of their job."""
    models.named(Path())
    if name == "in.parquet":
        table = pa.table({"a": [1.0, None, 3.0], "b": pa.array([2, 4, 6], pa.int64()), "kind": ["red"] * 3})
        pq.write_table(table, name)
        old, new = "null", "2.0"
    elif name == "in.jsonl":
        good = '{"a": 1.0, "b": 2, "kind": "red"}\n'
        Path(name).write_text(good + good.replace("1.0", '"bad"') + good)
        old, new = '"bad"', "2.0"
    else:
        Path(name).write_text("a,b,kind\n1,2,red\nbad,4,red\n3,6,red\n")
        old, new = "bad", "2"
    score(name, model="named.onnx", max_errors=1, keep=("b", "kind"))
    corrected("out.rejects.jsonl", **{old: new})

    report = correction.retry("out.rejects.jsonl", "fixed.parquet", {}, events.Silent())

    assert report.rows == 1
    fixed, others = pq.read_table("fixed.parquet"), pq.read_table("out.parquet")
    assert fixed.schema.remove_metadata() == others.schema.remove_metadata()
    assert pa.concat_tables([others, fixed]).num_rows == 3


def test_corrected_rejects_can_join_their_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    """Retry into the dataset with --if-exists append puts the rows behind the others."""
    rows(1, "bad", 3)
    score(output="out", max_errors=1)
    Path("bad.rejects.jsonl").write_bytes(Path("out/_batchserve/rejects.jsonl").read_bytes())
    corrected("out/_batchserve/rejects.jsonl", bad="2")

    done = run(capsys, "retry", "out/_batchserve/rejects.jsonl", "out", "--if-exists", "append", "--json")

    assert done.code == 0, done.err
    assert json.loads(done.out)["rows_added"] == 1
    assert pq.read_table("out", partitioning=None)["y"].to_pylist() == [2.0, 6.0, 4.0]


def test_rejects_of_a_refused_run_can_be_retried() -> None:
    """The plan of an unfinished run will do, too."""
    rows(1, "bad")
    with pytest.raises(DataError):
        score()
    corrected("out.rejects.jsonl", bad="7")

    assert correction.retry("out.rejects.jsonl", "fixed.parquet", {}, events.Silent()).rows == 1
    with pytest.raises(DataError):
        score(overwrite=True)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("no json\n", DataError, "out.rejects.jsonl:1: is no reject"),
        ("", DataError, "holds no rejects"),
        ("cut", DataError, "its record is cut"),
        ("two", UsageError, "holds rejects of 2 runs"),
        ("other", bs.BatchserveError, "is not beside it"),
        (None, bs.BatchserveError, "No such file"),
    ],
)
def test_what_cannot_be_retried_is_told(text: str | None, error: type[Exception], message: str) -> None:
    """A file that is none of rejects, that was cut, or whose plan is gone: nothing is scored."""
    rows(1, "bad")
    score(max_errors=1)
    path = Path("out.rejects.jsonl")
    line = lines()[0]
    texts = {
        "cut": [line | {"raw_truncated": True}],
        "two": [line, line | {"plan_id": "0" * 64}],
        "other": [line | {"plan_id": "0" * 64}],
    }
    if text is None:
        path.unlink()
    else:
        path.write_text("".join(json.dumps(each) + "\n" for each in texts[text]) if text in texts else text)

    with pytest.raises(error, match=message):
        correction.retry("out.rejects.jsonl", "fixed.parquet", {}, events.Silent())

    assert not Path("fixed.parquet").exists()


def test_the_targets_of_a_rejects_file_are_guessed_from_its_name() -> None:
    """A file in a workspace or a dataset says whose it is by where it lies."""
    inside = correction._targets_near(Path("/d/.out.parquet.batchserve/rejects.jsonl"))
    dataset = correction._targets_near(Path("/d/out/_batchserve/rejects.jsonl"))
    beside = correction._targets_near(Path("/d/out.rejects.jsonl"))

    assert inside == [target.Target(Path("/d/out.parquet"), dataset=False)]
    assert dataset == [target.Target(Path("/d/out"), dataset=True)]
    assert target.Target(Path("/d/out.parquet"), dataset=False) in beside
