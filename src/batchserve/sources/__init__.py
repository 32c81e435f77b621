"""What a model was trained with: it predicts, and gives ONNX graphs that claim to do the same.

One module per library. No library is imported before a source of it is opened.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from batchserve import surgery
from batchserve.binding import is_text
from batchserve.errors import ModelError, NotFoundError, UsageError
from batchserve.model import Tensor

if TYPE_CHECKING:
    import onnx
    import pandas as pd

Kind = Literal["text", "integer", "float", "list"]
"""What a column of the sample holds, for a converter."""

OPSETS = {"": 18, "ai.onnx.ml": 3}
"""The operator sets that converters are asked for."""
ONNXMLTOOLS_OPSET = 15
"""The newest that onnxmltools knows."""
NO_CATEGORIES = "converters are wrong about them: train on one-hot columns, in a pipeline with OneHotEncoder"


@dataclass(frozen=True)
class Candidate:
    """A graph that claims to predict as its source does.

    Attributes:
        how: In what numbers it computes, in words.
        make: Converts the source; raises whatever the converter raises.
        features: The columns of its one wide input, in order; empty where each column has an input.
        remark: In which rows it may differ though it passes, in words.
    """

    how: str
    make: "Callable[[], onnx.ModelProto]"
    features: tuple[str, ...] = ()
    remark: str = ""


def by_columns(candidates: Iterator[Candidate], rows: pa.RecordBatch) -> Iterator[Candidate]:
    """Give graphs of one wide input as ones with an input for each column of these rows."""
    for each in candidates:
        yield Candidate(each.how, partial(_of_columns, each.make, tuple(rows.schema.names)))


def _of_columns(make: "Callable[[], onnx.ModelProto]", columns: tuple[str, ...]) -> "onnx.ModelProto":
    return surgery.column_inputs(make(), columns)


class Source(Protocol):
    """A trained model that can predict here, and be converted."""

    @property
    def made_with(self) -> str:
        """What it is, and the libraries and versions that convert it, in words."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The columns it was trained with, in order; empty where it does not know them."""
        ...

    @property
    def width(self) -> int | None:
        """How many columns it takes, or None where it does not know."""
        ...

    @property
    def instead(self) -> str:
        """What to train or say instead, where it is known that no graph will do; else nothing."""
        ...

    def predict(self, rows: pa.RecordBatch) -> Mapping[str, Tensor]:
        """Return what the source itself predicts, by the name of the graph's output.

        Raises:
            Exception: The source does not take such rows, a NaN among them for example.
        """
        ...

    def candidates(self, rows: pa.RecordBatch) -> Iterator[Candidate]:
        """Give graphs of it, the one to be preferred first.

        Args:
            rows: Some rows, of its columns in their order.
        """
        ...


@dataclass(frozen=True)
class Opening:
    """What the user says of a source that its object or file does not tell.

    Attributes:
        trust_pickle: Whether its code may be run.
        weights: A file of weights for a module that a factory makes.
    """

    trust_pickle: bool = False
    weights: str | None = None


def opened(source: Any, opening: Opening) -> Source:
    """Open a trained model.

    Args:
        source: The object itself, or the path of its file, or `package.module:factory`.
        opening: What else is said of it.

    Raises:
        NotFoundError: There is no such file.
        UsageError: Nobody knows what it is; or it would run code that nobody trusts.
        ModelError: The library that it needs is missing, or it is damaged.
    """
    if isinstance(source, str | Path):
        return _of_file(str(source), opening)
    return of_object(source)


_LIBRARIES = ("lightgbm", "xgboost", "catboost", "torch", "sklearn")
"""Boosters first: their estimators are scikit-learn's, too."""


def of_object(model: Any) -> Source:
    """Open a trained model that is in memory.

    Raises:
        UsageError: It is of no library that is known.
        ModelError: The library's converter is not installed.
    """
    homes = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    found = next((name for name in _LIBRARIES if name in homes), None)
    if found is None:
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise UsageError(f"{kind}: not a model that can be exported", _KINDS)
    source: Source = importlib.import_module(f"batchserve.sources.{found}").of_object(model)
    return source


