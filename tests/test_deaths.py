"""Workers, nannies, schedulers and drivers that die: what is lost, what is redone, who is blamed."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client

import batchserve as bs
import models
from batchserve import events, isolation
from batchserve.cluster import named, processes
from batchserve.cluster.named import Cluster
from conftest import digest, environment
from killing import Script, kill, scripted_cluster, until
from workbench import divider

ROWS = 600
PARTITION_BYTES = 1_000
MEMORY_BYTES = 600 << 20


class Told:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []

    def on(self, event: events.Event) -> None:
        """Keep `event`."""
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        """Return the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("deaths")
    random = np.random.default_rng(5)
    frame = pd.DataFrame(random.random((ROWS, 2)), columns=["a", "b"])
    frame.assign(kind=random.choice(models.KINDS, ROWS)).to_csv(made / "in.csv", index=False)
    models.named(made)
    return made


@pytest.fixture(scope="module")
def options(folder: Path) -> dict[str, Any]:
    return {"model": str(folder / "named.onnx"), "partition_size": PARTITION_BYTES}


@pytest.fixture(scope="module")
def calm(folder: Path, options: dict[str, Any]) -> str:
    """Return the digest of the output of a job that nothing happens to."""
    report = bs.score(folder / "in.csv", folder / "calm.parquet", **options)
    assert report.partitions > 20
    return digest(folder / "calm.parquet")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Script]]:
    with scripted_cluster(tmp_path_factory.mktemp("shared"), 2, MEMORY_BYTES) as made:
        yield made


@pytest.fixture
def cluster(shared: tuple[Cluster, Script]) -> Cluster:
    """Two workers that stand."""
    made, _ = shared
    with Client(made.address, set_as_default=False) as client:
        client.wait_for_workers(2)
    return made


@pytest.fixture
def script(shared: tuple[Cluster, Script]) -> Script:
    shared[1].play()
    return shared[1]


def receipts(folder: Path) -> set[int]:
    return {int(path.stem[1:]) for path in (folder / ".out.parquet.batchserve").glob("p0*.json")}


