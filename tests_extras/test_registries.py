# ruff: noqa: INP001, S101, D103  what tests may do
"""Models of an MLflow registry in files and of the local cache of huggingface_hub, by their real libraries.

Needs both: `nox -s extras` runs it. No server is asked: neither library may open a connection.
"""

import hashlib
import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import mlflow
import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

import batchserve as bs
from batchserve import modelfile

EXAMPLE = Path(__file__).parents[1] / "examples" / "iris"
IRIS, IRIS_MODEL = EXAMPLE / "iris.csv", EXAMPLE / "model.onnx"
pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is their own


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no network."""

    def refuse(*_: Any) -> NoReturn:
        pytest.fail("a connection was opened")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path / "cache" / "batchserve" / "models"


def refused(name: str) -> bs.BatchserveError:
    with pytest.raises(bs.BatchserveError) as caught:
        modelfile.identify(name)
    return caught.value


def weighted() -> onnx.ModelProto:
    """Return the iris model with one more tensor, which nobody reads."""
    model = onnx.load(IRIS_MODEL)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(5000, dtype=np.float32), "unused"))
    return model


# -- MLflow -----------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A registry in a folder, with the model `iris`: version 1 is `champion`."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    logged(onnx.load(IRIS_MODEL), "iris")
    client = MlflowClient()
    client.set_registered_model_alias("iris", "champion", "1")
    return client


def logged(model: onnx.ModelProto, name: str, **more: Any) -> None:
    import mlflow.onnx

    with mlflow.start_run():
        mlflow.onnx.log_model(model, name="model", registered_model_name=name, **more)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("name", ["models:/iris/1", "models:/iris/champion", "mlflow:iris/1"])
def test_a_model_of_a_registry_is_scored(name: str, tmp_path: Path, cache: Path) -> None:
    """A version and an alias give the scores of the model, which is kept by its sha256."""
    bs.score(IRIS, tmp_path / "file.parquet", model=IRIS_MODEL)

    bs.score(IRIS, tmp_path / "out.parquet", model=name)

    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(tmp_path / "file.parquet"))
    (kept,) = cache.iterdir()
    assert kept.name == f"{hashlib.sha256(kept.read_bytes()).hexdigest()}.onnx"


def test_an_alias_that_moves_is_followed(registry: MlflowClient) -> None:
    """An alias is asked for anew by every job."""
    before = modelfile.identify("models:/iris/champion")
    model = onnx.load(IRIS_MODEL)
    model.doc_string = "the second"
    logged(model, "iris")
    registry.set_registered_model_alias("iris", "champion", "2")

    after = modelfile.identify("models:/iris/champion")

    assert after == modelfile.identify("models:/iris/2") != before == modelfile.identify("models:/iris/1")


@pytest.mark.usefixtures("registry")
def test_a_model_of_a_registry_keeps_its_weights(cache: Path) -> None:
    """A model whose weights MLflow keeps beside it is kept with them, in a folder of its sha256."""
    logged(weighted(), "heavy", save_as_external_data=True)

    spec = modelfile.identify("models:/heavy/1")

    assert Path(spec.path) == cache / spec.sha256 / "model.onnx"
    assert len(modelfile.weights_files(Path(spec.path))) > 0
    assert onnx.load(spec.path).graph.initializer[-1].name == "unused"
    assert modelfile.identify(spec.path).sha256 == spec.sha256


@pytest.mark.usefixtures("registry")
def test_a_model_that_is_not_in_the_registry() -> None:
    """A model, version or alias that is not there is exit 66, in MLflow's words."""
    for name in ("models:/rose/1", "models:/iris/7", "models:/iris/nobody"):
        error = refused(name)
        assert (error.exit_code, "MLFLOW_TRACKING_URI" in error.hint) == (66, True)
        assert error.message.startswith(name)


@pytest.mark.usefixtures("registry")
def test_a_model_of_another_flavour_is_refused() -> None:
    """A model that was not logged as ONNX is named for what it is."""

    class Plain(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002  MLflow calls it so
            return model_input

    with mlflow.start_run():
        mlflow.pyfunc.log_model(name="model", python_model=Plain(), registered_model_name="plain")

    error = refused("models:/plain/1")

    assert (error.exit_code, "is no ONNX model, but python_function" in error.message) == (70, True)


# -- Hugging Face -----------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of huggingface_hub, laid out by hand; returns the snapshot of `flower/iris`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo, commit = tmp_path / "hub" / "models--flower--iris", "a" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    linked(snapshot, "model.onnx", IRIS_MODEL)
    return snapshot


def linked(snapshot: Path, name: str, source: Path) -> None:
    """Put a file into a snapshot as huggingface_hub does: a link to a blob."""
    blob = snapshot.parents[1] / "blobs" / hashlib.sha256(source.read_bytes()).hexdigest()
    blob.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, blob)
    (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
    (snapshot / name).symlink_to(blob)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["hf:flower/iris", "hf:flower/iris/model.onnx"])
def test_a_model_of_the_local_cache_is_scored(name: str, tmp_path: Path, cache: Path) -> None:
    """A repository, and a file in it, give the scores of the model, which is kept by its sha256."""
    bs.score(IRIS, tmp_path / "file.parquet", model=IRIS_MODEL)

    bs.score(IRIS, tmp_path / "out.parquet", model=name)

    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(tmp_path / "file.parquet"))
    sha256 = hashlib.sha256(IRIS_MODEL.read_bytes()).hexdigest()
    assert [path.name for path in cache.iterdir()] == [f"{sha256}.onnx"]


def test_of_several_models_one_is_named(hub: Path) -> None:
    """A repository with several models is refused until one is named; a wrong name tells them."""
    linked(hub, "onnx/other.onnx", IRIS_MODEL)

    several, unknown = refused("hf:flower/iris"), refused("hf:flower/iris/no.onnx")

    assert (several.exit_code, unknown.exit_code) == (2, 66)
    assert several.hint == unknown.hint == "in its cache are: model.onnx, onnx/other.onnx"
    assert modelfile.identify("hf:flower/iris/onnx/other.onnx").sha256


def test_weights_of_the_local_cache_are_kept(hub: Path, tmp_path: Path, cache: Path) -> None:
    """Weights beside the model are copied with it; what was damaged in the cache is copied again."""
    big = tmp_path / "big.onnx"
    onnx.save(weighted(), big, save_as_external_data=True, location="big.onnx_data", size_threshold=1024)
    linked(hub, "big.onnx", big)
    linked(hub, "big.onnx_data", tmp_path / "big.onnx_data")

    spec = modelfile.identify("hf:flower/iris/big.onnx")
    (cache / spec.sha256 / "big.onnx_data").write_bytes(b"bits have flipped")

    assert modelfile.identify("hf:flower/iris/big.onnx") == spec
    assert sorted(path.name for path in (cache / spec.sha256).iterdir()) == ["big.onnx_data", "model.onnx"]
    assert spec.sha256 == modelfile.identify(str(big)).sha256
    assert [path.name for path in cache.iterdir()] == [spec.sha256]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("hf:flower/rose", 66, "is not in the local cache of huggingface_hub"),
        ("hf:flower/bad--name..x", 2, "hf:flower/bad--name..x: "),
    ],
)
def test_a_repository_that_is_not_there(name: str, code: int, message: str) -> None:
    """A repository that is not in the local cache is told, with how to fill it; nothing is downloaded."""
    error = refused(name)

    assert (error.exit_code, bool(error.hint)) == (code, True)
    assert message in error.message
