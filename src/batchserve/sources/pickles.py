"""Models in pickles: reading one runs its code, so the caller has asked whether it is trusted."""

from pathlib import Path
from typing import Any

from batchserve.errors import ModelError
from batchserve.sources import Source, library, of_object, reason

_TORCH = (".pt", ".pth")


def of_file(path: Path) -> Source:
    """Unpickle a model; its code is run.

    Raises:
        ModelError: It cannot be read here.
    """
    return of_object(_torch(path) if path.suffix.lower() in _TORCH else _joblib(path))


def _joblib(path: Path) -> Any:
    joblib = library("joblib", "sklearn")
    try:
        return joblib.load(path)
    except Exception as error:  # a pickle raises what the code in it raises
        raise ModelError(f"{path}: cannot be unpickled ({reason(error)})", _HINT) from error


def _torch(path: Path) -> Any:
    torch = library("torch", "torch")
    try:
        return torch.jit.load(path)
    except RuntimeError:  # no TorchScript: a pickled module
        pass
    try:
        return torch.load(path, weights_only=False)
    except Exception as error:
        raise ModelError(f"{path}: cannot be unpickled ({reason(error)})", _HINT) from error


_HINT = "install the libraries and versions that it was made with"
