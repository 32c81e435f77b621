"""What the name of a model means where it is no path: a URL, or what a registry's own library knows."""

import http.client
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchserve import storage
from batchserve.errors import (
    AccessError,
    BatchserveError,
    ModelError,
    NotFoundError,
    StorageError,
    TransientError,
    UsageError,
)
from batchserve.storage import file_sha256, translated

_URL = re.compile(r"https?://", re.IGNORECASE)
_MLFLOW = re.compile(r"mlflow:(?:models:/)?|models:/")
_HF = "hf:"
_TIMEOUT_S = 30.0
_PIECE_BYTES = 1 << 20
_ABSENT, _REFUSED, _SERVER = (404, 410), (401, 403), (408, 425, 429)
_SHOWN = 5


def is_reference(name: str) -> bool:
    """Whether a model's name is no path.

    Example:
        >>> [is_reference(name) for name in ("m.onnx", "models:/m/3", "hf:a/b", "https://x.org/m.onnx")]
        [False, True, True, True]
    """
    return is_url(name) or bool(_MLFLOW.match(name)) or name.startswith(_HF)


def is_url(name: str) -> bool:
    """Whether a model's name is a URL."""
    return bool(_URL.match(name))


def cache_folder() -> Path:
    """Return where models are kept, by their sha256; it is made.

    Raises:
        StorageError: It cannot be.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "batchserve" / "models"
    with translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def located(name: str, sha256: str | None) -> Iterator[Path]:
    """Give the file that a reference means; it may be gone after the block.

    Args:
        name: The reference.
        sha256: What the model's sha256 must be. A URL is not used without.

    Raises:
        UsageError: The reference is not one, or a URL comes without a sha256.
        NotFoundError: There is no such model.
        ModelError: The library that knows it is not installed, or it is no ONNX model.
        StorageError: It cannot be fetched.
    """
    if is_url(name):
        yield _downloaded(name, sha256)
    elif name.startswith(_HF):
        yield _of_hf(name)
    else:
        with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".mlflow-") as folder:
            yield _of_mlflow(name, Path(folder))


# -- URLs -------------------------------------------------------------------------------------


def _downloaded(url: str, sha256: str | None) -> Path:
    """Return the file in the cache that has the sha256; download it if it is not there."""
    if not sha256:
        message = f"{url}: a URL may give another model tomorrow"
        raise UsageError(message, "say which one you mean: --model-sha256 HEX (sha256sum prints it)")
    kept = cache_folder() / f"{sha256}.onnx"
    if not kept.is_file() or file_sha256(kept) != sha256:
        _download(url, sha256, kept)
    return kept


def _download(url: str, sha256: str, kept: Path) -> None:
    with translated(kept.parent), tempfile.TemporaryDirectory(dir=kept.parent, prefix=".url-") as folder:
        sink = storage.Sink(Path(folder) / "model.onnx")
        try:
            for piece in _pieces(url):
                sink.write(piece)
        except BaseException:
            sink.discard()
            raise
        sink.sync()
        if sink.sha256() != sha256:
            raise other_sha256(url, sink.sha256(), sha256)
        storage.replace(sink.path, kept)


def other_sha256(name: str, found: str, wanted: str) -> ModelError:
    """Build the error for a model that is another than was said."""
    message = f"{name}: has the sha256 {found}, not {wanted}"
    return ModelError(
        message, "it was changed or damaged: ask who made it; or say --model-sha256 of this one"
    )


def _pieces(url: str) -> Iterator[bytes]:
    """Download a file, piece by piece."""
    request = urllib.request.Request(url, headers={"User-Agent": "batchserve"})  # noqa: S310  is http(s)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310  is http(s)
            while piece := response.read(_PIECE_BYTES):
                yield piece
            if response.length:
                raise _broken(url, f"it ended {response.length:,} bytes too soon")
    except urllib.error.HTTPError as error:
        raise _refusal(url, error) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise _broken(url, f"{reason}" or type(error).__name__) from error


def _broken(url: str, reason: str) -> TransientError:
    return TransientError(f"{url}: cannot be downloaded ({reason})", "check the network, then run it again")


def _refusal(url: str, error: urllib.error.HTTPError) -> BatchserveError:
    """Return what a server's answer means."""
    error.close()  # it holds the connection
    answer = f"{error.code} {error.reason}"
    if error.code in _ABSENT:
        return NotFoundError(f"{url}: no such model ({answer})", "check the URL")
    if error.code in _REFUSED:
        return AccessError(f"{url}: the server refuses ({answer})", "download it yourself, and name the file")
    if error.code in _SERVER or error.code >= 500:  # noqa: PLR2004  the server's own failures
        return _broken(url, answer)
    return StorageError(f"{url}: the server refuses ({answer})", "download it yourself, and name the file")


