"""Score files with an ONNX model: parallel, exact, restartable.

Importing this package loads nothing heavy; each name is imported at its first use.

Example:
    >>> import batchserve as bs
    >>> report = bs.score(
    ...     "examples/iris/iris.csv", "iris.parquet", model="examples/iris/model.onnx", overwrite=True
    ... )
    >>> report.rows
    150
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchserve.api import compare, evaluate, export, plan, retry, score, scored
    from batchserve.errors import BatchserveError
    from batchserve.frames import Model
    from batchserve.planning import Plan
    from batchserve.report import Report

__version__ = "0.1.0"
__all__ = [
    "BatchserveError", "Model", "Plan", "Report", "compare", "evaluate", "export", "plan", "retry", "score",
    "scored",
]  # fmt: skip

_HOMES = {
    "BatchserveError": "errors",
    "Model": "frames",
    "Plan": "planning",
    "Report": "report",
    "compare": "api",
    "evaluate": "api",
    "export": "api",
    "plan": "api",
    "retry": "api",
    "score": "api",
    "scored": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'batchserve' has no attribute {name!r}")
    return getattr(import_module(f"batchserve.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
