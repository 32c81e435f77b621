"""Memory: the batch is made to fit the limit in force before the job starts."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import batchserve as bs
import models
from batchserve import machine, memory
from conftest import Command, environment
from workbench import EXAMPLES

GIB = 1 << 30
_V1 = Path("/sys/fs/cgroup/memory")
_GROUP = _V1 / f"batchserve-test-{os.getpid()}"


@pytest.fixture
def job(tmp_path: Path) -> tuple[str | Path, ...]:
    """Return the arguments of a job of 300 rows whose model needs 4 MiB for each."""
    models.hungry(tmp_path)
    (tmp_path / "in.csv").write_text("a\n" + "".join(f"{i / 8}\n" for i in range(300)))
    return ("score", "in.csv", "out.parquet", "--model", "hungry.onnx", "--workers", "2")


def scores(folder: Path) -> list[float]:
    """Return the predictions in the output."""
    column: list[float] = pq.read_table(folder / "out.parquet").column("score").to_pylist()
    return column


def planned_rows(folder: Path) -> int:
    """Return the rows per run that the output's receipt tells."""
    receipt = json.loads((folder / "out.receipt.json").read_text())
    rows: int = receipt["runs"][-1]["plan"]["recipe"]["batch_rows"]
    return rows


def test_the_users_limit_lowers_the_rows_of_a_run(
    job: tuple[str | Path, ...], tmp_path: Path, command: Command
) -> None:
    """With --memory-limit the plan takes fewer rows and says so; the scores are the same."""
    planned = command("plan", *job[1:], "--memory-limit", "1GiB")
    done = command(*job, "--memory-limit", "1GiB")

    assert done.returncode == 0, done.stderr
    assert "1,024 would not fit into memory" in planned.stdout
    assert 64 <= planned_rows(tmp_path) < 256
    assert scores(tmp_path) == [i / 8 for i in range(300)]


def test_a_limit_of_the_process_is_seen(job: tuple[str | Path, ...], tmp_path: Path) -> None:
    """Under RLIMIT_AS a job whose default batch needs 4 GiB finishes, with no flag."""
    done = subprocess.run(
        [sys.executable, "-m", "batchserve", *map(str, job)], cwd=tmp_path, env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert planned_rows(tmp_path) < 1_024
    assert scores(tmp_path) == [i / 8 for i in range(300)]


def test_a_run_that_lacks_memory_is_halved(job: tuple[str | Path, ...], tmp_path: Path) -> None:
    """Rows that the user insists on are halved where memory runs out, and the end of the job says so."""
    done = subprocess.run(
        [sys.executable, "-m", "batchserve", *map(str, job), "--batch-rows", "1024"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 * GIB // 2, 3 * GIB // 2)),
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert planned_rows(tmp_path) == 1_024
    assert "runs of the model lacked memory and were halved: their scores are the same" in done.stderr
    assert scores(tmp_path) == [i / 8 for i in range(300)]


@pytest.mark.parametrize(("example", "matters"), [("iris", True), ("flights", False)])
def test_the_plan_says_if_halving_changes_bits(example: str, matters: bool) -> None:
    """Whether bits depend on the rows of a run is tried, and said before the job begins."""
    folder = EXAMPLES / example
    preview = bs.plan(folder / f"{example}.csv", config=folder / "batchserve.toml")

    said = "a run halved for want of memory would give other last bits" in str(preview)
    assert (preview.plan.recipe.size_matters, said) == (matters, matters)


@pytest.fixture
def group() -> Iterator[Path]:
    """Make a cgroup of 1 GiB in which the kernel really kills."""
    try:
        _GROUP.mkdir()
        (_GROUP / "memory.limit_in_bytes").write_text(str(GIB))
    except OSError:
        pytest.skip("this machine lets nobody make a memory cgroup (version 1)")
    yield _GROUP
    _GROUP.rmdir()


def test_a_cgroup_that_kills_is_respected(group: Path, job: tuple[str | Path, ...], tmp_path: Path) -> None:
    """In a cgroup of 1 GiB a job whose default batch needs 4 GiB finishes, with no flag."""
    done = subprocess.run(
        [sys.executable, "-m", "batchserve", *map(str, job)], cwd=tmp_path, env=environment(),
        preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "killed" not in done.stderr
    assert scores(tmp_path) == [i / 8 for i in range(300)]


def test_the_least_limit_counts() -> None:
    """The user's limit counts where it is the smallest, and not where it is above the machine's."""
    assert machine.memory_bytes(GIB) == min(GIB, machine.memory_bytes())
    assert machine.memory_bytes(1 << 60) == machine.memory_bytes()


FITTING = [(1, 1_024), (3_820, 192), (12_000, 64), (24_000, 32), (800_000, 1), (8_000_000, 1)]
"""KiB for a row, and the rows that fit into 1 GiB: they take 0.7 of it, twice as many do not fit."""


@pytest.mark.parametrize(("need", "rows"), FITTING)
def test_rows_are_halved_until_they_fit(need: int, rows: int) -> None:
    """The rows of a run stay a multiple of 64 as long as 64 fit, and then go down to one."""

    def run(asked: int) -> None:
        bytearray(asked * need << 10)

    found, _ = memory.fitting_rows(run, 768 if rows == 192 else 1_024, GIB, 60)

    assert found == rows
