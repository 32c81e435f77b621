"""Partitions -> the Dask dataframe of receipts, and its execution a chunk at a time.

Descriptors go in and receipts come out, never rows: those stay between a worker and storage.
The graph is built and submitted 64 partitions at a time, and a future is released as soon as
its receipt is here, so that memory is flat and a dying worker has little to redo.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from batchserve import scoring
from batchserve.cluster import translated
from batchserve.inputs import Partition
from batchserve.outputs import Receipt, Workspace
from batchserve.scoring import Recipe

if TYPE_CHECKING:
    import dask.dataframe as dd
    from distributed import Client, Future

CHUNK_PARTITIONS = 64

DESCRIPTOR_META = pd.DataFrame({"descriptor": pd.Series(dtype=object)})
RECEIPT_META = pd.DataFrame(
    {
        "partition": pd.Series(dtype="int64"),
        "rows_in": pd.Series(dtype="int64"),
        "rows_out": pd.Series(dtype="int64"),
        "size_bytes": pd.Series(dtype="int64"),
        "receipt": pd.Series(dtype=object),
    }
)
"""Columns of the dataframe of receipts; `receipt` is the whole of it as JSON."""


def describe(partition: Partition, run_id: str) -> pd.DataFrame:
    """Return a partition's descriptor as a frame of one row.

    `run_id` makes the key its own: two equal graphs on one scheduler would be merged.
    """
    del run_id
    return pd.DataFrame({"descriptor": pd.Series([partition.model_dump_json()], dtype=object)})


def score_descriptors(frame: pd.DataFrame, recipe: Recipe, workspace: Workspace) -> pd.DataFrame:
    """Score the partitions that a frame of descriptors names; give their receipts."""
    partitions = [Partition.model_validate_json(text) for text in frame["descriptor"]]
    receipts = [scoring.score_partition(p, recipe, workspace) for p in partitions]
    rows = [(r.partition, r.facts.rows_in, r.rows_out, r.size_bytes, r.model_dump_json()) for r in receipts]
    return pd.DataFrame(rows, columns=list(RECEIPT_META.columns)).astype(RECEIPT_META.dtypes)


def receipts(
    partitions: Sequence[Partition], recipe: Recipe, workspace: Workspace, run_id: str
) -> "dd.DataFrame":
    """Build the lazy dataframe of receipts, one partition per row.

    Args:
        partitions: What to score.
        recipe: How.
        workspace: Where parts and receipts go.
        run_id: Made part of every key.
    """
    import dask.dataframe as dd

    described = dd.from_map(describe, list(partitions), run_id=run_id, meta=DESCRIPTOR_META, label="describe")
    frame: dd.DataFrame = described.map_partitions(
        score_descriptors, recipe=recipe, workspace=workspace, meta=RECEIPT_META
    )
    return frame


def run(
    client: "Client", partitions: Sequence[Partition], recipe: Recipe, workspace: Workspace, run_id: str
) -> Iterator[Receipt]:
    """Score partitions on a cluster; give each receipt as it is committed, in any order.

    Raises:
        ClusterError: A worker or the cluster died.
        BatchserveError: Whatever a task raised.
    """
    import dask
    from distributed import as_completed

    chunks = _chunked(partitions)
    running = as_completed(with_results=False, loop=client.loop)
    waiting = 0
    with translated():
        while True:
            while waiting <= CHUNK_PARTITIONS // 2 and (chunk := next(chunks, None)):
                frame = receipts(chunk, recipe, workspace, f"{run_id}-{chunk[0].index}")
                delayed = frame.to_delayed()
                with dask.annotate(priority=_in_input_order):
                    futures: list[Any] = client.compute(delayed)
                running.update(futures)
                waiting += len(futures)
            if not waiting:
                return
            future: Future = next(running)
            waiting -= 1
            yield from _received(future)


def _in_input_order(key: Any) -> int:
    """Give a task's priority from its key `(name, number in its chunk)`; Dask's own order jumps."""
    return -int(key[1]) if isinstance(key, tuple) else 0


def _received(future: "Future") -> Iterator[Receipt]:
    texts = future.result()["receipt"]
    future.release()
    yield from (Receipt.model_validate_json(text) for text in texts)


def _chunked(partitions: Sequence[Partition]) -> Iterator[Sequence[Partition]]:
    for start in range(0, len(partitions), CHUNK_PARTITIONS):
        yield partitions[start : start + CHUNK_PARTITIONS]
