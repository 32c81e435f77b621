"""What many partitions cost: to plan, to send, to score next to nothing, and on many workers.

    python benchmarks/partitions.py                            all; 100,000 planned, 1,000 and 4,000 run
    python benchmarks/partitions.py overhead --count 100000    the long form: a quarter of an hour

`overhead` compares the jobs' own graph over partitions whose receipts are there with a bare window of
`client.submit` over nothing, on the same two worker processes, in turn. `workers` puts up to 64 workers of
one thread under a scheduler in this process, with a score that sleeps.
"""

import argparse
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dask
import pyarrow as pa
import pyarrow.parquet as pq
import workloads
from distributed import Client, LocalCluster, Scheduler, SpecCluster, Worker, as_completed

import batchserve as bs
from batchserve import graph, planning, scoring, storage, threads
from batchserve.cluster import SETTINGS
from batchserve.events import Silent
from batchserve.inputs import Partition
from batchserve.outputs import Facts, Receipt, Workspace
from batchserve.planning import Plan
from batchserve.segments import Unpacker

OVERHEAD, EFFICIENCY = 1.5, 0.95
WINDOW = 64
_PLAN = """
import sys, time
from pathlib import Path
import batchserve.cli
import batchserve as bs
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before, began = peak(), time.perf_counter()
made = bs.plan(sys.argv[1], model=sys.argv[2], on_null="nan", partition_size=int(sys.argv[3])).plan
made.plan_id
print(len(made.partitions), time.perf_counter() - began, peak() - before)
"""


