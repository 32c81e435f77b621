"""Where the time of a job went: per core, by stage; which stage binds, and what would help most."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchserve import machine
from batchserve.outputs import Receipt
from batchserve.planning import Plan

STAGES = ("read", "bind", "model", "encode", "write", "other")
"""What a worker does: `other` is what lies between the stages."""
_INSIDE = {"other": "scheduling", "publish": "write"}
"""What a short form counts as something else."""


@dataclass(frozen=True)
class Phases:
    """Seconds of wall time of a job: before the partitions, with them, after them."""

    start_up_s: float
    work_s: float
    publish_s: float


@dataclass(frozen=True)
class Profile:
    """The wall time of a job, shared out to what each core did with it.

    Attributes:
        seconds: Per core: start-up, the stages while their thread ran, wait (for a disk, a lock or a
            CPU), scheduling (no partition at hand) and publish. They add up to the wall time.
        waited_in: The stage that waited most.
        advice: The one change that would help most.
    """

    seconds: dict[str, float]
    waited_in: str
    advice: str

    @property
    def total_s(self) -> float:
        """The wall time."""
        return sum(self.seconds.values())

    @property
    def binds(self) -> str:
        """What most of the time went to."""
        return _largest(self.seconds)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each in the wall time, in few words: publishing is writing."""
        told = {name: seconds for name, seconds in self.seconds.items() if name not in _INSIDE}
        for name, whole in _INSIDE.items():
            told[whole] += self.seconds[name]
        return {name: seconds / max(self.total_s, 1e-9) for name, seconds in told.items()}

    def lines(self) -> Iterator[str]:
        """Give the table for `--profile`."""
        for name, seconds in self.seconds.items():
            where = f"  most of it in {self.waited_in}" if name == "wait" else ""
            yield f"{name:<11}{seconds:9.2f} s  {seconds / max(self.total_s, 1e-9):4.0%}{where}"
        yield f"{self.binds} binds; {self.advice}"


def profiled(made: Plan, scored: Sequence[Receipt], workers: int, phases: Phases) -> Profile:
    """Share the wall time of a job out.

    Args:
        made: The plan.
        scored: Receipts of the partitions that this run scored.
        workers: How many are scored at once.
        phases: How long the job took.
    """
    spent = {s: sum(r.facts.seconds.get(s, 0) for r in scored) / workers for s in STAGES}
    waited = {s: sum(r.facts.waited_s.get(s, 0) for r in scored) / workers for s in STAGES}
    busy = {s: spent[s] - waited[s] for s in STAGES}
    idle = max(0.0, phases.work_s - sum(spent.values()))
    seconds = {"start-up": phases.start_up_s, **busy, "wait": sum(waited.values()), "scheduling": idle}
    seconds |= {"publish": phases.publish_s}
    waited_in = _largest(waited)
    return Profile(seconds, waited_in, _advice(_largest(seconds), waited_in, made, workers))


def _largest(seconds: Mapping[str, float]) -> str:
    return max(seconds, key=seconds.__getitem__)


def _advice(binds: str, waited_in: str, made: Plan, workers: int) -> str:
    """Say which one change would help most."""
    if binds == "wait":
        return _less_waiting(waited_in)
    if binds == "model":
        return _faster_model(workers)
    form = made.sources[0].format if made.sources else "parquet"
    faster = "fewer columns would help: --keep" if form == "parquet" else f"Parquet reads faster than {form}"
    fewer = "fewer columns would help: --keep none, or --keep A,B"
    smaller = "smaller partitions would keep all workers busy to the end: --partition-size"
    return {
        "start-up": "several files in one command would start once",
        "read": faster,
        "bind": "numbers reach a model faster than texts",
        "encode": fewer, "write": fewer, "scheduling": smaller,
        "other": "larger partitions would help: --partition-size",
        "publish": "a folder of parts as output is not glued: OUTPUT/",
    }[binds]  # fmt: skip


def _less_waiting(waited_in: str) -> str:
    if waited_in in {"read", "write"}:
        return f"most of it in {waited_in}: a faster or nearer disk would help"
    return f"most of it in {waited_in}, for a CPU: others use this machine, or there are too many --workers"


def _faster_model(workers: int) -> str:
    cpus = machine.usable_cpus()
    if workers < cpus:
        return f"more workers would help: --workers {cpus}"
    return "a smaller model would help, or more machines: --cluster, --scheduler"
