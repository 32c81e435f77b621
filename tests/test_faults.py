"""Disks that fail: the n-th call of a job, a read of its input, and disks that are really full or gone."""

import errno
import fcntl
import gzip
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

import numpy as np
import pq_glue
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

import faults
import models
from batchserve import commit, events, glue, job, outputs, storage, workspace
from batchserve.config import Job
from batchserve.errors import MemoryShortError, StorageError, TransientError, from_os, told
from batchserve.inputs import parquet
from batchserve.receipts import OutputReceipt
from conftest import Command, digest, environment
from faults import FAULTS, KINDS, MAIN, Fault, Figures, Kind, Trip
from killing import until
from workbench import listing, spawn

WORKSPACE = ".out.parquet.batchserve"
EIO, MEMORY = MAIN[0], MAIN[-1]


# -- the n-th call ----------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk in memory where there is one: the calls matter, not the bytes."""
    memory = Path("/dev/shm")  # noqa: S108  only to be fast; the folder in it has a name of its own
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder) / "home"


@pytest.mark.parametrize("fault", MAIN, ids=[fault.name for fault in MAIN])
def test_any_call_may_fail(fault: Fault, home: Path) -> None:
    """Whichever call of a job fails, its error says so, finished parts stay, and it can be continued."""
    found = faults.sweep_kind(home, KINDS[0], [fault])

    assert found.violations == []
    assert found.runs == found.failed + found.through
    assert found.failed >= 16


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_any_output_survives_any_fault(kind: Kind, home: Path) -> None:
    """Old outputs, datasets too, are there or replaced whole, whatever fails, for once or for good."""
    found = faults.sweep_kind(home, kind, FAULTS, step=16, pairs=24)

    assert found.violations == []
    assert found.runs >= 80


def test_a_sweep_tells_its_figures(home: Path) -> None:
    """A sweep over all kinds of outputs says how many calls it failed and what came of it."""
    found = faults.sweep(home, step=400)

    assert found.facts()["violations"] == "0"
    assert int(found.facts()["calls failed"]) == found.runs >= len(KINDS)
    assert Figures(1_234, 1, 2, ["x"]).facts() == {
        "calls failed": "1,234",
        "ended with the error that tells it": "1",
        "succeeded all the same": "2",
        "violations": "1",
    }


@contextmanager
def _untranslated(_: object) -> Iterator[None]:
    yield


def _in_place(temporary: Path, found: Any, **_: Any) -> None:
    storage.remove(found.path)
    storage.replace(temporary, found.path)


def _only_closed(sink: storage.Sink) -> None:
    sink._discarded = True
    sink._file.close()


