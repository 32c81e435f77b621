"""Partitions that were in a process that died, each scored alone in a process of its own.

A process that dies leaves attempts: parts that no receipt names. What was in it is scored
first, where it can do no harm to others; only what dies alone, too, is blamed. Its new attempt
stays, so the next run will isolate it again.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from batchserve import crash, events, lifetime, outputs, scoring, storage, trial
from batchserve.errors import BatchserveError, CrashError
from batchserve.events import Listener
from batchserve.inputs import Partition
from batchserve.lookups import NO_CODES, Codes
from batchserve.model import Tensor
from batchserve.outputs import Receipt, Workspace
from batchserve.runs import Runs
from batchserve.scorers import Recipe

_ATTEMPT = re.compile(r"(p\d{6}(?:-from\d+)?)\.[0-9a-f]{12}\.(?:parquet|rejects\.jsonl)")


def suspects(space: Workspace, partitions: Sequence[Partition]) -> list[Partition]:
    """Return the partitions that an earlier process began and did not finish."""
    names = set(_names(space))
    begun = {match[1] for name in names if (match := _ATTEMPT.fullmatch(name))}
    return [p for p in partitions if p.name in begun and f"{p.name}.json" not in names]


def _names(space: Workspace) -> list[str]:
    return storage.disk.names(Path(space.path))


def cleared(
    suspected: Sequence[Partition], recipe: Recipe, space: Workspace, timeout_s: float | None,
    workers: int, listener: Listener,
) -> list[crash.Crash]:  # fmt: skip
    """Score suspects, each in a process of its own; one that dies is scored once more, with no other.

    Args:
        suspected: What to score.
        recipe: How.
        space: Where parts and receipts go.
        timeout_s: Seconds after which a run of the model is stopped, or None.
        workers: How many are scored at once.
        listener: Told which partitions are suspected.

    Returns:
        Those that killed their process; all others are committed.

    Raises:
        BatchserveError: Whatever scoring one of them raised.
    """
    if not suspected:
        return []
    cause = "an earlier run was cut while it scored"
    listener.on(events.Suspected(places=tuple(p.place for p in suspected), cause=cause))
    scored = partial(_died, recipe, space, timeout_s)
    with ThreadPoolExecutor(workers) as pool:
        died = [p for p, number in zip(suspected, pool.map(scored, suspected), strict=True) if number]
    again = [(p, number) for p in died if (number := scored(p))]
    return [
        crash.by_signal(p, number)
        for p, number in again
        if number == signal.SIGKILL or not row_by_row(recipe, space, timeout_s, p)
    ]


def row_by_row(
    recipe: Recipe, space: Workspace, timeout_s: float | None, partition: Partition
) -> Receipt | None:
    """Score a partition that kills its process, the rows that do so left out as rejects.

    Every run of the model is tried in a fork first; one that kills the fork is halved until only
    the guilty rows are left.

    Returns:
        Its receipt, or None if it was not a row that killed the process.

    Raises:
        BatchserveError: Whatever scoring it raised.
    """
    if recipe.rows_depend or _died(recipe, space, timeout_s, partition, kind=ForkedRuns):
        return None
    return outputs.committed(space, partition.name)


class ForkedRuns(Runs):
    """Runs that are tried in a fork of this process first."""

    def run(
        self, outputs: Sequence[str], tensors: Mapping[str, Tensor], codes: Mapping[str, Codes] = NO_CODES
    ) -> list[Any]:
        """Run the model over a batch.

        Raises:
            CrashError: A run in a fork was killed by a signal that is not the kernel's for want of memory.
            ModelError: The runtime refused the tensors or failed.
        """
        del codes  # a row is blamed by what the model itself does
        number = trial.ended(partial(self._tried, outputs, tensors), self._timeout_s)
        if number is not None and number < 0 and -number != signal.SIGKILL:
            name = signal.Signals(-number).name
            raise CrashError(f"the model kills its process on this row ({name})")
        return super().run(outputs, tensors)

    def _tried(self, outputs: Sequence[str], tensors: Mapping[str, Tensor]) -> int:
        with suppress(Exception):  # told when it is run in earnest
            super().run(outputs, tensors)
        return 0


def _died(
    recipe: Recipe, space: Workspace, timeout_s: float | None, partition: Partition, *,
    kind: type[Runs] = Runs,
) -> int:  # fmt: skip
    """Score one partition in a process of its own; return the signal that ended it, or 0."""
    _drop_attempts(partition, space)
    return _alone(pickle.dumps((partition, recipe, space, timeout_s, kind)))


def _drop_attempts(partition: Partition, space: Workspace) -> None:
    for name in _names(space):
        if (match := _ATTEMPT.fullmatch(name)) and match[1] == partition.name:
            storage.remove(Path(space.path) / name)


def _alone(work: bytes) -> int:
    """Run this module on `work`; return the signal that ended it, or 0."""
    command = [sys.executable, "-m", "batchserve.isolation", str(os.getpid())]
    done = subprocess.run(command, input=work, capture_output=True, check=False)  # noqa: S603  our own module
    if done.returncode < 0:
        return -done.returncode
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise BatchserveError(f"bug in batchserve: scoring alone failed: {last}")
    result = pickle.loads(done.stdout)  # noqa: S301  written by our own child
    if isinstance(result, BatchserveError):
        raise result
    return 0


def _result(work: bytes) -> Receipt | BatchserveError:
    partition, recipe, space, timeout_s, kind = pickle.loads(work)  # noqa: S301  from our own parent
    try:
        return scoring.score_partition(partition, recipe, space, stall_timeout_s=timeout_s, kind=kind)
    except BatchserveError as error:
        return error


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides
        signal.signal(number, signal.SIG_IGN)
    lifetime.end_with(int(sys.argv[1]))
    sys.stdout.buffer.write(pickle.dumps(_result(sys.stdin.buffer.read())))


if __name__ == "__main__":
    _main()
