"""Models that are no path: a URL is used with its sha256 alone, all are kept by their content."""

import hashlib
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest

import batchserve as bs
from batchserve import config, modelfile, references
from workbench import IRIS, IRIS_MODEL, doubler, listing, run

SHA256 = hashlib.sha256(IRIS_MODEL.read_bytes()).hexdigest()


class Server:
    """A web server on loopback: what it serves, and what it was asked for."""

    def __init__(self) -> None:
        answers: dict[str, tuple[int, bytes]] = {}
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                code, body = answers.get(self.path, (404, b"gone"))
                self.send_response(code)
                if code in {301, 302}:
                    self.send_header("Location", body.decode())
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if self.path.startswith("/cut") else body)

            def log_message(self, *args: Any) -> None: ...

        self.answers, self.asked = answers, asked
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def url(self, path: str, body: bytes = b"", code: int = 200) -> str:
        """Serve a body under a path; return its URL."""
        self.answers[path] = code, body
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "batchserve" / "models"


def refused(name: str, sha256: str | None = None) -> bs.BatchserveError:
    with pytest.raises(bs.BatchserveError) as caught:
        modelfile.identify(name, sha256=sha256)
    return caught.value


# -- URLs -------------------------------------------------------------------------------------


def test_a_url_is_scored_as_its_file(server: Server, tmp_path: Path, cache: Path) -> None:
    """A model from a URL gives the scores of the file, is kept by its sha256, and is downloaded once."""
    url = server.url("/m/iris.onnx", IRIS_MODEL.read_bytes())
    bs.score(IRIS, tmp_path / "file.parquet", model=IRIS_MODEL)

    for name in ("one", "two"):
        bs.score(IRIS, tmp_path / f"{name}.parquet", model=url, model_sha256=SHA256)

        assert pq.read_table(tmp_path / f"{name}.parquet").equals(pq.read_table(tmp_path / "file.parquet"))
    assert server.asked == ["/m/iris.onnx"]
    assert listing(cache) == {f"{SHA256}.onnx": IRIS_MODEL.read_bytes()}


def test_a_url_without_a_sha256_is_refused(server: Server, cache: Path) -> None:
    """Nothing is asked of the server before somebody says which model is meant."""
    error = refused(server.url("/iris.onnx", IRIS_MODEL.read_bytes()))

    assert (error.exit_code, server.asked, cache.exists()) == (2, [], False)
    assert "--model-sha256" in error.hint


def test_another_model_at_the_url_is_refused(server: Server, cache: Path) -> None:
    """What has another sha256 is not kept, whatever it is."""
    error = refused(server.url("/iris.onnx", b"something else"), SHA256)

    assert (error.exit_code, listing(cache)) == (70, {})
    assert error.message.endswith(
        f"has the sha256 {hashlib.sha256(b'something else').hexdigest()}, not {SHA256}"
    )


def test_a_damaged_model_in_the_cache_is_downloaded_again(server: Server, cache: Path) -> None:
    """A file in the cache that is not what it is named for is replaced."""
    cache.mkdir(parents=True)
    (cache / f"{SHA256}.onnx").write_bytes(b"bits have flipped")

    modelfile.identify(server.url("/iris.onnx", IRIS_MODEL.read_bytes()), sha256=SHA256)

    assert listing(cache) == {f"{SHA256}.onnx": IRIS_MODEL.read_bytes()}


def test_a_redirect_is_followed(server: Server) -> None:
    """A URL may lead to another one: the sha256 says whether it is the model."""
    there = server.url("/there.onnx", IRIS_MODEL.read_bytes())

    spec = modelfile.identify(server.url("/here.onnx", there.encode(), code=302), sha256=SHA256)

    assert (spec.sha256, server.asked) == (SHA256, ["/here.onnx", "/there.onnx"])


@pytest.mark.parametrize(
    ("path", "code", "exit_code", "message"),
    [
        ("/a", 404, 66, "no such model (404 Not Found)"),
        ("/a", 410, 66, "no such model (410 Gone)"),
        ("/a", 401, 77, "the server refuses (401 Unauthorized)"),
        ("/a", 403, 77, "the server refuses (403 Forbidden)"),
        ("/a", 418, 74, "the server refuses (418 "),
        ("/a", 429, 74, "cannot be downloaded (429 Too Many Requests)"),
        ("/a", 503, 74, "cannot be downloaded (503 Service Unavailable)"),
        ("/cut", 200, 74, "cannot be downloaded (it ended "),
    ],
)
def test_what_the_server_says_is_told(
    server: Server, cache: Path, path: str, code: int, exit_code: int, message: str
) -> None:
    """A download that fails says why, with a hint, and leaves nothing behind."""
    error = refused(server.url(path, IRIS_MODEL.read_bytes(), code), SHA256)

    assert (error.exit_code, bool(error.hint), listing(cache)) == (exit_code, True, {})
    assert message in error.message


