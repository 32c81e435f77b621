"""MLflow: the model as a pyfunc, pandas in and out, all rows at once as `mlflow models predict` does."""

import sys
import tempfile

import mlflow
import numpy as np
import onnx
import pandas as pd


def main(source: str, model: str, output: str) -> None:
    """Score `source` into `output`."""
    with tempfile.TemporaryDirectory() as home:
        mlflow.onnx.save_model(onnx.load(model), f"{home}/model")
        loaded = mlflow.pyfunc.load_model(f"{home}/model")
    frame = pd.read_csv(source)
    ports = loaded._model_impl.inputs
    given = {
        name: frame[[name]].to_numpy(object if kind == "tensor(string)" else np.float32)
        for name, kind in ports
    }  # fmt: skip
    scored = loaded.predict(given)
    (values,) = scored.values()
    frame.assign(score=np.asarray(values).reshape(-1)).to_parquet(output, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
