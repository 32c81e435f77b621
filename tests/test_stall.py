"""Runs of the model that never end: stopped, told with their partition, and the job goes on later."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from distributed import Client

import batchserve as bs
import models
from batchserve import events, model, modelfile, watch, workspace
from batchserve.cluster.named import Cluster
from batchserve.errors import BatchserveError, ModelError, StallError, StoppedError
from batchserve.model import session_for
from batchserve.runs import Runs
from batchserve.target import at
from conftest import Command, environment
from killing import Script, kill, scripted_cluster, until
from workbench import listing, run

ROWS = 600
ENDLESS = 430
"""The row with which a run of the model never ends: not among those that the plan tries."""
SIZE = "500"
"""Bytes of a partition: a hundred rows."""
JOB: dict[str, Any] = {"model": "endless.onnx", "batch_rows": 64, "stall_timeout": 1.0}
COMMAND = ("score", "in.csv", "out.parquet", "-m", "endless.onnx")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in a folder with a model that never ends over a batch with a 13, and rows with one."""
    models.endless(tmp_path)
    monkeypatch.chdir(tmp_path)
    write(13, ENDLESS)
    return tmp_path


def write(value: float, *rows: int) -> None:
    """Write the input: a thousandth of its number for each row, and `value` in some."""
    numbers = [value if i in rows else i / 1_000 for i in range(ROWS)]
    Path("in.csv").write_text("a\n" + "".join(f"{x:06.3f}\n" for x in numbers))
    os.utime("in.csv", ns=(1, 1))  # the same file, for all that a plan can see


def score(**options: Any) -> bs.Report:
    """Score the input on two threads, or in place if it is one partition."""
    settings = JOB | {"workers": 2} | options
    return bs.score("in.csv", "out.parquet", **settings)


def finished() -> set[int]:
    """Return the partitions that have a receipt in the workspace."""
    return {int(path.stem[1:]) for path in at("out.parquet").workspace.glob("p0*.json")}


def mended() -> Any:
    """Return the scores of the mended input, which are its rows as floats of 32 bits."""
    return pytest.approx([14.0 if i == ENDLESS else i / 1_000 for i in range(ROWS)])


class Told:
    """A listener that keeps the plan's event."""

    def __init__(self) -> None:
        self.done = -1

    def on(self, event: events.Event) -> None:
        if isinstance(event, events.Planned):
            self.done = event.partitions_done


def test_one_partition_in_place_is_stopped() -> None:
    """A job of one partition ends with 75 and its place; no run is left, and mended it is scored."""
    with pytest.raises(StallError) as stalled:
        score()

    assert stalled.value.exit_code == 75
    assert stalled.value.message.startswith("partition 0 (in.csv, bytes 2 to the end): a run of the model")
    assert "within 1 s" in stalled.value.message
    assert "--stall-timeout" in stalled.value.hint
    assert not watch._runs
    assert not at("out.parquet").workspace.exists()  # nothing was finished
    write(14, ENDLESS)
    assert score().rows == ROWS


def test_the_command_says_so(command: Command, home: Path) -> None:
    """`score --stall-timeout` ends with exit 75 and the partition, without a traceback."""
    done = command(*COMMAND, "--stall-timeout", "1s", "--batch-rows", "64")

    assert done.returncode == 75
    assert "error: partition 0 (in.csv" in done.stderr
    assert "hint:  run the same command again, or allow more: --stall-timeout" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in home.iterdir()) == ["endless.onnx", "in.csv"]


def test_a_partition_among_others_is_stopped() -> None:
    """Of several partitions the one that stalls is named; the others are kept, and the job goes on."""
    with pytest.raises(StallError, match=r"^partition (\d) \(in\.csv") as stalled:
        score(partition_size=SIZE)
    number = int(stalled.value.message.split()[1])
    kept = finished()

    write(14, ENDLESS)
    told = Told()
    report = score(partition_size=SIZE, stall_timeout=60, listener=told)

    assert report.partitions > 5
    assert {0, 1} <= kept <= set(range(report.partitions)) - {number}
    assert len(kept) <= told.done < report.partitions  # the other thread may have finished one more
    assert pq.read_table("out.parquet")["score"].to_pylist() == mended()
    assert not watch._runs


