"""Partitions that killed the process that scored them, and the error that names them.

A death proves little: the partition may only have stood beside the guilty one, or the machine
was out of memory. So a partition that was in a dead process is scored again alone, in a process
of its own; only when that dies too is it blamed. All others are scored first. The row inside is
not looked for yet: a partition blamed here is where that search will start.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from batchserve.errors import BatchserveError, ModelError, RetryError
from batchserve.inputs import Partition


@dataclass(frozen=True)
class Crash:
    """A partition that was alone in a process when that died."""

    partition: Partition
    cause: str
    """In words: `killed by SIGSEGV`."""
    memory: bool
    """Whether memory ran out, as far as anyone can tell: the kernel kills with SIGKILL."""


def by_signal(partition: Partition, number: int) -> Crash:
    """Build the crash of a process that signal `number` ended."""
    name = signal.Signals(number).name
    return Crash(partition, f"killed by {name}", memory=number == signal.SIGKILL)


def error(crashes: Sequence[Crash], partitions: int) -> BatchserveError:
    """Build the error of a job whose other partitions are scored.

    Args:
        crashes: At least one.
        partitions: Partitions of the job.

    Returns:
        A RetryError if memory ran out, else a ModelError: the same would happen again.
    """
    others = partitions - len(crashes)
    lines = [f"{crash.partition.place}: {crash.cause}, alone in its process" for crash in crashes]
    lines.append(f"the other {others:,} of {partitions:,} partitions are scored and kept")
    if any(crash.memory for crash in crashes):
        hint = "give it more memory, or fewer --batch-rows, then run the same command again"
        return RetryError("\n".join(lines), hint)
    hint = "a row of it, or the model, crashes onnxruntime: correct either, then run it again"
    return ModelError("\n".join(lines), hint)
