"""What this machine could do at most, and batchserve's share of it.

    python benchmarks/roofline.py                       all workloads, a million flights each
    python benchmarks/roofline.py csv-trees --times 10  one, ten times the flights of 2013

Each stage runs alone over all the data, on as many threads as batchserve uses: pyarrow's reader, ONNX
Runtime in the same micro-batches, pyarrow's writer (synced); of a gzip also unpacking, which is one
thread's work and counts half on two. Their sum is the roofline, what a job would take in which nothing
waits and nothing else is done. The share is that over batchserve's time from the first partition to the
last, all its checks, hashes and syncs in it; taken in turn, the median of the rounds.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import workloads
from isal import igzip_threaded
from workloads import Workload

import batchserve as bs
from batchserve.events import Silent

THREADS = len(os.sched_getaffinity(0))
BLOCK_BYTES = 8 << 20


def on_threads(work: Callable[[Any], Any], items: Sequence[Any]) -> tuple[float, list[Any]]:
    """Do something with every item on all threads; return the seconds, and what came of each."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        done = list(pool.map(work, items))
    return time.perf_counter() - begun, done


# -- stages -----------------------------------------------------------------------------------


def blocks(job: Workload, text: Path) -> list[tuple[Path, int, int]]:
    """Return ranges of whole lines, or whole files of Parquet."""
    if job.read is workloads.read_parquet:
        return [(path, 0, path.stat().st_size) for path in job.files]
    edges = [0]
    with text.open("rb") as file:
        size = text.stat().st_size
        while edges[-1] < size:
            file.seek(min(edges[-1] + BLOCK_BYTES, size))
            file.readline()
            edges.append(file.tell())
    return [(text, a, b) for a, b in itertools.pairwise(edges)]


def reader(job: Workload, text: Path) -> Callable[[tuple[Path, int, int]], pa.Table]:
    """Return what reads one block."""
    header = b""
    if job.read is workloads.read_csv:
        with text.open("rb") as file:
            header = file.readline()

    def read(block: tuple[Path, int, int]) -> pa.Table:
        path, start, stop = block
        with path.open("rb") as file:
            file.seek(start)
            raw = file.read(stop - start)
        return job.read(pa.BufferReader(header + raw if start else raw))

    return read


def unpacked(job: Workload, folder: Path) -> tuple[float, Path]:
    """Unpack a gzip into a plain file; return its share of the time of all threads."""
    source = job.files[0]
    if source.suffix != ".gz":
        return 0.0, source
    plain = folder / "plain.csv"
    begun = time.perf_counter()
    with igzip_threaded.open(source, "rb", threads=0) as packed, plain.open("wb") as file:
        while block := packed.read(1 << 20):
            file.write(block)
    return (time.perf_counter() - begun) / THREADS, plain


def tensors(table: pa.Table, session: ort.InferenceSession, job: Workload) -> dict[str, Any]:
    """Turn a table into what the model takes; this is not measured."""
    found = {}
    for port in session.get_inputs():
        if "features" in job.options:
            columns = [table[name].to_numpy() for name in job.options["features"]]
            found[port.name] = np.stack(columns, axis=1).astype(np.float32)
        elif port.type == "tensor(string)":
            coded = table[port.name].combine_chunks().dictionary_encode()
            texts = np.asarray(coded.dictionary.to_pylist(), object)
            found[port.name] = texts[coded.indices.to_numpy()].reshape(-1, 1)
        elif pa.types.is_list(table[port.name].type):
            flat = table[port.name].combine_chunks().flatten().to_numpy()
            found[port.name] = flat.reshape(len(table), -1)
        else:
            found[port.name] = table[port.name].to_numpy().astype(np.float32).reshape(-1, 1)
    return found


def model(session: ort.InferenceSession, batch_rows: int) -> Callable[[dict[str, Any]], Any]:
    """Return what runs the model over the rows of a block."""

    def run(inputs: dict[str, Any]) -> Any:
        rows = len(next(iter(inputs.values())))
        starts = range(0, rows, batch_rows)
        return [session.run(None, {n: x[i : i + batch_rows] for n, x in inputs.items()})[0] for i in starts]

    return run