def test_all_that_stalls_at_once_is_stopped() -> None:
    """When several partitions stall at once none of their runs goes on after the job."""
    write(13, *range(100, ROWS, 50))

    with pytest.raises(StallError, match=r"^partition "):
        score(partition_size=SIZE)

    until(lambda: not watch._runs)
    assert 0 in finished()


def test_a_partition_scored_alone_is_stopped() -> None:
    """What an earlier run may have died of is scored in a process of its own, which is stopped, too."""
    with pytest.raises(StallError, match=r"^partition (\d) ") as stalled:
        score(partition_size=SIZE)
    name = f"p00000{stalled.value.message.split()[1]}"
    (at("out.parquet").workspace / f"{name}.0123456789ab.parquet").write_bytes(b"cut")

    with pytest.raises(StallError) as again:
        score(partition_size=SIZE)

    assert again.value.message == stalled.value.message
    others = psutil.Process().children(recursive=True)
    left = [child for child in others if child.status() != psutil.STATUS_ZOMBIE]
    assert not [child for child in left if "batchserve.isolation" in child.cmdline()]


def test_the_timeout_is_not_part_of_the_plan() -> None:
    """A run that was stopped continues with more patience: the plan is the same."""
    plans = {
        bs.plan("in.csv", "out.parquet", **(JOB | {"stall_timeout": seconds})).plan_id for seconds in (1, 99)
    }

    assert len(plans) == 1


# -- planning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--batch-rows", "64")])
def test_planning_is_stopped(more: tuple[str, ...], capsys: pytest.CaptureFixture[str], home: Path) -> None:
    """A model that never ends over the first rows ends the plan: 75, the model named, nothing written."""
    write(13, 0)
    before = listing(home)

    done = run(capsys, *COMMAND, "--stall-timeout", "1", *more)

    assert done.code == 75
    assert f"error: {home}/endless.onnx, on the first rows: a run of the model did not end" in done.err
    assert listing(home) == before
    assert not watch._runs


# -- a cluster --------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Cluster, Script]]:
    """Two workers in processes of their own."""
    with scripted_cluster(tmp_path / "cluster", 2, 1 << 30) as made:
        yield made


