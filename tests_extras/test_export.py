# ruff: noqa: INP001, S101  what tests may do
"""Trained models exported and scored: what `score` gives is what the libraries themselves predict.

Needs scikit-learn, LightGBM, XGBoost, CatBoost, torch and their converters: `nox -s extras` runs it.
"""

import importlib
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import matrix
import numpy as np
import onnx
import pandas as pd
import pyarrow.parquet as pq
import pytest
import samples
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.tree import DecisionTreeRegressor

import batchserve as bs


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """Fit a classifier of texts, integers and missing numbers; its labels are texts."""
    labels = np.array(["low", "middle", "high"])[samples.classes(3)]
    return matrix.columns(LogisticRegression(max_iter=200)).fit(samples.mixed(), labels)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_pipeline_of_texts_and_nan_from_its_file_to_scores(
    form: str, pipeline: Any, tmp_path: Path
) -> None:
    """`export`, then `score` without any flag: label and probabilities are the pipeline's own."""
    frame = samples.mixed().replace({"colour": {"": "grey"}})
    joblib.dump(pipeline, tmp_path / "p.joblib")
    write = frame.to_csv if form == "csv" else frame.to_parquet
    write(tmp_path / f"in.{form}", index=False)
    command = [sys.executable, "-m", "batchserve"]
    export = ["export", "p.joblib", "m.onnx", "--sample", f"in.{form}", "--trust-pickle"]
    score = ["score", f"in.{form}", "out.parquet", "-m", "m.onnx"]

    for arguments in (export, score):
        subprocess.run([*command, *arguments], cwd=tmp_path, check=True)  # noqa: S603  our own command

    scored = pq.read_table(tmp_path / "out.parquet")
    assert scored["label"].to_pylist() == pipeline.predict(frame).tolist()
    scores = np.array(scored["probabilities"].to_pylist())
    np.testing.assert_allclose(scores, pipeline.predict_proba(frame), atol=1e-5)


def test_a_forest_sends_nan_where_scikit_learn_does(tmp_path: Path) -> None:
    """skl2onnx alone sends NaN right at every split; what is exported goes the trained way."""
    frame = samples.mixed()[samples.NUMBERS]
    forest = RandomForestClassifier(10, random_state=0).fit(frame, samples.classes(3))

    bs.export(forest, tmp_path / "m.onnx", sample=frame)

    predicted = bs.Model(tmp_path / "m.onnx").predict(frame)
    np.testing.assert_allclose(np.stack(predicted["probabilities"]), forest.predict_proba(frame), atol=1e-6)


def test_neighbours_that_are_equally_far_are_remarked_on(tmp_path: Path) -> None:
    """scikit-learn leaves open which of them counts: nobody is told that the scores are always the same."""
    frame = samples.numbers()
    model = KNeighborsClassifier().fit(frame, samples.classes(3))

    done = bs.export(model, tmp_path / "m.onnx", sample=frame)

    assert "as far as the next one" in done.parity.facts()["remark"]
    assert bs.Model(done.path).predict(frame)["label"].to_list() == model.predict(frame).tolist()


def test_trees_behind_a_scaler_compute_in_float64(tmp_path: Path) -> None:
    """float32 arithmetic before a tree takes other branches in rows that no sample shows."""
    frame, wanted = samples.numbers(), samples.values()
    pipeline = make_pipeline(MinMaxScaler(), DecisionTreeRegressor(max_depth=6)).fit(frame, wanted)

    done = bs.export(pipeline, tmp_path / "m.onnx", sample=frame)

    assert done.parity.computes_in.startswith("float64")
    assert not done.parity.near_differ


def test_boosters_from_their_own_files(tmp_path: Path) -> None:
    """LightGBM's .txt and XGBoost's .json and .ubj need no trust, and keep their columns' names."""
    import lightgbm
    import xgboost

    frame, values = samples.mixed()[samples.NUMBERS], samples.values()
    light = lightgbm.train({"objective": "regression", "verbose": -1}, lightgbm.Dataset(frame, values), 20)
    extreme = xgboost.train({"objective": "reg:squarederror"}, xgboost.DMatrix(frame, values), 20)
    light.save_model(tmp_path / "m.txt")
    for name in ("m.json", "m.ubj"):
        extreme.save_model(tmp_path / name)

    for name in ("m.txt", "m.json", "m.ubj"):
        path = tmp_path / f"{name}.onnx"
        done = bs.export(tmp_path / name, path, sample=frame)

        expected = light.predict(frame) if name == "m.txt" else extreme.predict(xgboost.DMatrix(frame))
        np.testing.assert_allclose(bs.Model(path).predict(frame)["variable"], expected, rtol=1e-5)
        assert done.parity.takes_nan
        assert [port.name for port in onnx.load(path).graph.input] == samples.NUMBERS