def test_a_server_that_is_not_there_is_told(cache: Path) -> None:
    """A port where nobody listens is worth another try."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = refused(f"http://127.0.0.1:{unused.getsockname()[1]}/m.onnx", SHA256)

    assert (error.exit_code, listing(cache)) == (74, {})
    assert "cannot be downloaded" in error.message


def test_secrets_of_a_url_are_not_told(server: Server) -> None:
    """User, password and tokens of a URL are in no message."""
    plain = server.url("/m.onnx?token=hunter3", code=404)

    error = refused(plain.replace("http://", "http://me:hunter2@"), SHA256)

    assert "hunter" not in f"{error.message} {error.hint}"


def weighted(path: Path) -> Path:
    """Write a model that keeps its weights in a file beside it."""
    model = onnx.load(doubler(path))
    weights = onnx.numpy_helper.from_array(np.arange(2000, dtype=np.float32), "unused")
    model.graph.initializer.append(weights)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def test_a_url_of_a_model_with_weights_beside_it_is_refused(server: Server, tmp_path: Path) -> None:
    """A URL gives one file: a model that needs another is refused, and the other named."""
    body = weighted(tmp_path / "m.onnx").read_bytes()

    error = refused(server.url("/m.onnx", body), hashlib.sha256(body).hexdigest())

    assert error.exit_code == 70
    assert "keeps its weights in other files (w.bin)" in error.message


def test_a_word_that_only_looks_like_weights_is_none(server: Server, tmp_path: Path) -> None:
    """Metadata with the key `location` names no file: such a model has a URL."""
    model = onnx.load(doubler(tmp_path / "m.onnx"))
    model.metadata_props.add(key="location", value="Berlin")
    body = model.SerializeToString()

    spec = modelfile.identify(server.url("/m.onnx", body), sha256=hashlib.sha256(body).hexdigest())

    assert modelfile.weights_files(Path(spec.path)) == ["Berlin"]


def test_a_model_at_a_url_is_inspected(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """`inspect` shows a model at a URL."""
    done = run(capsys, "inspect", server.url("/m", IRIS_MODEL.read_bytes()), "--model-sha256", SHA256)

    assert (done.code, SHA256 in done.out, "petal_width" in done.out) == (0, True, True)


def test_an_output_is_verified_with_a_model_at_a_url(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` takes a URL for the model: its sha256 is in the receipt."""
    bs.score(IRIS, tmp_path / "o.parquet", model=IRIS_MODEL)
    good, bad = server.url("/m", IRIS_MODEL.read_bytes()), server.url("/x", b"another")

    assert run(capsys, "verify", tmp_path / "o.parquet", "--model", bad).code == 70
    assert run(capsys, "verify", tmp_path / "o.parquet", "--model", good).code == 0


# -- a sha256 that is said --------------------------------------------------------------------


def test_a_file_may_have_to_have_a_sha256(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A local model with another sha256 than was said is refused before any work."""
    right = run(capsys, "plan", IRIS, "-m", IRIS_MODEL, "--model-sha256", SHA256.upper())
    wrong = run(capsys, "score", IRIS, tmp_path / "o.parquet", "-m", IRIS_MODEL, "--model-sha256", "0" * 64)

    assert (right.code, wrong.code, listing(tmp_path)) == (0, 70, {})
    assert f"has the sha256 {SHA256}, not {'0' * 64}" in wrong.err


def test_a_sha256_covers_the_weights(tmp_path: Path) -> None:
    """Of a model with weights beside it the sha256 is that of plan and receipt: over all its files."""
    model = weighted(tmp_path / "m.onnx")
    spec = modelfile.identify(str(model))

    assert modelfile.identify(str(model), sha256=spec.sha256) == spec
    assert refused(str(model), hashlib.sha256(model.read_bytes()).hexdigest()).exit_code == 70


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "0" * 63])
def test_what_is_no_sha256_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sha256 has 64 digits from 0 to f."""
    done = run(capsys, "score", IRIS, tmp_path / "o.parquet", "-m", IRIS_MODEL, "--model-sha256", text)

    assert done.code == 2
    assert "not a sha256" in done.err


# -- registries -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("models:/m/3", "models:/m/3"), ("models:/m/champion", "models:/m@champion"),
        ("models:/m@champion", "models:/m@champion"), ("mlflow:m/3", "models:/m/3"),
        ("mlflow:models:/m/latest", "models:/m/latest"), ("models:/a b/c.d/7", "models:/a b/c.d/7"),
        ("models:/m@7", "models:/m@7"),
    ],
)  # fmt: skip
def test_names_of_mlflow(name: str, uri: str) -> None:
    """A version is a number or `latest`; another word is an alias."""
    assert references.mlflow_uri(name) == uri


@pytest.mark.parametrize(
    "name", ["models:/", "models:/m", "mlflow:", "models:/m@", "models:/@a", "models:/m/"]
)
def test_a_name_of_mlflow_needs_a_version(name: str) -> None:
    """A model without a version or alias is refused: which one is meant?"""
    with pytest.raises(bs.BatchserveError, match="with a version or an alias") as caught:
        references.mlflow_uri(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["hf:", "hf:owner", "hf:owner/", "hf:/repo", "hf:o/r/../../secret.onnx"])
