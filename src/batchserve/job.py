"""The story on one page: plan -> open cluster -> run -> publish -> report."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from batchserve import commit, events, planning, runner, target
from batchserve.commit import OutputReceipt
from batchserve.config import Job
from batchserve.errors import UsageError
from batchserve.events import Listener
from batchserve.inputs import Source, files
from batchserve.outputs import Amendment, Receipt, Workspace
from batchserve.planning import Plan, Problems
from batchserve.rejects import merged
from batchserve.report import Report, rejected, shortest, where
from batchserve.runner import Runner
from batchserve.target import Target

Amended = dict[str, Amendment]


def plan(
    job: Job, given: Sequence[str], output: str | None = None, amended: Amended | None = None
) -> tuple[Plan, Target | None]:
    """Check everything that can be checked and decide everything that must be decided.

    Args:
        job: What the user wants.
        given: Input paths, globs and folders.
        output: Where the rows go, or None to plan without.
        amended: Columns whose sampled type was found wrong.

    Raises:
        BatchserveError: Every problem found, at once.
    """
    problems = Problems()
    nothing: list[Source] = []
    sources = problems.attempt(lambda: _resolved(given), nothing)
    found = None
    if output is not None:
        found = problems.attempt(lambda: target.locate(output, given, sources, overwrite=job.overwrite), None)
    types = dict(job.type) | {name: a.becomes for name, a in (amended or {}).items()}
    made = planning.make(job, sources, problems, types)
    if found:
        target.check_not_like_input(found, made)
    return made, found


def _resolved(given: Sequence[str]) -> list[Source]:
    if not given:
        raise UsageError("no input is named", "say which files to score")
    return files.resolve(given)


def score(job: Job, given: Sequence[str], output: str, listener: Listener, cluster: Any = None) -> Report:
    """Score files into one output: the story of a whole job.

    Args:
        job: What the user wants.
        given: Input paths, globs and folders.
        output: Where the rows go.
        listener: Told what happens.
        cluster: A Dask client or cluster of the caller's, or None.

    Raises:
        BatchserveError: With what is wrong and what to do; nothing is published then.
    """
    started = time.perf_counter()
    amended: Amended = {}
    while True:
        made, found = plan(job, given, output, amended)
        if found is None:
            raise UsageError("no output is named", "say where the rows go")
        outcome = _run(job, made, found, listener, cluster)
        if outcome.receipt:
            seconds = time.perf_counter() - started
            return _report(made, found, outcome, outcome.receipt, seconds, amended)
        amended |= outcome.amended
        places = {name: where(a.place, made.sources) for name, a in outcome.amended.items()}
        listener.on(events.Amended(columns=places))


@dataclass(frozen=True)
class _Outcome:
    """How one run of a plan ended: published, or with column types to amend."""

    receipt: OutputReceipt | None
    workers: int = 0
    in_place: bool = True
    amended: Amended = field(default_factory=dict)


def _run(job: Job, made: Plan, found: Target, listener: Listener, cluster: Any) -> _Outcome:
    finished = commit.published(found, made) if found.workspace.exists() else None
    if target.taken(found) and not (finished or job.overwrite):
        raise target.exists(shortest(str(found.path)))
    with commit.workspace(found, made) as space:
        if finished:
            commit.discard(space)
            return _Outcome(finished)
        done = commit.done(space, made.partitions)
        with runner.opened(job, made, space, listener, cluster) as running:
            receipts = _collected(made, done, running, listener)
            needed = commit.amendments(made.partitions, receipts)
        if needed:
            return _Outcome(None, amended=needed)
        ordered = [receipts[p.index] for p in made.partitions]
        _check_rejects(made, space, ordered)
        files.check_unchanged(made.sources)
        listener.on(events.Publishing(parts=len(ordered)))
        receipt = commit.publish(found, made, space, ordered, overwrite=job.overwrite)
        commit.discard(space)
    return _Outcome(receipt, running.workers, running.in_place)


def _collected(
    made: Plan, done: Sequence[Receipt], running: Runner, listener: Listener
) -> dict[int, Receipt]:
    """Gather every partition's receipt; those that began at a wrong guess are scored again."""
    receipts = {receipt.partition: receipt for receipt in done}
    todo = [p for p in made.partitions if p.index not in receipts]
    listener.on(
        events.Planned(
            plan_id=made.plan_id, partitions=len(made.partitions), partitions_done=len(receipts),
            bytes_total=made.bytes_total, workers=running.workers,
        )
    )  # fmt: skip
    for receipt in receipts.values():
        listener.on(_scored(receipt, resumed=True))
    amending = False
    for receipt in running.score(todo):
        receipts[receipt.partition] = receipt
        listener.on(_scored(receipt))
        amending = amending or bool(receipt.facts.amendments)
        if amending and commit.amendments(made.partitions, receipts):
            return receipts
    while wrong := commit.misguessed(made.partitions, receipts):
        receipts |= {receipt.partition: receipt for receipt in running.score([wrong])}
    return receipts


def _scored(receipt: Receipt, *, resumed: bool = False) -> events.PartitionScored:
    facts = receipt.facts
    return events.PartitionScored(
        index=receipt.partition, rows_in=facts.rows_in, rows_rejected=facts.rows_rejected,
        bytes_in=facts.bytes_in, seconds=facts.seconds, resumed=resumed,
    )  # fmt: skip


def _check_rejects(made: Plan, space: Workspace, receipts: Sequence[Receipt]) -> None:
    groups = merged(group for receipt in receipts for group in receipt.facts.rejects)
    if groups:
        commit.discard(space)
        raise rejected(made, sum(r.facts.rows_in for r in receipts), groups)


def _report(
    made: Plan, found: Target, outcome: _Outcome, receipt: OutputReceipt, seconds: float, amended: Amended
) -> Report:
    files = list(found.path.rglob("*.parquet")) if found.dataset else [found.path]
    return Report(
        path=shortest(str(found.path)), receipt=receipt, partitions=len(made.partitions),
        workers=outcome.workers, in_place=outcome.in_place, seconds=seconds,
        bytes_in=sum(source.size_bytes for source in made.sources),
        size_bytes=sum(file.stat().st_size for file in files),
        amended={name: where(a.place, made.sources) for name, a in amended.items()},
    )  # fmt: skip