def test_catboost_from_its_own_file(tmp_path: Path) -> None:
    """CatBoost's .cbm needs no trust: classes and probabilities of rows with NaN are its own."""
    import catboost

    frame = samples.mixed()[samples.NUMBERS]
    model = catboost.CatBoostClassifier(iterations=20, verbose=0, allow_writing_files=False)
    model.fit(frame, samples.classes(3)).save_model(tmp_path / "m.cbm")

    done = bs.export(tmp_path / "m.cbm", tmp_path / "m.onnx", sample=frame)

    predicted = bs.Model(done.path).predict(frame)
    assert predicted["label"].to_list() == model.predict(frame).ravel().tolist()
    np.testing.assert_allclose(
        np.stack(predicted["probabilities"]), model.predict_proba(frame), rtol=1e-5, atol=1e-6
    )


def test_a_pickle_is_read_only_when_it_is_trusted(pipeline: Any, tmp_path: Path) -> None:
    """The code in a pickle does not run unless that is said."""

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "m.pkl").write_bytes(pickle.dumps([Evil(), 1]))

    with pytest.raises(bs.BatchserveError, match="is a pickle"):
        bs.export(tmp_path / "m.pkl", tmp_path / "m.onnx", sample=samples.mixed())
    assert not (tmp_path / "ran").exists()

    (tmp_path / "n.pkl").write_bytes(pickle.dumps(pipeline))
    bs.export(tmp_path / "n.pkl", tmp_path / "n.onnx", sample=samples.mixed(), trust_pickle=True)


def test_a_known_bad_combination_is_refused_with_what_to_do() -> None:
    """LightGBM's `fair` has no converter: the error names an objective that has one."""
    import lightgbm

    frame = samples.numbers()
    model = lightgbm.LGBMRegressor(objective="fair", n_estimators=3, verbose=-1).fit(frame, samples.values())

    with pytest.raises(bs.BatchserveError, match="cannot be converted") as caught:
        bs.export(model, "m.onnx", sample=frame)

    assert caught.value.hint == "train with objective huber"