def test_a_repository_needs_an_owner_and_a_name(name: str) -> None:
    """What is no repository, or leads out of one, is refused."""
    assert (refused(name).exit_code, "hf:OWNER/REPO" in refused(name).hint) == (2, True)


class NotInstalled:
    """Makes a package look as if it was not installed."""

    names: ClassVar = {"mlflow", "huggingface_hub"}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ImportError(name)


@pytest.mark.parametrize(
    ("name", "package"), [("models:/m/1", "mlflow"), ("hf:owner/repo", "huggingface_hub")]
)
def test_a_library_that_is_missing_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference whose library is not installed says what to install."""
    for loaded in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled(), *sys.meta_path])

    error = refused(name)

    assert (error.exit_code, error.message) == (70, f"{name}: the package {package} is not installed")
    assert f"pip install {package}" in error.hint


class Hub(ModuleType):
    """A stand-in for huggingface_hub: one repository in its cache. The real one is tested in tests_extras."""

    def __init__(self, snapshot: Path) -> None:
        super().__init__("huggingface_hub")
        self.errors = ModuleType("huggingface_hub.errors")
        self.missing = type("LocalEntryNotFoundError", (Exception,), {})
        vars(self.errors).update(
            HFValidationError=type("HFValidationError", (ValueError,), {}),
            LocalEntryNotFoundError=self.missing,
        )
        self._snapshot = snapshot

    def snapshot_download(self, repo: str, *, local_files_only: bool) -> str:
        assert local_files_only
        if repo != "owner/repo":
            raise self.missing(repo)
        return str(self._snapshot)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in where the library would be; return the folder of its repository."""
    made = Hub(tmp_path / "snapshot")
    (tmp_path / "snapshot").mkdir()
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", made.errors)
    return tmp_path / "snapshot"


def test_a_model_of_a_library_is_copied_into_the_cache(hub: Path, cache: Path) -> None:
    """What a library has is kept by its sha256, whatever becomes of the library's own file."""
    shutil.copyfile(IRIS_MODEL, hub / "model.onnx")

    spec = modelfile.identify("hf:owner/repo", sha256=SHA256)
    (hub / "model.onnx").write_bytes(b"changed")

    assert (spec.path, spec.sha256) == (str(cache / f"{SHA256}.onnx"), SHA256)
    assert listing(cache) == {f"{SHA256}.onnx": IRIS_MODEL.read_bytes()}


def test_weights_are_copied_with_their_model(hub: Path, cache: Path) -> None:
    """A model with weights beside it is a folder of the cache; one that was damaged is made anew."""
    model = weighted(hub / "m.onnx")

    spec = modelfile.identify("hf:owner/repo/m.onnx")
    for name in ("w.bin", "model.onnx"):
        (cache / spec.sha256 / name).write_bytes(b"bits have flipped")

        assert modelfile.identify("hf:owner/repo/m.onnx") == spec

    assert spec.sha256 == modelfile.identify(str(model)).sha256
    assert listing(cache) == {
        spec.sha256: "folder",
        f"{spec.sha256}/model.onnx": model.read_bytes(),
        f"{spec.sha256}/w.bin": (hub / "w.bin").read_bytes(),
    }


def test_what_a_library_does_not_have_is_told(hub: Path) -> None:
    """A repository without a model, with several, and one that is not there are told apart."""
    none = refused("hf:owner/repo")
    for name in ("a.onnx", "b.onnx"):
        doubler(hub / name)

    assert (none.exit_code, refused("hf:owner/other").exit_code) == (66, 66)
    assert (refused("hf:owner/repo").exit_code, refused("hf:owner/repo/c.onnx").exit_code) == (2, 66)
    assert refused("hf:owner/repo").hint == "in its cache are: a.onnx, b.onnx"


# -- config -----------------------------------------------------------------------------------


def test_a_reference_in_a_config_is_no_path(tmp_path: Path) -> None:
    """A reference in a config file stays as it is; a path is relative to the file."""
    for name in ("models:/m/1", "hf:o/r/m.onnx", "https://example.org/m.onnx"):
        (tmp_path / "job.toml").write_text(f'model = "{name}"\n')

        assert config.load({}, [], config=str(tmp_path / "job.toml"), environment={}).job.model == name


@pytest.mark.parametrize("name", ["models:/m/1", "hf:o/r/m.onnx", "https://example.org/m.onnx"])
def test_a_config_beside_the_inputs_may_not_fetch(name: str, tmp_path: Path) -> None:
    """Whoever made the data folder may not make batchserve ask a server or a registry."""
    (tmp_path / "batchserve.toml").write_text(f'model = "{name}"\n')

    with pytest.raises(bs.BatchserveError, match="may not ask for") as caught:
        config.load({}, [str(tmp_path / "a.csv")], environment={})
    assert (caught.value.exit_code, f"--model {name}" in caught.value.hint) == (2, True)


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without XDG_CACHE_HOME, or with a relative one, the cache is ~/.cache."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)

        assert references.cache_folder() == tmp_path / ".cache" / "batchserve" / "models"