_KINDS = (
    "export takes scikit-learn estimators and pipelines, LightGBM (.txt), XGBoost (.json, .ubj), "
    "CatBoost (.cbm), torch (.pt2, or package.module:factory with --weights) and ONNX (.onnx)"
)
_HOMES = {
    ".txt": "lightgbm", ".json": "xgboost", ".ubj": "xgboost", ".cbm": "catboost", ".pt2": "torch",
    ".onnx": "onnx",
    ".joblib": "pickles", ".pkl": "pickles", ".pickle": "pickles", ".pt": "pickles", ".pth": "pickles",
}  # fmt: skip


def _of_file(path: str, opening: Opening) -> Source:
    file = Path(path)
    home = _HOMES.get(file.suffix.lower())
    if not file.is_file():
        if ":" in path and home is None:
            made: Source = _module("torch").of_factory(path, opening.weights)
            return made
        siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise NotFoundError.of("file", path, siblings)
    if home is None:
        raise UsageError(f"{path}: not the file of a model that can be exported", _KINDS)
    if home == "pickles" and not opening.trust_pickle:
        raise UsageError(f"{path}: is a pickle, and reading one runs whatever code is in it", _PICKLE)
    found: Source = _module(home).of_file(file)
    return found


_PICKLE = (
    "if you made it, or trust who did: --trust-pickle. Files without code: LightGBM's .txt, XGBoost's .json, "
    "torch.export's .pt2, or weights by safetensors (--weights)"
)


def _kind(kind: pa.DataType) -> Kind | None:
    if is_text(kind):
        return "text"
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "integer"
    if pa.types.is_floating(kind) or pa.types.is_null(kind):
        return "float"
    return "list" if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) else None


def kinds(schema: pa.Schema) -> dict[str, Kind]:
    """Return what each column holds, for a converter."""
    return {each.name: kind for each in schema if (kind := _kind(each.type))}


def _module(name: str) -> Any:
    return importlib.import_module(f"batchserve.sources.{name}")


def library(name: str, extra: str) -> Any:
    """Import a library that an extra brings.

    Args:
        name: Of the module.
        extra: Of batchserve.

    Raises:
        ModelError: It is not installed, or does not load.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"{name} is needed to export this model and cannot be imported ({error})"
        raise ModelError(message, f"pip install 'batchserve[{extra}]'") from error


def versions(*modules: str) -> str:
    """Return libraries that are loaded and their versions, in words.

    Example:
        >>> versions("numpy").partition(" ")[0]
        'numpy'
    """
    return ", ".join(f"{name} {importlib.import_module(name).__version__}" for name in modules)


def frame(rows: pa.RecordBatch) -> "pd.DataFrame":
    """Return rows as the data frame that a model would be trained on; a null is NaN."""
    found: pd.DataFrame = rows.to_pandas()
    return found


def title(model: Any) -> str:
    """Return the class of a model; of a pipeline those of its steps.

    Example:
        >>> title({})
        'dict'
    """
    steps: Sequence[Any] = getattr(model, "steps", ())
    name = type(model).__name__
    return f"{name} of {', '.join(type(step).__name__ for _, step in steps)}" if steps else name


def matrix(rows: pa.RecordBatch) -> Tensor:
    """Return the columns of numbers side by side, as float64 [rows, columns]; a null is NaN."""
    numbers: Tensor = frame(rows).to_numpy("float64", na_value=float("nan"))
    return numbers


def classified(model: Any, table: Tensor) -> dict[str, Tensor]:
    """Return label and probabilities that a classifier with the methods of scikit-learn gives."""
    return {
        "label": np.asarray(model.predict(table)),
        "probabilities": np.asarray(model.predict_proba(table)),
    }


def reason(error: BaseException) -> str:
    r"""Return the first line of what a converter says, cut to a readable length.

    Example:
        >>> reason(ValueError("no such operator\nat line 3"))
        'ValueError: no such operator'
    """
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
    return text if len(text) <= _REASON_CHARACTERS else f"{text[:_REASON_CHARACTERS]}..."


_REASON_CHARACTERS = 240