@pytest.fixture
def _folder(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()


@pytest.mark.usefixtures("_folder")
def test_a_worker_is_stopped_and_works_on(cluster: tuple[Cluster, Script]) -> None:
    """On a cluster, too, the partition is named and the rest kept; its worker lives, idle, and works on."""
    made, script = cluster

    with pytest.raises(StallError, match=r"^partition (\d) \(in\.csv") as stalled:
        score(partition_size=SIZE, scheduler=made.address)

    number = int(stalled.value.message.split()[1])
    assert script.attempts[number] == 1
    with Client(made.address, set_as_default=False) as client:
        until(lambda: set(script.attempts) - {number} == finished())  # what was begun is finished
        until(lambda: not any(client.run(running).values()))
        before = set(client.run(os.getpid).values())
    kept = finished()
    write(14, ENDLESS)
    told = Told()
    score(partition_size=SIZE, scheduler=made.address, listener=told)
    with Client(made.address, set_as_default=False) as client:
        after = set(client.run(os.getpid).values())
    assert kept
    assert number not in kept
    assert told.done == len(kept)
    assert pq.read_table("out.parquet")["score"].to_pylist() == mended()
    assert len(before) == 2
    assert before == after


running: Callable[[], int] = lambda: len(sys.modules["batchserve.watch"]._runs)  # noqa: E731  goes to workers by value
"""How many runs of a model are going on in a process."""


# -- signals ----------------------------------------------------------------------------------


def test_a_stop_while_the_model_runs_is_a_stop() -> None:
    """Ctrl-C is raised wherever the main thread is; the model did not fail."""
    with pytest.raises(StoppedError), model.translated_errors("the model"):
        raise StoppedError("stopped", "the same command continues")


@contextmanager
def begun(*more: str) -> Iterator["subprocess.Popen[str]"]:
    """Start the command; at the end nothing is left of it."""
    command = [sys.executable, "-m", "batchserve", *COMMAND, *more]
    job = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        yield job
    finally:
        job.kill()
        for process in here():
            process.kill()
        job.communicate()


def here() -> list[psutil.Process]:
    """Return the processes of the command that work in this folder."""
    return [p for p in psutil.process_iter() if p.pid != os.getpid() and _works_here(p)]


def _works_here(process: psutil.Process) -> bool:
    try:
        return bool(process.cwd() == str(Path.cwd()) and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def busy(process: psutil.Process) -> None:
    """Wait until a process computes: it is in the run that never ends."""
    before = process.cpu_times().user
    until(lambda: process.cpu_times().user > before + 0.3)


def test_a_second_signal_ends_a_run_that_never_ends(home: Path) -> None:
    """Ctrl-C twice ends the command, though the run in its main thread would go on for ten minutes."""
    with begun("--batch-rows", "64") as job:
        until(lambda: list(home.glob(".out.parquet.batchserve/p0*.parquet")))
        busy(psutil.Process(job.pid).children()[0])
        job.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(timeout=0.7)  # a repetition within half a second counts as the same one
        job.send_signal(signal.SIGINT)
        job.wait(timeout=5)

    assert job.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_tries_the_first_batch_when_the_command_has_ended(number: signal.Signals) -> None:
    """The child in which the plan tries the first batch ends with the command, however that ends."""
    write(13, 0)
    with begun() as job:
        until(lambda: len(psutil.Process(job.pid).children(recursive=True)) > 1)
        busy(psutil.Process(job.pid).children(recursive=True)[-1])
        job.send_signal(number)
        job.wait(timeout=30)

        until(lambda: not here(), timeout_s=3)


# -- the watch itself -------------------------------------------------------------------------


def endless_run(timeout_s: float) -> None:
    """Run the model, in this very thread, over a batch that never ends."""
    import numpy as np

    session = session_for(modelfile.identify("endless.onnx"))
    Runs(session, timeout_s).run(["score"], {"a": np.full((64, 1), 13, np.float32)})


def test_a_session_works_on_after_a_stop() -> None:
    """The session whose run was stopped gives right scores afterwards."""
    import numpy as np

    with pytest.raises(StallError):
        endless_run(0.2)

    (scores,) = Runs(session_for(modelfile.identify("endless.onnx")), 60).run(
        ["score"], {"a": np.full((2, 1), 7, np.float32)}
    )
    assert scores.tolist() == [[7.0], [7.0]]


def test_a_shorter_timeout_after_a_longer_one_counts() -> None:
    """The watch looks more often when somebody is less patient than all before."""
    write(14, ENDLESS)
    score(stall_timeout=600)

    with pytest.raises(StallError):
        endless_run(0.2)


def test_a_forked_process_is_watched() -> None:
    """A process forked from one that has a watch starts its own: threads are not forked."""
    with pytest.raises(StallError):
        endless_run(0.2)

    child = os.fork()
    if child == 0:
        try:
            endless_run(0.2)
        except StallError:
            os._exit(75)
        finally:
            os._exit(1)
    ended = (0, 0)

    def over() -> bool:
        nonlocal ended
        ended = os.waitpid(child, os.WNOHANG)
        return ended[0] == child

    try:
        until(over, timeout_s=20)
    finally:
        if not ended[0]:
            kill(child)
            os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(ended[1]) == 75


def test_what_fails_by_itself_is_no_stall() -> None:
    """An error of the model within its time is the model's, and an error of ours stays what it is."""
    options = object()
    with pytest.raises(ValueError, match="odd"), watch.watched(options, 60):
        raise ValueError("odd")
    with pytest.raises(ModelError), watch.watched(options, 60):
        raise ModelError("odd")

    assert not watch._runs


@pytest.mark.parametrize("text", ["0", "-1", "soon", "10 days", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    """A timeout is a positive number of seconds, minutes or hours; else it is exit 2 and nothing is done."""
    with pytest.raises(BatchserveError, match="stall-timeout") as refused:
        score(stall_timeout=text)

    assert refused.value.exit_code == 2
    assert workspace.stored(at("out.parquet")) is None
