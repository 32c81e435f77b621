"""Kill the real command at work; the same command again gives the bytes of a run left in peace."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import models
from conftest import Command, digest, environment

PARTITIONS = 40
ARGUMENTS = (
    "score",
    "in.csv",
    "out.parquet",
    "--model",
    "heavy.onnx",
    "--workers",
    "2",
    "--batch-rows",
    "64",
)
SIZE = ("--partition-size", "675")  # 25 lines of 27 bytes


@pytest.fixture(autouse=True)
def job(tmp_path: Path) -> None:
    """Make an input of 40 partitions, each worth a tenth of a second of the model."""
    models.heavy(tmp_path)
    numbers = np.random.default_rng(1).random((1_000, 2))
    lines = [f"{a:.8f},{b:.8f},{i}\n" for i, (a, b) in enumerate(numbers, start=1_000)]
    (tmp_path / "in.csv").write_text("a,b,row\n" + "".join(lines))


def receipts(folder: Path, output: str = "out.parquet") -> int:
    return len(list((folder / f".{output}.batchserve").glob("p0*.json")))


def start(folder: Path, *extra: str, done: int = 5) -> subprocess.Popen[str]:
    """Start the command and wait until it has finished so many partitions."""
    running = subprocess.Popen(
        [sys.executable, "-m", "batchserve", *ARGUMENTS, *(extra or SIZE)],
        cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    for _ in range(1_200):
        if receipts(folder) >= done or running.poll() is not None:
            break
        time.sleep(0.05)
    assert running.poll() is None, running.communicate()
    return running


def stop(running: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send a signal to the command; give its exit code and what it said."""
    if number == signal.SIGKILL:
        os.killpg(running.pid, number)
    else:
        running.send_signal(number)
    _, said = running.communicate(timeout=60)
    return running.returncode, said


def undisturbed(folder: Path, command: Command, *extra: str) -> str:
    """Return the digest that the job has if nobody disturbs it."""
    arguments = [text.replace("out.parquet", "calm.parquet") for text in ARGUMENTS]
    calm = command(*arguments, *(extra or SIZE))
    assert calm.returncode == 0, calm.stderr
    return digest(folder / "calm.parquet")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=["SIGKILL", "SIGTERM", "SIGINT"],
)
def test_a_stopped_job_continues_to_the_same_bytes(
    number: signal.Signals, code: int, tmp_path: Path, command: Command
) -> None:
    """However it was stopped, the same command says where it continues and gives the same bytes."""
    running = start(tmp_path)

    stopped, said = stop(running, number)
    finished = receipts(tmp_path)
    published = (tmp_path / "out.parquet").exists()
    again = command(*ARGUMENTS, *SIZE)

    assert stopped == code
    assert "Traceback" not in said
    assert not published
    assert 5 <= finished < PARTITIONS
    assert again.returncode == 0, again.stderr
    assert f"continuing: {finished} of {PARTITIONS} partitions" in again.stderr
    assert digest(tmp_path / "out.parquet") == undisturbed(tmp_path, command)
    assert not (tmp_path / ".out.parquet.batchserve").exists()


def test_a_job_killed_twice_still_continues(tmp_path: Path, command: Command) -> None:
    """A second kill loses nothing that the first run or the second had finished."""
    stop(start(tmp_path, done=4), signal.SIGKILL)
    first = receipts(tmp_path)

    stop(start(tmp_path, done=first + 4), signal.SIGKILL)
    second = receipts(tmp_path)
    again = command(*ARGUMENTS, *SIZE)

    assert second >= first + 4
    assert f"continuing: {second} of {PARTITIONS} partitions" in again.stderr
    assert digest(tmp_path / "out.parquet") == undisturbed(tmp_path, command)


def test_a_stopped_job_says_what_to_do(tmp_path: Path) -> None:
    """SIGTERM is told in two lines: that the job stopped, and that the same command continues it."""
    running = start(tmp_path)

    _, said = stop(running, signal.SIGTERM)

    assert "error: stopped" in said
    assert "the same command continues from the finished parts" in said


def test_two_processes_cannot_write_one_output(tmp_path: Path, command: Command) -> None:
    """While one process writes an output a second gets exit 75; the first is not disturbed."""
    running = start(tmp_path, done=1)

    second = command(*ARGUMENTS, *SIZE)
    _, said = running.communicate(timeout=60)

    assert second.returncode == 75
    assert "another batchserve is writing this output" in second.stderr
    assert running.returncode == 0, said
    assert digest(tmp_path / "out.parquet") == undisturbed(tmp_path, command)


def test_an_unfinished_run_of_another_plan_does_not_leak(tmp_path: Path, command: Command) -> None:
    """Parts that a killed run left under another plan are not taken for parts of this one."""
    stop(start(tmp_path), signal.SIGKILL)
    other = (*SIZE, "--keep", "row")

    done = command(*ARGUMENTS, *other)

    assert done.returncode == 0, done.stderr
    assert "continuing" not in done.stderr
    assert digest(tmp_path / "out.parquet") == undisturbed(tmp_path, command, *other)
    assert not (tmp_path / ".out.parquet.batchserve").exists()


def test_a_part_without_a_receipt_is_litter(tmp_path: Path, command: Command) -> None:
    """A part that a kill cut off before its receipt is scored again, not published."""
    stop(start(tmp_path), signal.SIGKILL)
    workspace = tmp_path / ".out.parquet.batchserve"
    removed = sorted(workspace.glob("p0*.json"))[:2]
    for path in removed:
        part = json.loads(path.read_text())["part"]
        (workspace / part).write_bytes(b"PAR1 and then nothing")
        path.unlink()
    left = receipts(tmp_path)

    again = command(*ARGUMENTS, *SIZE)

    assert f"continuing: {left} of {PARTITIONS} partitions" in again.stderr
    assert digest(tmp_path / "out.parquet") == undisturbed(tmp_path, command)


def test_a_finished_part_that_was_damaged_is_never_published(tmp_path: Path, command: Command) -> None:
    """A finished part that lost a bit on the disk is exit 74, and no output appears."""
    stop(start(tmp_path), signal.SIGKILL)
    workspace = tmp_path / ".out.parquet.batchserve"
    part = workspace / json.loads(min(workspace.glob("p0*.json")).read_text())["part"]
    damaged = bytearray(part.read_bytes())
    damaged[200] ^= 1
    part.write_bytes(damaged)

    again = command(*ARGUMENTS, *SIZE)

    assert again.returncode == 74, again.stderr
    assert not (tmp_path / "out.parquet").exists()


def test_a_job_killed_before_its_workspace_went_is_done(tmp_path: Path, command: Command) -> None:
    """An output that was published but whose workspace is still there is complete: exit 0, nothing redone."""
    calm = command(*ARGUMENTS, *SIZE)
    before = digest(tmp_path / "out.parquet")
    (tmp_path / ".out.parquet.batchserve").mkdir()

    again = command(*ARGUMENTS, *SIZE)

    assert (calm.returncode, again.returncode) == (0, 0), again.stderr
    assert digest(tmp_path / "out.parquet") == before
    assert not (tmp_path / ".out.parquet.batchserve").exists()
