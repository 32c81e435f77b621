"""Where the time of a job went: it adds up, and says what binds."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

import batchserve as bs
import models
from batchserve import machine, outputs, profile, storage
from batchserve.errors import StoppedError
from batchserve.events import Event, PartitionScored, Silent
from batchserve.stopwatch import Stopwatch
from workbench import run

ROWS = 4_000


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make a CSV of several partitions in the working folder, and what scores it."""
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("a,b,c,d\n" + "1,2,3,4\n5,6,7,8\n" * (ROWS // 2))
    return {"model": models.wide(tmp_path), "features": ["a", "b", "c", "d"], "partition_size": 8_000}


@pytest.mark.parametrize("workers", [1, 3])
def test_the_profile_adds_up_to_the_wall_time(job: dict[str, Any], workers: int) -> None:
    """What each core did adds up to the seconds of the job: nothing is counted twice or left out."""
    report = bs.score("in.csv", "out.parquet", workers=workers, **job)

    assert report.partitions > 3
    assert report.profile.total_s == pytest.approx(report.seconds, rel=0.02)
    assert min(report.profile.seconds.values()) >= 0
    assert sum(report.profile.shares.values()) == pytest.approx(1)
    assert set(report.facts()["profile"]) == set(report.profile.seconds)


def test_a_run_that_goes_on_counts_its_own_time_only(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partitions of an earlier, interrupted run are no part of the profile: their time was another's."""

    class Cut(Silent):
        def on(self, event: Event) -> None:
            if isinstance(event, PartitionScored):
                raise StoppedError("stopped")

    quick = outputs.PartWriter.finish

    def slow(part: outputs.PartWriter) -> None:
        time.sleep(0.5)
        quick(part)

    monkeypatch.setattr(outputs.PartWriter, "finish", slow)
    with pytest.raises(StoppedError):
        bs.score("in.csv", "out.parquet", workers=1, listener=Cut(), **job)
    monkeypatch.setattr(outputs.PartWriter, "finish", quick)
    report = bs.score("in.csv", "out.parquet", workers=1, **job)

    assert report.rows_before > 0
    assert report.receipt.seconds["encode"] >= 0.5
    assert report.profile.total_s == pytest.approx(report.seconds, rel=0.02)


def test_a_slow_disk_is_waiting(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that a thread does not run is wait, with the stage that it waited in, and the way out."""
    quick = storage.disk.sync

    def slow(file: Any) -> None:
        time.sleep(0.2)
        quick(file)

    monkeypatch.setattr(storage.disk, "sync", slow)
    report = bs.score("in.csv", "out.parquet", workers=1, **job)

    assert report.profile.waited_in == "write"
    assert report.profile.binds == "wait"
    assert report.profile.advice == "most of it in write: a faster or nearer disk would help"


def test_a_thread_that_works_does_not_wait() -> None:
    """Seconds in which a thread computes are no waiting; sleeping is; what is handed over is taken off."""
    busy, idle = Stopwatch(), Stopwatch()
    with busy:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
    with idle:
        time.sleep(0.05)

    assert busy.seconds - busy.waited_s >= 0.05
    assert idle.waited_s == pytest.approx(idle.seconds, abs=0.02)
    busy.hand_over(Stopwatch(seconds=busy.seconds, waited_s=busy.waited_s))
    assert busy.seconds == busy.waited_s == 0


PHASES = {"start-up": (9, 1, 0), "scheduling": (0, 9, 0), "publish": (0, 1, 9)}


@pytest.mark.parametrize("binds", [*profile.STAGES, "wait", *PHASES])
def test_whatever_binds_has_a_way_out(
    job: dict[str, Any], binds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thing that can bind comes with one change that would help."""
    made = bs.plan("in.csv", "out.parquet", **job).plan
    stage = "model" if binds == "wait" else binds
    receipts = [] if binds in PHASES else [_spent(stage, waited=binds == "wait")]
    phases = profile.Phases(*map(float, PHASES.get(binds, (0, 8, 0))))
    monkeypatch.setattr(machine, "usable_cpus", lambda: 2)

    alone, full = (profile.profiled(made, receipts, workers, phases) for workers in (1, 2))

    assert alone.binds == binds
    assert alone.advice
    assert ("--workers 2" in alone.advice) == (binds == "model")
    assert "--workers 2" not in full.advice


def _spent(stage: str, *, waited: bool) -> outputs.Receipt:
    """Return a receipt of eight seconds of one stage."""
    facts = outputs.Facts(
        rows_in=1, rows_rejected=0, bytes_in=1, extents=(), records=(), refused=(), rejected_by={}, nulls={},
        rounded={}, nonfinite={}, amendments=(), seconds={stage: 8.0},
        waited_s={stage: 7.0 if waited else 0.0},
    )  # fmt: skip
    return outputs.Receipt(
        partition=0, plan_id="", part="p", rows_out=1, size_bytes=1, sha256="", row_groups=(), facts=facts
    )


def test_profile_shows_a_table(job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """--profile says for each core what it did, what binds and what would help; without it only shares."""
    command = ["score", "in.csv", "out.parquet", "-m", job["model"], "--features", "a,b,c,d"]

    plain, told = run(capsys, *command), run(capsys, *command, "--overwrite", "--profile")

    assert "binds" not in plain.err
    assert re.search(
        r"profile: seconds of one worker, after \d+\.\d\d s to start Python and import", told.err
    )
    assert re.search(r"start-up +\d+\.\d\d s +\d+%\n", told.err)
    assert re.search(r"wait +\d+\.\d\d s +\d+%  most of it in \w+\n", told.err)
    assert re.search(r"binds; .+\n$", told.err)
