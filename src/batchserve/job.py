"""The story on one page: plan -> open cluster -> run -> publish -> report."""

import html
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from batchserve import commit, events, inputs, planning, scoring, target
from batchserve.binding import Feed
from batchserve.commit import OutputReceipt
from batchserve.config import Job
from batchserve.errors import DataError, UsageError
from batchserve.events import Listener
from batchserve.inputs import Partition, Source, files
from batchserve.outputs import Amendment, Receipt, Workspace
from batchserve.planning import Plan, Problems
from batchserve.rejects import Place, Reject, RejectGroup, merged
from batchserve.target import Target

Amended = dict[str, Amendment]


@dataclass(frozen=True)
class Report:
    """What a finished job did."""

    path: str
    """The output."""
    receipt: OutputReceipt
    """What stands beside the output: rows, nulls, versions, digests."""
    partitions: int
    workers: int
    in_place: bool
    """True when one partition was scored in this process, without Dask."""
    seconds: float
    bytes_in: int
    size_bytes: int
    amended: dict[str, str]
    """Columns that became text (or double) on the way, with the place that showed it."""

    @property
    def rows(self) -> int:
        """Rows in the output."""
        return self.receipt.rows_out

    @property
    def rows_per_s(self) -> float:
        """Rows per second of wall time."""
        return self.rows / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return f"{self.rows:,} rows in {self.path} ({self.rows_per_s:,.0f} rows/s)"

    def _repr_html_(self) -> str:
        facts = {
            "output": self.path, "rows": f"{self.rows:,}", "seconds": f"{self.seconds:.2f}",
            "rows/s": f"{self.rows_per_s:,.0f}", "partitions": self.partitions,
            "workers": self.workers, "plan": self.receipt.plan_id[:12],
        }  # fmt: skip
        return table_html("batchserve report", facts)


def table_html(title: str, facts: dict[str, Any]) -> str:
    """Return a two-column HTML table, everything escaped."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(k)}</th>"
        f"<td style='text-align:left'>{html.escape(str(v))}</td></tr>"
        for k, v in facts.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"


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
    left = found.workspace.exists()
    with commit.workspace(found, made) as space:
        if left and (receipt := commit.published(found, made)):
            commit.discard(space)
            return _Outcome(receipt)
        with _runner(job, made, space, listener, cluster) as runner:
            receipts = _collected(made, space, runner, listener)
            needed = commit.amendments(made.partitions, receipts)
        if needed:
            return _Outcome(None, amended=needed)
        ordered = [receipts[p.index] for p in made.partitions]
        _check_rejects(made, space, ordered)
        files.check_unchanged(made.sources)
        listener.on(events.Publishing(parts=len(ordered)))
        receipt = commit.publish(found, made, space, ordered, overwrite=job.overwrite)
        commit.discard(space)
    return _Outcome(receipt, runner.workers, runner.in_place)


@dataclass(frozen=True)
class _Runner:
    """Something that scores partitions and gives their receipts in any order."""

    score: Callable[[Sequence[Partition]], Iterator[Receipt]]
    workers: int
    in_place: bool


@contextmanager
def _runner(job: Job, made: Plan, space: Workspace, listener: Listener, cluster: Any) -> Iterator[_Runner]:
    """Score one partition in this process, without importing Dask; several on a cluster."""
    if runs_in_place(job, made, cluster):
        yield _Runner(partial(_in_place, made, space, listener), 1, in_place=True)
        return
    from batchserve import cluster as clusters
    from batchserve import graph

    run_id = uuid.uuid4().hex[:8]
    with clusters.opened(cluster, job.scheduler, job.workers, dashboard=job.dashboard) as engine:
        if engine.dashboard:
            listener.on(events.DashboardOpened(url=engine.dashboard))
        run = partial(graph.run, engine.client, recipe=made.recipe, workspace=space, run_id=run_id)
        yield _Runner(run, engine.workers, in_place=False)


def runs_in_place(job: Job, made: Plan, cluster: Any = None) -> bool:
    """Whether the job is one partition that nobody asked to have scored elsewhere."""
    return len(made.partitions) <= 1 and not (cluster or job.scheduler or job.dashboard)


def _in_place(
    made: Plan, space: Workspace, listener: Listener, partitions: Sequence[Partition]
) -> Iterator[Receipt]:
    def tick(rows: int) -> None:
        listener.on(events.RowsScored(rows=rows))

    return (scoring.score_partition(p, made.recipe, space, tick) for p in partitions)


def _collected(made: Plan, space: Workspace, runner: _Runner, listener: Listener) -> dict[int, Receipt]:
    """Gather every partition's receipt; those that began at a wrong guess are scored again."""
    receipts = {receipt.partition: receipt for receipt in commit.done(space, made.partitions)}
    todo = [p for p in made.partitions if p.index not in receipts]
    listener.on(
        events.Planned(
            plan_id=made.plan_id, partitions=len(made.partitions), partitions_done=len(receipts),
            bytes_total=made.bytes_total, workers=runner.workers,
        )
    )  # fmt: skip
    for receipt in receipts.values():
        listener.on(_scored(receipt, resumed=True))
    amending = False
    for receipt in runner.score(todo):
        receipts[receipt.partition] = receipt
        listener.on(_scored(receipt))
        amending = amending or bool(receipt.facts.amendments)
        if amending and commit.amendments(made.partitions, receipts):
            return receipts
    while wrong := commit.misguessed(made.partitions, receipts):
        receipts |= {receipt.partition: receipt for receipt in runner.score([wrong])}
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


