"""`batchserve cluster`: background clusters start, are used, are found dead, and leave nothing."""

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client

import batchserve as bs
from batchserve.cluster import named, processes
from conftest import Command, digest
from killing import listening, until, works
from workbench import FLIGHTS, run

MODEL = FLIGHTS.parent / "model.onnx"
CONFIG = FLIGHTS.parent / "batchserve.toml"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a state folder of its own; whatever the test left running in it is ended."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path / "state" / "batchserve" / "clusters"
    for folder in (tmp_path / "state" / "batchserve" / "clusters").glob("*"):
        processes.end(folder)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start a cluster `three` by the command; return its state folder. When stopped it leaves nothing."""
    home = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(home))
        named.start("three", 3, 1 << 30)
        folder = named.folder_of("three")
        try:
            yield home
            named.stop("three")
        finally:
            left = processes.of(folder)
            processes.end(folder)
    assert not left
    assert not folder.exists()


@pytest.fixture
def used(three: Path, monkeypatch: pytest.MonkeyPatch) -> named.Cluster:
    monkeypatch.setenv("XDG_STATE_HOME", str(three))
    return named.find("three")


def test_workers_are_as_many_as_asked_for_whatever_the_machine(used: named.Cluster) -> None:
    """Three workers of one thread each run, each with the memory asked for."""
    with Client(used.address, set_as_default=False) as client:
        assert list(client.nthreads().values()) == [1, 1, 1]
        limits = {w["memory_limit"] for w in client.scheduler_info(n_workers=-1)["workers"].values()}

    assert limits == {1 << 30}


def test_every_port_of_every_process_is_on_loopback(used: named.Cluster) -> None:
    """Scheduler, nannies and workers, dashboards included: nothing listens to the network."""
    pids = set(processes.of(used.folder))

    assert len(pids) >= 5
    assert listening(pids) == {"127.0.0.1"}
    assert used.address.startswith("tcp://127.0.0.1:")
    assert used.dashboard.startswith("http://127.0.0.1:")


def test_the_settings_reach_scheduler_and_workers(used: named.Cluster) -> None:
    """No silent retries, exact blame, no pausing; and a worker over its memory is still ended."""

    def settings() -> dict[str, Any]:
        import dask

        keys = ("scheduler.allowed-failures", "scheduler.worker-saturation", "worker.memory")
        return {key: dask.config.get(f"distributed.{key}") for key in keys}

    with Client(used.address, set_as_default=False) as client:
        told = [client.run_on_scheduler(settings), *client.run(settings).values()]

    for each in told:
        assert each["scheduler.allowed-failures"] == 0
        assert each["scheduler.worker-saturation"] == 1
        assert each["worker.memory"]["pause"] is False
        assert each["worker.memory"]["terminate"] == 0.95


def test_only_its_owner_can_read_its_folder(used: named.Cluster) -> None:
    """Logs and addresses are nobody else's business."""
    assert stat.S_IMODE(used.folder.stat().st_mode) == 0o700


def test_its_processes_do_not_hang_on_the_terminal(used: named.Cluster) -> None:
    """Each main process leads a session of its own: closing the terminal or Ctrl-C does not reach it."""
    for pid in (used.scheduler_pid, used.workers_pid):
        assert os.getsid(pid) == pid
        assert psutil.Process(pid).terminal() is None


@pytest.mark.usefixtures("used")
def test_a_job_on_it_gives_the_bytes_of_a_job_here(command: Command, tmp_path: Path) -> None:
    """`score --cluster` from another folder gives the same bytes as threads of one process."""
    arguments = [FLIGHTS, "--config", CONFIG, "--partition-size", "200k"]
    assert command("score", *arguments[:1], "here.parquet", *arguments[1:]).returncode == 0

    done = command("score", *arguments[:1], "there.parquet", *arguments[1:], "--cluster", "three")

    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "there.parquet") == digest(tmp_path / "here.parquet")


