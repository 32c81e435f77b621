"""Partitions on threads of this process: how a job goes on, and how it ends early."""

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest

from batchserve import threads
from batchserve.errors import DataError
from batchserve.inputs import Partition, Slice

WORKERS = 2


class Packed:
    """Stands in for what unpacks: knows which partitions are in hand."""

    def __init__(self) -> None:
        self.open: list[int] = []
        self.most = 0

    def prepared(self, partition: Partition) -> Partition:
        self.open.append(partition.index)
        self.most = max(self.most, len(self.open))
        return partition

    def release(self, partition: Partition) -> None:
        self.open.remove(partition.index)


def partitions(count: int) -> list[Partition]:
    part = Slice(path="a.csv", format="csv", start=0, stop=1, exact=True, size_bytes=1)
    return [Partition(index=i, slices=(part,)) for i in range(count)]


def run(score: Callable[[Partition], Any], count: int, packed: Packed) -> Iterator[Any]:
    return threads.run(partitions(count), score, WORKERS, packed)  # type: ignore[arg-type]  # a stand-in


def test_every_partition_is_scored_and_few_are_in_hand() -> None:
    """Each receipt comes once; as many are scored at once as there are workers, twice as many unpacked."""
    packed, running, most, lock = Packed(), 0, 0, threading.Lock()

    def score(partition: Partition) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.01)
        with lock:
            running -= 1
        return partition.index

    assert sorted(run(score, 20, packed)) == list(range(20))
    assert most == WORKERS
    assert packed.open == []
    assert packed.most == 2 * WORKERS


@pytest.mark.parametrize("how", ["an error", "a stop"])
def test_a_job_that_ends_early_finishes_what_runs_and_begins_nothing(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being scored is waited for; what only waits never begins, and is not waited for."""
    begun, ended = set[int](), set[int]()
    both, go_on = threading.Barrier(WORKERS), threading.Event()
    waited: list[Future[Any]] = []

    def spied(futures: list[Future[Any]], timeout: float) -> Any:
        waited.extend(futures)
        assert not any(future.cancelled() for future in futures)  # or it would wait in vain
        go_on.set()
        return concurrent.futures.wait(futures, timeout)

    def score(partition: Partition) -> int:
        begun.add(partition.index)
        if partition.index < WORKERS:
            both.wait()
        if partition.index == 0:
            if how == "an error":
                raise DataError("damaged")
            return 0
        go_on.wait()
        ended.add(partition.index)
        return partition.index

    monkeypatch.setattr(threads, "wait", spied)
    receipts = run(score, 20, Packed())
    with suppress(DataError):
        assert next(receipts) == 0
    receipts.close()  # type: ignore[attr-defined]  # it is a generator

    assert waited
    assert begun == ended | {0}
    assert 1 in ended
    assert len(begun) < 20


def test_an_error_is_the_one_of_the_partition() -> None:
    """What scoring a partition raised is raised, as it was."""

    def score(partition: Partition) -> int:
        if partition.index == 3:
            raise DataError("p3 is damaged")
        return partition.index

    with pytest.raises(DataError, match="p3 is damaged"):
        list(run(score, 9, Packed()))
