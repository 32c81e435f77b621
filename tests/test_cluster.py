"""Jobs on Dask: the caller's client, a cluster of processes, an event loop, two jobs at once."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dask.delayed import Delayed
from distributed import Client, LocalCluster, get_client

import batchserve as bs
import models
from conftest import Command, digest

ROWS = 600
SIZE = 2_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an input and a model that all tests here share."""
    made = tmp_path_factory.mktemp("cluster")
    random = np.random.default_rng(5)
    frame = pd.DataFrame(random.random((ROWS, 2)), columns=["a", "b"])
    frame.assign(kind=random.choice(models.KINDS, ROWS)).to_csv(made / "in.csv", index=False)
    models.named(made)
    return made


@pytest.fixture(scope="module")
def options(folder: Path) -> dict[str, Any]:
    return {"model": folder / "named.onnx", "partition_size": SIZE}


@pytest.fixture(scope="module")
def threads(folder: Path, options: dict[str, Any]) -> str:
    """Return the digest of the output that threads of this process give."""
    report = bs.score(folder / "in.csv", folder / "threads.parquet", **options)
    assert report.partitions > 5
    assert not report.in_place
    return digest(folder / "threads.parquet")


def test_the_active_client_is_used_and_left_open(
    process_cluster: LocalCluster, folder: Path, options: dict[str, Any], threads: str, tmp_path: Path
) -> None:
    """A notebook's own client scores the partitions, and works on afterwards."""
    with Client(process_cluster) as client:
        report = bs.score(folder / "in.csv", tmp_path / "out.parquet", **options)

        assert report.workers == 2
        assert client.status == "running"
        assert client.submit(sum, [20, 22]).result() == 42
        assert get_client() is client
        assert sum(map(len, client.has_what().values())) <= 1  # the sum: every receipt was released

    assert digest(tmp_path / "out.parquet") == threads


@pytest.mark.parametrize("kind", ["cluster", "client", "address"])
def test_a_cluster_given_is_used_and_left_open(
    kind: str,
    process_cluster: LocalCluster,
    folder: Path,
    options: dict[str, Any],
    threads: str,
    tmp_path: Path,
) -> None:
    """`cluster=` takes a cluster or a client, `scheduler=` an address; all stay open."""
    output = tmp_path / "out.parquet"
    with Client(process_cluster, set_as_default=False) as client:
        if kind == "address":
            report = bs.score(
                folder / "in.csv", output, scheduler=process_cluster.scheduler_address, **options
            )
        else:
            given = process_cluster if kind == "cluster" else client
            report = bs.score(folder / "in.csv", output, cluster=given, **options)

        assert report.workers == 2
        assert client.submit(sum, [20, 22]).result() == 42

    assert digest(output) == threads


def test_the_command_uses_a_scheduler(
    process_cluster: LocalCluster, folder: Path, threads: str, tmp_path: Path, command: Command
) -> None:
    """`--scheduler` scores on a running cluster, to the bytes that threads give."""
    arguments = ["--model", folder / "named.onnx", "--partition-size", str(SIZE)]

    done = command(
        "score", folder / "in.csv", "out.parquet", *arguments,
        "--scheduler", process_cluster.scheduler_address,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "out.parquet") == threads


def test_a_scheduler_that_does_not_answer_is_exit_69(folder: Path, options: dict[str, Any]) -> None:
    """An address where nobody listens is an error that names it and says what one looks like."""
    address = "tcp://127.0.0.1:9"

    with pytest.raises(bs.BatchserveError, match=address) as caught:
        bs.score(folder / "in.csv", folder / "lost.parquet", scheduler=address, **options)

    assert caught.value.exit_code == 69
    assert "--scheduler" in caught.value.hint


def test_a_cluster_without_workers_is_exit_69(folder: Path, options: dict[str, Any]) -> None:
    """A cluster that nobody works for is an error at once, not a job that waits for ever."""
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", host="127.0.0.1") as empty,
        pytest.raises(bs.BatchserveError, match="no workers") as caught,
    ):
        bs.score(folder / "in.csv", folder / "lost.parquet", cluster=empty, **options)

    assert caught.value.exit_code == 69


def test_an_error_on_a_worker_is_the_error_of_the_caller(
    process_cluster: LocalCluster, folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    """Rows that cannot be scored on another process are told here, with their line and the way on."""
    path = tmp_path / "in.csv"
    lines = (folder / "in.csv").read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:500], "0.5,,red\n", *lines[500:]]))

    with pytest.raises(bs.BatchserveError, match=r"1 of 601 rows") as caught:
        bs.score(path, tmp_path / "out.parquet", cluster=process_cluster, **options)

    assert caught.value.exit_code == 65
    assert "in.csv:501" in caught.value.message
    assert "--on-null b:nan" in caught.value.hint
    assert not (tmp_path / "out.parquet").exists()


