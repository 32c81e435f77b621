"""The story on one page: plan -> open cluster -> run -> publish -> report."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from batchserve import (
    append,
    chain,
    collection,
    commit,
    crash,
    events,
    isolation,
    planning,
    profile,
    runner,
    standing,
    storage,
    target,
    workspace,
)
from batchserve.config import Job
from batchserve.errors import (
    DataError,
    OutputError,
    Problems,
    UsageError,
    told,
)
from batchserve.events import Listener
from batchserve.inputs import Source, files
from batchserve.modelfile import ModelSpec
from batchserve.outputs import Amendment, Receipt, Workspace
from batchserve.planning import Plan
from batchserve.preview import dialect_note
from batchserve.receipts import OutputReceipt, receipt_of, receipt_of_plan
from batchserve.recipes import named_models
from batchserve.rejects import Budget
from batchserve.report import Report, cut_short, rejected, shortest, where
from batchserve.storage import translated_writing
from batchserve.target import Target

Amended = dict[str, Amendment]


@dataclass(frozen=True)
class _Work:
    """Which files, and where their rows go."""

    sources: list[Source]
    target: Target | None
    earlier: OutputReceipt | None = None
    """Of the dataset that rows are appended to."""


@told()
def plan(job: Job, given: Sequence[str], output: str | None = None) -> tuple[Plan, Target | None]:
    """Check everything that can be checked and decide everything that must be decided.

    Args:
        job: What the user wants.
        given: Input paths, globs and folders.
        output: Where the rows go, or None to plan without.

    Raises:
        BatchserveError: Every problem found, at once.
    """
    problems = Problems()
    work = _work(job, given, output, problems)
    if nothing := _nothing_new(job, work, problems):
        plan = nothing.runs[-1].plan
        return plan.model_copy(update={"sources": (), "partitions": ()}), work.target
    return _planned(job, work, problems, {}), work.target


def _work(job: Job, given: Sequence[str], output: str | None, problems: Problems) -> _Work:
    nothing: list[Source] = []
    sources = problems.attempt(lambda: _resolved(job, given), nothing)
    found = None
    if output is not None:
        found = problems.attempt(
            lambda: target.locate(output, given, sources, if_exists=job.when_exists, rejects=job.rejects),
            None,
        )
    if found is None or job.when_exists != "append" or not target.taken(found):
        return _Work(sources, found)
    return problems.attempt(lambda: _appending(sources, found), _Work(sources, found))


def _resolved(job: Job, given: Sequence[str]) -> list[Source]:
    if not given:
        raise UsageError("no input is named", "say which files to score")
    return files.resolve(given, job.format)


def _appending(sources: list[Source], found: Target) -> _Work:
    earlier = receipt_of(found)
    if earlier is None:
        raise OutputError(f"{found.path}: its receipt is missing or damaged", "score it again: --overwrite")
    return _Work(append.new_sources(sources, earlier), found, earlier)


def _nothing_new(job: Job, work: _Work, problems: Problems) -> OutputReceipt | None:
    """Return the receipt of a dataset that has the rows of all files already, else None.

    Raises:
        BatchserveError: Something is wrong all the same: a night without files must not hide it.
    """
    if work.earlier is None or work.sources:
        return None
    nothing: dict[str, ModelSpec] = {}
    problems.attempt(lambda: named_models(job), nothing)
    problems.check()
    return work.earlier


def _planned(job: Job, work: _Work, problems: Problems, amended: Amended) -> Plan:
    """Make the plan; what an earlier run of the same files found out is kept."""
    before = _remembered(work) if work.target and not job.fresh else None
    if work.earlier:
        asked = append.as_before(job, work.earlier)
    elif before and before.batch_rows_asked == job.batch_rows:
        asked = job.model_copy(update={"batch_rows": before.recipe.batch_rows})
    else:
        asked = job
    amended = (before.amended if before else {}) | amended
    types = {name: a.becomes for name, a in amended.items()} | dict(asked.type)
    roomy = problems.attempt(lambda: runner.with_its_memory(asked), asked)
    hints = append.types(work.earlier) if work.earlier else {}
    made = planning.make(roomy, work.sources, problems, types, hints)
    if work.target:
        target.check_not_like_input(work.target, made)
    if work.target and work.earlier:
        append.check_same_kind(work.target, work.earlier, made)
    return made.model_copy(update={"amended": amended, "batch_rows_asked": job.batch_rows})


def _remembered(work: _Work) -> Plan | None:
    """Return the plan of an earlier run of the very same files, unfinished or published."""
    found = work.target
    before = workspace.stored(found) if found else None
    if before is None and found and target.taken(found):
        receipt = receipt_of(found)
        before = receipt.runs[-1].plan if receipt else None
    return before if before and list(before.sources) == work.sources else None


@told()
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
    listener.on(events.Started(run_id=uuid.uuid4().hex[:12], output=output))
    problems = Problems()
    work = _work(job, given, output, problems)
    nothing = _nothing_new(job, work, problems)
    if nothing and work.target:
        standing.tidy(work.target, nothing)
        outcome = _Outcome(nothing, skipped=True)
        return _report(nothing.runs[-1].plan, work.target, outcome, nothing, started)
    if cut := _cut_append(work):
        _scored(job, cut, Problems(), listener, cluster)
        work = _work(job, given, output, problems)
    made, outcome = _scored(job, work, problems, listener, cluster)
    if work.target is None or outcome.receipt is None:
        raise UsageError("no output is named", "say where the rows go")
    return _report(made, work.target, outcome, outcome.receipt, started)


def _cut_append(work: _Work) -> _Work | None:
    """Return the work of an append that was cut before other files came: it is finished first."""
    before = workspace.stored(work.target) if work.earlier and work.target else None
    if before is None or not set(before.sources) < set(work.sources):
        return None
    return replace(work, sources=list(before.sources))


def _scored(
    job: Job, work: _Work, problems: Problems, listener: Listener, cluster: Any
) -> tuple[Plan, "_Outcome"]:
    """Plan and run, and begin anew for as long as column types must be amended."""
    amended: Amended = {}
    while True:
        made = _planned(job, work, problems, amended)
        if work.target is None:
            raise UsageError("no output is named", "say where the rows go")
        if not amended and (note := dialect_note(made)):
            listener.on(events.Noted(text=note))
        outcome = _run(job, made, work, work.target, listener, cluster)
        if outcome.receipt:
            return made, outcome
        amended |= outcome.amended
        places = {name: where(a.place, made) for name, a in outcome.amended.items()}
        listener.on(events.Amended(columns=places))


@dataclass(frozen=True)
class _Outcome:
    """How one run of a plan ended: published, or with column types to amend."""

    receipt: OutputReceipt | None
    workers: int = 0
    in_place: bool = True
    amended: Amended = field(default_factory=dict)
    skipped: bool = False
    """True when the output was there already."""
    rows_before: int = 0
    """Rows of partitions that an earlier, interrupted run of the same plan had scored."""
    scored: Sequence[Receipt] = ()
    """Of the partitions that this run scored."""
    work_s: float = 0.0
    publish_s: float = 0.0


def _run(job: Job, made: Plan, work: _Work, found: Target, listener: Listener, cluster: Any) -> _Outcome:
    if finished := standing.finished(job, made, found):
        return _Outcome(finished, skipped=True)
    budget = Budget.parse(job.max_errors)
    there = work.earlier or (receipt_of(found) if target.taken(found) else None)
    published = there is not None and there.plan_id != made.plan_id and standing.holds(found, there)
    with workspace.opened(found, made, fresh=job.fresh or published) as space:
        if job.when_exists == "skip" and (there := receipt_of_plan(found, made)):
            workspace.discard(found.workspace)  # another process has done it, while this one waited
            return _Outcome(there, skipped=True)
        standing.check_still(job, found, work.earlier)
        commit.check_room(found, made, workspace.done(space, made.partitions), listener)
        crashes = _isolated(job, made, space, listener, cluster)
        done = workspace.done(space, made.partitions)  # before the runner, which may begin at once
        todo = len(made.partitions) - len(done)
        with runner.opened(job, made, space, listener, cluster, todo) as running:
            began = time.perf_counter()
            receipts = collection.collected(made, done, running, listener, crashes, budget)
            if needed := chain.amendments(made.partitions, receipts):
                workspace.discard(found.workspace)
                return _Outcome(None, amended=needed)
            if len(receipts) < len(made.partitions):
                raise _refused(made, found, space, receipts)
            ordered = collection.sound(made, space, receipts, running, listener)
        _check_unchanged(made, found)
        rejected = sum(receipt.facts.rows_rejected for receipt in ordered)
        within = budget.allows(rejected, sum(receipt.facts.rows_in for receipt in ordered))
        cut = chain.is_cut_short(made.partitions, ordered)  # rows that nobody saw are in no budget
        if cut or not within:
            raise _refused(made, found, space, receipts)
        listener.on(events.Publishing(parts=len(ordered)))
        worked = time.perf_counter()
        overwrite = job.when_exists == "overwrite"
        receipt = commit.publish(found, made, space, ordered, overwrite=overwrite, earlier=work.earlier)
        standing.discard(found, listener)
    before = {receipt.partition for receipt in done}
    return _Outcome(
        receipt, running.workers, running.in_place, rows_before=sum(each.rows_out for each in done),
        scored=[each for each in ordered if each.partition not in before],
        work_s=worked - began, publish_s=time.perf_counter() - worked,
    )  # fmt: skip


def _isolated(job: Job, made: Plan, space: Workspace, listener: Listener, cluster: Any) -> list[crash.Crash]:
    """Score alone what an earlier run may have died of; on a cluster the scheduler does that."""
    if not runner.runs_here(job, cluster):
        return []
    with translated_writing(space.path):
        suspected = isolation.suspects(space, made.partitions)
        workers = job.workers_here
        return isolation.cleared(suspected, made.recipe, space, job.stall_timeout, workers, listener)


def _check_unchanged(made: Plan, found: Target) -> None:
    """Check that the files are what they were; else nothing of the work is of use."""
    try:
        files.check_unchanged(made.sources)
    except DataError:
        workspace.discard(found.workspace)
        raise


def _refused(made: Plan, found: Target, space: Workspace, receipts: dict[int, Receipt]) -> DataError:
    """Publish the rejects of a run that has too many of them, and build its error; the parts are kept."""
    ordered = [receipts[p.index] for p in made.partitions if p.index in receipts]
    path = target.refused_rejects(found)
    temporary = space.file("refused.jsonl.tmp")
    with translated_writing(found.path.parent):
        storage.remove(temporary)
        kept = commit.write_rejects(temporary, made, space, ordered)
        storage.replace(temporary, path)
    workspace.refuse(space)
    rows_in = sum(receipt.facts.rows_in for receipt in ordered)
    if chain.is_cut_short(made.partitions, ordered):
        return cut_short(kept, path, rows_in)
    return rejected(kept, path, rows_in, len(made.partitions) - len(ordered))


def _report(made: Plan, found: Target, outcome: _Outcome, receipt: OutputReceipt, started: float) -> Report:
    seconds = time.perf_counter() - started
    start_up_s = seconds - outcome.work_s - outcome.publish_s
    phases = profile.Phases(start_up_s, outcome.work_s, outcome.publish_s)
    return Report(
        path=shortest(str(found.path)), receipt=receipt, partitions=len(made.partitions),
        workers=outcome.workers, in_place=outcome.in_place, seconds=seconds,
        profile=profile.profiled(made, outcome.scored, max(1, outcome.workers), phases),
        bytes_in=sum(source.size_bytes for source in receipt.inputs), size_bytes=receipt.size_bytes,
        amended={name: where(a.place, made) for name, a in made.amended.items()},
        rejects=shortest(str(found.rejects)) if receipt.rejects else None,
        skipped=outcome.skipped, rows_before=outcome.rows_before,
    )  # fmt: skip
