"""The hand-written loop that batchserve is measured against: pyarrow and ONNX Runtime, two threads.

Each thread takes the next block of whole lines, reads it, scores it in micro-batches and hands the
rows back; this thread writes them in order. It checks nothing, and what it leaves behind after a
crash is of no use.
"""

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import onnxruntime as ort
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from scoring import scores, session_of

BLOCK_BYTES, THREADS = 8 << 20, 2


def blocks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Give the header with every block of whole lines; flights have no quoted line ends."""
    with path.open("rb") as file:
        header = file.readline()
        while block := file.read(BLOCK_BYTES):
            yield header, block + file.readline()


def score(session: ort.InferenceSession, header: bytes, block: bytes) -> pa.Table:
    """Read a block and add the predictions to its rows."""
    options = pacsv.ReadOptions(use_threads=False, block_size=len(header) + len(block))
    nulls = pacsv.ConvertOptions(null_values=["", "NA"])
    table = pacsv.read_csv(pa.BufferReader(header + block), options, convert_options=nulls)
    return table.append_column("score", pa.array(scores(session, table)))


def main(source: Path, model: Path, output: Path) -> None:
    """Score `source` into `output`, a few blocks ahead of the writer."""
    session = session_of(model)
    with ThreadPoolExecutor(THREADS) as pool, ExitStack() as files:
        waiting: deque[Future[pa.Table]] = deque()
        writer: pq.ParquetWriter | None = None
        source_blocks = blocks(source)
        while True:
            for header, block in islice(source_blocks, 2 * THREADS - len(waiting)):
                waiting.append(pool.submit(score, session, header, block))
            if not waiting:
                return
            table = waiting.popleft().result()
            writer = writer or files.enter_context(pq.ParquetWriter(output, table.schema))
            writer.write_table(table)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
