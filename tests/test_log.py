"""`--log-json`: what happens, one JSON object a line, for the nights when nobody looks."""

import json
import os
import re
import shutil
import subprocess
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from batchserve import events, job, log
from batchserve.errors import DataError, StorageError, UsageError
from batchserve.log import Log, MinuteHand
from conftest import Command
from killing import until
from workbench import IRIS, IRIS_MODEL, listing, run

SCORE = ("score", "iris.csv", "out.parquet", "-m", "model.onnx", "--log-json", "run.jsonl")
FOUR = ("--partition-size", "1k")
"""Four partitions, two in the first 1,200 bytes of rows."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in a folder with the iris rows and their model."""
    shutil.copy(IRIS, tmp_path / "iris.csv")
    shutil.copy(IRIS_MODEL, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path: str = "run.jsonl") -> list[dict[str, Any]]:
    """Return the lines of a log, each a JSON object."""
    text = Path(path).read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def planned(partitions: int = 4) -> events.Planned:
    return events.Planned(plan_id="x", partitions=partitions, partitions_done=0, bytes_total=4_000, workers=2)


def scored(index: int) -> events.PartitionScored:
    return events.PartitionScored(
        index=index, rows_in=1_000, rows_rejected=100, bytes_in=1_000, seconds={"model": 1.0}
    )


# -- a job ------------------------------------------------------------------------------------


def test_a_job_is_told_from_start_to_finish(capsys: pytest.CaptureFixture[str]) -> None:
    """Its lines are started, planned, one per partition, publishing and finished, with all facts."""
    done = run(capsys, *SCORE, *FOUR, "--json")

    told = lines()
    assert done.code == 0, done.err
    assert [line["event"] for line in told] == [
        "started", "planned", *["partition_scored"] * 4, "publishing", "finished",
    ]  # fmt: skip
    assert told[0]["output"] == "out.parquet"
    assert {line["index"] for line in told[2:6]} == {0, 1, 2, 3}
    assert sum(line["rows_in"] for line in told[2:6]) == 150
    summary = json.loads(done.out)
    facts = {key: value for key, value in told[-1].items() if key not in {"time", "run_id", "event"}}
    assert facts == {key: summary[key] for key in facts}
    assert {"rows_in", "rows_out", "rows_rejected", "plan_id", "seconds", "rows_per_s"} <= set(facts)


def test_every_line_has_time_and_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Times are UTC and never go back; a run has one id, the next run another, in the same file."""
    run(capsys, *SCORE)
    first = Path("run.jsonl").read_bytes()

    run(capsys, *SCORE, "--overwrite")

    told = lines()
    times = [datetime.fromisoformat(line["time"]) for line in told]
    assert Path("run.jsonl").read_bytes().startswith(first)
    assert {each.utcoffset() for each in times} == {timedelta(0)}
    assert times == sorted(times)
    assert [list(line)[:3] for line in told] == [["time", "run_id", "event"]] * len(told)
    ids = [line["run_id"] for line in told]
    assert len(set(ids)) == 2
    assert ids == sorted(ids, key=ids.index)
    assert re.fullmatch("[0-9a-f]{12}", ids[0])


def test_a_job_that_fails_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line of a job that ends otherwise has the exit code, the message and the hint."""
    done = run(capsys, *SCORE[:1], "gone.csv", *SCORE[2:])

    told = lines()
    assert done.code == 66
    assert [line["event"] for line in told] == ["started", "failed"]
    assert told[-1]["exit_code"] == 66
    assert told[-1]["error"] == "gone.csv: no such input"
    assert told[-1]["hint"]
    assert told[-1]["run_id"] == told[0]["run_id"]


