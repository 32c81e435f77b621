"""Real SIGKILLs at random moments against the real command: what is lost, redone, left behind.

`harass` needs no fixtures: a folder, how many kills and a seed. Choices come from the seed;
where a kill lands in a job, the machine decides.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import psutil

import models
from batchserve import receipts, target
from batchserve.cluster import processes
from batchserve.cluster.named import Cluster
from conftest import environment
from killing import works

PARTITIONS = 40
WORKERS = 2
_LINE_BYTES, _LINES = 27, 12
_MODEL = ("--model", "heavy.onnx", "--batch-rows", "512", "--partition-size", str(_LINE_BYTES * _LINES))
_OUTPUTS = ("out.parquet", "out")
_OLDER = ("--keep", "row")
"""What makes the plan of the outputs that are overwritten another one."""

_MOST_KILLS = 5
"""Of one job; then it is left in peace."""
_MOST_COMMANDS = 40
"""A job that is not done then never will be."""
_PATIENCE_S = 150
"""More than any command that nobody harms any more takes; else it hangs."""
_POLL_S = 0.002
_BRIEF_S = 0.03
_SETTLED_S = 15
"""Publishing and cleaning up take about so long: too short to be met often by chance."""
_ALLOWED = {0, 69, 75, -signal.SIGKILL}
_MOMENTS = ("any",) * 5 + ("publishing", "cleaning")

_HOOK = """
import importlib.abc, importlib.util, os, sys, time


class Noting(importlib.abc.MetaPathFinder):  # nothing is imported earlier than without it
    def find_spec(self, name, path=None, target=None):
        if name != "batchserve.scoring":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_note(module):
            load(module)
            module._attempt = noted(module._attempt)

        spec.loader.exec_module = load_and_note
        return spec


def noted(attempt):
    def begin(partition, recipe, workspace, *more):
        with open(os.environ["KILLS_NOTES"], "ab", 0) as file:
            file.write(f"{time.monotonic()} {partition.index} {workspace.path}\\n".encode())
        return attempt(partition, recipe, workspace, *more)

    return begin


