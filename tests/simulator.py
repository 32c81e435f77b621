"""Histories of crashes: the protocol run over a simulated disk, cut, run again, cut, run to its end.

The real `job._run` runs, with stand-ins for what is no effect of the protocol: scoring, the lock
(the kernel's), and Parquet itself (parts are a few bytes).
"""

import hashlib
import random
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import models
from batchserve import events, glue, job, outputs, runner, standing, storage, target
from batchserve.config import Job
from batchserve.errors import OutputError, StorageError
from batchserve.inputs import Partition, Slice, Source, files
from batchserve.outputs import Facts, PartWriter, Receipt, RowGroup, Workspace
from batchserve.planning import Plan
from batchserve.receipts import OutputReceipt, receipt_of
from batchserve.rejects import Place, Reject
from batchserve.target import META_DIR, Target
from simdisk import LOSSES, ROOT, SimDisk

PARTS = 3
_RECEIPT = re.compile(r"p\d{6}\.json")
_PART = re.compile(r"(p\d{6})\.\w+\.parquet")
_FACTS: dict[str, Any] = {
    "rows_in": 1, "rows_rejected": 0, "bytes_in": 1, "extents": (), "records": (1,), "refused": (),
    "rejected_by": {}, "nulls": {}, "rounded": {}, "nonfinite": {}, "amendments": (), "seconds": {},
}  # fmt: skip
_REJECTING = 1
"""The partition that has a row which cannot be scored."""
_SLICE = Slice(path="/in.csv", format="parquet", start=0, stop=1, exact=True, size_bytes=1)
_REJECT = Reject(kind="PARSE", column="", place=Place(path="/in.csv"), value="", reason="told")


def planned(folder: Path) -> Plan:
    """Return a plan of three partitions of a file that is not there.

    Args:
        folder: Where a model and a file to plan with may be left.
    """
    models.named(folder)
    (folder / "in.csv").write_text("a,b,kind\n1,2,red\n")
    made, _ = job.plan(Job(model=str(folder / "named.onnx")), [str(folder / "in.csv")])
    partitions = tuple(Partition(index=i, slices=(_SLICE,)) for i in range(PARTS))
    return deepcopy(made).model_copy(update={"partitions": partitions, "sources": (_source("in"),)})


def _source(name: str) -> Source:
    return Source(path=f"/{name}.csv", format="csv", size_bytes=1, mtime_ns=1)


@dataclass(frozen=True)
class Scenario:
    """What is run."""

    plan: Plan
    dataset: bool = False
    over: str = ""
    """Over an output of another plan that is there: overwrite, append, or an empty text."""
    twice: bool = False
    """Every part is written by two attempts at once."""

    @cached_property
    def found(self) -> Target:
        """The output."""
        return target.at(f"{ROOT}/out/" if self.dataset else f"{ROOT}/out.parquet")

    @property
    def job(self) -> Job:
        """The user's wishes."""
        return Job.model_validate({"if_exists": self.over or "error", "max_errors": "1"})

    @cached_property
    def earlier(self) -> "Scenario":
        """The job that wrote the output that is there."""
        other = self.plan.model_copy(update={"types": {"a": "text"}, "sources": (_source("old"),)})
        return Scenario(other, self.dataset)

    @cached_property
    def wanted(self) -> bytes:
        """What the output must be in the end."""
        data = b"".join(_part(self.plan, index) for index in range(PARTS))
        before = self.earlier.wanted if self.over == "append" else b""
        return before + data if self.dataset else self.plan.plan_id.encode() + data


def _part(plan: Plan, index: int) -> bytes:
    return f"<part {index}{' of another' if plan.types else ''}>".encode()


def scenarios(plan: Plan) -> list[Scenario]:
    """Return all there is to run: a file and a dataset, new and over another, attempts alone and in pairs."""
    kinds = [(False, ""), (False, "overwrite"), (True, ""), (True, "overwrite"), (True, "append")]
    return [Scenario(plan, *kind, twice) for kind, twice in product(kinds, (False, True))]


# -- the job, with stand-ins ------------------------------------------------------------------


