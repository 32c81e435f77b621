"""Dask as in its examples: `read_csv`, `map_partitions`, `to_parquet`."""

import sys

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from scoring import columns_of, scores, session_of


def predict(frame: pd.DataFrame, model: str) -> pd.DataFrame:
    """Score a partition."""
    session = session_of(model)
    table = pa.Table.from_pandas(frame[columns_of(session)], preserve_index=False)
    return frame.assign(score=scores(session, table))


def main(source: str, model: str, output: str) -> None:
    """Score `source` into a folder of Parquet files."""
    floats = dict.fromkeys(("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"), "float64")
    frame = dd.read_csv(source, blocksize="16MB", dtype=floats)
    meta = frame._meta.assign(score=pd.Series(dtype=np.float32))
    with dask.config.set(scheduler="threads", num_workers=2):
        frame.map_partitions(predict, model, meta=meta).to_parquet(output, write_index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
