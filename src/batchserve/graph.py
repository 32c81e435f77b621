"""Partitions -> the Dask dataframe of receipts, and its execution a chunk at a time.

Descriptors go in and receipts come out, never rows: those stay between a worker and storage.
The graph is built and submitted 64 partitions at a time, and a future is released as soon as
its receipt is here, so that memory is flat and a dying worker has little to redo.
"""

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from batchserve import cluster, crash, events, scoring
from batchserve.cluster import deaths, translated
from batchserve.cluster.deaths import Death
from batchserve.errors import StoppedError
from batchserve.events import Listener
from batchserve.inputs import Partition
from batchserve.outputs import Receipt, Workspace
from batchserve.scorers import Recipe
from batchserve.segments import Unpacker

if TYPE_CHECKING:
    import dask.dataframe as dd
    from distributed import Client, Future

CHUNK_PARTITIONS = 64
DRAIN_TIMEOUT_S = 10
"""How long a job that is stopped waits for what other processes are scoring for it."""
_LOOK_EVERY_S = 5

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
_DESCRIPTOR = TypeAdapter(Partition)
"""JSON: Dask turns any other object in a column into text."""


def describe(partition: Partition, run_id: str) -> pd.DataFrame:
    """Return a partition's descriptor as a frame of one row.

    `run_id` makes the key its own: two equal graphs on one scheduler would be merged.
    """
    del run_id
    return pd.DataFrame({"descriptor": pd.Series([_DESCRIPTOR.dump_json(partition).decode()], dtype=object)})


def score_descriptors(
    frame: pd.DataFrame, recipe: Recipe, workspace: Workspace, stall_timeout_s: float | None = None
) -> pd.DataFrame:
    """Score the partitions that a frame of descriptors names; give their receipts."""
    score = partial(scoring.score_partition, stall_timeout_s=stall_timeout_s)
    receipts = [score(_DESCRIPTOR.validate_json(text), recipe, workspace) for text in frame["descriptor"]]
    return pd.DataFrame(
        {
            "partition": np.array([receipt.partition for receipt in receipts], np.int64),
            "rows_in": np.array([receipt.facts.rows_in for receipt in receipts], np.int64),
            "rows_out": np.array([receipt.rows_out for receipt in receipts], np.int64),
            "size_bytes": np.array([receipt.size_bytes for receipt in receipts], np.int64),
            "receipt": np.array([receipt.as_json() for receipt in receipts], object),
        }
    )


def receipts(
    partitions: Sequence[Partition], recipe: Recipe, workspace: Workspace, run_id: str,
    stall_timeout_s: float | None = None,
) -> "dd.DataFrame":  # fmt: skip
    """Build the lazy dataframe of receipts, one partition per row.

    Args:
        partitions: What to score.
        recipe: How.
        workspace: Where parts and receipts go.
        run_id: Made part of every key.
        stall_timeout_s: Seconds after which a run of the model is stopped, or None.
    """
    import dask.dataframe as dd

    described = dd.from_map(describe, list(partitions), run_id=run_id, meta=DESCRIPTOR_META, label="describe")
    frame: dd.DataFrame = described.map_partitions(
        score_descriptors, recipe=recipe, workspace=workspace, stall_timeout_s=stall_timeout_s,
        meta=RECEIPT_META,
    )  # fmt: skip
    return frame


def run(  # noqa: PLR0913, PLR0917  what a job is made of
    client: "Client", partitions: Sequence[Partition], recipe: Recipe, workspace: Workspace,
    total: int, listener: Listener, stall_timeout_s: float | None = None,
    row_by_row: Callable[[Partition], Receipt | None] = lambda _: None,
    unpacker: Unpacker | None = None,
) -> Iterator[Receipt]:  # fmt: skip
    """Score partitions on a cluster; give each receipt as it is committed, in any order.

    A partition whose worker dies is set aside. When all others are scored it is scored again,
    with nothing else of the job running, so that only one that kills by itself is blamed.

    Args:
        client: Of the cluster.
        partitions: What to score.
        recipe: How.
        workspace: Where parts and receipts go.
        total: Partitions of the whole job, to tell how many are kept.
        listener: Told which partitions are set aside.
        stall_timeout_s: Seconds after which a run of the model is stopped, or None.
        row_by_row: Scores a partition that kills its worker without the rows that do so; gives None
            if it was not a row.
        unpacker: Unpacks files that cannot be entered in the middle, or None if there are none.

    Raises:
        ModelError: Partitions killed their workers when they were alone, too.
        RetryError: The same, for want of memory.
        ClusterError: The cluster died.
        BatchserveError: Whatever a task raised.
    """
    suspects: list[Partition] = []
    crashes: list[crash.Crash] = []
    with translated(), _Window(client, recipe, workspace, stall_timeout_s, unpacker) as window:
        for partition, result in window.scored(partitions):
            if isinstance(result, Death):
                listener.on(events.Suspected(places=(partition.place,), cause=str(result)))
                suspects.append(partition)
            else:
                yield result
        for partition in suspects:
            for _, result in window.scored([partition]):
                if not isinstance(result, Death):
                    yield result
                    continue
                blamed = _blamed(client, partition, result)
                cured = None if blamed.memory else row_by_row(partition)
                if cured:
                    yield cured
                else:
                    crashes.append(blamed)
    if crashes:
        raise crash.error(crashes, total)


def _blamed(client: "Client", partition: Partition, death: Death) -> crash.Crash:
    cause, memory = deaths.cause(client, death)
    return crash.Crash(partition, f"its worker died twice, the second time {cause}", memory=memory)


