"""Where partitions are scored: in this process, or on a Dask cluster with a head start here."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, Self

from batchserve import cluster as clusters
from batchserve import events, isolation, scoring
from batchserve.config import Job
from batchserve.errors import StoppedError
from batchserve.events import Listener
from batchserve.inputs import Partition
from batchserve.outputs import Receipt, Workspace
from batchserve.planning import Plan
from batchserve.segments import Unpacker, enters

STOP_TIMEOUT_S = 10
"""How long a job that is stopped waits for the partitions that are being scored."""


@dataclass(frozen=True)
class Runner:
    """Something that scores partitions and gives their receipts in any order."""

    score: Callable[[Sequence[Partition]], Iterator[Receipt]]
    workers: int
    in_place: bool


@contextmanager
def opened(  # noqa: PLR0913, PLR0917  what a job is made of
    job: Job, made: Plan, space: Workspace, listener: Listener, cluster: Any = None,
    avoided: frozenset[int] = frozenset(), todo: int | None = None,
) -> Iterator[Runner]:  # fmt: skip
    """Score one partition in this process, without importing Dask; several on a cluster.

    Args:
        job: What the user wants.
        made: The plan.
        space: Where parts and receipts go.
        listener: Told about rows and the dashboard.
        cluster: A Dask client or cluster of the caller's, or None.
        avoided: Indices of partitions that must not be scored in this process.
        todo: How many are left to score; all by default. For none no cluster is opened.

    Raises:
        ClusterError: The cluster cannot be reached.
    """
    if todo == 0 or runs_in_place(job, made, cluster):
        yield Runner(partial(_in_place, job, made, space, listener), 1, in_place=True)
        return
    scheduler = job.scheduler or _address(job)
    dialect = made.recipe.reading.dialect
    first = [p for p in made.partitions[:-1] if p.index not in avoided and not enters(p, dialect)]
    score = partial(
        scoring.score_partition, recipe=made.recipe, workspace=space, stall_timeout_s=job.stall_timeout
    )
    with (
        _HeadStart(first if runs_here(job, cluster) else [], score) as head_start,
        clusters.opened(cluster, scheduler, job.workers, dashboard=job.dashboard) as engine,
    ):
        if engine.dashboard:
            listener.on(events.DashboardOpened(url=engine.dashboard))
        for note in engine.notes:
            listener.on(events.Noted(text=note))
        run = partial(_on_cluster, job, engine, made, space, listener, head_start)
        yield Runner(run, engine.workers, in_place=False)


def _address(job: Job) -> str | None:
    if job.cluster is None:
        return None
    from batchserve.cluster import named

    return named.address(job.cluster)


def with_its_memory(job: Job) -> Job:
    """Return the job with the workers and the memory of the named cluster that it runs on.

    Raises:
        ClusterError: There is no such cluster, or it is dead.
    """
    if job.cluster is None or job.memory_limit:
        return job
    from batchserve.cluster import named

    found = named.find(job.cluster)
    memory = {"memory_limit": found.memory_limit * found.workers, "workers": found.workers}
    return job.model_copy(update=memory)


def runs_here(job: Job, cluster: Any = None) -> bool:
    """Whether partitions are scored in this process, by one thread or by several."""
    return not (cluster or job.cluster or job.scheduler or clusters.active_client())


def runs_in_place(job: Job, made: Plan, cluster: Any = None) -> bool:
    """Whether the job is one partition that nobody asked to have scored elsewhere."""
    return len(made.partitions) <= 1 and not (cluster or job.cluster or job.scheduler or job.dashboard)


def _in_place(
    job: Job, made: Plan, space: Workspace, listener: Listener, partitions: Sequence[Partition]
) -> Iterator[Receipt]:
    def tick(rows: int) -> None:
        listener.on(events.RowsScored(rows=rows))

    score = scoring.score_partition
    return (score(p, made.recipe, space, tick, job.stall_timeout) for p in partitions)


class _HeadStart:
    """One thread that scores the first partitions while Dask is imported, which takes seconds."""

    def __init__(self, partitions: Sequence[Partition], score: Callable[[Partition], Receipt]) -> None:
        self._partitions, self._score_one = partitions, score
        self._pool = ThreadPoolExecutor(1)
        self._stopped = Event()
        self._taken: list[Partition] = []
        self._done: SimpleQueue[Receipt] = SimpleQueue()
        self._work = self._pool.submit(self._score) if partitions else None

    def _score(self) -> None:
        for partition in self._first():
            self._done.put(self._score_one(partition))

    def _first(self) -> Iterator[Partition]:
        for partition in self._partitions:
            if self._stopped.is_set():
                return
            self._taken.append(partition)
            yield partition

    def stop(self) -> set[int]:
        """Take no further partition; return the indices of those taken."""
        self._stopped.set()
        return {partition.index for partition in self._taken}

    def receipts(self) -> Iterator[Receipt]:
        """Give the receipts that are there and were not given yet."""
        while not self._done.empty():
            yield self._done.get()

    def last_receipts(self) -> Iterator[Receipt]:
        """Wait for the partitions taken, and give the receipts that are left."""
        if self._work:
            self._work.result()
        self._taken.clear()  # asked for again, they are scored again
        yield from self.receipts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Take no further partition; a job that is stopped lets the running one finish, for a while."""
        self._stopped.set()
        if self._work and kind is not None and issubclass(kind, (StoppedError, GeneratorExit)):
            wait([self._work], timeout=STOP_TIMEOUT_S)
        self._pool.shutdown(wait=False)


def _on_cluster(  # noqa: PLR0913, PLR0917  what a job is made of
    job: Job, engine: clusters.Engine, made: Plan, space: Workspace, listener: Listener,
    head_start: _HeadStart, partitions: Sequence[Partition],
) -> Iterator[Receipt]:  # fmt: skip
    from batchserve import graph

    taken = head_start.stop()
    wanted = {partition.index for partition in partitions}
    rest = [p for p in partitions if p.redone or p.index not in taken]
    yield from (receipt for receipt in head_start.receipts() if receipt.partition in wanted)
    alone = partial(isolation.row_by_row, made.recipe, space, job.stall_timeout)
    with Unpacker(Path(space.path), made.recipe.reading, made.partitions) as unpacker:
        yield from graph.run(
            engine.client, rest, made.recipe, space, len(made.partitions), listener, job.stall_timeout,
            alone, unpacker,
        )  # fmt: skip
    yield from (receipt for receipt in head_start.last_receipts() if receipt.partition in wanted)


def where_it_runs(job: Job, made: Plan) -> str:
    """Return in words where the partitions would be scored."""
    if runs_in_place(job, made):
        return "in this process, without Dask: it is one partition"
    if job.scheduler:
        return f"on the cluster of {job.scheduler}"
    if job.cluster:
        return f"on the cluster {job.cluster}, at {_address(job)}"
    from batchserve.cluster import usable_cpus

    return f"on {job.workers or usable_cpus()} threads of this process, under Dask"
