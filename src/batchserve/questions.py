"""What is asked of a scored file: which task, which classes, where scores are cut; pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypedDict, Unpack, get_args

import numpy as np
import pyarrow as pa

from batchserve.arrays import raw_values
from batchserve.errors import UsageError, raise_all
from batchserve.labels import NUMBERS, Kind, kind_of, numbers, plain, storage_type
from batchserve.metrics import Cut
from batchserve.spelling import items

Task = Literal["regression", "binary", "multiclass"]


@dataclass(frozen=True)
class Question:
    """What is asked of a scored file, everything settled."""

    label: str
    prediction: str
    task: Task
    cut: Cut
    names: tuple[str, ...] = ()
    """The classes that the prediction has a probability for, in its order; empty if it has none."""
    positive: str = "1"
    positive_said: bool = False


class Questions(TypedDict, total=False):
    """The keyword arguments of `batchserve.evaluate` about the task."""

    task: str | None
    threshold: float
    positive: str | None
    classes: str | Sequence[str]
    bins: int


@dataclass(frozen=True)
class Asked:
    """What the user said of the task."""

    task: Task | None = None
    threshold: float = 0.5
    positive: str | None = None
    classes: tuple[str, ...] = ()
    bins: int = 10

    @classmethod
    def of(cls, **said: Unpack[Questions]) -> Self:
        """Return what was said, as far as it makes sense.

        Raises:
            UsageError: Some of it does not.
        """
        asked = cls(**{**said, "classes": tuple(items(said.get("classes", ())))})  # type: ignore[arg-type]  # of Questions
        tasks = get_args(Task)
        problems = []
        if asked.task not in {None, *tasks}:
            problems.append(UsageError(f"--task {asked.task}: no such task", f"choose {' or '.join(tasks)}"))
        if not math.isfinite(asked.threshold):
            problems.append(UsageError(f"--threshold {asked.threshold}: is no number", "say one, like 0.5"))
        if not 1 <= asked.bins <= _MOST_BINS:
            problems.append(UsageError(f"--bins {asked.bins}: is not 1 to {_MOST_BINS}", "10 is usual"))
        if len(set(asked.classes)) < len(asked.classes):
            problems.append(UsageError("--classes names one twice", "name each once, in their order"))
        raise_all(problems)
        return asked


_MOST_BINS = 100


def settle(asked: Asked, label: pa.Array, prediction: pa.Array, names: tuple[str, str]) -> Question:
    """Find the task, by the types of the two columns, and what belongs to it.

    Args:
        asked: What the user said.
        label: Some labels.
        prediction: Some predictions.
        names: The names of the two columns.

    Raises:
        UsageError: The columns cannot be a label and its prediction, or more than one task would fit.
    """
    pair = kind_of(label.type), kind_of(prediction.type)
    chances = _classes_of(plain(prediction)) if pair[1] in {"vector", "struct"} else ()
    if asked.classes and len(asked.classes) != len(chances):
        message = (
            f"--classes names {len(asked.classes)}, and {names[1]} has {len(chances)} probabilities a row"
        )
        raise UsageError(message, "name a class for each, in their order")
    chances = asked.classes or chances
    task = asked.task or _task(pair, len(chances), names, label, prediction)
    _check_fits(task, pair, chances, names)
    if asked.positive is not None and (task != "binary" or (chances and asked.positive not in chances)):
        raise UsageError(f"--positive {asked.positive}: {_no_positive(task, chances)}", "leave it out")
    second = chances[-1] if chances else "1"
    cut = Cut(asked.threshold, asked.bins, _least(prediction.type))
    return Question(
        *names, task, cut, chances, asked.positive or second, asked.positive is not None or bool(chances)
    )


def _no_positive(task: Task, chances: Sequence[str]) -> str:
    return f"the classes are {', '.join(chances)}" if task == "binary" else f"the task is {task}"


def _least(kind: pa.DataType) -> float:
    """Return the eps of the float type that probabilities are of, as scikit-learn clips them."""
    kind = storage_type(kind)
    inner = kind.field(0).type if pa.types.is_struct(kind) else getattr(kind, "value_type", kind)
    if pa.types.is_float16(inner) or pa.types.is_float32(inner):
        return float(np.finfo(np.float16 if inner.bit_width == 16 else np.float32).eps)  # noqa: PLR2004  bits
    return float(np.finfo(np.float64).eps)


def _classes_of(prediction: pa.Array) -> tuple[str, ...]:
    """Return the names of the probabilities of a row: of a struct's fields, or 0, 1, 2."""
    if pa.types.is_struct(prediction.type):
        return tuple(each.name for each in prediction.type)
    if pa.types.is_fixed_size_list(prediction.type):
        return tuple(map(str, range(prediction.type.list_size)))
    sizes = raw_values(prediction.drop_null().value_lengths())
    return tuple(map(str, range(int(sizes[0])))) if len(sizes) else ()


def _task(
    pair: tuple[Kind, Kind], chances: int, names: tuple[str, str], label: pa.Array, prediction: pa.Array
) -> Task:
    one, other = pair
    if chances:
        return "binary" if chances == 2 else "multiclass"  # noqa: PLR2004  no or yes
    if other == "float" and one in NUMBERS:
        if _may_be_binary(label, prediction):
            message = f"{names[0]} is 0 or 1 and {names[1]} between: that is regression or binary"
            raise UsageError(message, "say --task regression or --task binary")
        return "regression"
    if other == "float":
        return "binary"
    return "regression" if pair == ("float", "integer") else "multiclass"


def _may_be_binary(label: pa.Array, prediction: pa.Array) -> bool:
    """Whether all labels at hand are 0 or 1, and all predictions between."""
    labels, scores = numbers(label), numbers(prediction)
    labels, scores = labels[np.isfinite(labels)], scores[np.isfinite(scores)]
    return bool(len(labels) and np.isin(labels, (0, 1)).all() and ((scores >= 0) & (scores <= 1)).all())


def _check_fits(task: Task, pair: tuple[Kind, Kind], chances: Sequence[str], names: tuple[str, str]) -> None:
    label, prediction = pair
    if task == "regression":
        wrong = [name for name, kind in zip(names, pair, strict=True) if kind not in NUMBERS]
        problem = f"{', '.join(wrong)}: no number, which regression needs" if wrong else ""
    elif label in {"vector", "struct", "other"}:
        problem = f"{names[0]}: of a type that is no class"
    elif task == "binary" and not (prediction in NUMBERS or len(chances) == 2):  # noqa: PLR2004  no or yes
        problem = f"{names[1]}: neither a score nor two probabilities, which binary needs"
    else:
        problem = f"{names[1]}: of a type that is no class" if prediction == "other" else ""
    if problem:
        raise UsageError(problem, "name other columns, or another --task")
