"""How much memory a job takes at its peak, for ten times the input, and against what `plan` said.

    python benchmarks/memory.py                   all workloads: 336,776 flights, and ten times as many
    python benchmarks/memory.py csv-linear jsonl-linear

Every job is a process of its own with two workers; its peak is what was resident (VmHWM). The estimate is
that of `plan` in another process. A ratio is the median of the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import workloads
from workloads import Workload

FLAT, ESTIMATE = 1.10, 0.30
_ESTIMATE = """
import json, sys
import batchserve.cli
import batchserve as bs
from batchserve import estimate
asked = json.loads(sys.argv[1])
plan = bs.plan(asked["files"], model=asked["model"], **asked["options"]).plan
print(estimate.peak_bytes(plan, 2))
"""
_SCORE = """
import json, sys
from pathlib import Path
import batchserve.cli
import batchserve as bs
from batchserve.events import Silent
asked = json.loads(sys.argv[1])
bs.score(asked["files"], asked["out"], model=asked["model"], overwrite=True, workers=2, listener=Silent(),
         **asked["options"])
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024)
"""


def ran(code: str, job: Workload, folder: Path) -> int:
    """Run a piece of Python on a workload as the command would run it; return the number that it prints."""
    asked = {
        "files": [str(path) for path in job.files], "model": str(job.model), "options": job.options,
        "out": str(folder / "out.parquet"),
    }  # fmt: skip
    environment = {"ARROW_DEFAULT_MEMORY_POOL": "jemalloc"} | os.environ  # as the command asks for it
    command = [sys.executable, "-c", code, json.dumps(asked)]
    return int(subprocess.run(command, capture_output=True, check=True, env=environment).stdout.split()[-1])


def one_row_group(folder: Path, times: int) -> Workload:
    """Make one Parquet file of one row group."""
    table = pacsv.read_csv(workloads.flights(folder, times), convert_options=workloads.NULLS)
    pq.write_table(table, folder / "one.parquet", row_group_size=len(table))
    model = workloads.FLIGHTS / "model.onnx"
    files = [folder / "one.parquet"]
    return Workload("one-row-group", files, model, workloads.read_parquet, {"on_null": "nan"})


def made(name: str, folder: Path, times: int) -> Workload:
    """Make a workload in a folder."""
    if name == "one-row-group":
        return one_row_group(folder, times)
    return workloads.all_of(folder, times)[name]()


def peaks(name: str, times: int, rounds: int) -> tuple[int, int]:
    """Return the estimate and the median peak of a workload in bytes."""
    with tempfile.TemporaryDirectory() as home:
        job = made(name, Path(home), times)
        found = [ran(_SCORE, job, Path(home)) for _ in range(rounds)]
        return ran(_ESTIMATE, job, Path(home)), int(statistics.median(found))


def measured(names: Sequence[str], times: int, rounds: int) -> Iterator[str]:
    """Give the table, a line at a time."""
    yield f"| workload | peak | of 10x | ratio | at most {FLAT:.2f} | estimates / peaks | within 30 % |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name in names:
        (said, one), (told, ten) = (peaks(name, each, rounds) for each in (times, 10 * times))
        flat = "met" if ten <= FLAT * one else "NOT MET"
        shares = said / one, told / ten
        right = "met" if all(abs(share - 1) <= ESTIMATE for share in shares) else "NOT MET"
        yield (
            f"| {name} | {one / 1e6:.0f} MB | {ten / 1e6:.0f} MB | {ten / one:.2f} | {flat} "
            f"| {shares[0]:.2f}, {shares[1]:.2f} | {right} |"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    every = [*workloads.all_of(Path(), 1), "one-row-group"]
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(every)}")
    parser.add_argument("--times", type=int, default=1, help="how often the flights are repeated")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    for text in measured(asked.names or every, asked.times, asked.rounds):
        print(text, flush=True)


if __name__ == "__main__":
    main()