def test_status_tells_what_runs(used: named.Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """`cluster status` shows addresses, workers alive of those asked for, memory and pids."""
    shown = run(capsys, "cluster", "status", "--name", "three")

    assert shown.code == 0
    for text in (used.address, used.dashboard, "3 of 3 alive", "0 running", "1,024 MiB", str(used.folder)):
        assert text in shown.out
    assert str(used.scheduler_pid) in shown.out


def test_a_worker_that_is_killed_is_started_again(used: named.Cluster) -> None:
    """Its nanny starts another in its place."""
    with Client(used.address, set_as_default=False) as client:
        before = client.run(os.getpid)
        address, pid = next(iter(before.items()))
        os.kill(pid, signal.SIGKILL)

        until(lambda: address not in client.nthreads() and len(client.nthreads()) == 3)
        assert pid not in client.run(os.getpid).values()


def test_a_name_that_runs_is_not_started_again(
    used: named.Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second start of one name is exit 2 and says how to use or end the first, which runs on."""
    refused = run(capsys, "cluster", "start", "--name", "three")

    assert refused.code == 2
    assert used.address in refused.err
    assert "--cluster three" in refused.err
    assert "batchserve cluster stop --name three" in refused.err
    assert named.find("three") == used


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("words", [("status", "--name", "thre"), ("stop", "--name", "thre")])
def test_an_unknown_name_is_exit_69(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """A name nobody started is refused with the nearest that somebody did."""
    refused = run(capsys, "cluster", *words)

    assert refused.code == 69
    assert "did you mean three?" in refused.err


def test_a_job_on_an_unknown_cluster_is_exit_69(
    state: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Where no cluster was ever started, the error says how to start one."""
    arguments = (FLIGHTS, tmp_path / "out.parquet", "--config", CONFIG, "--cluster", "mine")

    refused = run(capsys, "score", *arguments)

    assert refused.code == 69
    assert "batchserve cluster start --name mine" in refused.err
    assert not state.exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", "ä", "x" * 65])
def test_impossible_names_are_refused(name: str, state: Path) -> None:
    """A name is one folder: letters, digits, dots, hyphens, underscores."""
    with pytest.raises(bs.BatchserveError, match="cannot be the name") as caught:
        named.address(name)

    assert caught.value.exit_code == 2
    assert not state.exists()


@pytest.mark.parametrize("size", ["5", "lots", "20M"])
def test_impossible_memory_limits_are_refused(
    size: str, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit that is no size, or too small for any worker, is exit 2 before anything starts."""
    refused = run(capsys, "cluster", "start", "--memory-limit", size)

    assert refused.code == 2
    assert "--memory-limit" in refused.err
    assert not state.exists()


def test_a_start_that_fails_tells_the_log_and_leaves_nothing(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers that cannot start are exit 69 with the end of their log; no process, no folder."""
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", "batchserve_is_not_this")
    monkeypatch.setattr(named, "_START_TIMEOUT_S", 5)
    monkeypatch.setattr(named, "_START_TIMEOUT_PER_WORKER_S", 1)

    refused = run(capsys, "cluster", "start", "--workers", "1")

    assert refused.code == 69
    assert "batchserve_is_not_this" in refused.err
    assert not processes.of(state / "default")
    assert list(state.iterdir()) == []


def test_start_use_stop_by_the_command(state: Path, command: Command) -> None:
    """What the three commands print is enough to use them; in the end there is nothing left.

    What is left of a start that was cut short is cleaned and its name taken over.
    """
    (state / "default").mkdir(parents=True)
    (state / "default" / "cluster.json").write_text("{")
    stray = processes.launch("http.server", ("--bind", "127.0.0.1", "0"), state / "default", state / "log")
    until(lambda: stray in processes.of(state / "default"))

    started = command("cluster", "start", "--workers", "1", XDG_STATE_HOME=str(state.parent.parent))

    assert started.returncode == 0, started.stderr
    assert stray not in processes.of(state / "default")
    for words in ("tcp://127.0.0.1:", "/status", str(state / "default"), "--cluster default", "cluster stop"):
        assert words in started.stdout
    found = named.find("default")
    pids = set(processes.of(found.folder))
    assert pids >= {found.scheduler_pid, found.workers_pid}

    stopped = command("cluster", "stop")

    assert stopped.returncode == 0, stopped.stderr
    assert not any(works(pid) for pid in pids)
    assert not found.folder.exists()


def test_a_pid_that_belongs_to_another_by_now_is_not_touched(state: Path) -> None:
    """A state that names a living stranger is a dead cluster: stopping it ends nobody."""
    folder = state / "default"
    folder.mkdir(parents=True)
    stale = named.Cluster(
        name="default", address="tcp://127.0.0.1:9", dashboard="", workers=1, memory_limit=1,
        scheduler_pid=os.getpid(), workers_pid=os.getppid(),
    )  # fmt: skip
    (folder / "cluster.json").write_text(stale.model_dump_json())

    with pytest.raises(bs.BatchserveError, match="has died"):
        named.status()
    named.stop()

    assert not folder.exists()
