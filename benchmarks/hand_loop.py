"""The hand-written loop that batchserve is measured against: pyarrow and ONNX Runtime, two threads.

Each thread takes the next block of whole lines, reads it, scores it in micro-batches and hands the
rows back; this thread writes them in order. It knows the flights' columns, it checks nothing, and
what it leaves behind after a crash is of no use.
"""

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

BLOCK_BYTES, BATCH_ROWS, THREADS = 8 << 20, 1024, 2


def blocks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Give the header with every block of whole lines; flights have no quoted line ends."""
    with path.open("rb") as file:
        header = file.readline()
        while block := file.read(BLOCK_BYTES):
            yield header, block + file.readline()


def tensor(column: pa.ChunkedArray, dtype: str) -> Any:
    """Return a column as the model wants it: [rows, 1], a null number as NaN."""
    if dtype == "tensor(string)":
        coded = column.combine_chunks().dictionary_encode()
        values = np.asarray(coded.dictionary.to_pylist(), object)[coded.indices.to_numpy()]
        return values.reshape(-1, 1)
    return column.to_numpy().astype(np.float32).reshape(-1, 1)


def score(session: ort.InferenceSession, header: bytes, block: bytes) -> pa.Table:
    """Read a block and add the predictions to its rows."""
    options = pacsv.ReadOptions(use_threads=False, block_size=len(header) + len(block))
    nulls = pacsv.ConvertOptions(null_values=["", "NA"])
    table = pacsv.read_csv(pa.BufferReader(header + block), options, convert_options=nulls)
    tensors = {port.name: tensor(table[port.name], port.type) for port in session.get_inputs()}
    scores = [
        session.run(None, {name: values[i : i + BATCH_ROWS] for name, values in tensors.items()})[0]
        for i in range(0, table.num_rows, BATCH_ROWS)
    ]
    return table.append_column("predicted_delay", pa.array(np.concatenate(scores).reshape(-1)))


def main(source: Path, model: Path, output: Path) -> None:
    """Score `source` into `output`, a few blocks ahead of the writer."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
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
