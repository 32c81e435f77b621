"""What batchserve must give, said again in a few lines of pandas and onnxruntime.

Reads whole files, pads every micro-batch to one shape, knows neither Dask nor batchserve.
"""

import gzip
import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pandas as pd
import pyarrow as pa
from pyarrow import feather

UNPACK: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".jsonl": open}
DTYPES_OF = {pa.int64(): pd.Int64Dtype(), pa.float64(): pd.Float64Dtype(), pa.string(): pd.StringDtype()}
DTYPES = {"float": "float32", "double": "float64", "int64": "int64"}


def read(*paths: Path, texts: Sequence[str] = ()) -> pd.DataFrame:
    """Read whole files; in `texts` only an empty text is null, elsewhere all that pandas knows."""
    return pd.concat([_read(path, texts) for path in paths], ignore_index=True)


def _read(path: Path, texts: Sequence[str]) -> pd.DataFrame:
    if path.suffix == ".arrow":
        frame: pd.DataFrame = feather.read_table(path).to_pandas(types_mapper=DTYPES_OF.get)
        return frame
    if ".parquet" in path.name:
        return pd.read_parquet(path, dtype_backend="numpy_nullable")
    if ".jsonl" in path.name:
        with UNPACK[path.suffix](path, "rt") as file:
            return pd.DataFrame([json.loads(line) for line in file]).convert_dtypes()
    typed = pd.read_csv(path, dtype_backend="numpy_nullable")
    plain = pd.read_csv(path, dtype="string", keep_default_na=False, na_values=[""])
    return typed.assign(**{name: plain[name] for name in texts})


def predict(
    model: Path, frame: pd.DataFrame, features: Sequence[str] = (), batch_rows: int = 1024
) -> dict[str, Any]:
    """Run the model over all rows; a null number is NaN. Returns one array (or list) per output."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options)
    tensors = {port.name: _tensor(port, frame, features) for port in session.get_inputs()}
    first = session.get_inputs()[0].shape[0]
    size = first if isinstance(first, int) else batch_rows
    names = [port.name for port in session.get_outputs()]
    runs: dict[str, list[Any]] = {name: [] for name in names}
    for start in range(0, len(frame), size):
        rows = np.minimum(np.arange(start, start + size), len(frame) - 1)  # the last row, repeated
        values = session.run(names, {name: tensor[rows] for name, tensor in tensors.items()})
        for name, value in zip(names, values, strict=True):
            runs[name].append(value[: len(frame) - start])
    return {name: _joined(parts) for name, parts in runs.items()}


def _tensor(port: Any, frame: pd.DataFrame, features: Sequence[str]) -> Any:
    columns = list(features) if port.shape[1:] not in ([], [1]) else [port.name]
    kind = port.type.removeprefix("tensor(").removesuffix(")")
    if kind == "string":
        return frame[columns].to_numpy(object)
    missing: dict[str, Any] = {} if kind == "int64" else {"na_value": np.nan}
    return np.stack([frame[name].to_numpy(DTYPES[kind], **missing) for name in columns], axis=1)


def _joined(parts: list[Any]) -> Any:
    return (
        np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [row for part in parts for row in part]
    )


def same(column: pd.Series, expected: Any) -> bool:
    """Whether a column read from Parquet holds the expected values, bit for bit."""
    if isinstance(expected, list):  # a ZipMap: its keys become names, its values are float32
        got, wanted = pd.DataFrame(column.to_list()), pd.DataFrame(expected)
        names = list(got.columns) == [str(key) for key in wanted.columns]
        return names and got.to_numpy("float32").tobytes() == wanted.to_numpy("float32").tobytes()
    values = expected.reshape(len(expected), -1)
    if values.dtype == object:
        return list(column) == list(values[:, 0])
    array = np.stack(column.to_list()) if column.dtype == object else column.to_numpy()
    return bool(array.dtype == values.dtype and array.tobytes() == values.tobytes())