def test_score_works_inside_a_running_event_loop(
    folder: Path, options: dict[str, Any], threads: str, tmp_path: Path
) -> None:
    """A notebook has an event loop running: a job of several partitions works in it all the same."""

    async def notebook() -> bs.Report:
        await asyncio.sleep(0)
        return bs.score(folder / "in.csv", tmp_path / "out.parquet", **options)

    report = asyncio.run(notebook())

    assert report.rows == ROWS
    assert digest(tmp_path / "out.parquet") == threads


def test_a_worker_that_is_killed_costs_nothing(folder: Path, options: dict[str, Any], tmp_path: Path) -> None:
    """A worker process killed at work is replaced; the output is whole and has the same bytes."""
    slow = options | {"model": models.heavy(tmp_path), "batch_rows": 64, "partition_size": SIZE // 3}
    bs.score(folder / "in.csv", tmp_path / "calm.parquet", **slow)
    workspace = tmp_path / ".out.parquet.batchserve"
    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1") as cluster,
        ThreadPoolExecutor(1) as pool,
    ):
        job = pool.submit(bs.score, folder / "in.csv", tmp_path / "out.parquet", cluster=cluster, **slow)
        while not job.done() and len(list(workspace.glob("p0*.json"))) < 3:
            time.sleep(0.02)
        victim = cluster.workers[0].process
        assert not job.done()

        os.kill(victim.pid, signal.SIGKILL)

        assert job.result(timeout=60).rows == ROWS

    assert digest(tmp_path / "out.parquet") == digest(tmp_path / "calm.parquet")


def test_two_identical_jobs_on_one_scheduler_both_complete(
    process_cluster: LocalCluster, folder: Path, options: dict[str, Any], threads: str, tmp_path: Path
) -> None:
    """The same job twice at once on one scheduler is two jobs: both outputs are whole and equal."""
    outputs = [tmp_path / "first.parquet", tmp_path / "second.parquet"]

    def job(output: Path) -> bs.Report:
        return bs.score(folder / "in.csv", output, cluster=process_cluster, **options)

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(job, outputs, timeout=60))

    assert [report.rows for report in reports] == [ROWS, ROWS]
    assert [digest(output) for output in outputs] == [threads, threads]


def test_the_graph_has_one_dask_partition_per_partition(
    folder: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    """`plan(...).graph()` is the lazy frame of receipts, to inspect; looking at it scores nothing."""
    preview = bs.plan(folder / "in.csv", tmp_path / "out.parquet", **options)

    graph = preview.graph()

    assert graph.npartitions == preview.partitions > 5
    assert list(graph.columns)[:3] == ["partition", "rows_in", "rows_out"]
    delayed = graph.to_delayed()
    assert len(delayed) == preview.partitions
    assert all(isinstance(one, Delayed) for one in delayed)
    assert len({one.key for one in delayed}) == preview.partitions
    assert list(tmp_path.iterdir()) == []


def test_the_graph_computes_to_receipts(folder: Path, options: dict[str, Any], tmp_path: Path) -> None:
    """The graph is the job: computed in a workspace it gives a receipt per partition, 600 rows in all."""
    preview = bs.plan(folder / "in.csv", tmp_path / "out.parquet", **options)
    (tmp_path / ".out.parquet.batchserve").mkdir()

    receipts = preview.graph().compute(scheduler="threads")

    assert receipts["partition"].tolist() == list(range(preview.partitions))
    assert receipts["rows_out"].sum() == ROWS


def test_a_graph_needs_an_output(folder: Path, options: dict[str, Any]) -> None:
    """A plan without an output has nowhere to write parts: its graph is refused with the way to one."""
    with pytest.raises(bs.BatchserveError, match="plan with an output"):
        bs.plan(folder / "in.csv", **options).graph()


@pytest.mark.parametrize(("more", "in_place"), [("", True), (", partition_size=2000, workers=2", False)])
def test_a_job_of_this_process_imports_no_dask(
    more: str, in_place: bool, folder: Path, tmp_path: Path
) -> None:
    """One partition is scored in place, several on threads: neither Dask nor distributed is ever imported."""
    files = f"{str(folder / 'in.csv')!r}, 'out.parquet', model={str(folder / 'named.onnx')!r}"
    script = (
        "import sys, batchserve as bs\n"
        f"r = bs.score({files}{more})\n"
        "print(r.in_place, r.rows, sorted({'dask', 'distributed'} & set(sys.modules)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout == f"{in_place} {ROWS} []\n"
