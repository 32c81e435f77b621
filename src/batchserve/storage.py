"""The one seam to disks: every effect the commit protocol has on files happens here.

Durability rests on three rules (reliability is built from them, nowhere else):
a file is complete and synced before it gets its real name, a name is given by `link` (the
first one wins) or by `rename`, and the folder is synced after the name was given.

`Disk` is what the protocol asks of a file system, one call each; `disk` is the one in use.
Tests put another there: one that remembers what a power loss would leave, or one that fails.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import random
import shlex
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO, TypeVar

from batchserve.errors import BatchserveError, OutputError, RetryError, StorageError, TransientError, from_os
from batchserve.stopwatch import Stopwatch

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_HASH_CHUNK_BYTES = 4 << 20
_LOCK_POLL_S = 0.1
_SEAL = '\n"seal":"'


class Disk:
    """A file system, one method per effect or question of the protocol."""

    def create(self, path: Path) -> BinaryIO:
        """Open the new file `path`; raise FileExistsError if the name is taken."""
        return path.open("xb")

    def sync(self, file: BinaryIO) -> None:
        """Make the bytes written to `file` survive a power loss."""
        file.flush()
        os.fsync(file.fileno())

    def sync_file(self, path: Path) -> None:
        """Make the bytes of `path` survive a power loss."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_dir(self, path: Path) -> None:
        """Make the names in folder `path` survive a power loss."""
        self.sync_file(path)

    def link(self, existing: Path, path: Path) -> None:
        """Give a file a second name; raise FileExistsError if the name is taken."""
        os.link(existing, path)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file, or a folder, another name in one step; a file there is replaced."""
        old.rename(new)

    def exchange(self, first: Path, second: Path) -> None:
        """Swap two names in one step (Linux `renameat2` with RENAME_EXCHANGE)."""
        libc = ctypes.CDLL(None, use_errno=True)
        swap = getattr(libc, "renameat2", None) if sys.platform == "linux" else None
        names = os.fsencode(first), os.fsencode(second)
        if swap is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def make_dir(self, path: Path) -> None:
        """Make folder `path` if it is not there."""
        path.mkdir(exist_ok=True)

    def unlink(self, path: Path) -> None:
        """Take away the name `path` of a file; raise FileNotFoundError if there is none."""
        path.unlink()

    def remove_dir(self, path: Path) -> None:
        """Remove the empty folder `path`."""
        path.rmdir()

    def mode(self, path: Path) -> int | None:
        """Return the permission bits of `path`, or None if it is not there."""
        try:
            return stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            return None

    def set_mode(self, path: Path, mode: int) -> None:
        """Set the permission bits of `path`."""
        path.chmod(mode)

    def read(self, path: Path) -> bytes:
        """Return what the file `path` holds."""
        return path.read_bytes()

    def head(self, path: Path, size_bytes: int) -> bytes:
        """Return the first bytes of the file `path`."""
        with path.open("rb") as file:
            return file.read(size_bytes)

    def size_bytes(self, path: Path) -> int | None:
        """Return the size of the file `path`, or None if there is none."""
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def is_dir(self, path: Path) -> bool:
        """Whether `path` is a folder."""
        return path.is_dir()

    def names(self, folder: Path) -> list[str]:
        """Return the names in `folder`; none if it is not there."""
        return sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208  names, not paths

    def sha256(self, path: Path) -> str:
        """Return the digest of the whole file `path`."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def free_bytes(self, folder: Path) -> int:
        """Return how many bytes this user may still write to the file system of `folder`."""
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize


disk = Disk()
"""The disk in use."""


@contextmanager
def translated(path: Path | str) -> Iterator[None]:
    """Turn an `OSError` about `path` into the batchserve error that says what to do."""
    try:
        yield
    except OSError as error:
        raise from_os(error, str(path)) from error


@contextmanager
def translated_writing(folder: Path | str) -> Iterator[None]:
    """Like `translated`, for a folder of ours: when it is gone, the disk failed, not the user."""
    try:
        yield
    except FileNotFoundError as error:
        message = f"{folder}: was removed while the job ran"
        raise StorageError(message, "run the same command again, and leave the folder alone") from error
    except OSError as error:
        raise from_os(error, str(folder)) from error