def planned(folder: Path) -> Iterator[str]:
    """Plan 1,000 and 100,000 partitions of one file."""
    yield "| partitions planned | seconds | memory above the imports |"
    yield "| --- | --- | --- |"
    data, model = workloads.flights(folder, 10), workloads.linear(folder)
    for count in (1_000, 100_000):
        command = [sys.executable, "-c", _PLAN, str(data), str(model), str(data.stat().st_size // count)]
        found = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
        yield f"| {int(found[0]):,} | {float(found[1]):.2f} | {float(found[2]) / 1e6:.0f} MB |"


def sizes(folder: Path) -> Iterator[str]:
    """Tell how large a graph of 64 partitions is when it is sent, with a small and a large model."""
    yield "| model | graph of 64 partitions |"
    yield "| --- | --- |"
    for model, wide in ((workloads.linear(folder), False), (workloads.network(folder), True)):
        made = _plan(folder, model) if not wide else _of_network(folder, model)
        part = made.partitions[0]
        partitions = [replace(part, index=i) for i in range(WINDOW)]
        frame = graph.receipts(partitions, made.recipe, Workspace(str(folder), "id", ()), "run")
        size = len(pickle.dumps(frame.__dask_graph__()))
        yield f"| {model.name}, {model.stat().st_size / 1e3:,.0f} kB | {size / 1e3:,.0f} kB |"


def _plan(folder: Path, model: Path) -> Plan:
    return bs.plan(workloads.flights(folder, 1), model=model, on_null="nan").plan


def _of_network(folder: Path, model: Path) -> Plan:
    names = [f"f{i}" for i in range(200)]
    pq.write_table(
        pa.table({name: pa.array([1.0, 2.0], pa.float32()) for name in names}), folder / "w.parquet"
    )
    return bs.plan(folder / "w.parquet", model=model, features=names).plan


# -- overhead ---------------------------------------------------------------------------------


def receipt_of(index: int, part: str, plan_id: str, size_bytes: int) -> Receipt:
    """Return the receipt of a part that stands for every partition."""
    none: dict[str, int] = {}
    facts = Facts(
        rows_in=1, rows_rejected=0, bytes_in=1, extents=((0, 1),), records=(1,), refused=(),
        rejected_by=none, nulls=none, rounded=none, nonfinite=none, amendments=(), seconds={"read": 0.1},
    )  # fmt: skip
    return Receipt(
        partition=index, plan_id=plan_id, part=part, rows_out=1, size_bytes=size_bytes, sha256="0" * 64,
        row_groups=(), facts=facts,
    )  # fmt: skip


def committed(folder: Path, made: Plan, count: int) -> tuple[Workspace, list[Partition]]:
    """Make a workspace in which every partition is done."""
    space = Workspace(str(folder / f"done-{count}"), made.plan_id, tuple(planning.footer(made).items()))
    Path(space.path).mkdir()
    space.file("part.parquet").write_bytes(b"PAR1")
    partitions = [replace(made.partitions[0], index=i) for i in range(count)]
    for each in partitions:
        text = receipt_of(each.index, "part.parquet", space.plan_id, 4).as_json()
        space.file(f"{each.name}.json").write_bytes(storage.seal(text))
    return space, partitions


def nothing(number: int) -> int:
    """Do nothing, as a task."""
    return number


def bare(client: Client, count: int) -> float:
    """Keep a window of `client.submit` full of nothing; return the seconds of each task."""
    began = time.perf_counter()
    waiting = deque(range(count))
    running = as_completed([client.submit(nothing, waiting.popleft(), pure=False) for _ in range(WINDOW)])
    for future in running:
        future.result()
        if waiting:
            running.add(client.submit(nothing, waiting.popleft(), pure=False))
        future.release()
    return (time.perf_counter() - began) / count


def all_of(partitions: Sequence[Partition], found: Iterator[Receipt]) -> None:
    """Check that every partition gave a receipt."""
    if sum(1 for _ in found) != len(partitions):
        raise SystemExit("receipts are missing")


def ours(client: Client, made: Plan, space: Workspace, partitions: Sequence[Partition]) -> float:
    """Run a job's graph over partitions that are done; return the seconds of each."""
    began = time.perf_counter()
    found = graph.run(client, partitions, made.recipe, space, len(partitions), Silent())
    all_of(partitions, found)
    return (time.perf_counter() - began) / len(partitions)


def here(made: Plan, space: Workspace, partitions: Sequence[Partition]) -> float:
    """Do the same on threads of this process, as a local job does."""

    def score(partition: Partition) -> Receipt:
        return scoring.score_partition(partition, made.recipe, space)

    began = time.perf_counter()
    with Unpacker(Path(space.path), made.recipe.reading, partitions) as unpacker:
        all_of(partitions, threads.run(partitions, score, 2, unpacker))
    return (time.perf_counter() - began) / len(partitions)


def overhead(folder: Path, count: int, rounds: int) -> Iterator[str]:
    """Compare the graph with the bare window, for 1,000 partitions and for `count`."""
    yield f"| partitions | of each: ours | a bare submit | ratio | at most {OVERHEAD} | on threads |"
    yield "| --- | --- | --- | --- | --- | --- |"
    made = _plan(folder, workloads.linear(folder))
    with (
        dask.config.set(SETTINGS),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        bare(client, 200)
        ours(client, made, *committed(folder, made, 200))
        for size in (1_000, count):
            space, partitions = committed(folder, made, size)
            pairs = [(ours(client, made, space, partitions), bare(client, size)) for _ in range(rounds)]
            ratio = statistics.median(a / b for a, b in pairs)
            mine, theirs = (1e3 * statistics.median(each) for each in zip(*pairs, strict=True))
            verdict = "met" if ratio <= OVERHEAD else "NOT MET"
            local = 1e3 * here(made, space, partitions)
            yield (
                f"| {size:,} | {mine:.2f} ms | {theirs:.2f} ms | {ratio:.2f} | {verdict} | {local:.2f} ms |"
            )


# -- workers ----------------------------------------------------------------------------------


def sleeping(seconds: float, plan_id: str) -> Callable[..., Receipt]:
    """Return what stands for a score that takes so long."""

    def score(partition: Partition, *_: Any, **__: Any) -> Receipt:
        time.sleep(seconds)
        return receipt_of(partition.index, "part.parquet", plan_id, 4)

    return score


def efficiency(made: Plan, folder: Path, workers: int, seconds: float, count: int) -> float:
    """Return the share of the workers' time in which they slept as they should."""
    common = {"protocol": "inproc://", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    one = {"cls": Worker, "options": {**common, "nthreads": 1, "memory_limit": 0}}
    partitions = [replace(made.partitions[0], index=i) for i in range(count)]
    space = Workspace(str(folder), "id", ())
    with (
        dask.config.set(SETTINGS),
        SpecCluster(
            scheduler={"cls": Scheduler, "options": common}, workers=dict.fromkeys(range(workers), one),
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
        patch.object(scoring, "score_partition", sleeping(seconds, "id")),
    ):  # fmt: skip
        client.wait_for_workers(workers)
        began = time.perf_counter()
        for _ in graph.run(client, partitions, made.recipe, space, count, Silent()):
            pass
        return count * seconds / workers / (time.perf_counter() - began)


def many_workers(folder: Path) -> Iterator[str]:
    """Tell how busy workers are whose partitions take a second, and the shortest that keep 64 busy."""
    made = _plan(folder, workloads.linear(folder))
    yield f"| workers | partitions of 1 s | efficiency | at least {EFFICIENCY} |"
    yield "| --- | --- | --- | --- |"
    for workers in (1, 2, 4, 8, 16, 32, 64):
        found = efficiency(made, folder, workers, 1.0, min(2_000, 32 * workers))
        verdict = "met" if found >= EFFICIENCY else "NOT MET"
        yield f"| {workers} | {min(2_000, 32 * workers):,} | {found:.3f} | {verdict} |"
    for seconds in (0.8, 0.6, 0.4, 0.2):
        if (found := efficiency(made, folder, 64, seconds, 2_000)) < EFFICIENCY:
            yield f"\n64 workers, 2,000 partitions of {seconds} s: {found:.3f}"
            break
        yield f"\n64 workers, 2,000 partitions of {seconds} s: {found:.3f}, met"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = ["planning", "graph", "overhead", "workers"]
    parser.add_argument("parts", nargs="*", help=f"some of: {', '.join(parts)}")
    parser.add_argument("--count", type=int, default=4_000, help="partitions of the longer run of overhead")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        tables = {
            "planning": lambda: planned(folder), "graph": lambda: sizes(folder),
            "overhead": lambda: overhead(folder, asked.count, asked.rounds),
            "workers": lambda: many_workers(folder),
        }  # fmt: skip
        for part in asked.parts or parts:
            for text in tables[part]():
                print(text, flush=True)
            print(flush=True)


if __name__ == "__main__":
    main()