class _Window:
    """The tasks of a job that a cluster holds: few at a time, each with its partition."""

    def __init__(
        self, client: "Client", recipe: Recipe, workspace: Workspace, stall_timeout_s: float | None,
        unpacker: Unpacker | None,
    ) -> None:  # fmt: skip
        self._client, self._recipe, self._workspace = client, recipe, workspace
        self._stall_timeout_s, self._unpacker = stall_timeout_s, unpacker
        self._segments = 0
        self._run_id = uuid.uuid4().hex[:8]
        self._submitted = 0
        self._least = CHUNK_PARTITIONS // 2
        self._held: dict[Any, tuple[Future, Partition]] = {}
        self._ended: SimpleQueue[Future] = SimpleQueue()

    def scored(self, partitions: Sequence[Partition]) -> Iterator[tuple[Partition, Receipt | Death]]:
        """Score partitions; give each with its receipt, or with the worker it was lost with."""
        waiting = deque(partitions)
        while True:
            while chunk := self._next_chunk(waiting):
                self._submit(chunk)
            if not self._held:
                return
            for future, result in self._results(self._next()):
                partition = self._held.pop(future.key)[1]
                if self._unpacker and self._unpacker.needed(partition):
                    self._segments -= 1
                    self._unpacker.release(partition)
                yield partition, result
                future.release()

    def _next_chunk(self, waiting: "deque[Partition]") -> list[Partition]:
        """Take what is to be submitted now: up to 64 partitions, or the next one of a packed file.

        Of those only a few are unpacked ahead of the workers.
        """
        if not waiting or len(self._held) > self._least:
            return []
        if self._unpacker and self._unpacker.needed(waiting[0]):
            threads = self._client.nthreads()
            if self._segments >= len(threads) + sum(threads.values()):
                return []
            self._segments += 1
            return [self._unpacker.prepared(waiting.popleft())]
        chunk: list[Partition] = []
        while waiting and len(chunk) < CHUNK_PARTITIONS:
            if self._unpacker and self._unpacker.needed(waiting[0]):
                break
            chunk.append(waiting.popleft())
        return chunk

    def _submit(self, chunk: Sequence[Partition]) -> None:
        import dask

        # As many as are being scored, and as many again, or a large cluster would wait for chunks.
        self._least = max(CHUNK_PARTITIONS // 2, 2 * sum(self._client.nthreads().values()))
        self._submitted += 1  # a key that has failed would fail again unseen: every one is new
        run_id = f"{self._run_id}-{self._submitted}"
        frame = receipts(chunk, self._recipe, self._workspace, run_id, self._stall_timeout_s)
        delayed = frame.to_delayed()
        with dask.annotate(priority=_in_input_order):
            futures = self._client.compute(delayed)
        for future, partition in zip(futures, chunk, strict=True):
            self._held[future.key] = (future, partition)
            future.add_done_callback(self._ended.put)

    def _results(self, ended: "Sequence[Future]") -> "Iterator[tuple[Future, Receipt | Death]]":
        """Fetch what tasks gave: of all that went well at once, as each fetch is a round trip."""
        well = [future for future in ended if future.status == "finished"]
        frames: Sequence[pd.DataFrame] = ()
        with suppress(Exception):  # one was lost meanwhile, or the cluster: each is asked for alone
            frames = self._client.gather(well)
        for future, frame in zip(well, frames, strict=False):
            yield future, _receipt(frame)
        for future in ended:
            if future not in well[: len(frames)]:
                yield future, _result(future)

    def _next(self) -> "list[Future]":
        """Wait for tasks to end. A cluster that has no worker left would never end one."""
        idle_s = 0
        while True:
            try:
                ended = [self._ended.get(timeout=_LOOK_EVERY_S)]
            except Empty:
                idle_s = 0 if self._client.nthreads() else idle_s + _LOOK_EVERY_S
                if idle_s > cluster.NO_WORKERS_TIMEOUT_S:
                    raise cluster.lost("it has no workers any more") from None
            else:
                return ended + [self._ended.get_nowait() for _ in range(self._ended.qsize())]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let go of all tasks: those that have not begun never will.

        Tasks that run cannot be stopped. A job that is stopped waits a while for them: what they
        do is kept, and nothing of it is at work when it has ended. An error is told at once.
        """
        stopped = kind is not None and issubclass(kind, (GeneratorExit, StoppedError))
        if stopped:
            self._drain()
        self._let_go(list(self._held))

    def _drain(self) -> None:
        running = {key for keys in self._client.processing().values() for key in keys}
        self._let_go(self._held.keys() - running)
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        while self._held and (left_s := deadline - time.monotonic()) > 0:
            with suppress(Empty):
                self._held.pop(self._ended.get(timeout=left_s).key, None)

    def _let_go(self, keys: Iterable[Any]) -> None:
        for key in keys:
            self._held.pop(key)[0].release()


def _result(future: "Future") -> Receipt | Death:
    """Return a task's receipt, or the death of its worker."""
    from distributed import KilledWorker

    try:
        return _receipt(future.result())
    except KilledWorker as error:
        return deaths.met(error)


def _receipt(frame: pd.DataFrame) -> Receipt:
    (text,) = frame["receipt"]
    return Receipt.of_json(text)


def _in_input_order(key: Any) -> int:
    """Give a task's priority from its key `(name, number in its chunk)`; Dask's own order jumps."""
    return -int(key[1]) if isinstance(key, tuple) else 0