_TRANSIENT = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.ENETDOWN,
    errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EAGAIN, errno.EREMOTEIO,
}  # fmt: skip
"""What a network file system says when it may well answer a moment later."""


@contextmanager
def transient_reading(path: Path | str) -> Iterator[None]:
    """Tell failures of reading that may pass from those that will not.

    Raises:
        TransientError: The system's error, here or behind an error of ours, is one that passes.
    """
    try:
        yield
    except (OSError, BatchserveError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in _TRANSIENT:
            named = error.message.partition(": ")[0] if isinstance(error, BatchserveError) else path
            message = f"{named}: cannot be read ({cause.strerror or cause})"
            raise TransientError(message, "check the disk or the network, then run it again") from error
        raise


_RETRIES = 4
_FIRST_DELAY_S = 0.5
T = TypeVar("T")


def patiently(read: Callable[[int], T]) -> T:
    """Read, and where that fails in a way that may pass, again: four times, after longer and longer pauses.

    Args:
        read: Given how often it was called before.

    Raises:
        TransientError: It failed five times.
    """
    for tries in range(_RETRIES):
        try:
            return read(tries)
        except TransientError:
            time.sleep(_FIRST_DELAY_S * 2**tries * random.uniform(0.5, 1.5))  # noqa: S311  jitter
    return read(_RETRIES)


class Sink:
    """A new file that hashes what is written to it; pyarrow writes Parquet into it.

    Attributes:
        size_bytes: Bytes written so far.
        watch: Measures how long they take.
    """

    def __init__(self, path: Path) -> None:
        self._file = disk.create(path)
        self._whole = hashlib.sha256()
        self._section = hashlib.sha256()
        self._discarded = False
        self.size_bytes = 0
        self.watch = Stopwatch()
        self.path = path

    def write(self, data: bytes) -> int:
        """Append `data` and return its length in bytes."""
        view = memoryview(data).cast("B")
        if self._discarded:
            return view.nbytes  # pyarrow finishes a file when its writer is collected: into nothing
        with self.watch:
            self._file.write(view)
            self._whole.update(view)
            self._section.update(view)
        self.size_bytes += view.nbytes
        return view.nbytes

    def section_sha256(self) -> str:
        """Return the digest of what was written since the last call, and start afresh."""
        digest, self._section = self._section.hexdigest(), hashlib.sha256()
        return digest

    def sha256(self) -> str:
        """Return the digest of everything written."""
        return self._whole.hexdigest()

    def tell(self) -> int:
        """Return the position, which is always the end."""
        return self.size_bytes

    def flush(self) -> None:
        """Hand buffered bytes to the operating system."""
        self._file.flush()

    def sync(self) -> None:
        """Make the bytes survive a power loss, and close the file."""
        with self.watch:
            disk.sync(self._file)
            self._file.close()

    def close(self) -> None:
        """Do nothing: pyarrow closes its sink, but only `sync` or `discard` ends this file."""

    @property
    def closed(self) -> bool:
        """Whether `sync` or `discard` was called."""
        return self._file.closed

    def discard(self) -> None:
        """Close and remove the file: it was never named by a receipt. What fails of it is litter."""
        self._discarded = True
        with suppress(OSError, MemoryError):
            self._file.close()
        with suppress(OSError, MemoryError):
            remove(self.path)


def write_durable(path: Path, data: bytes) -> None:
    """Write `data` to the new file `path` and sync it."""
    file = disk.create(path)
    with scratch(path), file:
        file.write(data)
        disk.sync(file)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Give the path of a new file, which is removed if the block fails."""
    try:
        yield path
    except BaseException:
        with suppress(OSError, MemoryError):
            remove(path)
        raise


def seal(text: str) -> bytes:
    """Return a JSON object with a last key that holds the digest of all before it.

    Example:
        >>> unseal(seal('{"a": 1}'))
        '{"a": 1}'
    """
    body = text.rstrip().removesuffix("}").rstrip()
    return f'{body},{_SEAL}{hashlib.sha256(body.encode()).hexdigest()}"}}'.encode()


def unseal(data: bytes) -> str:
    """Return the JSON object that was sealed.

    Raises:
        ValueError: It is not what `seal` gave, to the bit.
    """
    body, _, tail = data.decode().rpartition(f",{_SEAL}")
    if tail != f'{hashlib.sha256(body.encode()).hexdigest()}"}}':
        raise ValueError("its digest does not fit")
    return f"{body}}}"


def link_first(temporary: Path, path: Path) -> bool:
    """Give `temporary` the name `path` unless the name is taken; drop the temporary name.

    Returns:
        True if this call gave the name, False if another had it already.
    """
    try:
        disk.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        remove(temporary)
    disk.sync_dir(path.parent)
    return True


def replace(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path` in one atomic step, whatever had it before."""
    disk.rename(temporary, path)
    disk.sync_dir(path.parent)


def keep_mode(old: Path, new: Path) -> None:
    """Give `new` the permission bits of what it will replace, if there is anything."""
    mode = disk.mode(old)
    if mode is not None:
        disk.set_mode(new, mode)


_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


def exchange(first: Path, second: Path) -> None:
    """Swap two names in one atomic step.

    Raises:
        OutputError: Where the system or file system cannot do it.
    """
    try:
        disk.exchange(first, second)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        message = f"{second}: this file system cannot swap folders in one step ({error.strerror})"
        raise OutputError(message, "write to a new folder: name another output") from error
    disk.sync_dir(second.parent)


def make_dir(path: Path) -> None:
    """Make folder `path` if it is not there, durably."""
    disk.make_dir(path)
    disk.sync_dir(path.parent)


def remove(path: Path) -> None:
    """Remove the file `path` if it is there."""
    with suppress(FileNotFoundError):
        disk.unlink(path)


def remove_tree(path: Path, first: Sequence[str] = ()) -> None:
    """Remove folder `path` and all in it, if it is there; the names in `first` before the rest."""
    for name in [*first, *disk.names(path)]:
        entry = path / name
        if disk.is_dir(entry):
            remove_tree(entry)
        else:
            remove(entry)
    if disk.is_dir(path):
        with suppress(FileNotFoundError):  # somebody else is removing it too
            disk.remove_dir(path)
            disk.sync_dir(path.parent)


@contextmanager
def locked(path: Path, wait_s: float = 0) -> Iterator[None]:
    """Hold the lock file `path`; the kernel lets go of it when this process ends.

    Args:
        path: The lock file; made if it is not there.
        wait_s: How long to wait for another process, in seconds.

    Raises:
        RetryError: Another process holds it.
    """
    give_up = time.monotonic() + wait_s
    while (file := _locked_or_none(path)) is None:
        if time.monotonic() >= give_up:
            message = f"{path.parent}: {_holder(path)} is writing this output"
            raise RetryError(message, "wait for it, then run the same command again")
        time.sleep(_LOCK_POLL_S)
    with file:
        yield


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace").strip() or "another process"
    return "another process"


def _locked_or_none(path: Path) -> TextIO | None:
    with translated_writing(path.parent):
        return _try_lock(path)


def _try_lock(path: Path) -> TextIO | None:
    """Lock the file; None if another process has it, or removed it in this very moment."""
    disk.make_dir(path.parent)
    try:
        file = path.open("a+")
    except FileNotFoundError:
        return None
    try:
        if _is_locked(file, path):
            _sign(file)
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _is_locked(file: TextIO, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))


def _sign(file: TextIO) -> None:
    """Write into a lock who holds it; on a full disk nobody will be told, that is all."""
    with suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {os.uname().nodename}".encode())


def range_sha256(file: BinaryIO, start: int, stop: int) -> str:
    """Return the digest of bytes `start` to `stop` of `file`."""
    digest = hashlib.sha256()
    file.seek(start)
    while start < stop:
        chunk = file.read(min(_HASH_CHUNK_BYTES, stop - start))
        if not chunk:
            break
        digest.update(chunk)
        start += len(chunk)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the digest of the whole file `path`."""
    return disk.sha256(path)


def check_writable(folder: Path) -> None:
    """Check that files can be made in `folder`.

    Raises:
        OutputError: It does not exist or is no folder.
        AccessError: Files cannot be made there.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder", f"make it first: mkdir -p {shlex.quote(str(folder))}")
    problem: BatchserveError | None = None
    probe = folder / f".batchserve-probe-{uuid.uuid4().hex[:12]}"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        problem = from_os(error, str(folder))
        with suppress(OSError):  # it may be there all the same
            probe.unlink()
    if problem:
        raise problem
