"""Kill the real command at work; the same command again gives the bytes of a run left in peace."""

import json
import os
import re
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
WORKERS = 2
SIZE = ("--partition-size", "675")  # 25 lines of 27 bytes

Arguments = tuple[str | Path, ...]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an input of 40 partitions, each worth a twentieth of a second of the model."""
    made = tmp_path_factory.mktemp("job")
    models.heavy(made)
    numbers = np.random.default_rng(1).random((1_000, 2))
    lines = [f"{a:.8f},{b:.8f},{i}\n" for i, (a, b) in enumerate(numbers, start=1_000)]
    (made / "in.csv").write_text("a,b,row\n" + "".join(lines))
    return made


@pytest.fixture(scope="module")
def job(folder: Path) -> Arguments:
    """Return the arguments of the job; the output is out.parquet where the command runs."""
    model = ("--model", folder / "heavy.onnx", "--batch-rows", "64")
    return ("score", folder / "in.csv", "out.parquet", *model, "--workers", str(WORKERS), *SIZE)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, job: Arguments) -> str:
    """Return the digest of the output if nobody disturbs the job."""
    subprocess.run([sys.executable, "-m", "batchserve", *job], cwd=folder, env=environment(), check=True)
    return digest(folder / "out.parquet")


def receipts(place: Path) -> int:
    return len(list((place / ".out.parquet.batchserve").glob("p0*.json")))


def start(job: Arguments, place: Path, done: int = 5) -> subprocess.Popen[str]:
    """Start the command and wait until it has finished so many partitions."""
    running = subprocess.Popen(
        [sys.executable, "-m", "batchserve", *job],
        cwd=place, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    for _ in range(1_200):
        if receipts(place) >= done or running.poll() is not None:
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


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=["SIGKILL", "SIGTERM", "SIGINT"],
)
def test_a_stopped_job_continues_to_the_same_bytes(
    number: signal.Signals, code: int, tmp_path: Path, command: Command, job: Arguments, undisturbed: str
) -> None:
    """However it was stopped, the same command says where it continues and gives the same bytes."""
    running = start(job, tmp_path)

    stopped, said = stop(running, number)
    finished = receipts(tmp_path)
    published = (tmp_path / "out.parquet").exists()
    again = command(*job)

    assert stopped == code
    assert "Traceback" not in said
    assert number == signal.SIGKILL or "the same command continues from the finished parts" in said
    assert not published
    assert 5 <= finished < PARTITIONS
    assert again.returncode == 0, again.stderr
    assert finished <= continued(again.stderr) <= finished + WORKERS
    assert digest(tmp_path / "out.parquet") == undisturbed
    assert not (tmp_path / ".out.parquet.batchserve").exists()


def continued(said: str) -> int:
    """Return how many parts a run says it found, those scored alone after a kill included."""
    found = re.search(rf"continuing: (\d+) of {PARTITIONS} partitions", said)
    assert found, said
    return int(found[1])


def test_a_job_killed_twice_still_continues(
    tmp_path: Path, command: Command, job: Arguments, undisturbed: str
) -> None:
    """A second kill loses nothing that the first run or the second had finished."""
    stop(start(job, tmp_path, done=4), signal.SIGKILL)
    first = receipts(tmp_path)

    stop(start(job, tmp_path, done=first + 4), signal.SIGKILL)
    second = receipts(tmp_path)
    again = command(*job)

    assert second >= first + 4
    assert second <= continued(again.stderr) <= second + WORKERS
    assert digest(tmp_path / "out.parquet") == undisturbed


def test_two_processes_cannot_write_one_output(
    tmp_path: Path, command: Command, job: Arguments, undisturbed: str
) -> None:
    """While one process writes an output a second gets exit 75; the first is not disturbed."""
    running = start(job, tmp_path, done=1)
    os.killpg(running.pid, signal.SIGSTOP)

    second = command(*job)
    os.killpg(running.pid, signal.SIGCONT)
    _, said = running.communicate(timeout=60)

    assert second.returncode == 75
    assert "is writing this output" in second.stderr
    assert running.returncode == 0, said
    assert digest(tmp_path / "out.parquet") == undisturbed


def test_an_unfinished_run_of_another_plan_does_not_leak(
    tmp_path: Path, command: Command, job: Arguments
) -> None:
    """Parts of a killed run are kept from another plan, and never part of its output."""
    stop(start(job, tmp_path), signal.SIGKILL)
    other = (*job, "--keep", "row")

    refused = command(*other)
    done = command(*other, "--fresh")
    (tmp_path / "out.parquet").rename(tmp_path / "first.parquet")
    calm = command(*other)

    assert (refused.returncode, done.returncode, calm.returncode) == (73, 0, 0), done.stderr
    assert "columns kept: nothing more, was a, b" in refused.stderr
    assert "continuing" not in done.stderr
    assert digest(tmp_path / "first.parquet") == digest(tmp_path / "out.parquet")
    assert not (tmp_path / ".out.parquet.batchserve").exists()


def test_a_part_without_a_receipt_is_litter(
    tmp_path: Path, command: Command, job: Arguments, undisturbed: str
) -> None:
    """A part that a kill cut off before its receipt is scored again, not published."""
    stop(start(job, tmp_path), signal.SIGKILL)
    workspace = tmp_path / ".out.parquet.batchserve"
    removed = sorted(workspace.glob("p0*.json"))[:2]
    for path in removed:
        part = json.loads(path.read_text())["part"]
        (workspace / part).write_bytes(b"PAR1 and then nothing")
        path.unlink()
    left = receipts(tmp_path)

    again = command(*job)

    assert left + len(removed) <= continued(again.stderr) <= left + len(removed) + WORKERS
    assert digest(tmp_path / "out.parquet") == undisturbed


def test_a_finished_part_that_was_damaged_is_scored_again(
    tmp_path: Path, command: Command, job: Arguments, undisturbed: str
) -> None:
    """A finished part that lost a bit on the disk is noticed, told and scored again."""
    stop(start(job, tmp_path), signal.SIGKILL)
    workspace = tmp_path / ".out.parquet.batchserve"
    part = workspace / json.loads(min(workspace.glob("p0*.json")).read_text())["part"]
    damaged = bytearray(part.read_bytes())
    damaged[200] ^= 1
    part.write_bytes(damaged)

    again = command(*job)

    assert again.returncode == 0, again.stderr
    assert "1 of the parts changed on the disk: scored again" in again.stderr
    assert digest(tmp_path / "out.parquet") == undisturbed


def test_a_job_killed_before_its_workspace_went_is_done(
    tmp_path: Path, command: Command, job: Arguments, undisturbed: str
) -> None:
    """An output that was published but whose workspace is still there is complete: nothing is redone."""
    calm = command(*job)
    (tmp_path / ".out.parquet.batchserve").mkdir()
    published = (tmp_path / "out.parquet").stat()

    again = command(*job)

    assert (calm.returncode, again.returncode) == (0, 0), again.stderr
    assert (tmp_path / "out.parquet").stat().st_ino == published.st_ino
    assert digest(tmp_path / "out.parquet") == undisturbed
    assert not (tmp_path / ".out.parquet.batchserve").exists()


def test_every_process_makes_the_same_plan(command: Command) -> None:
    """The plan is the same text whatever the hash seed: a resume in a new process finds its parts."""
    flights = Path(__file__).parents[1] / "examples" / "flights" / "flights.csv"

    plans = [command("plan", flights, "--json", PYTHONHASHSEED=seed).stdout for seed in "123"]

    assert json.loads(plans[0])["partitions"]
    assert plans[0] == plans[1] == plans[2]