sys.meta_path.insert(0, Noting())
"""
"""Imported by every Python process at its start; notes each partition that is really begun."""


@dataclass(frozen=True)
class Figures:
    """What was done to the command, and what became of it."""

    kinds: Counter[str] = field(default_factory=Counter)
    """Kills by what was killed."""
    phases: Counter[str] = field(default_factory=Counter)
    """Kills by what the job was doing."""
    codes: Counter[int] = field(default_factory=Counter)
    """Commands by their exit code."""
    jobs: int = 0
    outputs_compared: int = 0
    outputs_wrong: int = 0
    left_behind: int = 0
    """Files and processes there after a job that should not be."""
    parts: int = 0
    parts_redone: int = 0
    most_redone: int = 0
    """The greatest number of parts redone because of one kill."""
    faults: tuple[str, ...] = ()
    """All that should not be, in words."""

    @property
    def kills(self) -> int:
        """How many signals were delivered."""
        return self.kinds.total()

    def __add__(self, other: "Figures") -> "Figures":
        """Add up what two runs gave."""
        added = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Figures(**added | {"most_redone": max(self.most_redone, other.most_redone)})

    def facts(self) -> dict[str, str | int]:
        """Return the figures for a table."""
        return {
            "SIGKILLs delivered": self.kills, "killed": _listed(self.kinds), "while": _listed(self.phases),
            "exit codes": _listed(self.codes), "jobs": self.jobs,
            "outputs compared": self.outputs_compared, "outputs wrong": self.outputs_wrong,
            "left behind": self.left_behind, "parts": self.parts, "parts redone": self.parts_redone,
            "most parts redone after one kill": f"{self.most_redone} (of {WORKERS} workers)",
            "faults": len(self.faults),
        }  # fmt: skip


def _listed(counts: Counter[Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def harass(home: Path, kills: int, seed: int, setups: Sequence[str] = ("threads", "cluster")) -> Figures:
    """Kill jobs at random moments until so many kills were delivered.

    Args:
        home: An empty folder, or one that was harassed in before.
        kills: How many to deliver, shared evenly by the setups.
        seed: Of all choices.
        setups: `threads` for jobs on threads of the command's own process, `cluster` for jobs on
            a background cluster.
    """
    material = Material(home.absolute())
    figures = Figures()
    for i, name in enumerate(setups):
        share = kills // len(setups) + (i < kills % len(setups))
        figures += _harassed(SETUPS[name](material), share, seed)
    return figures


def _harassed(setup: "Setup", kills: int, seed: int) -> Figures:
    try:
        calm_s = _calm_s(setup)
        deck = Deck(setup.deck, seed)
        figures = Figures()
        number = 0
        while figures.kills < kills:
            number += 1
            chance = random.Random(f"{seed} {number}")
            most = min(kills - figures.kills, chance.randint(1, _MOST_KILLS))
            job = setup.material.job(f"{setup.name}-{seed}-{number}", number)
            figures += Trial(setup, job, deck, calm_s, chance).run(most)
        return figures
    finally:
        setup.close()


def _calm_s(setup: "Setup") -> float:
    """Return how long a job takes that nobody disturbs."""
    setup.ready()
    job = setup.material.job("calm", 0)
    start = time.monotonic()
    with Command(job, setup) as command:
        command.finish()
    assert held(job.output) == job.calm, command.said
    job.remove()
    return time.monotonic() - start


# -- jobs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One output to be made, alone in a folder of its own."""

    folder: Path
    output: Path
    arguments: tuple[str, ...]
    calm: str
    """Digest of the output of an undisturbed run."""
    older: str
    """Digest of the output that is there before, empty for none."""

    @property
    def workspace(self) -> Path:
        """Where unfinished work is."""
        return target.at(str(self.output)).workspace

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: the output is complete, and no workspace is there."""
        return held(self.output) == self.calm and not self.workspace.exists()

    def phase(self) -> str:
        """Return what the job is doing, as far as files tell."""
        published = held(self.output) == self.calm
        names = _names(self.workspace)
        if published:
            return "cleaning" if self.workspace.exists() else "leaving"
        if "plan.json" not in names:
            return "planning"
        done = sum(name.startswith("p0") and name.endswith(".json") for name in names)
        return "publishing" if done == PARTITIONS else "scoring"

    def left(self) -> list[str]:
        """Return the names that a finished job should not have left."""
        wanted = {self.output.name} | ({"out.receipt.json"} if self.output.suffix else set())
        return sorted(set(_names(self.folder)) - wanted)

    def remove(self) -> None:
        """Remove the folder with all in it."""
        shutil.rmtree(self.folder)


def _names(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return os.listdir(folder)  # noqa: PTH208  names, not paths
    return []


def held(output: Path) -> str:
    """Return the digest of what is at an output path at one moment; an empty text for nothing."""
    while True:
        try:
            opened = os.open(output, os.O_RDONLY)
        except FileNotFoundError:
            return ""
        try:
            digest = _digest(opened)
            if os.path.samestat(os.fstat(opened), output.stat()):
                return digest
        except FileNotFoundError:  # a dataset that was swapped meanwhile, and is being removed
            continue
        finally:
            os.close(opened)


def _digest(opened: int) -> str:
    """Return the sha256 of an open file, or of the files of an open dataset, the manifest included."""
    whole = hashlib.sha256()
    if os.path.isdir(opened):  # noqa: PTH112  a descriptor
        for name in [*sorted(os.listdir(opened)), "_batchserve/manifest.json"]:
            if name != "_batchserve":
                with open(os.open(name, os.O_RDONLY, dir_fd=opened), "rb") as file:  # noqa: PTH123  a descriptor
                    whole.update(file.read())
    else:
        whole.update(os.pread(opened, os.fstat(opened).st_size, 0))
    return whole.hexdigest()


class Material:
    """The input, the model, the outputs of undisturbed runs, and the hook that notes attempts."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.notes = home / "notes"
        self._calm = home / "calm"
        if not self.notes.exists():
            self._make()

    @property
    def environment(self) -> dict[str, str]:
        """Of every process; without coverage, of which killed processes would leave half files."""
        path = os.pathsep.join([str(self.home / "site"), os.environ.get("PYTHONPATH", "")])
        plain = environment(
            PYTHONPATH=path, KILLS_NOTES=str(self.notes),
            XDG_STATE_HOME=str(self.home / "state"), DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT="2s",
        )  # fmt: skip
        return {name: text for name, text in plain.items() if not name.startswith("COVERAGE")}

    def _make(self) -> None:
        for name in ("site", "jobs", "calm", *(f"older-{output}" for output in _OUTPUTS)):
            (self.home / name).mkdir()
        (self.home / "site" / "sitecustomize.py").write_text(_HOOK)
        models.heavy(self.home)
        numbers = np.random.default_rng(1).random((PARTITIONS * _LINES, 2))
        lines = [f"{a:.8f},{b:.8f},{i}\n" for i, (a, b) in enumerate(numbers, start=1_000)]
        (self.home / "in.csv").write_text("a,b,row\n" + "".join(lines))
        for output in _OUTPUTS:
            self._score(self._calm / output)
            self._score(self.home / f"older-{output}" / output, *_OLDER)
        self.notes.touch()

    def _score(self, output: Path, *more: str) -> None:
        command = [sys.executable, "-m", "batchserve", "score", "in.csv", str(output), *_MODEL, *more]
        subprocess.run(command, cwd=self.home, env=self.environment, capture_output=True, check=True)

    def job(self, name: str, number: int) -> Job:
        """Return job `number`: a file or a dataset, over nothing or over an older output."""
        output = _OUTPUTS[number % 2]
        overwrites = number % 4 >= 2
        folder = self.home / "jobs" / name
        folder.mkdir()
        if overwrites:
            shutil.copytree(self.home / f"older-{output}", folder, dirs_exist_ok=True)
        arguments = ("score", "in.csv", str(folder / output), *_MODEL, *(["--overwrite"] * overwrites))
        return Job(folder, folder / output, arguments, held(self._calm / output), held(folder / output))

    def attempts(self, job: Job) -> dict[int, list[float]]:
        """Return when each partition of a job was really begun."""
        found: dict[int, list[float]] = {i: [] for i in range(PARTITIONS)}
        for line in self.notes.read_text().splitlines():
            at, index, path = line.split(" ", 2)
            if path == str(job.workspace):
                found[int(index)].append(float(at))
        return {index: sorted(times) for index, times in found.items()}


