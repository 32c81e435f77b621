"""All 336,776 flights, and the sample in the repository, as users score them."""

import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

import oracle
from conftest import Command, digest

EXAMPLE = Path(__file__).parents[1] / "examples" / "flights"
MODEL = EXAMPLE / "model.onnx"
TEXTS = ("carrier", "tailnum", "origin", "dest")


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return all flights as one CSV, made by the example's own script."""
    path = tmp_path_factory.mktemp("flights") / "flights.csv"
    subprocess.run([sys.executable, EXAMPLE / "make_full.py", path], check=True)
    return path


def kept(path: Path) -> pd.DataFrame:
    """Return the input columns as pandas reads them; only `time_hour` is told it is a time."""
    frame = oracle.read(path, texts=TEXTS)
    return frame.assign(time_hour=pd.to_datetime(frame["time_hour"]).astype("datetime64[us, UTC]"))


def test_all_flights_in_several_partitions_equal_the_oracle(
    flights: Path, tmp_path: Path, command: Command
) -> None:
    """The command scores 336,776 flights in 8 partitions to the oracle's bits, in input order."""
    config = EXAMPLE / "batchserve.toml"

    done = command("score", flights, "out.parquet", "--config", config, "--partition-size", "4MiB")

    assert done.returncode == 0, done.stderr
    assert "336,776 rows" in done.stderr
    frame = kept(flights)
    got = pd.read_parquet(tmp_path / "out.parquet", dtype_backend="numpy_nullable")
    pd.testing.assert_frame_equal(got.drop(columns="predicted_delay"), frame, check_exact=True)
    expected = oracle.predict(MODEL, frame)["predicted_delay"]
    predicted = pd.read_parquet(tmp_path / "out.parquet", columns=["predicted_delay"])["predicted_delay"]
    assert oracle.same(predicted, expected)
    assert pq.read_metadata(tmp_path / "out.parquet").num_row_groups == 8


def test_all_flights_read_equal_everywhere(flights: Path, tmp_path: Path, command: Command) -> None:
    """pandas, Polars and DuckDB read the same 336,776 predictions, carriers and null delays."""
    config, output = EXAMPLE / "batchserve.toml", tmp_path / "out"

    done = command("score", flights, "out/", "--config", config, "--partition-size", "8MiB")

    assert done.returncode == 0, done.stderr
    parts = sorted(output.glob("*.parquet"))
    assert len(parts) == 4
    pandas = pd.concat([pd.read_parquet(part) for part in parts])
    polars = pl.read_parquet(output / "*.parquet")
    duck = duckdb.sql(f"from '{output}/*.parquet'").fetchnumpy()
    predicted = pandas["predicted_delay"].to_numpy()
    assert np.array_equal(predicted, polars["predicted_delay"].to_numpy())
    assert np.array_equal(predicted, np.asarray(duck["predicted_delay"]))
    assert pandas["carrier"].to_list() == polars["carrier"].to_list() == list(duck["carrier"])
    nulls = [pandas["dep_delay"].isna().sum(), polars["dep_delay"].null_count(), duck["dep_delay"].mask.sum()]
    assert nulls == [8_255] * 3


def test_the_sample_equals_the_oracle_whatever_the_split(tmp_path: Path, command: Command) -> None:
    """The sample in the repository gives the oracle's bits in 1 and 12 partitions, by 1 and 2 workers."""
    sample = EXAMPLE / "flights.csv"
    expected = oracle.predict(MODEL, kept(sample))["predicted_delay"]

    whole = command("score", sample, "whole.parquet")
    for workers in ("1", "2"):
        split = command(
            "score", sample, f"{workers}.parquet", "--partition-size", "40k", "--workers", workers
        )
        assert split.returncode == 0, split.stderr

    assert whole.returncode == 0, whole.stderr
    assert digest(tmp_path / "1.parquet") == digest(tmp_path / "2.parquet")
    for name in ("whole", "1"):
        got = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert oracle.same(got["predicted_delay"], expected), name
    assert pq.read_metadata(tmp_path / "1.parquet").num_row_groups == 12
