"""Where partitions are scored: in this process, on threads of it, or on a Dask cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from batchserve import cluster as clusters
from batchserve import events, isolation, scoring, threads
from batchserve.config import Job
from batchserve.events import Listener
from batchserve.inputs import Partition
from batchserve.outputs import Receipt, Workspace
from batchserve.planning import Plan
from batchserve.segments import Unpacker


@dataclass(frozen=True)
class Runner:
    """Something that scores partitions and gives their receipts in any order."""

    score: Callable[[Sequence[Partition]], Iterator[Receipt]]
    workers: int
    in_place: bool


@contextmanager
def opened(
    job: Job, made: Plan, space: Workspace, listener: Listener, cluster: Any = None, todo: int | None = None
) -> Iterator[Runner]:
    """Score one partition in this thread, several on others; import Dask only for what needs it.

    Args:
        job: What the user wants.
        made: The plan.
        space: Where parts and receipts go.
        listener: Told about rows and the dashboard.
        cluster: A Dask client or cluster of the caller's, or None.
        todo: How many are left to score; all by default. For none no cluster is opened.

    Raises:
        ClusterError: The cluster cannot be reached.
    """
    if todo == 0 or runs_in_place(job, made, cluster):
        yield Runner(partial(_in_place, job, made, space, listener), 1, in_place=True)
    elif runs_here(job, cluster) and not job.dashboard:
        workers = job.workers_here
        yield Runner(partial(_on_threads, job, made, space, workers), workers, in_place=False)
    else:
        scheduler = job.scheduler or _address(job)
        with clusters.opened(cluster, scheduler, job.workers_here, dashboard=job.dashboard) as engine:
            if engine.dashboard:
                listener.on(events.DashboardOpened(url=engine.dashboard))
            for note in engine.notes:
                listener.on(events.Noted(text=note))
            run = partial(_on_cluster, job, engine, made, space, listener)
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


def _on_threads(
    job: Job, made: Plan, space: Workspace, workers: int, partitions: Sequence[Partition]
) -> Iterator[Receipt]:
    score = partial(
        scoring.score_partition, recipe=made.recipe, workspace=space, stall_timeout_s=job.stall_timeout
    )
    with Unpacker(Path(space.path), made.recipe.reading, made.partitions) as unpacker:
        yield from threads.run(partitions, score, workers, unpacker)


def _on_cluster(
    job: Job, engine: clusters.Engine, made: Plan, space: Workspace, listener: Listener,
    partitions: Sequence[Partition],
) -> Iterator[Receipt]:  # fmt: skip
    from batchserve import graph

    alone = partial(isolation.row_by_row, made.recipe, space, job.stall_timeout)
    with Unpacker(Path(space.path), made.recipe.reading, made.partitions) as unpacker:
        yield from graph.run(
            engine.client, partitions, made.recipe, space, len(made.partitions), listener, job.stall_timeout,
            alone, unpacker,
        )  # fmt: skip


def workers_here(job: Job, made: Plan) -> int:
    """Return how many partitions would be scored at once in this process; 0 if elsewhere."""
    if runs_in_place(job, made):
        return 1
    return job.workers_here if runs_here(job) else 0


def where_it_runs(job: Job, made: Plan) -> str:
    """Return in words where the partitions would be scored."""
    if runs_in_place(job, made):
        return "in this process, without Dask: it is one partition"
    if job.scheduler:
        return f"on the cluster of {job.scheduler}"
    if job.cluster:
        return f"on the cluster {job.cluster}, at {_address(job)}"
    dask = "under" if job.dashboard else "without"
    return f"on {job.workers_here} threads of this process, {dask} Dask"
