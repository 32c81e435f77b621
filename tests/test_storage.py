"""The seam to the disk: what survives, who is first, and what is told when it fails."""

import hashlib
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from batchserve import storage
from batchserve.errors import BatchserveError, OutputError, RetryError
from workbench import FLIGHTS, IRIS, IRIS_MODEL, run, spawn


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_sink_hashes_what_it_writes(tmp_path: Path) -> None:
    """A sink knows its length, the digest of everything and of each section, and is on disk after sync."""
    sink = storage.Sink(tmp_path / "part")

    assert sink.write(b"abc") == 3
    assert sink.section_sha256() == digest(b"abc")
    sink.write(memoryview(b"defg"))  # type: ignore[arg-type]  # pyarrow hands over buffers
    sink.flush()

    assert (sink.tell(), sink.size_bytes) == (7, 7)
    assert (sink.section_sha256(), sink.sha256()) == (digest(b"defg"), digest(b"abcdefg"))
    assert (tmp_path / "part").read_bytes() == b"abcdefg"
    sink.close()
    assert not sink.closed
    sink.sync()
    assert sink.closed


def test_a_discarded_sink_leaves_no_file(tmp_path: Path) -> None:
    """A sink that is discarded is gone, written to or not, and may be discarded twice."""
    sink = storage.Sink(tmp_path / "part")
    sink.write(b"abc")

    sink.discard()
    sink.discard()

    assert list(tmp_path.iterdir()) == []


def test_a_sink_never_takes_an_existing_file(tmp_path: Path) -> None:
    """A new file is new: what stands there is neither opened nor changed."""
    (tmp_path / "part").write_bytes(b"old")

    with pytest.raises(FileExistsError):
        storage.Sink(tmp_path / "part")
    with pytest.raises(FileExistsError):
        storage.write_durable(tmp_path / "part", b"new")

    assert (tmp_path / "part").read_bytes() == b"old"


