"""Partitions scored on threads of this process, without Dask, which takes a second to import.

pyarrow and ONNX Runtime let go of the interpreter lock, so threads share one session and are as
good as processes.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue

from batchserve.inputs import Partition
from batchserve.outputs import Receipt
from batchserve.segments import Unpacker

STOP_TIMEOUT_S = 10
"""How long a job that ends early waits for the partitions that are being scored."""
_AHEAD = 2
"""Partitions in the hands of the threads, for each: the one it scores and the next."""


def run(
    partitions: Sequence[Partition], score: Callable[[Partition], Receipt], workers: int, unpacker: Unpacker
) -> Iterator[Receipt]:
    """Score partitions on threads; give each receipt as it is committed, in any order.

    A job that is stopped, or fails, waits a while for the partitions that are being scored: what they
    do is kept, and nothing of it is at work when it has ended.

    Args:
        partitions: What to score, in order.
        score: Scores one and commits it.
        workers: How many are scored at once.
        unpacker: Unpacks files that cannot be entered in the middle.

    Raises:
        BatchserveError: Whatever scoring one of them raised.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batchserve-worker")
    held: dict[Future[Receipt], Partition] = {}
    try:
        yield from _scored(deque(partitions), lambda p: pool.submit(score, p), workers, unpacker, held)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in held if not future.cancelled()], timeout=STOP_TIMEOUT_S)


def _scored(
    waiting: deque[Partition], submit: Callable[[Partition], Future[Receipt]], workers: int,
    unpacker: Unpacker, held: dict[Future[Receipt], Partition],
) -> Iterator[Receipt]:  # fmt: skip
    ended: SimpleQueue[Future[Receipt]] = SimpleQueue()
    while waiting or held:
        while waiting and len(held) < _AHEAD * workers:
            partition = unpacker.prepared(waiting.popleft())
            future = submit(partition)
            held[future] = partition
            future.add_done_callback(ended.put)
        future = ended.get()
        unpacker.release(held.pop(future))
        yield future.result()
