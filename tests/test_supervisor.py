"""The parent of the command, and partitions scored alone: a death is told, survived, and blamed on one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import models
from conftest import Command, digest, environment
from killing import until, works

Arguments = tuple[str | Path, ...]

_DEADLY = """
import os, sys
from batchserve import scoring

honest, deadly = scoring.score_partition, {deadly}


def scripted(partition, *args, **more):
    if partition.index in deadly:
        with scoring.outputs.open_part(args[1] if len(args) > 1 else more["workspace"], partition.name,
                                       (args[0] if args else more["recipe"]).schema_):
            os.kill(os.getpid(), {number})
    return honest(partition, *args, **more)


scoring.score_partition = scripted
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an input of 40 partitions, each worth a twentieth of a second of the model."""
    made = tmp_path_factory.mktemp("job")
    models.heavy(made)
    numbers = np.random.default_rng(2).random((1_000, 2))
    (made / "in.csv").write_text("a,b\n" + "".join(f"{a:.8f},{b:.8f}\n" for a, b in numbers))
    return made


@pytest.fixture
def job(folder: Path) -> Arguments:
    model = ("--model", folder / "heavy.onnx", "--batch-rows", "64", "--partition-size", "550")
    return ("score", folder / "in.csv", "out.parquet", *model, "--workers", "2")


@pytest.fixture
def calm(folder: Path, job: Arguments) -> str:
    """Return the digest of the output of a job that nothing happens to."""
    if not (folder / "out.parquet").exists():
        subprocess.run([sys.executable, "-m", "batchserve", *job], cwd=folder, env=environment(), check=True)
    return digest(folder / "out.parquet")


def receipts(place: Path) -> set[str]:
    return {path.name for path in (place / ".out.parquet.batchserve").glob("p0*.json")}


def begun(job: Arguments, place: Path, wanted: str = "p000003.json") -> "subprocess.Popen[str]":
    """Start the command and wait until a file is in its workspace: the fourth receipt."""
    running = subprocess.Popen(
        [sys.executable, "-m", "batchserve", *job],
        cwd=place, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: list((place / ".out.parquet.batchserve").glob(wanted)))
    return running


def child(of: int) -> int:
    """Return the process that scores: the first child of the parent."""
    return int(psutil.Process(of).children()[0].pid)


def deadly(home: Path, number: int, *partitions: int) -> str:
    """Write a module that Python imports at start; it kills whoever scores these partitions."""
    (home / "site").mkdir()
    text = _DEADLY.format(deadly=partitions, number=number)
    (home / "site" / "sitecustomize.py").write_text(text)
    return str(home / "site")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_job_goes_on_after_the_death_of_its_process(
    number: signal.Signals, job: Arguments, calm: str, tmp_path: Path
) -> None:
    """The parent says what killed the child and begins again; no finished partition is redone."""
    running = begun(job, tmp_path)
    os.kill(child(running.pid), number)
    _, said = running.communicate(timeout=60)

    assert running.returncode == 0, said
    assert f"killed by {number.name}" in said
    assert "continuing:" in said
    assert digest(tmp_path / "out.parquet") == calm


_LEAVING = """
import os, signal
from pathlib import Path
from batchserve import job

honest = job.score


def scripted(*args, **more):
    report = honest(*args, **more)
    if not Path("left").exists():
        Path("left").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return report


job.score = scripted
"""


def test_a_job_that_died_when_it_had_published_is_done(
    job: Arguments, calm: str, tmp_path: Path, command: Command
) -> None:
    """A child that is killed after the last word of its job leaves nothing to do, and no error."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_LEAVING)

    done = command(*job, PYTHONPATH=f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}")

    assert done.returncode == 0, done.stderr
    assert "killed by SIGKILL" in done.stderr
    assert digest(tmp_path / "out.parquet") == calm


def test_the_child_dies_with_its_parent(job: Arguments, calm: str, tmp_path: Path, command: Command) -> None:
    """Nothing scores on when the parent was killed, and the same command continues."""
    running = begun(job, tmp_path)
    scorer = child(running.pid)
    running.kill()
    running.communicate()
    until(lambda: not works(scorer))

    again = command(*job)

    assert again.returncode == 0, again.stderr
    assert digest(tmp_path / "out.parquet") == calm


def test_a_partition_that_kills_is_named_when_all_others_are_scored(
    job: Arguments, calm: str, tmp_path: Path, command: Command
) -> None:
    """A partition that dies alone, too, is exit 70; harmless again, it is all that is left to score."""
    path = deadly(tmp_path, signal.SIGSEGV, 7)

    blamed = command(*job, PYTHONPATH=path)
    kept = receipts(tmp_path)
    again = command(*job)

    assert blamed.returncode == 70, blamed.stderr
    assert "partition 7" in blamed.stderr
    assert "killed by SIGSEGV, alone in its process" in blamed.stderr
    assert len(kept) == 39
    assert again.returncode == 0, again.stderr
    assert digest(tmp_path / "out.parquet") == calm


def test_three_deaths_without_a_finished_partition_are_enough(
    job: Arguments, tmp_path: Path, command: Command
) -> None:
    """A process that dies at once, again and again, ends the command with 75 and the signal's name."""
    home = tmp_path / "site"
    home.mkdir()
    (home / "sitecustomize.py").write_text(
        "import batchserve.scoring as s, os, signal\nfrom batchserve import job\n"
        "job.score = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    done = command(*job, PYTHONPATH=str(home))

    assert done.returncode == 75, done.stderr
    assert "3 times" in done.stderr
    assert "SIGKILL" in done.stderr
    assert "the same command continues" in done.stderr


def test_a_second_signal_leaves_at_once(job: Arguments, folder: Path, tmp_path: Path) -> None:
    """Two signals, most of a second apart, end the command in the middle of partitions that take seconds."""
    header, *rows = (folder / "in.csv").read_text().splitlines(keepends=True)
    (tmp_path / "long.csv").write_text(header + "".join(rows) * 200)
    long = (job[0], tmp_path / "long.csv", *job[2:], "--partition-size", "1M")
    running = begun(long, tmp_path, "p0*.parquet")
    assert running.stderr
    running.send_signal(signal.SIGINT)
    while not running.stderr.readline().startswith("stopping"):
        assert running.poll() is None
    time.sleep(0.7)  # a repetition within half a second counts as the same one
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]

    assert running.returncode == 130
    assert "error: stopped" not in said
