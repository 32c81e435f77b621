"""Measure the budgets of README.md beside this file, as ratios within one run.

Each budget is a pair of commands, run in turn as whole processes; what counts is the median of the
ratios of the rounds. So a slow machine, or one that other people use, moves both sides alike.

    nox -s bench                      all budgets
    nox -s bench -- help sample       some of them, by name
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
FLIGHTS = ROOT / "examples" / "flights"
BATCHSERVE = str(Path(sys.executable).with_name("batchserve"))
IMPORTS = "import typer, rich, pydantic, onnxruntime, pyarrow.parquet"
SAME = """
import sys, pyarrow.parquet as pq
ours, theirs = map(pq.read_table, sys.argv[1:])
assert ours["predicted_delay"].equals(theirs["score"]), "other scores"
"""

Command = Sequence[str]


@dataclass(frozen=True)
class Run:
    """What one process took."""

    seconds: float
    peak_mb: float
    """The most memory it held at once (resident set)."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Two commands, and how the first may compare with the second in time, rate or memory."""

    name: str
    what: str
    ours: Command
    base: Command
    rounds: int
    of: Literal["time", "rate", "memory"] = "time"
    bar: float | None = None
    """The least ratio for a rate, the greatest for anything else; None only reports."""

    def judged(self, figure: float) -> tuple[str, str]:
        """Return the bar in words, and whether `figure` keeps it."""
        if self.bar is None:
            return "none", ""
        kept = figure >= self.bar if self.of == "rate" else figure <= self.bar
        return f"at {'least' if self.of == 'rate' else 'most'} {self.bar}", "met" if kept else "NOT MET"

    def ratio(self, ours: Run, base: Run) -> float:
        """Compare one run of each side."""
        if self.of == "memory":
            return ours.peak_mb / base.peak_mb
        return base.seconds / ours.seconds if self.of == "rate" else ours.seconds / base.seconds

    def shown(self, side: Sequence[Run]) -> str:
        """Return the median of one side."""
        if self.of == "memory":
            return f"{statistics.median(run.peak_mb for run in side):.0f} MB"
        return f"{statistics.median(run.seconds for run in side):.2f} s"


def run(command: Command, folder: Path) -> Run:
    """Run a process in an emptied output folder; read its time and its peak memory.

    This process must stay small: a child starts with its parent's peak.
    """
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    with (folder / "log").open("wb") as log:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}\n{(folder / 'log').read_text()}")
    return Run(seconds, usage.ru_maxrss / 1000)


def budgets(folder: Path) -> Iterator[Budget]:
    """Give every budget; the data files are made in `folder` when they are first needed."""

    def flights(times: int) -> str:
        path = folder / f"flights-{times}.csv"
        if not path.exists():
            script = str(FLIGHTS / "make_full.py")
            subprocess.run([sys.executable, script, str(path), "--times", str(times)], check=True)
        return str(path)

    model, loop = str(FLIGHTS / "model.onnx"), str(ROOT / "benchmarks" / "peers" / "hand_loop.py")

    def ours(path: str) -> Command:
        return [BATCHSERVE, "score", path, "out/ours.parquet", "--model", model, "--on-null", "nan"]

    def by_hand(path: str) -> Command:
        return [path, model, "out/hand.parquet"]

    yield Budget(
        name="help", what="`batchserve --help` / importing typer and rich",
        ours=[BATCHSERVE, "--help"], base=[sys.executable, "-c", "import typer, rich"], rounds=21, bar=2.0,
    )  # fmt: skip
    yield Budget(
        name="sample", what="5,027 rows, whole process / importing what it needs",
        ours=ours(str(FLIGHTS / "flights.csv")), base=[sys.executable, "-c", IMPORTS], rounds=21, bar=1.25,
    )  # fmt: skip
    done = [str(FLIGHTS / "flights.csv"), str(folder / "done.parquet"), "--model", model, "--on-null", "nan"]
    done += ["--if-exists", "skip"]
    yield Budget(
        name="skip", what="`--if-exists skip` where all is done / `plan` of the same",
        ours=[BATCHSERVE, "score", *done], base=[BATCHSERVE, "plan", *done],
        rounds=11, bar=2.0,
    )  # fmt: skip
    yield Budget(
        name="full", what="336,776 rows in 4 partitions / the hand-written loop",
        ours=ours(flights(1)), base=[sys.executable, loop, *by_hand(flights(1))], rounds=7,
    )  # fmt: skip
    yield Budget(
        name="rate", what="rows/s on 3,367,760 rows / rows/s of the hand-written loop",
        ours=ours(flights(10)), base=[sys.executable, loop, *by_hand(flights(10))],
        rounds=5, of="rate", bar=1.0,
    )  # fmt: skip
    yield Budget(
        name="memory", what="peak memory on 3,367,760 rows / on 1,010,328 rows",
        ours=ours(flights(10)), base=ours(flights(3)), rounds=3, of="memory", bar=1.1,
    )  # fmt: skip


def check_same(ours: Command, base: Command, folder: Path) -> None:
    """Refuse to compare the speed of two things that give different scores."""
    kept = []
    for command in (ours, base):
        run(command, folder)
        found = next((folder / "out").glob("*.parquet"))
        kept.append(str(found.rename(folder / found.name)))
    subprocess.run([sys.executable, "-c", SAME, *kept], check=True)


def measure(budget: Budget, folder: Path) -> tuple[str, str]:
    """Run both sides in turn; return the table's line and the verdict."""
    if budget.name == "rate":
        check_same(budget.ours, budget.base, folder)
    else:
        run(budget.ours, folder)  # the first run compiles and fills caches
        run(budget.base, folder)
    pairs = []
    for i in range(budget.rounds):
        sides = [budget.ours, budget.base] if i % 2 else [budget.base, budget.ours]
        runs = [run(command, folder) for command in sides]
        pairs.append((runs[0], runs[1]) if i % 2 else (runs[1], runs[0]))
    ratios = [budget.ratio(ours, base) for ours, base in pairs]
    figure = statistics.median(ratios)
    bar, verdict = budget.judged(figure)
    medians = " / ".join(budget.shown(side) for side in zip(*pairs, strict=True))
    cells = [budget.name, budget.what, medians, f"{figure:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]
    return f"| {' | '.join([*cells, bar, verdict])} |", verdict


def machine() -> str:
    """Say what was measured on what."""
    cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    packages = ("batchserve", "onnxruntime", "pyarrow", "dask")
    stack = ", ".join(f"{name} {version(name)}" for name in packages)
    cpus = f"{len(os.sched_getaffinity(0))} CPUs ({cpu.partition(': ')[2]})"
    return f"{cpus}, Python {platform.python_version()}, {stack}; load before {os.getloadavg()[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="budgets to measure; all by default")
    names = parser.parse_args().names
    print(machine(), end="\n\n")
    print("| budget | what | medians | ratio (min to max) | bar | |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as home:
        verdicts = []
        for budget in budgets(Path(home)):
            if not names or budget.name in names:
                line, verdict = measure(budget, Path(home))
                print(line, flush=True)
                verdicts.append(verdict)
    raise SystemExit("NOT MET" in verdicts)


if __name__ == "__main__":
    main()