class Scorer:
    """Writes parts as a worker does, with the real sink, receipt and link."""

    commits_early = False

    def __init__(self, run: "Run", space: Workspace) -> None:
        self._run, self._space = run, space

    def __call__(self, partitions: Sequence[Partition]) -> Iterator[Receipt]:
        for partition in partitions:
            if (receipt := outputs.committed(self._space, partition.name)) is None:
                self._run.scored.append(partition.index)
                receipt = self._score(partition)
            yield receipt

    def _score(self, partition: Partition) -> Receipt:
        writers = [self._written(partition) for _ in range(1 + self._run.scenario.twice)]
        rejected = int(partition.index == _REJECTING)
        facts = Facts(**_FACTS | {"rows_in": 1 + rejected, "rows_rejected": rejected})
        receipts = [writer.commit(partition.index, facts) for writer in reversed(writers)]
        for writer in writers if self.commits_early else ():
            writer._sink.sync()
        for name in (f"{partition.name}.json", *(name for name, _, _ in receipts[0].files)):
            if not self._run.disk.survives(self._space.file(name)):
                self._run.wrong.add("a part that was told to be done does not survive a power loss")
        return receipts[-1]

    def _written(self, partition: Partition) -> PartWriter:
        writer = PartWriter.__new__(PartWriter)  # without its Parquet writer
        attempt = f"{partition.name}.{uuid.uuid4().hex[:12]}.parquet"
        writer._workspace, writer._name = self._space, partition.name
        writer._sink = storage.Sink(self._space.file(attempt))
        writer._rejects, writer._rejected = None, 0
        if partition.index == _REJECTING:
            writer.reject(0, _REJECT)
            cast("storage.Sink", writer._rejects).sync()
        data = _part(self._run.scenario.plan, partition.index)
        writer._sink.write(data)
        writer._row_groups = [RowGroup(rows=1, size_bytes=len(data), sha256=_digest(data))]
        if not self.commits_early:
            writer._sink.sync()
        return writer


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Run:
    """One run of the command on a disk, watched before its every effect."""

    glue_checks = True

    def __init__(self, disk: SimDisk, scenario: Scenario) -> None:
        self.disk, self.scenario = disk, scenario
        self.scored: list[int] = []
        self.wrong: set[str] = set()

    def go(self) -> None:
        """Run the command to its end, as `job.score` does after planning."""
        found, sources = self.scenario.found, list(self.scenario.plan.sources)
        with self._in_place():
            work = job._Work(sources, found)
            if self.scenario.over == "append":
                work = job._appending(sources, found)
            if work.earlier and not work.sources:
                standing.tidy(found, work.earlier)
            else:
                job._run(self.scenario.job, self.scenario.plan, work, found, events.Silent(), None)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Put the disk, and stand-ins for all that is no effect of the protocol, in their places."""
        stand_ins: list[tuple[Any, str, Any]] = [
            (storage, "disk", self.disk),
            (storage, "locked", lambda *_: nullcontext()),
            (runner, "opened", self._opened),
            (runner, "runs_here", lambda *_: False),
            (files, "check_unchanged", lambda _: None),
            (glue, "join", self._join),
            (uuid, "uuid4", _Names(self.disk)),
            (target, "_footer_plan_id", lambda path: self.disk.read(path)[:64].decode(errors="replace")),
        ]
        with ExitStack() as stack:
            for owner, name, instead in stand_ins:
                stack.enter_context(patch.object(owner, name, instead))
            yield

    @contextmanager
    def _opened(self, _job: Any, _plan: Any, space: Workspace, *_: Any) -> Iterator[runner.Runner]:
        yield runner.Runner(Scorer(self, space), 1, in_place=True)

    def _join(
        self, parts: Sequence[Path], expected: Sequence[RowGroup], output: Path, coded: Sequence[str]
    ) -> Any:
        assert coded == self.scenario.plan.recipe.coded
        data = [self.disk.read(path) for path in parts]
        if self.glue_checks and [_digest(piece) for piece in data] != [group.sha256 for group in expected]:
            raise StorageError("a part differs from its receipt")
        with self.disk.create(output) as file:
            file.write(self.scenario.plan.plan_id.encode() + b"".join(data))
        return list(expected), "footer"


class _Names:
    """Gives names that are not taken, the same in the same state."""

    def __init__(self, disk: SimDisk) -> None:
        names = " ".join(name for names in disk.folders.values() for name in names)
        told = b"".join(data for data in disk.cached.values() if data.startswith(b'{"partition"')).decode()
        self._last = max((int(n, 16) for n in re.findall(r"\.([0-9a-f]{12})\.", names + told)), default=0)

    def __call__(self) -> Any:
        self._last += 1
        return type("Name", (), {"hex": f"{self._last:012x}"})()


# -- what must be so --------------------------------------------------------------------------


def shown(disk: SimDisk, found: Target) -> bytes | None:
    """Return what a reader finds under the name of the output."""
    node = disk.folders[0].get(found.path.name)
    if node is None:
        return None
    if node in disk.cached:
        return disk.cached[node]
    parts = sorted((name, part) for name, part in disk.folders[node].items() if name.endswith(".parquet"))
    return b"".join(disk.cached[part] for _, part in parts)


def _receipts(disk: SimDisk, found: Target) -> dict[str, int]:
    """Return the receipts of parts in the workspace: name to node."""
    names = disk.folders.get(disk.folders[0].get(found.workspace.name, -1), {})
    return {name: node for name, node in names.items() if _RECEIPT.fullmatch(name)}


@dataclass
class Watch:
    """Looks at the disk before every effect, and keeps the moments."""

    run: Run
    fine: set[bytes | None]
    """What the output may be."""
    keep: bool
    moments: list[SimDisk] = field(default_factory=list)
    _receipts: dict[str, int] = field(default_factory=dict)

    def __call__(self) -> None:
        disk, found = self.run.disk, self.run.scenario.found
        if shown(disk, found) not in self.fine:
            self.run.wrong.add("the output is half-written")
        before, self._receipts = self._receipts, _receipts(disk, found)
        if any(before[name] != self._receipts[name] for name in before.keys() & self._receipts.keys()):
            self.run.wrong.add("a receipt was replaced")
        if self.keep:
            self.moments.append(disk.copy())


@dataclass(frozen=True)
class After:
    """What came of a run: the moments it could have been cut at, and what was wrong."""

    moments: list[SimDisk]
    wrong: frozenset[str]


@dataclass
class Result:
    """What was explored."""

    histories: int = 0
    """First cut, second cut, run to the end: all different in what a cut left."""
    runs: int = 0
    violations: Counter[str] = field(default_factory=Counter)


class Explorer:
    """Runs histories of one scenario; a state met again is not run again: the same would come of it."""

    def __init__(self, scenario: Scenario, losses: int = LOSSES, seed: int = 0) -> None:
        self._scenario, self._losses = scenario, losses
        self._chance = random.Random(seed)
        self._ends: dict[Any, frozenset[str]] = {}
        self._begin = SimDisk()
        if scenario.over:
            Run(self._begin, scenario.earlier).go()
            self._begin.settled()
        self._fine = {shown(self._begin, scenario.found), scenario.wanted}
        self.result = Result()

    def explore(self, each: int | None = None) -> Result:
        """Run histories and count them; a second cut is tried at `each` moments by chance, or at all."""
        for wrong in self.histories(each):
            self.result.histories += 1
            self.result.violations.update(wrong)
        return self.result

    def histories(self, each: int | None = None) -> Iterator[frozenset[str]]:
        """Cut a first run at every effect, and what follows at some or all; say what is wrong with each."""
        first = self._after(self._begin)
        for state in self._cut(first.moments, None):
            second = self._after(state)
            halves = self._halved(state)
            for last in self._cut(second.moments, each):
                yield first.wrong | second.wrong | self._end(last) | halves | self._halved(last)

    def first_cuts(self) -> int:
        """Return how many different states a first cut may leave."""
        return len(list(self._cut(self._after(self._begin).moments, None)))

    def _halved(self, state: SimDisk) -> frozenset[str]:
        fine = shown(state, self._scenario.found) in self._fine
        return frozenset() if fine else frozenset({"a power loss leaves half an output"})

    def _cut(self, moments: Sequence[SimDisk], count: int | None) -> Iterator[SimDisk]:
        """Give different states that a kill, a power loss or a bad disk leaves at these moments."""
        cuts = list(product(moments, self._kinds()))
        if count is not None:
            self._chance.shuffle(cuts)
        different = set()
        for moment, kind in cuts:
            state = kind(moment)
            if state is not None and (seen := state.seen()) not in different:
                different.add(seen)
                yield state
            if len(different) == count:
                return

    def _kinds(self) -> list[Callable[[SimDisk], SimDisk | None]]:
        losses = [lambda d, loss=loss: d.after_power_loss(loss) for loss in range(self._losses)]
        return [SimDisk.copy, *losses, self._with_a_torn_part]

    def _with_a_torn_part(self, moment: SimDisk) -> SimDisk | None:
        """Change a bit of a finished part; None if there is none that is not published yet."""
        folder = self._scenario.found.workspace
        names = moment.names(folder)
        parts = [m for name in names if (m := _PART.fullmatch(name)) and f"{m[1]}.json" in names]
        if not parts or shown(moment, self._scenario.found) == self._scenario.wanted:
            return None
        torn = moment.copy()
        node = torn.there(folder / parts[0][0])
        torn.cached[node] = torn.synced[node] = torn.cached[node][:-1] + b"?"
        return torn

    def _end(self, state: SimDisk) -> frozenset[str]:
        seen = state.seen()
        if seen not in self._ends:
            self._ends[seen] = self._after(state, keep=False).wrong
        return self._ends[seen]

    def _after(self, state: SimDisk, *, keep: bool = True) -> After:
        self.result.runs += 1
        disk = state.copy()
        run = Run(disk, self._scenario)
        counted = _counted(disk, self._scenario)
        watch = disk.watcher = Watch(run, self._fine, keep)
        try:
            run.go()
        except OutputError as error:
            if not self._is_done(disk):  # a cut after the last effect is no cut: "exists" is right
                run.wrong.add(f"the run after a crash failed: {error}")
        except Exception as error:  # noqa: BLE001  whatever it is, the user would be left with it
            run.wrong.add(f"the run after a crash failed: {type(error).__name__}: {error}")
        watch()
        if counted & set(run.scored):
            run.wrong.add("a finished part was scored again")
        return After(watch.moments, frozenset(run.wrong | self._wrong_at_the_end(disk)))

    def _is_done(self, disk: SimDisk) -> bool:
        found = self._scenario.found
        return shown(disk, found) == self._scenario.wanted and not disk.is_dir(found.workspace)

    def _wrong_at_the_end(self, disk: SimDisk) -> set[str]:
        """Say what is wrong once the command has said that all is done."""
        scenario, wrong = self._scenario, set()
        if shown(disk, scenario.found) != scenario.wanted:
            wrong.add("the output is not that of a calm run")
        if disk.is_dir(scenario.found.workspace):
            wrong.add("the workspace is still there")
        found = scenario.found
        left = set(disk.names(ROOT)) - {found.path.name, found.receipt.name, found.rejects.name, META_DIR}
        if left - {scenario.found.workspace.name}:
            wrong.add(f"left over: {left}")
        for loss in range(3):
            lost = disk.after_power_loss(loss)
            receipt = _receipt(lost, scenario)
            if shown(lost, found) != scenario.wanted or receipt is None or not _rejects(lost, found, receipt):
                wrong.add("exit 0, but a power loss undoes the publish")
        return wrong


def _rejects(disk: SimDisk, found: Target, receipt: OutputReceipt) -> bool:
    """Whether the rejects are there that the receipt tells of."""
    kept = receipt.rejects
    there = disk.size_bytes(found.rejects) is not None
    return kept is not None and there and disk.sha256(found.rejects) == kept.sha256


def _receipt(disk: SimDisk, scenario: Scenario) -> OutputReceipt | None:
    with Run(disk, scenario)._in_place():
        return receipt_of(scenario.found)


def _counted(disk: SimDisk, scenario: Scenario) -> set[int]:
    """Return the partitions whose receipt, part and rejects are whole."""
    found = scenario.found
    return {
        receipt.partition
        for name in _receipts(disk, found)
        if (receipt := _whole(disk.read(found.workspace / name)))
        and all(_is_whole(disk, found.workspace / name, sha256) for name, _, sha256 in receipt.files)
        and receipt.plan_id == scenario.plan.plan_id
    }


def _is_whole(disk: SimDisk, path: Path, sha256: str) -> bool:
    return disk.size_bytes(path) is not None and disk.sha256(path) == sha256


def _whole(data: bytes) -> Receipt | None:
    try:
        return Receipt.of_json(storage.unseal(data))
    except ValueError:
        return None


def explore(plan: Plan, histories: int, losses: int = LOSSES) -> Result:
    """Explore every scenario until there are so many histories in all, the same share of each cut."""
    total = Result()
    all_of_them = scenarios(plan)
    for left, scenario in zip(range(len(all_of_them), 0, -1), all_of_them, strict=True):
        wanted = max(0, histories - total.histories) // left
        explorer = Explorer(scenario, losses)
        found = explorer.explore(-(-wanted // explorer.first_cuts()))
        total.histories += found.histories
        total.runs += found.runs
        total.violations += found.violations
    return total


def refuses_another_plan(scenario: Scenario) -> bool:
    """Whether a run over what another plan's run left, cut at any effect, is refused or begins anew."""
    moments: list[SimDisk] = []
    disk = SimDisk()
    disk.watcher = lambda: moments.append(disk.copy())
    Run(disk, scenario.earlier).go()
    return all(_refused_or_anew(moment, scenario) for moment in moments)


def _refused_or_anew(moment: SimDisk, scenario: Scenario) -> bool:
    parts, published = _receipts(moment, scenario.found), shown(moment, scenario.found)
    try:
        Run(moment, scenario).go()
    except OutputError:
        return True
    return not parts and published is None and shown(moment, scenario.found) == scenario.wanted
