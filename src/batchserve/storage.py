"""The one seam to disks: every effect the commit protocol has on files happens here.

Durability rests on three rules (reliability is built from them, nowhere else):
a file is complete and synced before it gets its real name, a name is given by `link` (the
first one wins) or by `rename`, and the folder is synced after the name was given.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from batchserve.errors import BatchserveError, OutputError, RetryError, from_os

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_HASH_CHUNK_BYTES = 4 << 20


@contextmanager
def translated(path: Path | str) -> Iterator[None]:
    """Turn an `OSError` about `path` into the batchserve error that says what to do."""
    try:
        yield
    except OSError as error:
        raise from_os(error, str(path)) from error


class Sink:
    """A new file that hashes what is written to it; pyarrow writes Parquet into it.

    Attributes:
        size_bytes: Bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("xb")
        self._whole = hashlib.sha256()
        self._section = hashlib.sha256()
        self._discarded = False
        self.size_bytes = 0
        self.path = path

    def write(self, data: bytes) -> int:
        """Append `data` and return its length in bytes."""
        view = memoryview(data).cast("B")
        if self._discarded:
            return view.nbytes  # pyarrow finishes a file when its writer is collected: into nothing
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
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Do nothing: pyarrow closes its sink, but only `sync` or `discard` ends this file."""

    @property
    def closed(self) -> bool:
        """Whether `sync` or `discard` was called."""
        return self._file.closed

    def discard(self) -> None:
        """Close and remove the file: it was never named by a receipt."""
        self._discarded = True
        self._file.close()
        self.path.unlink(missing_ok=True)


def create(path: Path) -> Sink:
    """Open a new file at `path`; it must not exist."""
    return Sink(path)


def sync_file(path: Path) -> None:
    """Make the bytes of `path` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_dir(path: Path) -> None:
    """Make the names in folder `path` survive a power loss."""
    sync_file(path)


def write_durable(path: Path, data: bytes) -> None:
    """Write `data` to the new file `path` and sync it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def link_first(temporary: Path, path: Path) -> bool:
    """Give `temporary` the name `path` unless the name is taken; drop the temporary name.

    Returns:
        True if this call gave the name, False if another had it already.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_dir(path.parent)
    return True


def link(existing: Path, path: Path) -> None:
    """Give `existing` the second name `path`, which must be free."""
    os.link(existing, path)


def replace(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path` in one atomic step, whatever had it before."""
    temporary.replace(path)
    sync_dir(path.parent)


def move_dir(staged: Path, path: Path) -> None:
    """Give folder `staged` the name `path`, which must not exist or be an empty folder."""
    staged.rename(path)
    sync_dir(path.parent)


def exchange(first: Path, second: Path) -> None:
    """Swap two names in one atomic step (Linux `renameat2` with RENAME_EXCHANGE).

    Raises:
        OutputError: Where the system or file system cannot do it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    swap = getattr(libc, "renameat2", None) if sys.platform == "linux" else None
    names = os.fsencode(first), os.fsencode(second)
    if swap is None or swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
        reason = os.strerror(ctypes.get_errno() or errno.ENOSYS)
        message = f"{second}: this file system cannot swap folders in one step ({reason})"
        raise OutputError(message, f"remove it first: rm -r {second}")
    sync_dir(second.parent)


def make_dir(path: Path) -> None:
    """Make folder `path` if it is not there, durably."""
    path.mkdir(exist_ok=True)
    sync_dir(path.parent)


def remove(path: Path) -> None:
    """Remove the file `path` if it is there."""
    path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove folder `path` and all in it, if it is there."""
    if path.exists():
        shutil.rmtree(path)
        sync_dir(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; the kernel lets go of it when this process ends.

    Raises:
        RetryError: Another process holds it.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{path.parent}: another batchserve is writing this output"
            raise RetryError(message, "wait for it, then run the same command again") from None
        yield


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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: Path) -> None:
    """Check that files can be made in `folder`.

    Raises:
        OutputError: It does not exist or is no folder.
        AccessError: Files cannot be made there.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder", f"make it first: mkdir -p {folder}")
    problem: BatchserveError | None = None
    probe = folder / f".batchserve-probe-{uuid.uuid4().hex[:12]}"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        problem = from_os(error, str(folder))
    if problem:
        raise problem