def writer(folder: Path, fast: dict[str, Any]) -> Callable[[tuple[int, pa.Table]], None]:
    """Return what writes one table to a file of its own and syncs it."""

    def write(item: tuple[int, pa.Table]) -> None:
        number, table = item
        with (folder / f"{number}.parquet").open("wb") as file:
            with pq.ParquetWriter(file, table.schema, **fast) as parquet:
                parquet.write_table(table)
            os.fsync(file.fileno())

    return write


def stages(job: Workload, folder: Path, batch_rows: int) -> dict[str, float]:
    """Run each stage alone; return its seconds."""
    unpack_s, text = unpacked(job, folder)
    read_s, tables = on_threads(reader(job, text), blocks(job, text))
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])
    bound = [tensors(table, session, job) for table in tables]
    model_s, scores = on_threads(model(session, batch_rows), bound)
    scored = [
        table.append_column("score", pa.array(np.concatenate(found).reshape(len(table), -1)[:, 0]))
        for table, found in zip(tables, scores, strict=True)
    ]
    del tables, bound, scores
    groups = pa.concat_tables(scored)
    pieces = [groups.slice(at, 131_072).combine_chunks() for at in range(0, len(groups), 131_072)]
    floats = [f.name for f in groups.schema if pa.types.is_floating(f.type) or pa.types.is_nested(f.type)]
    plain = [name for name in groups.column_names if name not in floats]
    out = folder / "stages"
    out.mkdir(exist_ok=True)
    write_s, _ = on_threads(writer(out, {"use_dictionary": plain}), list(enumerate(pieces)))
    return {"unpack": unpack_s, "read": read_s, "model": model_s, "write": write_s}


# -- a workload -------------------------------------------------------------------------------


def ours(job: Workload, folder: Path) -> tuple[float, bs.Report]:
    """Score with batchserve; return the seconds of the partitions alone."""
    report = bs.score(
        [str(path) for path in job.files], str(folder / "out.parquet"), model=job.model, overwrite=True,
        listener=Silent(), **job.options,
    )  # fmt: skip
    spent = report.profile.seconds
    return report.profile.total_s - spent["start-up"] - spent["publish"], report


def line(job: Workload, folder: Path, rounds: int) -> str:
    """Measure one workload; return its row of the table."""
    shares, alone, mine = [], [], []
    batch_rows = bs.plan([str(p) for p in job.files], model=job.model, **job.options).plan.recipe.batch_rows
    ours(job, folder)
    for _ in range(rounds):
        work_s, report = ours(job, folder)
        found = stages(job, folder, batch_rows)
        shares.append(sum(found.values()) / work_s)
        alone.append(found)
        mine.append((work_s, report))
    middle = sorted(range(rounds), key=shares.__getitem__)[rounds // 2]
    spent = mine[middle][1].profile.seconds
    told = ", ".join(f"{name} {spent[name]:.2f}" for name in spent if name not in {"start-up", "publish"})
    sums = ", ".join(f"{name} {seconds:.2f}" for name, seconds in alone[middle].items() if seconds)
    share = statistics.median(shares)
    verdict = "met" if share >= BAR else "NOT MET"
    spread = f"{share:.2f} ({min(shares):.2f} to {max(shares):.2f})"
    rows = mine[middle][1].rows
    return f"| {job.name} | {rows:,} | {sums} | {mine[middle][0]:.2f} ({told}) | {spread} | {verdict} |"


BAR = 0.90


def measured(names: Sequence[str], times: int, rounds: int) -> Iterator[str]:
    """Give the table, a line at a time."""
    yield "| workload | rows | each stage alone, s | batchserve, s of each core | share | at least 0.90 |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name in names:
        with tempfile.TemporaryDirectory() as home:
            yield line(workloads.all_of(Path(home), times)[name](), Path(home), rounds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    every = list(workloads.all_of(Path(), 1))
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(every)}")
    parser.add_argument("--times", type=int, default=3, help="how often the flights are repeated")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    for text in measured(asked.names or every, asked.times, asked.rounds):
        print(text, flush=True)


if __name__ == "__main__":
    main()
