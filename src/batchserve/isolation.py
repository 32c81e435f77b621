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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from batchserve import crash, events, lifetime, scoring, storage
from batchserve.errors import BatchserveError
from batchserve.events import Listener
from batchserve.inputs import Partition
from batchserve.outputs import Receipt, Workspace
from batchserve.scoring import Recipe

_ATTEMPT = re.compile(r"(p\d{6}(?:-from\d+)?)\.[0-9a-f]{12}\.parquet")


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
    return [crash.by_signal(p, number) for p in died if (number := scored(p))]


def _died(recipe: Recipe, space: Workspace, timeout_s: float | None, partition: Partition) -> int:
    """Score one partition in a process of its own; return the signal that ended it, or 0."""
    _drop_attempts(partition, space)
    return _alone(pickle.dumps((partition, recipe, space, timeout_s)))


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
    partition, recipe, space, timeout_s = pickle.loads(work)  # noqa: S301  from our own parent
    try:
        return scoring.score_partition(partition, recipe, space, stall_timeout_s=timeout_s)
    except BatchserveError as error:
        return error


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides
        signal.signal(number, signal.SIG_IGN)
    lifetime.end_with(int(sys.argv[1]))
    sys.stdout.buffer.write(pickle.dumps(_result(sys.stdin.buffer.read())))


if __name__ == "__main__":
    _main()
