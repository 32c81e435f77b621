"""Packed files unpacked once for all their partitions, a few ahead of those that are scored.

A packed file cannot be entered in the middle, nor can one that is decoded as a stream, which is
treated as a packed one from here on. So one reader unpacks it from its start and puts
the records of each partition into a file of its own, a segment, which goes when the partition
is scored. A segment is never needed: who finds none unpacks the file up to its partition.
"""

import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from batchserve import storage
from batchserve.inputs import Partition, Reading, Slice, cutting, records
from batchserve.inputs.dialect import Dialect
from batchserve.storage import patiently, transient_reading, translated_writing

_SUFFIX = ".segment"


def _enters(part: Slice, dialect: Dialect) -> bool:
    """Whether a slice begins in the middle of a file that can only be read from its start."""
    return not part.exact and (part.codec is not None or dialect.streamed)


@dataclass
class _Open:
    """A packed file that is being read."""

    scan: records.Scan
    stack: ExitStack
    """Closes it."""
    stop: int = 0
    """Where the slice that was unpacked last was to end."""


class Unpacker:
    """Makes the segments of packed files, in the order of their partitions.

    Args:
        folder: Where segments go; those that an earlier run left are removed.
        reading: How the files are read.
        partitions: All partitions of the job.
    """

    def __init__(self, folder: Path, reading: Reading, partitions: Iterable[Partition]) -> None:
        self._folder, self._reading = folder, reading
        self._paths = {part.path for p in partitions for part in p.slices if _enters(part, reading.dialect)}
        self._open: dict[str, _Open] = {}
        if self._paths:
            with translated_writing(folder):
                for name in storage.disk.names(folder):
                    if name.endswith(_SUFFIX):
                        storage.remove(folder / name)

    def needed(self, partition: Partition) -> bool:
        """Whether a partition is part of a packed file that has more."""
        return any(part.path in self._paths for part in partition.slices)

    def prepared(self, partition: Partition) -> Partition:
        """Return the partition with segments for what it reads of packed files that have more.

        Raises:
            DataError: A file is damaged or cut off.
            StorageError: The disk is full.
        """
        slices = [
            patiently(partial(self._prepared, part)) if part.path in self._paths else part
            for part in partition.slices
        ]
        return replace(partition, slices=tuple(slices))

    def _prepared(self, part: Slice, _tries: int) -> Slice:
        try:
            with transient_reading(part.path):
                return self._unpacked(part)
        except BaseException:
            self._close(part.path)
            raise

    def _unpacked(self, part: Slice) -> Slice:
        scan = self._scan(part)
        for _ in scan.until(part.start):
            pass
        start = scan.at
        path = self._folder / f"{uuid.uuid4().hex[:12]}{_SUFFIX}"
        with translated_writing(self._folder), path.open("xb") as file:
            for item in scan.until(part.stop):
                if isinstance(item, records.Endless):  # who reads the file itself tells of it
                    path.unlink()
                    return part
                file.write(item.raw)
        return replace(part, start=start, exact=True, segment=str(path))

    def _scan(self, part: Slice) -> records.Scan:
        """Return the scan of a slice's file; it begins anew for what lies before the last one."""
        found = self._open.get(part.path)
        if found is None or part.start < found.stop:
            self._close(part.path)
            stack = ExitStack()
            found = _Open(stack.enter_context(cutting.scan(part, self._reading.dialect)), stack)
            self._open[part.path] = found
        found.stop = part.stop
        return found.scan

    def release(self, partition: Partition) -> None:
        """Remove the segments of a partition."""
        for part in partition.slices:
            if part.segment:
                with translated_writing(self._folder):
                    storage.remove(Path(part.segment))

    def _close(self, path: str) -> None:
        if path in self._open:
            self._open.pop(path).stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for path in list(self._open):
            self._close(path)