def test_the_first_link_wins(tmp_path: Path) -> None:
    """Of two files linked to one name the first has it, and neither leaves its temporary name."""
    for name in ("a", "b"):
        storage.write_durable(tmp_path / name, name.encode())

    first = storage.link_first(tmp_path / "a", tmp_path / "name")
    second = storage.link_first(tmp_path / "b", tmp_path / "name")

    assert (first, second) == (True, False)
    assert (tmp_path / "name").read_bytes() == b"a"
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_of_many_threads_one_links_first(tmp_path: Path) -> None:
    """Of many that link at once exactly one is first, and its bytes stand there."""
    won: list[int] = []
    barrier = threading.Barrier(8)

    def attempt(i: int) -> None:
        storage.write_durable(tmp_path / f"{i}.tmp", str(i).encode())
        barrier.wait()
        if storage.link_first(tmp_path / f"{i}.tmp", tmp_path / "name"):
            won.append(i)

    threads = [threading.Thread(target=attempt, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    assert (tmp_path / "name").read_bytes() == str(won[0]).encode()


def test_replace_takes_the_name_whoever_has_it(tmp_path: Path) -> None:
    """A file that replaces another has its name and leaves its own."""
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")

    storage.replace(tmp_path / "new", tmp_path / "old")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old": b"new"}


def test_link_gives_a_second_name(tmp_path: Path) -> None:
    """A second name is the same file."""
    (tmp_path / "a").write_bytes(b"a")

    storage.disk.link(tmp_path / "a", tmp_path / "b")

    assert (tmp_path / "a").samefile(tmp_path / "b")


def test_exchange_swaps_two_folders(tmp_path: Path) -> None:
    """Two folders swap their names in one step."""
    for name in ("a", "b"):
        storage.make_dir(tmp_path / name)
        (tmp_path / name / f"was-{name}").touch()

    storage.exchange(tmp_path / "a", tmp_path / "b")

    assert (tmp_path / "a" / "was-b").exists()
    assert (tmp_path / "b" / "was-a").exists()


def test_an_exchange_that_fails_says_what_to_do(tmp_path: Path) -> None:
    """What is wrong with one of two names is told as it is, and not as a lack of the file system."""
    storage.make_dir(tmp_path / "a")

    with pytest.raises(FileNotFoundError):
        storage.exchange(tmp_path / "a", tmp_path / "gone")

    assert (tmp_path / "a").is_dir()


def test_exchange_needs_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On another system the exchange is refused, not tried."""
    monkeypatch.setattr(sys, "platform", "darwin")

    with pytest.raises(OutputError, match="cannot swap folders") as told:
        storage.exchange(tmp_path / "a", tmp_path / "b")

    assert told.value.hint == "write to a new folder: name another output"


def test_replace_takes_an_empty_folders_name(tmp_path: Path) -> None:
    """A staged folder takes a free name, or that of an empty folder, but not that of a full one."""
    for name in ("staged", "again", "empty"):
        storage.make_dir(tmp_path / name)
        (tmp_path / name / "file").touch()
    (tmp_path / "empty" / "file").unlink()

    storage.replace(tmp_path / "staged", tmp_path / "empty")

    assert (tmp_path / "empty" / "file").exists()
    with pytest.raises(OSError, match="not empty"):
        storage.replace(tmp_path / "again", tmp_path / "empty")


def test_removing_what_is_not_there_is_no_fault(tmp_path: Path) -> None:
    """Removing a file or a folder that is gone does nothing; one that is there goes with all in it."""
    storage.make_dir(tmp_path / "a")
    storage.make_dir(tmp_path / "a")
    (tmp_path / "a" / "file").touch()

    storage.remove(tmp_path / "gone")
    storage.remove_tree(tmp_path / "gone")
    storage.remove_tree(tmp_path / "a")

    assert list(tmp_path.iterdir()) == []


def test_ranges_of_a_file_are_hashed(tmp_path: Path) -> None:
    """The digest of a range is that of its bytes, and stops at the file's end."""
    data = bytes(range(256)) * 40
    (tmp_path / "a").write_bytes(data)

    with (tmp_path / "a").open("rb") as file:
        assert storage.range_sha256(file, 3, 9_000) == digest(data[3:9_000])
        assert storage.range_sha256(file, 5, 5) == digest(b"")
        assert storage.range_sha256(file, 100, 10**9) == digest(data[100:])
    assert storage.file_sha256(tmp_path / "a") == digest(data)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Where no folder is, nothing can be written, and the message says how to make it."""
    with pytest.raises(OutputError, match="no such folder") as told:
        storage.check_writable(tmp_path / "gone")

    assert told.value.hint == f"make it first: mkdir -p {tmp_path / 'gone'}"


def test_checking_a_folder_leaves_nothing(tmp_path: Path) -> None:
    """Trying whether files can be made leaves none."""
    storage.check_writable(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_no_file_can_be_made_is_told() -> None:
    """When the attempt to make a file fails, that is told with the folder's name."""
    with pytest.raises(BatchserveError, match="/proc: "):
        storage.check_writable(Path("/proc"))  # the kernel's own, where not even root makes files


HOLDER = """\
import sys
from pathlib import Path
from batchserve import storage
with storage.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_keeps_a_second_process_out(tmp_path: Path) -> None:
    """While one process holds the lock another is refused; when the holder dies the lock is free."""
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        with (
            pytest.raises(RetryError, match=r"process \d+ on .* is writing this output"),
            storage.locked(lock),
        ):
            pytest.fail("the lock was given twice")
        holder.kill()

    with storage.locked(lock):
        assert lock.exists()


def test_whoever_holds_a_lock_that_cannot_be_read_is_another_process(tmp_path: Path) -> None:
    """A lock file that went, or that a full disk left empty, says nothing of its holder."""
    (tmp_path / "empty").touch()

    assert {storage._holder(tmp_path / name) for name in ("gone", "empty")} == {"another process"}


def test_an_output_that_is_being_written_is_exit_75(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second command for the same output is told to wait, and touches nothing of the first."""
    workspace = tmp_path / ".out.parquet.batchserve"
    workspace.mkdir()
    (workspace / "p000000.json").write_text("the first command's")
    with storage.locked(workspace / "lock"):
        done = run(capsys, "score", IRIS, tmp_path / "out.parquet", "-m", IRIS_MODEL)

    assert done.code == 75
    assert "is writing this output" in done.err
    assert (workspace / "p000000.json").read_text() == "the first command's"
    assert not (tmp_path / "out.parquet").exists()


FULL_DISK = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
"""Makes every write beyond so many bytes fail, as a full disk does."""


@pytest.mark.parametrize("limit", [0, 2_000, 60_000, 150_000], ids=["plan", "plan-cut", "part", "output"])
def test_a_disk_that_fills_up_is_exit_74(limit: int, tmp_path: Path) -> None:
    """When the disk is full at any step the job ends with 74 and no output; with room it then finishes."""
    shutil.copy(FLIGHTS.parent / "model.onnx", tmp_path)
    command = (
        "score", FLIGHTS, tmp_path / "out.parquet", "-m", tmp_path / "model.onnx", "--on-null", "nan",
        "--keep", "none" if limit == 0 else "all",
    )  # fmt: skip

    # coverage could not save its own file on that disk, and would say so with a traceback
    unmeasured = {"COVERAGE_PROCESS_CONFIG": ""}
    failed = spawn(*command, before=FULL_DISK.format(limit), environment=unmeasured)

    assert failed.code == 74, failed.err
    assert "File too large" in failed.err
    assert "Traceback" not in failed.err
    assert not (tmp_path / "out.parquet").exists()
    finished = spawn(*command)
    assert finished.code == 0, finished.err