def test_a_bug_is_logged_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A bug is exit 1, and the log's last line says so: a log never just ends."""

    def odd(*_: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr(job, "_planned", odd)
    done = run(capsys, *SCORE)

    assert done.code == 1
    assert lines()[-1]["event"] == "failed"
    assert lines()[-1]["exit_code"] == 1


def test_partitions_of_an_earlier_run_are_counted_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that continues says how many partitions were done, and lists only those it scored itself."""
    told: list[events.Event] = []

    class Cut:
        def on(self, event: events.Event) -> None:
            told.append(event)
            if isinstance(event, events.Publishing):
                raise DataError("cut here")

    from batchserve import api

    with pytest.raises(DataError, match="cut here"):
        api.score("iris.csv", "out.parquet", model="model.onnx", partition_size="1k", listener=Cut())

    run(capsys, *SCORE, *FOUR)

    assert [line["event"] for line in lines()] == ["started", "planned", "publishing", "finished"]
    assert lines()[1]["partitions_done"] == 4


def test_what_was_amended_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A column that became text on the way is a line of its own."""
    header, *rows = Path("iris.csv").read_text().splitlines()
    odd = [f"{row},{i}" for i, row in enumerate(rows * 800)]
    odd[50_000] += "x"  # where no sample is taken
    Path("iris.csv").write_text("\n".join([f"{header},n", *odd, ""]))

    done = run(capsys, *SCORE, "--workers", "1")

    assert done.code == 0, done.err
    (amended,) = [line for line in lines() if line["event"] == "amended"]
    assert amended["columns"] == {"n": "iris.csv:50002"}
    assert lines()[-1]["amended"] == amended["columns"]


# -- the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["gone/run.jsonl", "."])
def test_a_log_that_cannot_be_written_is_told_before_any_work(
    path: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log in a folder that is not there, or that is one, ends the command before it does anything."""
    before = listing(home)

    done = run(capsys, *SCORE[:-1], path)

    assert done.code in {66, 74}
    assert f"error: {path}: " in done.err
    assert "Traceback" not in done.err
    assert listing(home) == before


@pytest.mark.parametrize("path", ["iris.csv", "model.onnx"])
def test_what_is_no_log_is_not_appended_to(path: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An input or the model named after --log-json by mistake is exit 2, and the file stays whole."""
    before = listing(home)

    done = run(capsys, *SCORE[:-1], path)

    assert done.code == 2
    assert f"--log-json {path}: is no log" in done.err
    assert listing(home) == before


def test_an_empty_file_may_become_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    """A file that log rotation made, say, is written to."""
    Path("run.jsonl").touch()

    assert run(capsys, *SCORE).code == 0
    assert lines()[-1]["event"] == "finished"


def test_a_torn_line_does_not_spoil_the_next() -> None:
    """What a power loss left of a line stays a line of its own."""
    Path("run.jsonl").write_text('{"time": "2026-01-01T00:00:00", "ev')

    with_one = Log("run.jsonl")
    with_one.failed(DataError("odd"))

    torn, whole = Path("run.jsonl").read_text().splitlines()
    assert torn.endswith('"ev')
    assert json.loads(whole)["error"] == "odd"


def test_a_log_that_is_moved_away_begins_anew() -> None:
    """Log rotation renames the file while the job runs: what comes then is in a new one."""
    file = Log("run.jsonl")
    file.on(events.Noted(text="before"))
    Path("run.jsonl").rename("old.jsonl")

    file.on(events.Noted(text="after"))

    assert [line["text"] for line in lines("old.jsonl") + lines()] == ["before", "after"]


def test_two_runs_may_share_a_log() -> None:
    """Lines of two logs on one file, however long, come one after the other, whole."""
    hint = "x " * 10_000
    logs = [Log("run.jsonl") for _ in range(2)]
    start = threading.Barrier(2)

    def write(mine: Log) -> None:
        start.wait()
        for i in range(50):
            mine.on(events.Noted(text=f"{i} {hint}"))

    threads = [threading.Thread(target=write, args=(mine,)) for mine in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(lines()) == 100


def test_texts_survive_in_json() -> None:
    """Quotes, backslashes, line ends and control characters of a message come out as they went in."""
    message = 'a "b\\c"\nd\x1b[31m é \u2028'
    Log("run.jsonl").failed(DataError(message, "token=abc\"def\\\n'"))

    (line,) = lines()
    assert line["error"] == message
    assert line["hint"].startswith("token=***")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")  # noqa: PTH110  a device
def test_a_full_disk_under_the_log_is_exit_74(capsys: pytest.CaptureFixture[str]) -> None:
    """A log that cannot be written any more ends the job in words: 74, and nothing is published."""
    done = run(capsys, *SCORE[:-1], "/dev/full")

    assert done.code == 74
    assert "error: /dev/full: No space left on device" in done.err
    assert not Path("out.parquet").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")  # noqa: PTH110  a device
def test_the_last_line_cannot_undo_the_run() -> None:
    """Whatever becomes of a log's last line, the run ended as it did; any other line raises."""
    last = Log("/dev/full")
    with pytest.raises(StorageError):
        last.on(events.Noted(text="odd"))

    last.finished({"rows": 1})

    last.minute()  # a minute that is up too late says nothing


# -- minutes ----------------------------------------------------------------------------------


def test_progress_says_how_far_it_is() -> None:
    """A line of progress has rows, their rate, rejects, the share done and the oldest running partition."""
    file = Log("run.jsonl")
    file.on(events.Started(run_id="ab12", output="out.parquet"))
    file.on(planned())
    file.on(scored(1))
    file.on(scored(2))

    file.minute()

    (line,) = [line for line in lines() if line["event"] == "progress"]
    assert line["run_id"] == "ab12"
    assert (line["rows"], line["rows_rejected"], line["share"], line["oldest_partition"]) == (
        2_000,
        200,
        0.5,
        0,
    )
    assert line["rows_per_s"] > 0


def test_rows_inside_a_partition_count_and_are_no_line_each() -> None:
    """Rows of a partition that is still running are in the next line of progress only."""
    file = Log("run.jsonl")
    file.on(planned(1))
    file.on(events.RowsScored(rows=512))
    file.on(events.RowsScored(rows=640))

    file.minute()

    assert [line["event"] for line in lines()] == ["planned", "progress"]
    assert lines()[1]["rows"] == 640


def test_minutes_are_told_while_a_job_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the job runs its minutes go to the log and, without a terminal, to stderr, with one run id."""
    monkeypatch.setattr(log, "MINUTE_S", 0.01)
    honest = job._planned

    def slowly(*arguments: Any) -> Any:
        until(lambda: len(Path("run.jsonl").read_text().splitlines()) > 3)
        return honest(*arguments)

    monkeypatch.setattr(job, "_planned", slowly)
    done = run(capsys, *SCORE)

    told = lines()
    assert done.code == 0, done.err
    assert sum(line["event"] == "progress" for line in told) >= 3
    assert told[-1]["event"] == "finished"
    (run_id,) = {line["run_id"] for line in told}
    assert f"run {run_id} · 0 rows" in done.err


def test_a_hand_that_fails_does_not_end_the_others() -> None:
    """A minute that cannot be written is no traceback; the next one comes all the same."""
    told: list[int] = []

    def full() -> None:
        raise StorageError("disk full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "MINUTE_S", 0.001)
        with MinuteHand(full, lambda: told.append(1)):
            until(lambda: len(told) > 2)

    assert told


# -- the real command -------------------------------------------------------------------------


def test_a_death_begins_a_run_in_the_same_log(command: Command, tmp_path: Path) -> None:
    """A job whose process was killed goes on as another run, told in the same file."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, signal\nfrom pathlib import Path\nfrom batchserve import job\n\n"
        "honest, mark = job._planned, Path('died')\n\n\n"
        "def once(*arguments):\n"
        "    if not mark.exists():\n"
        "        mark.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return honest(*arguments)\n\n\n"
        "job._planned = once\n"
    )

    done: subprocess.CompletedProcess[str] = command(*SCORE, PYTHONPATH=str(tmp_path / "site"))

    told = lines()
    assert done.returncode == 0, done.stderr
    assert [line["event"] for line in told] == [
        "started", "started", "restarted", "planned", "partition_scored", "publishing", "finished",
    ]  # fmt: skip
    assert "SIGKILL" in told[2]["cause"]
    first, second = told[0]["run_id"], told[1]["run_id"]
    assert first != second
    assert {line["run_id"] for line in told[1:]} == {second}


def test_a_log_of_another_program_is_no_log() -> None:
    """JSON lines of an input, say, are not taken for a log of ours."""
    Path("rows.jsonl").write_text('{"x": 1}\n')

    with pytest.raises(UsageError, match=r"rows\.jsonl: is no log"):
        Log("rows.jsonl")
