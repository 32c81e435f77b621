"""Fails the n-th call that a job makes on its disk, n = 1, 2, ... until the job gets through.

The job is real: three partitions of a small CSV, planned, scored in this process and published.
Its disk is real too, but for one call. pq-glue writes without `storage.disk`, pyarrow reads the
glued file back without it, and the lock and the probe of the folder are the kernel's business:
these are wrapped one by one, and are calls like the others.
"""

import errno
import fcntl
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self
from unittest.mock import patch

import pq_glue

import models
from batchserve import events, glue, isolation, job, runner, storage, trial
from batchserve.config import Job
from batchserve.errors import BatchserveError
from batchserve.outputs import Receipt
from batchserve.storage import Disk

PARTS = 3
_ROWS = 48
_PAIRS = 1_000
"""Pairs of faults of a sweep with step 1, for each kind of output."""

_TAKING_SPACE = frozenset({
    "create", "write", "flush", "close", "sync", "sync_file", "sync_dir", "link", "rename", "exchange",
    "make_dir", "concat", "touch",
})  # fmt: skip
_EFFECTS = _TAKING_SPACE | {"unlink", "remove_dir", "set_mode"}
_QUESTIONS = {name for name in vars(Disk) if not name.startswith("_")} - _EFFECTS | {"flock", "inspect"}
_CALLS = _EFFECTS | _QUESTIONS
_PIECEWISE = frozenset({"write", "concat"})


@dataclass(frozen=True)
class Fault:
    """What happens instead of a call."""

    name: str
    number: int
    """The system's error; 0 is a MemoryError."""
    when: Literal["before", "half", "after"] = "before"
    """How much of the call is done before it fails."""
    removes: Literal["nothing", "the workspace", "the folder"] = "nothing"
    """What somebody removes just before the call, which then is done."""
    lasting: bool = False
    """Whether all later calls of these kinds fail as well."""
    calls: frozenset[str] = _CALLS
    """The kinds of calls that it can happen to."""

    @property
    def exit_code(self) -> int:
        """The exit code that tells the user what happened."""
        return 74 if self.number else 75

    def error(self) -> BaseException:
        """Return the exception of the call."""
        return OSError(self.number, os.strerror(self.number)) if self.number else MemoryError()


MAIN = (
    Fault("EIO", errno.EIO),
    Fault("ENOSPC", errno.ENOSPC, calls=_TAKING_SPACE),
    Fault("short write", errno.ENOSPC, "half", calls=_PIECEWISE),
    Fault("MemoryError", 0),
)
FAULTS = (
    *MAIN,
    Fault("EDQUOT", errno.EDQUOT, calls=_TAKING_SPACE),
    Fault("EROFS", errno.EROFS, calls=_EFFECTS),
    Fault("EIO after the call", errno.EIO, "after", calls=_EFFECTS),
    Fault("ENOSPC from then on", errno.ENOSPC, lasting=True, calls=_TAKING_SPACE),
    Fault("EROFS from then on", errno.EROFS, lasting=True, calls=_EFFECTS),
    Fault("EIO from then on", errno.EIO, lasting=True),
    Fault("workspace removed", errno.ENOENT, removes="the workspace"),
    Fault("folder removed", errno.ENOENT, removes="the folder"),
)


# -- the disk ---------------------------------------------------------------------------------


@dataclass
class Trip:
    """Counts calls, and fails one of them.

    Attributes:
        calls: Their kinds, in order.
        struck: The call that failed first, in words; empty while none has.
    """

    fault: Fault
    number: int
    before: Callable[[], None] = lambda: None
    """Called just before the fault."""
    calls: list[str] = field(default_factory=list)
    struck: str = ""

    def call(self, kind: str, act: Callable[..., Any], *arguments: Any, half: Any = None) -> Any:
        """Do what was asked, or fail.

        Args:
            kind: What kind of call it is.
            act: Does it.
            *arguments: Are handed to `act`.
            half: Does half of it.
        """
        self.calls.append(kind)
        if not self._due(kind):
            return act(*arguments)
        if not self.struck:
            self.struck = " ".join([kind, *(a.name for a in arguments if isinstance(a, Path))])
            self.before()
        if self.fault.removes != "nothing":
            return act(*arguments)
        if self.fault.when != "before" or kind == "close":  # a file is closed even by a close that fails
            done = (half if self.fault.when == "half" else act)(*arguments)
            if kind == "create":
                done.close()
        raise self.fault.error()

    def _due(self, kind: str) -> bool:
        due = self.fault.lasting if self.struck else 0 < self.number <= len(self.calls)
        return due and kind in self.fault.calls