def test_a_program_and_a_factory_with_weights(tmp_path: Path) -> None:
    """A .pt2 program, and a factory with weights of either form, all give the module's own values."""
    import nets
    import torch
    from safetensors.torch import save_file

    frame = samples.numbers()
    module = nets.Two().eval()
    rows = torch.from_numpy(frame.to_numpy(np.float32))
    program = torch.export.export(module, (rows[:3],), dynamic_shapes=({0: torch.export.Dim("rows")},))
    torch.export.save(program, tmp_path / "m.pt2")
    torch.save(module.state_dict(), tmp_path / "w.pt")
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    sources = (
        (tmp_path / "m.pt2", None),
        ("nets:Two", tmp_path / "w.pt"),
        ("nets:Two", tmp_path / "w.safetensors"),
    )

    for i, (source, held) in enumerate(sources):
        bs.export(source, tmp_path / f"{i}.onnx", sample=frame, weights=held)

        predicted = bs.Model(tmp_path / f"{i}.onnx").predict(frame)
        with torch.no_grad():
            np.testing.assert_allclose(np.stack(predicted["output_1"]), module(rows)[1], atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_and_pickled_modules_need_trust(tmp_path: Path) -> None:
    """Both are programs: refused without --trust-pickle, exported with it."""
    import nets
    import torch

    module, frame = nets.Two().eval(), samples.numbers()
    torch.jit.trace(module, torch.zeros(3, 4)).save(tmp_path / "script.pt")
    torch.save(module, tmp_path / "module.pt")

    for name in ("script.pt", "module.pt"):
        with pytest.raises(bs.BatchserveError, match="is a pickle"):
            bs.export(tmp_path / name, tmp_path / "m.onnx", sample=frame)
        done = bs.export(
            tmp_path / name, tmp_path / "m.onnx", sample=frame, trust_pickle=True, overwrite=True
        )
        assert done.parity.passes


def test_a_program_of_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    """A program that was traced without an open batch is told how to be exported."""
    import nets
    import torch

    program = torch.export.export(nets.Two().eval(), (torch.zeros(3, 4),))
    torch.export.save(program, tmp_path / "m.pt2")

    with pytest.raises(bs.BatchserveError, match="its batch is fixed") as caught:
        bs.export(tmp_path / "m.pt2", tmp_path / "m.onnx", sample=samples.numbers())

    assert "dynamic_shapes" in caught.value.hint


def test_wrong_factories_and_weights_are_told(tmp_path: Path) -> None:
    """A factory that is not there, and weights of another module, end with what to do."""
    import torch

    torch.save({"other": torch.zeros(1)}, tmp_path / "w.pt")

    with pytest.raises(bs.BatchserveError, match="nets:Nobody: cannot be imported"):
        bs.export("nets:Nobody", tmp_path / "m.onnx", sample=samples.numbers())
    with pytest.raises(bs.BatchserveError, match="cannot be put into nets:Two"):
        bs.export("nets:Two", tmp_path / "m.onnx", sample=samples.numbers(), weights=tmp_path / "w.pt")


SOME = ("RandomForestRegressor", "HistGradientBoostingClassifier", "LinearSVC", "Ridge")


@pytest.mark.parametrize("name", SOME)
def test_part_of_the_matrix(name: str) -> None:
    """Some of the matrix, plain and behind a ColumnTransformer; the rest runs by hand."""
    from sklearn.utils import all_estimators

    kind = "classifier" if name.endswith(("Classifier", "SVC")) else "regressor"
    cls = dict(all_estimators(kind))[name]
    for frame in (samples.numbers(), samples.mixed()):
        made = partial(matrix.fitted, cls, kind, frame, matrix.target(name, kind))
        found = matrix.tried(made, frame)
        assert found.passed, found


def test_a_frame_with_other_columns_is_told(pipeline: Any, tmp_path: Path) -> None:
    """A sample without a column of the pipeline is told with the column's name."""
    with pytest.raises(bs.BatchserveError, match="column place: the model takes it"):
        bs.export(pipeline, tmp_path / "m.onnx", sample=pd.DataFrame(samples.mixed()).drop(columns="place"))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_pipeline_in_int8_is_held_to_the_pipeline_itself(tmp_path: Path) -> None:
    """A network behind a ColumnTransformer of texts: int8 within 5 % of the spread, NaN imputed as before."""
    from sklearn.neural_network import MLPRegressor

    frame = samples.mixed()
    network = MLPRegressor(hidden_layer_sizes=(64, 64), max_iter=30, random_state=0)
    pipeline = matrix.columns(network).fit(frame, samples.values())

    with pytest.raises(bs.BatchserveError, match="times as fast"):
        bs.export(pipeline, tmp_path / "m.onnx", sample=frame, precision="int8")
    done = bs.export(pipeline, tmp_path / "m.onnx", sample=frame, precision="int8", tolerance=2)

    expected = pipeline.predict(frame)
    scores = bs.Model(done.path).predict(frame)["variable"]
    assert np.abs(scores - expected).max() < 0.05 * np.ptp(expected)


def test_attention_in_int8_has_nan_where_torch_has(tmp_path: Path) -> None:
    """Rows are not the first dimension of torch's attention: NaN is led around all of it."""
    import nets
    import torch

    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(500, 24)).astype(np.float32), columns=[f"c{i}" for i in range(24)])
    module = nets.Attention().eval()

    done = bs.export(module, tmp_path / "m.onnx", sample=frame, precision="int8", tolerance=2)

    frame.loc[3, "c5"] = np.nan
    with torch.no_grad():
        expected = module(torch.from_numpy(np.array(frame, np.float32))).numpy()
    scores = np.stack(bs.Model(done.path).predict(frame)["output"])
    assert np.array_equal(np.isnan(scores), np.isnan(expected))
    assert np.nanmax(np.abs(scores - expected)) < 0.1 * np.nanmax(np.abs(expected))


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
@pytest.mark.parametrize("kind", ["regressor", "classifier"])
def test_boosters_as_the_last_step_of_a_pipeline(library: str, kind: str, tmp_path: Path) -> None:
    """Texts and NaN through a ColumnTransformer into a booster: on unseen rows what the pipeline predicts."""
    module = importlib.import_module(library)
    name = {"lightgbm": "LGBM", "xgboost": "XGB"}[library] + kind.capitalize()
    wanted = samples.values() if kind == "regressor" else samples.classes(3)
    frame = samples.mixed()
    options = {"n_estimators": 20} | ({"verbose": -1} if library == "lightgbm" else {})
    pipeline = matrix.columns(getattr(module, name)(**options)).fit(frame, wanted)

    done = bs.export(pipeline, tmp_path / "m.onnx", sample=frame.iloc[::2])

    rest = frame.iloc[1::2].reset_index(drop=True)
    predicted = bs.Model(done.path).predict(rest)
    if kind == "regressor":
        np.testing.assert_allclose(predicted["variable"], pipeline.predict(rest), rtol=1e-4)
    else:
        assert predicted["label"].to_list() == pipeline.predict(rest).tolist()
        scores = np.stack(predicted["probabilities"])
        np.testing.assert_allclose(scores, pipeline.predict_proba(rest), atol=1e-5)
