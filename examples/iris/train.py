"""Train the iris example: a classifier with one wide input and a ZipMap at its end.

Writes ``model.onnx`` and ``iris.csv`` beside this file. They were last made on Python 3.11
with scikit-learn 1.9.1, skl2onnx 1.20.0, onnx 1.23.2 and pandas 3.1.1.
"""

import json
from pathlib import Path

import onnx
import pandas as pd
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).parent
FEATURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
TARGET = "species"
# skl2onnx has an inner tensor called "label" too, which makes way.
NAMES = {"label": "raw_label", "output_label": "label", "output_probability": "probability"}
PROPS = {
    "description": "Tells three species of iris apart by the size of their sepals and petals.",
    "trained_by": "examples/iris/train.py",
    "batchserve.features": json.dumps(FEATURES),
}


def iris() -> pd.DataFrame:
    """Return the 150 flowers: four measurements in centimetres and the species' name."""
    data = load_iris()
    table = pd.DataFrame(data.data, columns=FEATURES)
    return table.assign(**{TARGET: data.target_names[data.target]})


def fit(table: pd.DataFrame) -> LogisticRegression:
    """Fit a logistic regression on all four measurements."""
    measurements = table[FEATURES].to_numpy("float32")
    return LogisticRegression(max_iter=1000).fit(measurements, table[TARGET].to_numpy(object))


def rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename tensors and outputs of the model in place, from each key to its value."""
    for value in model.graph.output:
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(tensor, tensor) for tensor in tensors]


def convert(classifier: LogisticRegression) -> bytes:
    """Return the classifier as an ONNX model with one input ``X``, ``[rows, 4]``.

    skl2onnx ends it with a ZipMap unless told otherwise: ``probability`` is a list with a
    dict from species to probability for each row, not a tensor.
    """
    model = convert_sklearn(
        classifier,
        name="iris",
        initial_types=[("X", FloatTensorType([None, len(FEATURES)]))],
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    rename(model, NAMES)
    model.opset_import.sort(key=lambda opset: opset.domain)  # skl2onnx keeps them in a set
    onnx.helper.set_model_props(model, PROPS)
    return bytes(model.SerializeToString(deterministic=True))


def main() -> None:
    """Write both files and print how many of the flowers the model gets right."""
    table = iris()
    classifier = fit(table)
    (HERE / "model.onnx").write_bytes(convert(classifier))
    table.to_csv(HERE / "iris.csv", index=False, lineterminator="\n")
    right = (classifier.predict(table[FEATURES].to_numpy("float32")) == table[TARGET]).sum()
    print(f"{right} of the {len(table)} flowers it was fitted on are right")


if __name__ == "__main__":
    main()