# -- who can be killed ------------------------------------------------------------------------


class Setup(Protocol):
    """Where jobs run, and what can be killed there."""

    name: str
    material: Material
    deck: tuple[str, ...]
    """Kinds of victims, each as often as it shall be killed."""
    arguments: tuple[str, ...]

    def ready(self) -> None:
        """Make sure that a command can run."""

    def victims(self, kind: str, command: "Command") -> list[psutil.Process]:
        """Return the processes of a kind that are there now."""

    def close(self) -> None:
        """End what was started."""


class Threads:
    """Jobs on threads of the process that the command forks.

    driver: the parent. child: the process that scores. alone: the process of one partition that
    was in another that died. group: all of them at once.
    """

    name: str = "threads"
    deck: tuple[str, ...] = ("driver",) * 4 + ("child",) * 4 + ("group",) * 2 + ("alone",) * 2
    arguments: tuple[str, ...] = ("--workers", str(WORKERS))

    def __init__(self, material: Material) -> None:
        self.material = material

    def ready(self) -> None:
        """Do nothing: all a command needs it brings."""

    def victims(self, kind: str, command: "Command") -> list[psutil.Process]:
        """Return the processes of a kind that are there now."""
        return command.processes(kind)

    def close(self) -> None:
        """Do nothing: nothing was started."""


class Background:
    """Jobs on a background cluster.

    worker: one worker process. nanny: the process of the nannies, whose end is that of all
    workers. scheduler: the scheduler. driver and child: as on threads.
    """

    name: str = "cluster"
    deck: tuple[str, ...] = ("worker",) * 4 + ("driver",) * 3 + ("child",) * 2 + ("nanny", "scheduler")
    arguments: tuple[str, ...] = ("--cluster", "kills")

    def __init__(self, material: Material) -> None:
        self.material = material
        self.folder = material.home / "state" / "batchserve" / "clusters" / "kills"

    def ready(self) -> None:
        """Start the cluster, again if it died: with the command, as people do."""
        found = self._cluster()
        if found is None or not {found.scheduler_pid, found.workers_pid} <= processes.of(self.folder).keys():
            command = ("cluster", "start", "--name", "kills", "--workers", str(WORKERS))
            subprocess.run(
                [sys.executable, "-m", "batchserve", *command],
                env=self.material.environment, capture_output=True, check=True,
            )  # fmt: skip

    def _cluster(self) -> Cluster | None:
        try:
            return Cluster.model_validate_json((self.folder / "cluster.json").read_bytes())
        except FileNotFoundError:
            return None

    def victims(self, kind: str, command: "Command") -> list[psutil.Process]:
        """Return the processes of a kind that are there now."""
        found = self._cluster()
        if found is None or kind not in {"worker", "nanny", "scheduler"}:
            return command.processes(kind)
        if kind == "worker":
            return [each for each in _children(found.workers_pid) if "spawn_main" in _line(each)]
        return _alive([found.workers_pid if kind == "nanny" else found.scheduler_pid])

    def close(self) -> None:
        """End the cluster, dead or alive."""
        processes.end(self.folder)