def rejected(made: Plan, rows_in: int, groups: Sequence[RejectGroup]) -> DataError:
    """Build the error for rows that cannot be scored: how many, where, and the ways on."""
    total = sum(group.rows for group in groups)
    lines = [f"{total:,} of {rows_in:,} rows cannot be scored; nothing was published"]
    for group in groups:
        column = f" {group.column}" if group.column else ""
        lines.append(f"  {group.kind}{column}: {group.rows:,} row{'s' if group.rows > 1 else ''}")
        lines += [f"    {_shown(example, made.sources)}" for example in group.examples]
    return DataError("\n".join(lines), "; ".join(dict.fromkeys(map(_way_on, groups))))


def _shown(reject: Reject, sources: Sequence[Source]) -> str:
    value = f" {reject.value!r}" if reject.value else ""
    return f"{where(reject.place, sources)}:{value} {reject.reason}"


def _way_on(group: RejectGroup) -> str:
    if group.kind == "MISSING":
        name = group.column
        return f"say what a null is: --on-null {name}:nan or --on-null {name}:fill=VALUE"
    if group.kind == "PARSE":
        return "correct these records"
    return f"correct {group.column}, or read another column: --map INPUT=COLUMN"


def where(place: Place, sources: Sequence[Source]) -> str:
    """Return a place as people write it: file and line, or file and row for Parquet.

    The line is counted only now, from the byte offset.
    """
    if place.byte_offset is None:
        return f"{_shortest(place.path)} row {(place.record or 0) + 1:,}"
    packed = next((source.gzip for source in sources if source.path == place.path), False)
    return f"{_shortest(place.path)}:{inputs.line_of(place, gzip=packed)}"


def _shortest(path: str) -> str:
    relative = os.path.relpath(path)
    return min(path, relative, key=len)


def _report(
    made: Plan, found: Target, outcome: _Outcome, receipt: OutputReceipt, seconds: float, amended: Amended
) -> Report:
    files = list(found.path.rglob("*.parquet")) if found.dataset else [found.path]
    return Report(
        path=_shortest(str(found.path)), receipt=receipt, partitions=len(made.partitions),
        workers=outcome.workers, in_place=outcome.in_place, seconds=seconds,
        bytes_in=sum(source.size_bytes for source in made.sources),
        size_bytes=sum(file.stat().st_size for file in files),
        amended={name: where(a.place, made.sources) for name, a in amended.items()},
    )  # fmt: skip


def plan_facts(made: Plan) -> dict[str, str]:
    """Return what a plan will do, as words for people."""
    recipe, binding = made.recipe, made.recipe.binding
    size = sum(source.size_bytes for source in made.sources)
    facts = {
        "inputs": f"{len(made.sources):,} file{'s' * (len(made.sources) != 1)}, {human_bytes(size)}",
        "model": f"{_shortest(recipe.model.path)} (sha256 {recipe.model.sha256[:12]})",
        "partitions": f"{len(made.partitions):,} of about "
        f"{human_bytes(made.bytes_total // max(1, len(made.partitions)))}",
        "batch rows": f"{recipe.batch_rows:,} in every run of the model",
    }
    facts |= {f"in  {feed.input}": _fed(feed, made) for feed in binding.feeds}
    kept = f"{len(recipe.keep)} of {len(recipe.reading.schema_)} input columns pass through"
    facts |= {f"out {p.output}": _given_as(p.column, made) for p in recipe.predictions}
    return facts | {"keeps": kept, "rows": _independence(made), "plan id": made.plan_id}


def _fed(feed: Feed, made: Plan) -> str:
    schema = made.recipe.reading.schema_
    fed = [
        f"{name} ({schema.field(name).type}, null: {policy})"
        for name, policy in zip(feed.columns, feed.nulls, strict=True)
    ]
    kind = "text" if feed.dtype == "object" else feed.dtype
    return f"{kind} from {', '.join(fed)}"


def _given_as(column: str, made: Plan) -> str:
    return f"column {column} ({made.recipe.schema_.field(column).type})"


def _independence(made: Plan) -> str:
    if made.rows_depend:
        return "may depend on each other (--rows-depend): scores hold for this batch size only"
    return "independent: proven on the first rows"


def human_bytes(size: float) -> str:
    """Return a size with its unit.

    Example:
        >>> human_bytes(463744)
        '464 kB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:  # noqa: PLR2004  the SI step
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"  # noqa: PLR2004
        size /= 1000
    return f"{size:.1f} TB"


def where_it_runs(job: Job, made: Plan) -> str:
    """Return in words where the partitions would be scored."""
    if runs_in_place(job, made):
        return "in this process, without Dask: it is one partition"
    if job.scheduler:
        return f"on the cluster of {job.scheduler}"
    from batchserve.cluster import usable_cpus

    return f"on {job.workers or usable_cpus()} threads of this process, under Dask"