class FailingDisk(Disk):
    """A real disk whose calls go through a trip, the writing of its files too."""

    def __init__(self, trip: Trip) -> None:
        self._trip, self._honest = trip, Disk()

    def __getattribute__(self, name: str) -> Any:
        if name not in _CALLS:
            return super().__getattribute__(name)
        act = getattr(self._honest, name)
        if name == "create":
            return lambda path: _File(self._trip, self._trip.call(name, act, path))
        return lambda *arguments: self._trip.call(name, act, *arguments)


class _File:
    """A file that is being written, with a trip between."""

    def __init__(self, trip: Trip, file: Any) -> None:
        self._trip, self._file = trip, file

    def write(self, data: Any) -> Any:
        return self._trip.call("write", self._file.write, data, half=self._half)

    def _half(self, data: Any) -> None:
        self._file.write(data[: len(data) // 2])

    def flush(self) -> None:
        self._trip.call("flush", self._file.flush)

    def close(self) -> None:
        if not self._file.closed:
            self._trip.call("close", self._file.close)

    def fileno(self) -> int:
        return int(self._file.fileno())

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _failing(trip: Trip) -> Iterator[None]:
    """Put the trip between batchserve and the system."""
    concat, inspected, flock, touch = pq_glue.concat, glue._inspected, fcntl.flock, Path.touch

    def half(parts: list[str], output: str) -> None:
        concat(parts, output)
        os.truncate(output, Path(output).stat().st_size // 2)

    wrapped: list[Any] = [
        patch.object(storage, "disk", FailingDisk(trip)),
        patch.object(pq_glue, "concat", lambda *given: trip.call("concat", concat, *given, half=half)),
        patch.object(glue, "_inspected", lambda *given: trip.call("inspect", inspected, *given)),
        patch.object(fcntl, "flock", lambda *given: trip.call("flock", flock, *given)),
        patch.object(
            Path, "touch", lambda path, **more: trip.call("touch", lambda _: touch(path, **more), path)
        ),
    ]
    with ExitStack() as stack:
        for each in wrapped:
            stack.enter_context(each)
        yield


# -- the job ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What is asked of the output."""

    name: str
    output: str
    if_exists: Literal["error", "overwrite", "append"] = "error"
    inputs: tuple[str, ...] = ("in.csv",)

    @property
    def workspace(self) -> str:
        """The folder beside the output."""
        return f".{self.output}.batchserve"


KINDS = (
    Kind("a file", "out.parquet"),
    Kind("a file over another", "out.parquet", "overwrite"),
    Kind("a dataset", "out"),
    Kind("a dataset appended to", "out", "append", ("old.csv", "in.csv")),
)


class _Listener:
    """Notes which partitions are finished, and which of them were scored, not found done."""

    def __init__(self) -> None:
        self.finished: set[int] = set()
        self.scored: set[int] = set()

    def on(self, event: events.Event) -> None:
        """Note it."""
        if isinstance(event, events.PartitionScored):
            self.finished.add(event.index)
            self.scored |= set() if event.resumed else {event.index}


@contextmanager
def in_process() -> Iterator[None]:
    """Let jobs of several partitions, suspects too, be scored in this very thread."""
    with (
        patch.object(runner, "runs_in_place", lambda *_: True),
        patch.object(isolation, "_alone", _alone),
        patch.object(trial, "ended", lambda *_: 0),  # a plan's trials in forks call no disk, and take long
    ):
        yield


def _alone(work: bytes) -> int:
    """Score a suspect in this process: one of its own takes half a second to start."""
    result = isolation._result(work)
    if isinstance(result, BatchserveError):
        raise result
    return 0


class Rig:
    """A kind of output, what a calm run makes of it, and runs with faults."""

    def __init__(self, home: Path, kind: Kind) -> None:
        self._home, self._kind = home, kind
        self._place, self._template = home / "place", home / "template"
        home.mkdir(parents=True)
        self._job = self._make_job()
        self._make_template()
        self._reset()
        self._before = self._shown()
        calm = Trip(FAULTS[0], 0)
        with _failing(calm):
            self._run(_Listener())
        self.calls: Sequence[str] = calm.calls
        self._calm, self._names = self._shown(), self._listing()

    def _make_job(self) -> Job:
        rows = [f"{i / 7:.4f},{i / 3:.4f},{models.KINDS[i % 4]}\n" for i in range(10, 10 + _ROWS)]
        (self._home / "in.csv").write_text("a,b,kind\n" + "".join(rows))
        (self._home / "old.csv").write_text("a,b,kind\n1.5,2.5,red\n0.5,0.25,blue\n")
        size = (self._home / "in.csv").stat().st_size // PARTS
        model = str(models.named(self._home))
        return Job(model=model, workers=1, batch_rows=64, partition_size=size)

    def _make_template(self) -> None:
        self._place.mkdir()
        old = str(self._home / "old.csv")  # scored in any case: the first job of a process opens the model
        job.score(self._job, [old], str(self._place / self._kind.output), events.Silent())
        if self._kind.if_exists == "error":
            shutil.rmtree(self._place)
            self._place.mkdir()
        self._place.rename(self._template)

    def _reset(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._template, self._place)

    def _run(self, listener: _Listener) -> None:
        wishes = self._job.model_copy(update={"if_exists": self._kind.if_exists})
        given = [str(self._home / name) for name in self._kind.inputs]
        with in_process():
            job.score(wishes, given, str(self._place / self._kind.output), listener)

    def _shown(self) -> dict[str, bytes]:
        """Return what a reader finds under the name of the output."""
        path = self._place / self._kind.output
        files = sorted(path.rglob("*")) if path.is_dir() else [path] * path.exists()
        return {p.name: p.read_bytes() for p in files if p.is_file() and p.name != "receipt.json"}

    def _listing(self) -> list[str]:
        return sorted(str(path.relative_to(self._place)) for path in self._place.rglob("*"))

    def _done(self) -> set[int]:
        """Return the partitions with a receipt in the workspace and a part that fits it."""
        return {receipt.partition for receipt in self._receipts()}

    def _receipts(self) -> list[Receipt]:
        space = self._place / self._kind.workspace
        texts = [storage.unseal(path.read_bytes()) for path in space.glob("p??????.json")]
        receipts = [Receipt.of_json(text) for text in texts]
        return [r for r in receipts if Disk().size_bytes(space / r.part) == r.size_bytes]

    # -- one fault

    def numbers(self, fault: Fault) -> list[int]:
        """Return the numbers of the calls that the fault can happen to; the first is 1.

        What is removed is removed under a job that has begun to write.
        """
        begun = 0 if fault.removes == "nothing" else self.calls.index("make_dir")
        return [n for n, kind in enumerate(self.calls, 1) if kind in fault.calls and n > begun]

    def violations(self, planned: Sequence[tuple[Fault, int]], figures: Counter[str]) -> list[str]:
        """Fail a call in each of several runs of the same job, run it once without; judge the last two.

        Args:
            planned: For each run the fault, and the number of the call.
            figures: Counts runs that were judged.

        Returns:
            What is not as promised.
        """
        self._reset()
        for fault, number in planned[:-1]:
            with _failing(Trip(fault, number)):
                self._failed(fault, _Moment(), Counter())
        if self._finished():  # nothing is left to do: the same command says that the output exists
            return []
        fault, number = planned[-1]
        moment, unraisable = _Moment(), _Unraisable()
        trip = Trip(fault, number, lambda: self._note(moment, fault))
        with unraisable, _failing(trip):
            wrong = self._failed(fault, moment, figures)
        wrong += unraisable.said + self._kept(fault, moment)
        wrong += self._litter(trip) if len(planned) == 1 else []  # else it may be of an earlier run
        wrong += self._again()
        figures["runs"] += 1
        before = "".join(f", after {fault.name} at call {number}" for fault, number in planned[:-1])
        said = f"{self._kind.name}, {fault.name} at call {number} ({trip.struck}){before}"
        return [f"{said}: {each}" for each in wrong]

    def _finished(self) -> bool:
        return self._shown() == self._calm and self._listing() == self._names

    def _note(self, moment: "_Moment", fault: Fault) -> None:
        """Note how things are just before the fault; remove what is to be removed."""
        moment.finished = set(moment.listener.finished)
        moment.published = self._shown() == self._calm
        if fault.removes != "nothing":
            gone = self._kind.workspace if fault.removes == "the workspace" else ""
            shutil.rmtree(self._place / gone, ignore_errors=True)

    def _failed(self, fault: Fault, moment: "_Moment", figures: Counter[str]) -> list[str]:
        """Run the job with the fault; say what is wrong with how it ends."""
        try:
            self._run(moment.listener)
        except BatchserveError as error:
            figures["failed"] += 1
            if error.exit_code != fault.exit_code and not self._vanished(fault, moment, error):
                return [f"exit {error.exit_code}, {type(error).__name__}: {error.message}"]
            return [] if error.hint or error.singles else [f"no hint: {error.message}"]
        except BaseException as error:  # noqa: BLE001  whatever it is, the user would be left with it
            return [f"{type(error).__name__}: {error}"]
        figures["through"] += 1
        there = self._shown() == self._calm or (moment.published and fault.removes == "the folder")
        return [] if there else ["success, but another output"]

    def _vanished(self, fault: Fault, moment: "_Moment", error: BatchserveError) -> bool:
        """Whether the error rightly tells of an output that is not there any more, or of one that is."""
        if fault.removes != "nothing" and moment.published:
            return str(error.message).endswith(": exists")
        words = "was written to meanwhile", "is missing or damaged"
        appending = fault.removes == "the folder" and self._kind.if_exists == "append"
        return appending and any(text in error.message for text in words)

    def _kept(self, fault: Fault, moment: "_Moment") -> list[str]:
        """Say what is lost of the parts that were finished, and of the output that was there."""
        if self._shown() == self._calm or fault.removes == "the folder":
            return []
        lost = moment.finished - self._done() if fault.removes == "nothing" else set()
        wrong = [f"part {index} was lost" for index in sorted(lost)]
        return wrong + ["the output is neither the old nor the new one"] * (self._shown() != self._before)

    def _litter(self, trip: Trip) -> list[str]:
        """Say what a failed run leaves that is of no use and takes space; where it can remove things."""
        space = self._place / self._kind.workspace
        removable = not trip.fault.lasting and trip.fault.when != "after" and "unlink" not in trip.struck
        if not removable or not space.exists() or self._shown() == self._calm:
            return []
        parts = {receipt.part for receipt in self._receipts()}
        large = [p.name for p in space.iterdir() if p.suffix == ".parquet" or p.name.startswith("output.")]
        useless = [] if any(space.glob("p??????.json")) else [p.name for p in space.glob("plan.*")]
        return [f"litter: {name}" for name in [*large, *useless] if name not in parts]

    def _again(self) -> list[str]:
        """Run the same command once more, without a fault; say what is wrong with how it ends."""
        if not self._place.exists():
            self._reset()
        if self._finished():
            return []
        kept, listener = self._done(), _Listener()
        try:
            self._run(listener)
        except Exception as error:  # noqa: BLE001  whatever it is, the user would be left with it
            return [f"the same command fails: {type(error).__name__}: {error}"]
        wrong = [f"part {index} was scored twice" for index in sorted(listener.scored & kept)]
        wrong += ["the same command gives another output"] * (self._shown() != self._calm)
        left = sorted(set(self._listing()) ^ set(self._names))
        return wrong + [f"left over: {', '.join(left)}"] * bool(left)


@dataclass
class _Moment:
    """How things were just before the fault."""

    listener: _Listener = field(default_factory=_Listener)
    finished: set[int] = field(default_factory=set)
    published: bool = False


class _Unraisable:
    """Notes exceptions that Python can raise to nobody, such as those of a writer that is collected."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __enter__(self) -> None:
        self._before, sys.unraisablehook = sys.unraisablehook, self._note

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._before

    def _note(self, unraisable: Any) -> None:
        self.said.append(f"ignored in {unraisable.object!r}: {unraisable.exc_value!r}")


# -- many faults ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What a sweep came to."""

    runs: int
    failed: int
    """Ended with the right error."""
    through: int
    """Succeeded in spite of the fault, with the right bytes."""
    violations: list[str]

    def facts(self) -> dict[str, str]:
        """Return the figures in words."""
        return {
            "calls failed": f"{self.runs:,}",
            "ended with the error that tells it": f"{self.failed:,}",
            "succeeded all the same": f"{self.through:,}",
            "violations": f"{len(self.violations):,}",
        }


def sweep_kind(home: Path, kind: Kind, faults: Sequence[Fault], step: int = 1, pairs: int = 0) -> Figures:
    """Fail calls of a job with one kind of output.

    Args:
        home: A folder to work in; made, and removed afterwards.
        kind: The output.
        faults: What happens.
        step: Every how manieth call fails; with each fault others.
        pairs: How often the run that continues after a fault meets another; chance says which.
    """
    rig, figures, violations = Rig(home, kind), Counter[str](), list[str]()
    for i, fault in enumerate(faults):
        for number in rig.numbers(fault)[i % step :: step]:
            violations += rig.violations([(fault, number)], figures)
    chance = random.Random(kind.name)
    for _ in range(pairs):
        two = [(fault, chance.choice(rig.numbers(fault))) for fault in chance.choices(faults, k=2)]
        violations += rig.violations(two, figures)
    shutil.rmtree(home)
    return Figures(figures["runs"], figures["failed"], figures["through"], violations)


def sweep(home: Path, step: int = 1) -> Figures:
    """Fail every `step`-th call of jobs with every kind of output, in every way, and some calls in pairs.

    Args:
        home: A folder to work in; on a disk in memory it is four times as fast.
        step: 1 fails every call in every way.
    """
    found = [
        sweep_kind(home / f"kind{i}", kind, FAULTS, step, pairs=_PAIRS // step)
        for i, kind in enumerate(KINDS)
    ]
    return Figures(
        sum(f.runs for f in found), sum(f.failed for f in found), sum(f.through for f in found),
        [violation for f in found for violation in f.violations],
    )  # fmt: skip
