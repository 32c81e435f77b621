"""How near the rows per run that the plan chooses are to the best of a sweep, for every model of the suite.

    python benchmarks/batches.py

The model alone, on all usable CPUs at once, with one thread a run, as `batchserve tune` measures it.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import workloads

from batchserve import tune
from batchserve.config import Job
from batchserve.tune import Trial

BAR = 0.90
_OF = {
    "linear": "csv-linear", "trees": "parquet-trees", "network": "parquet-network",
    "transformer": "tokens-transformer",
}  # fmt: skip


def swept(workload: str, folder: Path, trial_s: float) -> tuple[Trial, list[Trial]]:
    """Return what the plan chooses, and every size that was tried with one thread."""
    job = workloads.all_of(folder, 1)[workload]()
    wishes = {name: (each,) if isinstance(each, str) else tuple(each) for name, each in job.options.items()}
    found = tune.tuned(Job(model=str(job.model), **wishes), [str(path) for path in job.files], trial_s)
    return found.now, [trial for trial in found.trials if trial.intra_op == 1]


def line(name: str, rounds: int, trial_s: float) -> str:
    """Sweep one model; return its row of the table."""
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as home:
            now, trials = swept(_OF[name], Path(home), trial_s)
        found.append((now, max(trials, key=lambda trial: trial.rows_per_s)))
    shares = [now.rows_per_s / best.rows_per_s for now, best in found]
    share = statistics.median(shares)
    now, best = found[shares.index(sorted(shares)[len(shares) // 2])]
    verdict = "met" if share >= BAR else "NOT MET"
    spread = f"{share:.2f} ({min(shares):.2f} to {max(shares):.2f})"
    return f"| {name} | {now.batch_rows:,} | {best.batch_rows:,} | {spread} | {verdict} |"


def measured(rounds: int, trial_s: float) -> Iterator[str]:
    """Give the table, a line at a time."""
    yield f"| model | rows per run | best of a sweep | speed of ours / of the best | at least {BAR:.2f} |"
    yield "| --- | --- | --- | --- | --- |"
    yield from (line(name, rounds, trial_s) for name in _OF)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trial", type=float, default=0.2, help="seconds of one measurement")
    asked = parser.parse_args()
    for text in measured(asked.rounds, asked.trial):
        print(text, flush=True)


if __name__ == "__main__":
    main()
