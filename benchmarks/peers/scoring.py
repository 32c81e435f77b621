"""What every peer is given: a session, and the scores of an Arrow table in micro-batches."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa

BATCH_ROWS = 1024


def session_of(model: Path | str) -> ort.InferenceSession:
    """Load a model with one thread: every peer runs several at once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def columns_of(session: ort.InferenceSession) -> list[str]:
    """Return the columns that the model takes, by the names of its inputs."""
    return [port.name for port in session.get_inputs()]


def tensor(column: pa.ChunkedArray | pa.Array, dtype: str) -> Any:
    """Return a column as the model wants it: [rows, 1], a null number as NaN."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if dtype == "tensor(string)":
        coded = column.dictionary_encode()
        values = np.asarray(coded.dictionary.to_pylist(), object)[coded.indices.to_numpy()]
        return values.reshape(-1, 1)
    return column.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, 1)


def scores(session: ort.InferenceSession, table: pa.Table | pa.RecordBatch) -> Any:
    """Return the scores of a table's rows, a float32 vector."""
    tensors = {port.name: tensor(table.column(port.name), port.type) for port in session.get_inputs()}
    found = [
        session.run(None, {name: values[i : i + BATCH_ROWS] for name, values in tensors.items()})[0]
        for i in range(0, table.num_rows, BATCH_ROWS)
    ]
    return np.concatenate(found).reshape(-1) if found else np.empty(0, np.float32)