# -- registries -------------------------------------------------------------------------------


def _not_installed(name: str, package: str, extra: str) -> ModelError:
    message = f"{name}: the package {package} is not installed"
    return ModelError(message, f"pip install {package}, or batchserve[{extra}]")


def _of_hf(name: str) -> Path:
    """Return a file of a repository in the local cache of huggingface_hub; nothing is downloaded."""
    owner, _, rest = name.removeprefix(_HF).partition("/")
    repo, _, inside = rest.partition("/")
    if not owner or not repo or ".." in Path(inside).parts:
        raise UsageError(
            f"{name}: is no model of a repository", "say hf:OWNER/REPO or hf:OWNER/REPO/FILE.onnx"
        )
    folder = _snapshot(name, f"{owner}/{repo}")
    files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.onnx"))]
    if inside and (folder / inside).is_file():
        return folder / inside
    if not inside and len(files) == 1:
        return folder / files[0]
    more = " and more" if len(files) > _SHOWN else ""
    told = f"in its cache are: {', '.join(files[:_SHOWN])}{more}" if files else _hf_hint(owner, repo)
    if not inside and files:
        raise UsageError(f"{name}: has {len(files)} models", told)
    raise NotFoundError(f"{name}: no such model in the local cache", told)


def _hf_hint(owner: str, repo: str) -> str:
    return f"only the cache of this machine is looked at; to fill it: hf download {owner}/{repo}"


def _snapshot(name: str, repo: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise _not_installed(name, "huggingface_hub", "huggingface") from error
    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except HFValidationError as error:
        raise UsageError(f"{name}: {error}", "say hf:OWNER/REPO or hf:OWNER/REPO/FILE.onnx") from error
    except LocalEntryNotFoundError as error:
        message = f"{name}: is not in the local cache of huggingface_hub"
        raise NotFoundError(message, _hf_hint(*repo.split("/"))) from error


def mlflow_uri(name: str) -> str:
    """Return what MLflow calls a model: an alias stands after @, a version after a slash.

    Raises:
        UsageError: It is no name with a version or alias.

    Example:
        >>> mlflow_uri("models:/flights/champion"), mlflow_uri("mlflow:flights/3")
        ('models:/flights@champion', 'models:/flights/3')
    """
    rest = name[_prefix(name) :]
    model, at, which = rest.partition("@") if "@" in rest else rest.rpartition("/")
    if not model or not which or "/" in which:
        message = f"{name}: is no model with a version or an alias"
        raise UsageError(message, "say models:/NAME/VERSION or models:/NAME/ALIAS")
    number = which.isdigit() or which == "latest"
    return f"models:/{model}{'/' if number and at != '@' else '@'}{which}"


def _prefix(name: str) -> int:
    found = _MLFLOW.match(name)
    return found.end() if found else 0


def _of_mlflow(name: str, folder: Path) -> Path:
    """Fetch a model of an MLflow registry into a folder; return its ONNX file."""
    uri = mlflow_uri(name)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        from mlflow import artifacts
        from mlflow.exceptions import MlflowException
        from mlflow.models import Model
    except ImportError as error:
        raise _not_installed(name, "mlflow", "mlflow") from error
    try:
        home = Path(artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
        flavors: dict[str, Any] = Model.load(str(home)).flavors
    except MlflowException as error:
        reason = str(error).strip().partition("\n")[0]
        raise NotFoundError(f"{name}: {reason}", "check its name, and MLFLOW_TRACKING_URI") from error
    except OSError as error:
        raise TransientError(
            f"{name}: cannot be fetched ({error})", "check the registry, then again"
        ) from error
    if "onnx" not in flavors:
        kinds = ", ".join(sorted(flavors))
        raise ModelError(f"{name}: is no ONNX model, but {kinds}", "log it with mlflow.onnx, or export it")
    return home / str(flavors["onnx"].get("data", "model.onnx"))