MUTANTS: dict[str, tuple[Kind, Fault, Callable[[pytest.MonkeyPatch], None], str]] = {
    "errors are not translated": (
        KINDS[0], EIO, lambda patch: patch.setattr(outputs, "translated_writing", _untranslated), "OSError"
    ),
    "parts are dropped": (
        KINDS[0], EIO, lambda patch: patch.setattr(workspace, "receipts_in", lambda _: 0), "was lost"
    ),
    "the output is removed first": (
        KINDS[1], EIO, lambda patch: patch.setattr(commit, "_name", _in_place), "neither the old nor the new"
    ),
    "an unfinished part stays": (
        KINDS[0], MEMORY, lambda patch: patch.setattr(storage.Sink, "discard", _only_closed), "litter"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_job_that_breaks_its_promises_is_found_out(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job without one of the things that keep the promises does not pass."""
    kind, fault, break_it, said = MUTANTS[name]
    break_it(monkeypatch)

    found = faults.sweep_kind(home, kind, [fault])

    assert any(said in violation for violation in found.violations)


# -- reading inputs ---------------------------------------------------------------------------

ROWS = 60


def text() -> str:
    return "a,b,kind\n" + "".join(f"{i / 8},{i / 4},red\n" for i in range(ROWS))


def write_csv(path: Path) -> None:
    path.write_text(text())


def write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(text().encode()))


def write_jsonl(path: Path) -> None:
    lines = [f'{{"a": {i / 8}, "b": {i / 4}, "kind": "red"}}\n' for i in range(ROWS)]
    path.write_text("".join(lines))


def write_parquet(path: Path) -> None:
    numbers = [i / 8 for i in range(ROWS)]
    table = pa.table({"a": numbers, "b": numbers, "kind": ["red"] * ROWS})
    pq.write_table(table, path, row_group_size=ROWS // 3)


def write_arrow(path: Path) -> None:
    numbers = [i / 8 for i in range(ROWS)]
    table = pa.table({"a": numbers, "b": numbers, "kind": ["red"] * ROWS})
    feather.write_feather(table, str(path), chunksize=ROWS // 3, compression="uncompressed")


def write_zstd(path: Path) -> None:
    with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as stream:
        stream.write(text().encode())


def write_xz(path: Path) -> None:
    path.write_bytes(lzma.compress(text().encode()))


WRITERS: dict[str, Callable[[Path], None]] = {
    "in.csv": write_csv, "in.csv.gz": write_gzip, "in.jsonl": write_jsonl, "in.parquet": write_parquet,
    "in.arrow": write_arrow, "in.csv.zst": write_zstd, "in.csv.xz": write_xz,
}  # fmt: skip


class Flaky:
    """A file whose opening and reading go through a trip."""

    def __init__(self, trip: Trip, file: Any) -> None:
        self._trip, self._file = trip, file

    def read(self, *size: int) -> Any:
        return self._trip.call("read", self._file.read, *size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def flaky(trip: Trip, folder: Path) -> Iterator[None]:
    """Let reads of the input in `folder` go through a trip; Arrow's own reads of a file as a whole."""
    opened, file, stored = Path.open, pq.ParquetFile, pa.OSFile

    def open_path(path: Path, *given: Any, **more: Any) -> Any:
        if path.parent != folder or not path.name.startswith("in."):
            return opened(path, *given, **more)
        return Flaky(trip, trip.call("read", lambda: opened(path, *given, **more)))

    def open_parquet(*given: Any, **more: Any) -> Any:
        return trip.call("read", lambda: file(*given, **more))

    def open_arrow(*given: Any) -> Any:
        return trip.call("read", lambda: stored(*given))

    with (
        patch.object(Path, "open", open_path),
        patch.object(pa, "OSFile", open_arrow),
        patch.object(parquet, "pq", SimpleNamespace(ParquetFile=open_parquet)),
    ):
        yield


class Reader:
    """A job of three partitions (packed: one) whose input may be hard to read."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, path = home, home / name
        WRITERS[name](path)
        size = path.stat().st_size // 3
        self.job = Job(model=str(models.named(home)), workers=1, batch_rows=64, partition_size=size)
        self.paths = [str(path)], str(home / "out.parquet")

    def plan(self, trip: Trip) -> int:
        """Plan; return how many partitions there are."""
        with flaky(trip, self.home):
            return len(job.plan(self.job, self.paths[0])[0].partitions)

    def score(self, trip: Trip, *, keep: bool = False) -> OutputReceipt:
        """Score; return the receipt of the output, which is removed unless it is to be kept."""
        with flaky(trip, self.home), faults.in_process():
            done = job.score(self.job.model_copy(update={"overwrite": True}), *self.paths, events.Silent())
        self.digest = digest(Path(self.paths[1]))
        for path in [] if keep else self.home.glob("out.*"):
            path.unlink()
        return done.receipt


@pytest.fixture(params=WRITERS)
def reader(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setattr(storage, "_FIRST_DELAY_S", 0)
    return Reader(tmp_path, request.param)


def test_a_read_that_fails_once_is_tried_again(reader: Reader) -> None:
    """Whichever read fails for the moment, the job succeeds; its receipt counts those of the partitions."""
    planned, calm = Trip(EIO, 0), Trip(EIO, 0)
    reader.plan(planned)
    reader.score(calm)
    undisturbed = reader.digest

    for number in range(1, len(calm.calls) + 1):
        receipt = reader.score(Trip(EIO, number))

        assert receipt.read_retries == (number > len(planned.calls))
        assert reader.digest == undisturbed


def test_a_read_that_goes_on_failing_before_the_work_is_told(reader: Reader) -> None:
    """Whichever read of the plan fails for good, it is not taken for damage, and nothing is written."""
    planned, before = Trip(EIO, 0), listing(reader.home)
    reader.plan(planned)

    for number in range(1, len(planned.calls) + 1):
        with pytest.raises(TransientError, match=r"in\..*: cannot be read"):
            reader.score(Trip(Fault("gone", errno.ESTALE, lasting=True), number))

        assert listing(reader.home) == before


def test_a_read_that_goes_on_failing_ends_the_job(reader: Reader) -> None:
    """After five failures the job gives up, keeps what is finished, and can be continued."""
    partitions, calm = reader.plan(Trip(EIO, 0)), Trip(EIO, 0)
    reader.score(calm)
    undisturbed = reader.digest
    broken = Trip(Fault("gone", errno.ESTALE, lasting=True), len(calm.calls))

    with pytest.raises(TransientError, match="cannot be read"):
        reader.score(broken)
    kept = list((reader.home / WORKSPACE).glob("p0*.json"))
    reader.score(Trip(EIO, 0))

    assert len(broken.calls) - len(calm.calls) >= 4
    assert len(kept) == partitions - 1
    assert reader.digest == undisturbed


def no_memory(*_: Any, **__: Any) -> Any:
    """Fail as Arrow does, whose MemoryError is one of its other errors too."""
    raise pa.lib.ArrowMemoryError("malloc of size 4096 failed")


@pytest.mark.parametrize(
    ("module", "name"),
    [(parquet, "pq"), (glue, "_read_back"), (pq, "read_metadata")],
    ids=["input", "parts", "old output"],
)
def test_memory_that_runs_out_in_arrow_is_told(
    module: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Arrow runs out of memory no file is taken for a damaged one, and there is a way on."""
    reader = Reader(tmp_path, "in.parquet")
    reader.score(Trip(EIO, 0), keep=True)
    instead: Any = SimpleNamespace(ParquetFile=no_memory) if name == "pq" else no_memory

    with monkeypatch.context() as patched:
        patched.setattr(module, name, instead)
        with pytest.raises(MemoryShortError, match="memory ran out"), faults.in_process():
            job.score(reader.job.model_copy(update={"overwrite": True}), *reader.paths, events.Silent())

    reader.score(Trip(EIO, 0))


# -- nobody else tells it ---------------------------------------------------------------------


def test_what_the_system_refuses_is_no_bug(command: Command) -> None:
    """A path that the system does not even look at is told with its name; it is no bug of ours."""
    done = command("plan", f"{'x' * 300}.csv", "--model", "m.onnx")

    assert done.returncode == 74
    assert "xxx.csv: File name too long" in done.stderr
    assert "bug" not in done.stderr


def test_errors_that_are_of_no_file_stay_as_they_are() -> None:
    """What is not about a file, a broken connection say, is not taken for a failing disk."""
    with pytest.raises(ConnectionResetError), told():
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def test_memory_that_the_system_refuses_is_told() -> None:
    """The system's way to say that memory ran out is exit 75, not a failing disk."""
    assert from_os(OSError(errno.ENOMEM, "Cannot allocate memory"), "in.csv").exit_code == 75


def test_what_is_left_of_a_published_job_is_only_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the workspace of a complete output cannot be removed the job has succeeded, and says so."""
    reader, notes = Reader(tmp_path, "in.csv"), []

    def refuse(_: Path) -> None:
        raise StorageError("the workspace: Input/output error", "check the disk")

    listener = SimpleNamespace(on=lambda event: notes.append(getattr(event, "text", "")))
    with monkeypatch.context() as patched, faults.in_process():
        patched.setattr(workspace, "discard", refuse)
        first = job.score(reader.job, *reader.paths, listener)
    again = job.score(reader.job, *reader.paths, events.Silent())

    assert any("the output is complete" in note and "Input/output error" in note for note in notes)
    assert (first.skipped, again.skipped) == (False, True)
    assert not (tmp_path / WORKSPACE).exists()


def test_a_glued_file_that_cannot_be_read_back_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was put together and is no Parquet is a failing disk; the same command puts it anew."""
    reader = Reader(tmp_path, "in.csv")

    with monkeypatch.context() as patched:
        patched.setattr(pq_glue, "concat", lambda _, output: Path(output).write_bytes(b"PAR1 and no more"))
        with pytest.raises(StorageError, match="cannot be read back"):
            reader.score(Trip(EIO, 0))

    reader.score(Trip(EIO, 0))


# -- the lock ---------------------------------------------------------------------------------


def test_a_lock_that_goes_away_while_it_is_taken_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another process removes the folder, or the lock in it, in that very moment, it is made again."""
    lock = tmp_path / "workspace" / "lock"
    others: list[Callable[[Any], object]] = [shutil.rmtree, id, lambda _: lock.unlink()]
    moments = chain(others, repeat(id))
    made, flock = storage.Disk.make_dir, fcntl.flock

    def make_dir(disk: storage.Disk, path: Path) -> None:
        made(disk, path)
        next(moments)(path)

    def take(file: Any, operation: int) -> None:
        next(moments)(file)
        flock(file, operation)

    monkeypatch.setattr(storage.Disk, "make_dir", make_dir)
    monkeypatch.setattr(fcntl, "flock", take)
    monkeypatch.setattr(storage, "_LOCK_POLL_S", 0)

    with storage.locked(lock, 5):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")


# -- real disks -------------------------------------------------------------------------------

SIZE_BYTES = 4 << 20
PARTS = 3


@dataclass(frozen=True)
class Calm:
    """A job of three partitions, and what comes of it if nobody disturbs it."""

    arguments: tuple[str | Path, ...]
    """Of the command, without the output."""
    digest: str
    size_bytes: int
    """Of the output."""

    def to(self, output: Path) -> tuple[str | Path, ...]:
        """Return the arguments of the command."""
        return ("score", self.arguments[0], output, *self.arguments[1:])


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    home = tmp_path_factory.mktemp("calm")
    numbers = np.random.default_rng(1).random((9_000, 2))
    rows = [f"{a:.12f},{b:.12f},red\n" for a, b in numbers]
    (home / "in.csv").write_text("a,b,kind\n" + "".join(rows))
    size = str((home / "in.csv").stat().st_size // PARTS + 64)
    model = ("--model", models.named(home), "--workers", "1", "--partition-size", size)
    arguments: tuple[str | Path, ...] = (home / "in.csv", *model)
    job_ = Calm(arguments, "", 0)
    subprocess.run(
        [sys.executable, "-m", "batchserve", *map(str, job_.to(home / "out.parquet"))],
        env=environment(), check=True,
    )  # fmt: skip
    output = home / "out.parquet"
    return Calm(arguments, digest(output), output.stat().st_size)


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "out.parquet"

    def free_bytes(self) -> int:
        return storage.disk.free_bytes(self.folder)

    def leave(self, size_bytes: int) -> None:
        """Fill the disk but for so many bytes."""
        filling = self.folder / "filling"
        filling.unlink(missing_ok=True)
        filling.write_bytes(bytes(max(0, self.free_bytes() - size_bytes)))

    def clear(self) -> None:
        """Give all the space back."""
        (self.folder / "filling").unlink()

    def mount(self, *options: str) -> bool:
        command = [_tool("mount"), "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def receipts(self) -> int:
        return len(list((self.folder / WORKSPACE).glob("p0*.json")))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name != "filling")


def _tool(name: str) -> str:
    return shutil.which(name) or name


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = Disk(folder)
    if sys.platform != "linux" or os.geteuid() != 0 or not made.mount(f"size={SIZE_BYTES}"):
        pytest.skip("only root may mount a file system, and not on every machine")
    yield made
    subprocess.run([_tool("umount"), "--lazy", str(folder)], check=True)


TAKEN = "from batchserve import commit\ncommit._check_space = lambda *_: None"
"""Lets the copy begin, as if somebody had taken the space just after it was looked for."""


def test_a_full_disk_is_left_and_come_back_to(disk: Disk, calm: Calm) -> None:
    """Full at any step the job ends with 74 and keeps its parts; given space little by little it ends."""
    steps = [(0, ""), (4_096, ""), (0.6, ""), (1.3, ""), (0.5, TAKEN)]
    kept = []
    for free, before in steps:
        disk.leave(int(free if free == 0 or free > 2 else free * calm.size_bytes))
        failed = spawn(*calm.to(disk.output), before=before)

        assert failed.code == 74, failed.err
        assert "Traceback" not in failed.err
        assert not disk.output.exists()
        kept.append(disk.receipts())
    glued = list((disk.folder / WORKSPACE).glob("output.*"))
    disk.clear()
    finished = spawn(*calm.to(disk.output))

    assert kept == [0, 0, 1, 3, 3]
    assert not glued  # it is as large as the output
    assert finished.code == 0, finished.err
    assert "continuing: 3 of 3 partitions done" in finished.err
    assert digest(disk.output) == calm.digest
    assert disk.names() == ["out.parquet", "out.receipt.json"]


def test_a_hopeless_job_is_not_begun(disk: Disk, calm: Calm, command: Command) -> None:
    """Where there is not a quarter of the space that will be needed, nothing is written."""
    disk.leave(60_000)

    refused = command(*calm.to(disk.output))

    assert refused.returncode == 74
    assert "bytes will be needed" in refused.stderr
    assert disk.names() == []


def test_finished_parts_need_no_space(disk: Disk, calm: Calm, command: Command) -> None:
    """A job whose parts are done is not refused for the space that they have taken already."""
    full = "from batchserve import commit\ncommit.publish = lambda *_, **__: 1 / 0"
    output = disk.folder / "out"
    failed = spawn(*calm.to(output), before=full)
    disk.leave(24_000)

    finished = command(*calm.to(output))

    assert failed.code == 1
    assert finished.returncode == 0, finished.stderr
    assert "continuing: 3 of 3 partitions done" in finished.stderr


def test_a_full_disk_can_be_cleaned(disk: Disk, calm: Calm, command: Command) -> None:
    """What an unfinished run left can be removed where there is not a byte left to say who does it."""
    disk.leave(int(0.6 * calm.size_bytes))
    failed = command(*calm.to(disk.output))
    (disk.folder / WORKSPACE / "lock").write_bytes(b"")
    disk.leave(0)

    cleaned = command("clean", disk.output)

    assert failed.returncode == 74
    assert cleaned.returncode == 0, cleaned.stderr
    assert disk.names() == []


def test_a_disk_that_is_read_only_keeps_what_it_has(disk: Disk, calm: Calm, command: Command) -> None:
    """On a disk that was remounted read-only the job ends with 74; writable again, it is continued.

    While a job runs its lock is open, and the kernel refuses: for that see EROFS in `faults.py`.
    """
    disk.leave(int(0.6 * calm.size_bytes))
    full = command(*calm.to(disk.output))
    assert disk.mount("remount", "ro")

    refused = command(*calm.to(disk.output))
    kept = disk.receipts()
    assert disk.mount("remount", "rw")
    disk.clear()
    finished = command(*calm.to(disk.output))

    assert (full.returncode, refused.returncode, kept) == (74, 74, 1)
    assert "Read-only file system" in refused.stderr
    assert finished.returncode == 0, finished.stderr
    assert "continuing: 1 of 3 partitions done" in finished.stderr
    assert digest(disk.output) == calm.digest


@pytest.fixture(scope="module")
def long_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    """Return the arguments of a job of 40 partitions that take a while; the output is out.parquet."""
    home = tmp_path_factory.mktemp("long")
    numbers = np.random.default_rng(1).random((1_000, 2))
    (home / "in.csv").write_text("a,b\n" + "".join(f"{a:.8f},{b:.8f}\n" for a, b in numbers))
    model = ("--model", models.heavy(home), "--batch-rows", "64", "--workers", "2")
    return ("score", home / "in.csv", "out.parquet", *model, "--partition-size", "550")


@pytest.mark.parametrize("gone", [WORKSPACE, "."], ids=["workspace", "folder"])
def test_a_folder_that_is_removed_under_the_job_is_told(
    gone: str, tmp_path: Path, long_job: tuple[str | Path, ...]
) -> None:
    """When the workspace, or the whole folder, goes away the job ends with 74; then it can be begun anew."""
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    place.mkdir()
    output = place / "out.parquet"
    arguments = [str(output) if a == "out.parquet" else str(a) for a in long_job]
    running = subprocess.Popen(
        [sys.executable, "-m", "batchserve", *arguments],
        cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: list((place / WORKSPACE).glob("p0*.json")) or running.poll() is not None)
    (place / gone).rename(elsewhere)
    _, said = running.communicate(timeout=60)
    place.mkdir(exist_ok=True)
    again = spawn(*arguments)

    assert running.returncode == 74, said
    assert "was removed while the job ran" in said
    assert "Traceback" not in said
    assert again.code == 0, again.err
    assert pq.read_metadata(output).num_rows == 1_000
    assert sorted(path.name for path in place.iterdir()) == ["out.parquet", "out.receipt.json"]