SETUPS: dict[str, type[Threads] | type[Background]] = {Threads.name: Threads, Background.name: Background}


def _alive(pids: Sequence[int]) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in pids if works(pid)]


def _children(pid: int, *, recursive: bool = False) -> list[psutil.Process]:
    try:
        found = psutil.Process(pid).children(recursive=recursive)
        return [each for each in found if works(each.pid)]
    except psutil.NoSuchProcess:
        return []


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # gone meanwhile
        return ""


class Command:
    """One run of the command that scores a job."""

    def __init__(self, job: Job, setup: Setup) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "batchserve", *job.arguments, *setup.arguments],
            cwd=setup.material.home, env=setup.material.environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said = ""
        self.hung = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, whatever became of the harness."""
        if not self.ended:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def ended(self) -> bool:
        """Whether the parent is no more."""
        return self.process.poll() is not None

    def processes(self, kind: str) -> list[psutil.Process]:
        """Return the processes of a kind that are there now."""
        if kind == "child":
            return _children(self.process.pid)[:1]
        if kind == "alone":
            found = _children(self.process.pid, recursive=True)
            return [each for each in found if "batchserve.isolation" in _line(each)]
        return _alive([self.process.pid])

    def finish(self) -> int:
        """Wait until all processes of the command are gone; return its exit code."""
        try:
            _, self.said = self.process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.hung = True
            os.killpg(self.process.pid, signal.SIGKILL)
            _, self.said = self.process.communicate()
        return self.process.returncode


# -- killing ----------------------------------------------------------------------------------


class Deck:
    """Kinds of victims in a random order, each as often as the setup wants."""

    def __init__(self, kinds: Sequence[str], seed: int) -> None:
        self._kinds, self._chance = kinds, random.Random(seed)
        self._cards: list[str] = []

    def draw(self, *, alone: bool) -> str:
        """Take the next kind; `alone` says whether a partition may be scored alone now."""
        possible = [kind for kind in self._cards if alone or kind != "alone"]
        if not possible:
            self._cards += self._chance.sample(self._kinds, len(self._kinds))
            return self.draw(alone=alone)
        self._cards.remove(possible[0])
        return possible[0]

    def put_back(self, kind: str) -> None:
        """Keep for later a kind of which nobody was there."""
        self._cards.append(kind)


@dataclass(frozen=True)
class Kill:
    """A signal that was delivered."""

    kind: str
    phase: str
    at: float
    """On the monotonic clock."""


class Trial:
    """One job, killed again and again, begun again until it is done."""

    def __init__(self, setup: Setup, job: Job, deck: Deck, calm_s: float, chance: random.Random) -> None:
        self._setup, self._job, self._deck = setup, job, deck
        self._calm_s, self._chance = calm_s, chance
        self._kills: list[Kill] = []
        self._codes: Counter[int] = Counter()
        self._faults: list[str] = []
        self._published = False

    def run(self, most: int) -> Figures:
        """Deliver at most so many kills, then let the job be done."""
        for _ in range(_MOST_COMMANDS):
            self._setup.ready()
            with Command(self._job, self._setup) as command:
                while len(self._kills) < most and self._strike(command):
                    self._check_output()
                self._codes[self._outcome(command)] += 1
            if command.process.returncode == 0 or self._job.finished:
                break
        else:
            self._fault(f"is not done after {_MOST_COMMANDS} commands")
        return self._figures()

    def _outcome(self, command: Command) -> int:
        """Wait for the end of a command, whether it was killed or not."""
        self._pass(_PATIENCE_S, command)
        code = command.finish()
        if command.hung:
            self._fault(f"hung: {command.said}")
        if code not in _ALLOWED:
            self._fault(f"exit {code}: {command.said}")
        for word in ("Traceback", "distributed"):
            if word in command.said:
                self._fault(f"says {word}: {command.said}")
        self._check_output()
        return code

    # -- one kill

    def _strike(self, command: Command) -> bool:
        """Kill a victim at a random moment; whether that was done and the command may go on."""
        was_scoring = bool(self._kills) and self._kills[-1].phase == "scoring"
        kind = self._deck.draw(alone=was_scoring)
        process = self._victim(kind, command)
        if process is None:
            self._deck.put_back(kind)
            return False
        kill = Kill(kind, self._job.phase(), time.monotonic())
        with suppress(ProcessLookupError):
            if kind == "group":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid, signal.SIGKILL)
        ends = kind in {"driver", "group"}
        if not ends or command.finish() == -signal.SIGKILL:  # else it had just ended by itself
            self._kills.append(kill)
        return not ends

    def _victim(self, kind: str, command: Command) -> psutil.Process | None:
        """Wait for a random moment, and for a process of a kind to be there."""
        moment = self._chance.choice(_MOMENTS)
        if kind == "alone":  # there at the beginning of a command, if at all
            self._pass(self._chance.uniform(0, self._calm_s / 2), command)
        elif moment == "any":
            self._pass(self._chance.uniform(0, self._calm_s), command)
        else:
            later = {"cleaning", "leaving"} | ({"publishing"} if moment == "publishing" else set())
            while not command.ended and self._job.phase() not in later:
                self._watch()
            self._pass(self._chance.uniform(0, _BRIEF_S), command)
        while not command.ended:
            if found := self._setup.victims(kind, command):
                return self._chance.choice(found)
            self._watch()
        return None

    def _pass(self, seconds: float, command: Command) -> None:
        end = time.monotonic() + seconds
        while not command.ended and time.monotonic() < end:
            self._watch()

    # -- what holds

    def _watch(self) -> None:
        self._check_output()
        time.sleep(_POLL_S)

    def _check_output(self) -> None:
        """Check that the path holds what was there before, or the complete result from then on."""
        holds = held(self._job.output)
        if holds not in {self._job.calm} | ({self._job.older} if not self._published else set()):
            self._fault("the output path holds something else")
        self._published = self._published or holds == self._job.calm

    def _fault(self, what: str) -> None:
        kills = ", ".join(f"{kill.kind} while {kill.phase}" for kill in self._kills)
        text = f"{self._job.folder.name}, killed: {kills}: {what}"
        if text not in self._faults:
            self._faults.append(text)

    def _figures(self) -> Figures:
        wrong = held(self._job.output) != self._job.calm
        left = [*self._job.left(), *self._processes()]
        if left:
            self._fault(f"left behind: {', '.join(left)}")
        if receipts.receipt_of(target.at(str(self._job.output))) is None:
            self._fault("has no receipt")
        redone = self._redone()
        if not (wrong or self._faults):
            self._job.remove()
        return Figures(
            Counter(kill.kind for kill in self._kills), Counter(kill.phase for kill in self._kills),
            self._codes, 1, 1, int(wrong), len(left), PARTITIONS, redone.total(),
            max(redone.values(), default=0), tuple(self._faults),
        )  # fmt: skip

    def _processes(self) -> list[str]:
        """Return the processes of the job that stay at work: a worker that is just started anew is none."""
        give_up = time.monotonic() + _SETTLED_S
        while (found := self._at_work()) and time.monotonic() < give_up:
            time.sleep(_BRIEF_S)
        return found

    def _at_work(self) -> list[str]:
        of_cluster = processes.of(self._setup.material.home / "state" / "batchserve" / "clusters" / "kills")
        return [_line(p) for p in psutil.process_iter() if p.pid not in of_cluster and self._is_ours(p)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get("KILLS_NOTES") == str(self._setup.material.notes))
        except psutil.Error:
            return False

    def _redone(self) -> Counter[int]:
        """Count the parts begun again by the kill that cost them their earlier attempt."""
        times = [kill.at for kill in self._kills]
        counted: Counter[int] = Counter()
        for index, began in self._setup.material.attempts(self._job).items():
            if not began:
                self._fault(f"partition {index} was never begun")
            for before, after in pairwise(began):
                first, later = bisect(times, before), bisect(times, after)
                if not later:
                    self._fault(f"partition {index} was begun twice before the first kill")
                counted[min(first, later - 1)] += 1
        for kill, count in counted.items():
            if count > WORKERS:
                self._fault(f"{count} parts were redone after kill {kill + 1}")
        return counted