def begun(folder: Path, cluster: Cluster, options: dict[str, Any]) -> "subprocess.Popen[str]":
    """Start the command that scores `in.csv` into `out.parquet`, in a process of its own."""
    arguments = ["--model", options["model"], "--partition-size", str(PARTITION_BYTES)]
    source = str(Path(options["model"]).parent / "in.csv")
    return subprocess.Popen(
        [sys.executable, "-m", "batchserve", "score", source, "out.parquet", *arguments,
         "--scheduler", cluster.address],
        cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_killed_worker_costs_one_attempt(
    cluster: Cluster, script: Script, folder: Path, options: dict[str, Any], calm: str, tmp_path: Path
) -> None:
    """A worker killed at work costs the partition it had one more attempt, and the job nothing."""
    script.play(pause_s=0.1)
    told = Told()
    with ThreadPoolExecutor(1) as pool:
        job: Future[bs.Report] = pool.submit(
            bs.score, folder / "in.csv", tmp_path / "out.parquet", scheduler=cluster.address,
            listener=told, **options,
        )  # fmt: skip
        until(lambda: len(receipts(tmp_path)) > 3)
        index, pid = script.scorer()
        kill(pid)
        report = job.result(timeout=60)

    assert digest(tmp_path / "out.parquet") == calm
    attempts = script.attempts
    assert attempts.total() <= report.partitions + 1
    assert attempts[index] <= 2
    assert len(told.of(events.Suspected)) <= 1


@pytest.fixture
def no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row kills: what scores partitions row by row does not know the script of the workers."""
    monkeypatch.setattr(isolation, "row_by_row", lambda *_: None)


@pytest.mark.usefixtures("no_row")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGSEGV, 70), (signal.SIGKILL, 75)])
def test_a_partition_that_kills_is_named_and_its_neighbours_are_kept(  # noqa: PLR0917  fixtures
    number: int, code: int, cluster: Cluster, script: Script, folder: Path, options: dict[str, Any],
    calm: str, tmp_path: Path,
) -> None:  # fmt: skip
    """A partition that kills its worker twice, the second time alone, is blamed; all others are scored once.

    SIGKILL is how the kernel ends who uses too much memory: run it again with more. When the
    partition is harmless again, the same command scores that one alone.
    """
    script.play(deadly=(7,), number=number)
    told = Told()

    with pytest.raises(bs.BatchserveError, match="partition 7") as caught:
        bs.score(
            folder / "in.csv", tmp_path / "out.parquet", scheduler=cluster.address, listener=told, **options
        )

    assert caught.value.exit_code == code
    assert signal.Signals(number).name in caught.value.message
    (planned,) = told.of(events.Planned)
    others = set(range(planned.partitions)) - {7}
    assert f"the other {len(others)} of {planned.partitions}" in caught.value.message
    assert receipts(tmp_path) == others
    assert script.attempts[7] == 2
    (suspected,) = told.of(events.Suspected)
    assert "partition 7" in suspected.places[0]

    script.play()
    bs.score(folder / "in.csv", tmp_path / "out.parquet", **options)

    assert digest(tmp_path / "out.parquet") == calm


def test_a_partition_that_needs_too_much_memory_is_exit_75(
    cluster: Cluster, script: Script, folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    """A worker over its memory limit is ended by its nanny; twice, and no more, for one partition."""
    script.play(deadly=(7,), ballast=MEMORY_BYTES)

    with pytest.raises(bs.BatchserveError, match="partition 7") as caught:
        bs.score(folder / "in.csv", tmp_path / "out.parquet", scheduler=cluster.address, **options)

    assert caught.value.exit_code == 75
    assert "over its memory limit" in caught.value.message
    assert script.attempts[7] == 2


def test_two_attempts_at_once_give_the_same_bytes(
    cluster: Cluster, script: Script, folder: Path, options: dict[str, Any], calm: str, tmp_path: Path
) -> None:
    """Every partition scored by two attempts at the same moment: one part of each pair is kept."""
    script.play(times=2)

    bs.score(folder / "in.csv", tmp_path / "out.parquet", scheduler=cluster.address, **options)

    assert digest(tmp_path / "out.parquet") == calm


def test_a_driver_that_is_killed_is_forgotten_and_its_job_continued(
    cluster: Cluster, script: Script, folder: Path, options: dict[str, Any], calm: str, tmp_path: Path
) -> None:
    """The scheduler forgets the tasks of a killed command; run again, it scores only what is left."""
    script.play(pause_s=0.1)
    job = begun(tmp_path, cluster, options)
    until(lambda: len(receipts(tmp_path)) > 3)
    job.kill()
    job.communicate()
    with Client(cluster.address, set_as_default=False) as client:
        until(lambda: not any(client.processing().values()))
    until(lambda: set(script.attempts) == receipts(tmp_path))  # what its workers were at, they finish
    done = receipts(tmp_path)
    script.play()

    report = bs.score(folder / "in.csv", tmp_path / "out.parquet", scheduler=cluster.address, **options)

    assert digest(tmp_path / "out.parquet") == calm
    assert set(script.attempts) == set(range(report.partitions)) - done


def test_a_job_that_is_stopped_waits_for_what_its_workers_do(
    cluster: Cluster, script: Script, options: dict[str, Any], tmp_path: Path
) -> None:
    """After Ctrl-C nothing new is begun, and what was begun is scored and kept: exit 130."""
    script.play(pause_s=0.3)
    job = begun(tmp_path, cluster, options)
    until(lambda: len(receipts(tmp_path)) > 3)

    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=60)

    assert job.returncode == 130, said
    assert set(script.attempts) == receipts(tmp_path)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Cluster, Script]]:
    """Return a cluster to destroy, whose scheduler soon gives up."""
    variables = {"DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "2s"}
    with scripted_cluster(tmp_path, 2, None, **variables) as made:
        yield made


def test_a_lost_cluster_is_exit_69_and_the_job_goes_on_elsewhere(
    own: tuple[Cluster, Script], folder: Path, options: dict[str, Any], calm: str, tmp_path: Path
) -> None:
    """Without nannies no worker returns, without a scheduler nothing does: both end the job, in words.

    The dead cluster is replaced by the next start of its name; the finished parts are kept.
    """
    cluster, script = own
    script.play(pause_s=0.1)
    job = begun(tmp_path, cluster, options)
    until(lambda: len(receipts(tmp_path)) > 3)
    kill(cluster.workers_pid)
    _, said = job.communicate(timeout=60)

    assert job.returncode == 69
    assert "has no workers any more" in said
    assert "distributed" not in said
    with pytest.raises(bs.BatchserveError, match="has died"):
        named.status("deaths")

    again = named.start("deaths", 2)
    before = len(receipts(tmp_path))
    job = begun(tmp_path, again, options)
    until(lambda: len(receipts(tmp_path)) > before + 3)
    kill(again.scheduler_pid)
    _, said = job.communicate(timeout=60)

    assert job.returncode == 69
    assert "its scheduler is gone" in said
    assert [line.partition(":")[0] for line in said.splitlines()[-2:]] == ["error", "hint"]
    assert "distributed" not in said
    named.stop("deaths")
    assert not processes.of(again.folder)

    bs.score(folder / "in.csv", tmp_path / "out.parquet", **options)
    assert digest(tmp_path / "out.parquet") == calm


@pytest.mark.usefixtures("no_row")
def test_a_scheduler_that_retries_is_told_of_and_blames_the_same_partition(
    folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    """Where a task may kill more than one worker, it kills more, but the others are kept as well."""
    more = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    told = Told()

    with scripted_cluster(tmp_path, 2, None, **more) as (cluster, script):
        script.play(deadly=(7,), number=signal.SIGSEGV)
        with pytest.raises(bs.BatchserveError, match="partition 7") as caught:
            bs.score(
                folder / "in.csv", tmp_path / "out.parquet", scheduler=cluster.address, listener=told,
                **options,
            )  # fmt: skip

    assert caught.value.exit_code == 70
    assert "allows 1 failures" in told.of(events.Noted)[0].text
    assert script.attempts[7] == 4
    assert receipts(tmp_path) == set(range(told.of(events.Planned)[0].partitions)) - {7}


def test_a_late_attempt_changes_nothing(
    folder: Path, options: dict[str, Any], calm: str, tmp_path: Path
) -> None:
    """A worker stopped beyond its time is replaced; when it goes on, its attempt comes too late."""
    home = tmp_path / "cluster"
    home.mkdir()
    script = Script(tmp_path / "script")
    script.play(pause_s=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "5s")
        for name, value in script.environment.items():
            patch.setenv(name, value)
        file = home / "scheduler.json"
        common = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file))
        processes.launch("distributed.cli.dask_scheduler", (*common, "--port", "0"), home, home / "log")
        worker = (*common, "--no-nanny", "--nthreads", "1")
        for _ in range(2):
            processes.launch("distributed.cli.dask_worker", worker, home, home / "log")
    try:
        with ThreadPoolExecutor(1) as pool, Client(scheduler_file=file, set_as_default=False) as client:
            client.wait_for_workers(2)
            job = pool.submit(
                bs.score, folder / "in.csv", tmp_path / "out.parquet", cluster=client, **options
            )
            until(lambda: len(receipts(tmp_path)) > 3)
            index, pid = script.scorer()
            until(lambda: script.scorer()[1] != pid)
            index, pid = script.scorer()
            kill(pid, signal.SIGSTOP)
            until(lambda: index in receipts(tmp_path))
            kill(pid, signal.SIGCONT)
            job.result(timeout=60)
        assert script.attempts[index] == 2
        until(lambda: pid not in processes.of(home))
    finally:
        processes.end(home)

    assert digest(tmp_path / "out.parquet") == calm
    assert not (tmp_path / ".out.parquet.batchserve").exists()


def test_a_row_that_kills_its_worker_is_a_reject(cluster: Cluster, script: Script, tmp_path: Path) -> None:
    """On a cluster, too, the one row that kills is found: the least int64 divided by -1 (SIGFPE)."""
    assert script.attempts == {}
    pairs = [(i, 1 + i % 7) for i in range(3_000)]
    pairs[1_234] = (-(2**63), -1)
    (tmp_path / "in.csv").write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    model = divider(tmp_path / "divide.onnx")

    report = bs.score(
        tmp_path / "in.csv", tmp_path / "out.parquet", model=model, scheduler=cluster.address, max_errors=1,
        partition_size="6k",
    )  # fmt: skip

    assert report.partitions > 3
    assert report.receipt.rejected_by == {"CRASH": 1}
    (line,) = (tmp_path / "out.rejects.jsonl").read_text().splitlines()
    assert (json.loads(line)["record"], json.loads(line)["line"]) == (1_235, 1_236)
