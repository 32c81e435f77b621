"""Train with dask-ml, block by block; export; score; evaluate. README.md shows what it prints."""

from collections.abc import Mapping

import dask.array as da
import dask.dataframe as dd
import dask_ml.metrics
import features
import sklearn.metrics
from dask_ml.wrappers import Incremental
from sklearn.linear_model import SGDRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import batchserve as bs

PASSES = 3


def fit(table: dd.DataFrame) -> Pipeline:
    """Fit a scaler and a linear model partition by partition: one is in memory at a time."""
    scaler = StandardScaler()
    for part in table[features.COLUMNS].partitions:
        scaler.partial_fit(part.compute())
    rows = table[[*features.COLUMNS, features.LABEL]].values.compute_chunk_sizes()
    scaled = (rows[:, :-1] - scaler.mean_) / scaler.scale_
    linear = Incremental(SGDRegressor(random_state=0), shuffle_blocks=False)
    for _ in range(PASSES):
        linear.partial_fit(scaled, rows[:, -1])
    # What the wrapper holds is plain scikit-learn: that is what can be exported.
    return make_pipeline(scaler, linear.estimator_)


def compare(scored: str, found: Mapping[str, float]) -> None:
    """Print what batchserve, scikit-learn and dask-ml say of the same rows."""
    rows = dd.read_parquet(scored).dropna(subset=[features.LABEL]).astype({"variable": "float64"})
    true, predicted = (rows[name].values.compute_chunk_sizes() for name in (features.LABEL, "variable"))
    in_memory = true.compute(), predicted.compute()
    theirs = {
        "mae": (sklearn.metrics.mean_absolute_error, dask_ml.metrics.mean_absolute_error),
        "rmse": (sklearn.metrics.root_mean_squared_error, rmse),
        "r2": (sklearn.metrics.r2_score, None),  # dask_ml.metrics.r2_score raises: see README.md
    }
    print(f"{'':<4}  {'batchserve':>14}  {'scikit-learn':>14}  {'dask-ml':>14}")
    for name, (of_sklearn, of_dask_ml) in theirs.items():
        last = f"{of_dask_ml(true, predicted):14.9f}" if of_dask_ml else f"{'raises':>14}"
        print(f"{name:<4}  {found[name]:14.9f}  {of_sklearn(*in_memory):14.9f}  {last}")


def rmse(true: da.Array, predicted: da.Array) -> float:
    """Return the root of the mean squared error, by dask-ml."""
    return float(dask_ml.metrics.mean_squared_error(true, predicted, squared=False))


def main() -> None:
    arguments = features.asked(__doc__)
    table = features.write(arguments.flights, arguments.rows)
    pipeline = fit(table)
    sample = table.sample(frac=0.02, random_state=0).compute()
    print(bs.export(pipeline, "dask_ml.onnx", sample=sample, overwrite=True))
    print(bs.score("held_out", "scored.parquet", model="dask_ml.onnx", overwrite=True))
    found = bs.evaluate("scored.parquet", label=features.LABEL, prediction="variable")
    compare("scored.parquet", found.metrics)


if __name__ == "__main__":
    main()
