# ruff: noqa: INP001, S101, S603, D103  what tests may do
"""The training example: what its README shows, on a slice of the flights.

Needs scikit-learn, skl2onnx, dask-ml and torch: `nox -s extras` runs it.
"""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from sklearn.linear_model import LinearRegression, SGDRegressor

import batchserve as bs

EXAMPLES = Path(__file__).parents[1] / "examples"
TRAINING = EXAMPLES / "training"
ROWS = "6000"
# dask 2026.8 resets an index in place, which pandas 3.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")


def run(folder: Path, *command: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, check=True, text=True, stdout=subprocess.PIPE
    )
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with all flights, as the README says."""
    folder = tmp_path_factory.mktemp("training")
    run(folder, EXAMPLES / "flights" / "make_full.py", "flights.csv")
    return folder


@pytest.fixture(scope="module")
def printed(place: Path) -> str:
    """Run the example with dask-ml and return what it prints."""
    return run(place, TRAINING / "with_dask_ml.py", "flights.csv", "--rows", ROWS)


@pytest.fixture
def scripts() -> Iterator[pytest.MonkeyPatch]:
    """Let the example's own modules be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TRAINING)
        yield patch


def known(place: Path, prediction: str) -> tuple[Any, Any]:
    """Return labels and predictions of the scored rows whose label is known."""
    scored = pd.read_parquet(place / "scored.parquet").dropna(subset=["arr_delay"])
    return scored["arr_delay"], scored[prediction].astype(float)


def errors_of(true: Any, predicted: Any) -> dict[str, float]:
    return {
        "mae": sklearn.metrics.mean_absolute_error(true, predicted),
        "rmse": sklearn.metrics.root_mean_squared_error(true, predicted),
        "r2": sklearn.metrics.r2_score(true, predicted),
    }


def test_three_libraries_find_the_same(place: Path, printed: str) -> None:
    """batchserve's, scikit-learn's and dask-ml's columns say the same, and what is true of the rows."""
    expected = errors_of(*known(place, "variable"))

    found = {
        row[0]: row[1:] for row in re.findall(r"^(mae|rmse|r2) +(\S+) +(\S+) +(\S+)$", printed, re.MULTILINE)
    }

    assert found["r2"][2] == "raises"
    for name, numbers in found.items():
        shown = [float(number) for number in numbers if number != "raises"]
        assert shown == pytest.approx([expected[name]] * len(shown), abs=1e-9)
    assert set(found) == set(expected)
    assert expected["r2"] > 0.75  # noqa: PLR2004  it has learnt; the README's model has 0.84


def test_every_score_is_the_pipelines(place: Path, printed: str, scripts: pytest.MonkeyPatch) -> None:
    """What `score` writes of the held out rows is what the fitted pipeline predicts of them, in order."""
    assert "dask_ml.onnx: exported" in printed
    scripts.chdir(place)
    columns = importlib.import_module("features").COLUMNS
    pipeline = importlib.import_module("with_dask_ml").fit(dd.read_parquet("fitted"))

    expected = pipeline.predict(dd.read_parquet("held_out").compute()[columns])

    found = pd.read_parquet("scored.parquet")["variable"].to_numpy()
    assert len(found) == len(expected)
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


def test_features_are_pandas_own(
    place: Path, printed: str, scripts: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Features that Dask makes by partitions are those of the whole file; no label held out is in them."""
    assert printed
    scripts.chdir(tmp_path)
    features = importlib.import_module("features")
    features.write(place / "flights.csv")
    whole = pd.read_csv(place / "flights.csv")
    fitted = whole[whole.day <= features.LAST_DAY_FITTED]
    whole["departures"] = whole.groupby(features.HOUR)["day"].transform("size")
    whole["carrier_delay"] = whole.carrier.map(fitted.groupby("carrier").arr_delay.mean())
    whole["minute_of_day"] = 60 * whole.hour + whole.minute
    whole["weekday"] = pd.to_datetime(whole[["year", "month", "day"]]).dt.day_of_week
    whole = whole.dropna(subset=["dep_delay"])

    late = whole.day > features.LAST_DAY_FITTED
    for name, expected in {
        "fitted": whole[~late].dropna(subset=["arr_delay"]),
        "held_out": whole[late],
    }.items():
        found = dd.read_parquet(name).compute()[[*features.COLUMNS, "arr_delay"]].astype("float64")
        np.testing.assert_allclose(found, expected[found.columns], rtol=1e-6, err_msg=name)


def test_metrics_of_dask_ml_that_raise() -> None:
    """The README says which metrics of dask-ml raise; should they work one day, it is to be changed."""
    import dask_ml.metrics

    true = da.from_array(np.array([0.0, 1.0, 1.0, 0.0]), chunks=2)

    with pytest.raises(ValueError, match="cannot broadcast shape"):
        dask_ml.metrics.r2_score(true, true + 0.1)
    with pytest.raises(TypeError, match="eps"):
        dask_ml.metrics.log_loss(true.astype(int), 0.2 + true / 2)


def test_a_wrapper_of_dask_ml_is_refused_with_what_is_inside(tmp_path: Path) -> None:
    """`export` names the attribute of the wrapper that holds the estimator, and that can be exported."""
    from dask_ml.wrappers import Incremental, ParallelPostFit

    x = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 2)), columns=["a", "b"])
    y = x.a - x.b
    blocks = [da.from_array(each.to_numpy(), chunks=50) for each in (x, y)]
    incremental = Incremental(SGDRegressor()).fit(blocks[0].rechunk((50, 2)), blocks[1])
    parallel = ParallelPostFit(LinearRegression()).fit(x, y)

    for wrapper, inside in ((incremental, "estimator_"), (parallel, "estimator")):
        with pytest.raises(bs.BatchserveError) as refusal:
            bs.export(wrapper, tmp_path / f"{inside}.onnx", sample=x)
        assert (
            refusal.value.hint
            == f"dask-ml's wrapper holds the estimator that it fitted: export its .{inside}"
        )

        bs.export(getattr(wrapper, inside), tmp_path / f"{inside}.onnx", sample=x)


def test_the_example_with_torch(place: Path, scripts: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It prints the metrics that scikit-learn finds on its scores, and the scores are the module's."""
    printed = run(tmp_path, TRAINING / "with_torch.py", place / "flights.csv", "--rows", ROWS)

    expected = errors_of(*known(tmp_path, "output"))
    shown = dict(re.findall(r"^  (MAE|RMSE|R2) +(\S+)$", printed, re.MULTILINE))
    assert {name.lower(): float(number) for name, number in shown.items()} == pytest.approx(
        expected, rel=1e-5
    )
    scripts.chdir(tmp_path)
    columns = importlib.import_module("features").COLUMNS
    torch = importlib.import_module("torch")
    module = importlib.import_module("with_torch").fit(dd.read_parquet("fitted"))
    rows = dd.read_parquet("held_out").compute()
    with torch.no_grad():
        predicted = module(torch.tensor(rows[columns].to_numpy("float32"))).numpy()[:, 0]
    found = pd.read_parquet("scored.parquet")["output"].to_numpy()
    assert np.abs(found - predicted).max() <= 1e-5 * np.ptp(predicted)
