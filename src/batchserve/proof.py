"""Are rows independent? A batch scorer may only cut, pad and permute rows if they are.

The first rows are run twice as they are, in reverse order, and with another last row: an outlier,
a NaN row, the first row once more. If any of their scores changes by a bit, the model mixes rows
(dynamic quantisation takes its scale from the whole batch, a mean may run over the batch).
"""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from batchserve import trial
from batchserve.batches import padded
from batchserve.errors import CrashError, ModelError, RunError
from batchserve.model import Session, Tensor
from batchserve.modelfile import ModelSpec, operators
from batchserve.predictions import Prediction
from batchserve.runs import Runs
from batchserve.zipmaps import Maps

_MIXERS = {
    "DynamicQuantizeLinear": "takes its scale from the whole batch",
    "DynamicQuantizeMatMul": "takes its scale from the whole batch",
    "com.microsoft:DynamicQuantizeMatMul": "takes its scale from the whole batch",
    "BatchNormalization": "may be in training mode",
    **{
        f"Reduce{kind}": "may reduce over the batch"
        for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    },
    **dict.fromkeys(
        ("CumSum", "Softmax", "LogSoftmax", "TopK", "ArgMax", "ArgMin", "Unique", "NonZero"),
        "may run over the batch",
    ),
}
_OUTLIER = 1e6


def prove(
    spec: ModelSpec, session: Session | Runs, observed: Mapping[str, Any], tensors: dict[str, Tensor],
    batch_rows: int,
) -> None:  # fmt: skip
    """Check on real rows that no row's scores depend on the other rows of its batch.

    Args:
        spec: The model's file, to name the operators at fault.
        session: The model.
        observed: What the outputs gave for the first rows, filled up to `batch_rows`.
        tensors: The first rows of the job, at least one and at most `batch_rows` are used.
        batch_rows: The batch dimension of every run.

    Raises:
        ModelError: A score changed; the operators that may be why are named.
    """
    batch = {name: padded(tensor[:batch_rows], batch_rows) for name, tensor in tensors.items()}
    placed = ""
    for what, variant, rows in _variants(batch, batch_rows):
        if what == _OUTLYING and _kills(session, list(observed), variant):
            continue
        try:
            scores = session.run(list(observed), variant)
        except ModelError:
            if what in {_AGAIN, _REVERSED}:
                raise
            continue  # an outlier may be refused: that says nothing of its neighbours
        for (name, before), after in zip(observed.items(), scores, strict=True):
            was, now = _picked(before, rows), after[: len(rows)]
            if not _equal(was, now):
                if what != _REVERSED or not _close(was, now):
                    raise _mixed(spec, name, what)
                placed = placed or name
    if placed:
        raise _by_place(spec, placed)


_AGAIN = "again"
_REVERSED = "in reverse order"
_OUTLYING = "beside an outlier"


def _kills(session: Session | Runs, names: Sequence[str], tensors: dict[str, Tensor]) -> bool:
    """Whether the model may die of made-up integers, say of an index too large: tried in a fork."""
    if all(tensor.dtype.kind == "f" for tensor in tensors.values()):
        return False
    return trial.ended(partial(_attempted, session, names, tensors)) != 0


_MOST_TRIALS = 64


def runnable(
    session: Session | Runs, names: Sequence[str], tensors: dict[str, Tensor], batch_rows: int
) -> dict[str, Tensor]:
    """Leave out of the first rows those that the model fails on, or dies of: they will be rejects.

    All are tried in a fork of this process; only if that fails are halves tried, too.

    Args:
        session: The model.
        names: The outputs to compute.
        tensors: The first rows of the job, at least one and at most `batch_rows`.
        batch_rows: The batch dimension of every run.

    Raises:
        RunError: It fails on all of them, as far as was tried.
        CrashError: It dies of them.
    """

    def attempt(start: int, stop: int) -> int:
        part = {name: padded(tensor[start:stop], batch_rows) for name, tensor in tensors.items()}
        return _attempted(session, names, part)

    todo = [(0, len(next(iter(tensors.values()))))]
    good: list[tuple[int, int]] = []
    ended = 0
    for _ in range(_MOST_TRIALS):
        if not todo:
            break
        start, stop = todo.pop(0)
        failed = trial.ended(partial(attempt, start, stop))
        if failed == -signal.SIGKILL:  # for want of memory: that shows later
            failed = 0
        ended = ended or failed or 0
        if not failed:
            good.append((start, stop))
        elif stop - start > 1:
            middle = (start + stop) // 2
            todo += [(start, middle), (middle, stop)]
    if not good and ended < 0:
        name = signal.Signals(-ended).name
        raise CrashError(f"the model kills its process ({name}) on each of the first rows", _EXPORT)
    if not good:
        session.run(names, {name: padded(tensor, batch_rows) for name, tensor in tensors.items()})
    return {
        name: np.concatenate([tensor[start:stop] for start, stop in sorted(good)])
        for name, tensor in tensors.items()
    }


_EXPORT = "try it on other rows, or export the model again"


def _attempted(session: Session | Runs, names: Sequence[str], tensors: dict[str, Tensor]) -> int:
    """Run the model; return 1 if it failed on its rows: what else may be wrong shows later."""
    try:
        session.run(names, tensors)
    except RunError:
        return 1
    except BaseException:  # noqa: BLE001  nothing may leave the fork
        return 0
    return 0


def size_matters(
    session: Session | Runs, predictions: Sequence[Prediction], tensors: dict[str, Tensor], batch_rows: int
) -> bool:
    """Whether scores of the first rows change by a bit when a run has fewer rows.

    Runs are all of one size, so that it does not matter; but one that lacks memory is halved.

    Args:
        session: The model.
        predictions: The outputs to compare.
        tensors: The first rows of the job, at least one and at most `batch_rows` are used.
        batch_rows: The batch dimension of every run.
    """
    names = [prediction.output for prediction in predictions]
    batch = {name: padded(tensor[:batch_rows], batch_rows) for name, tensor in tensors.items()}
    plain = session.run(names, batch)
    try:
        for rows in {max(1, batch_rows // 2), 1}:
            scores = session.run(names, {name: tensor[:rows] for name, tensor in batch.items()})
            if not all(_equal(a[:rows], b) for a, b in zip(plain, scores, strict=True)):
                return True
    except ModelError:  # it takes no fewer rows, so it will not give other bits
        return False
    return False


def _variants(batch: dict[str, Tensor], rows: int) -> Iterator[tuple[str, dict[str, Tensor], Any]]:
    """Give other batches, and which rows of the first one stand at the start of each."""
    order = np.arange(rows)[::-1]
    yield _AGAIN, batch, np.arange(rows)
    yield _REVERSED, {name: tensor[order] for name, tensor in batch.items()}, order
    others: dict[str, Callable[[Tensor], Any]] = {
        _OUTLYING: _outlier,
        "beside a NaN": lambda _: np.nan,
        "beside a copy of the first row": lambda tensor: tensor[0],
    }
    for what, last in others.items():
        variant = {name: _last(tensor, last(tensor)) for name, tensor in batch.items()}
        if any(variant[name] is not tensor for name, tensor in batch.items()):
            yield what, variant, np.arange(rows - 1)


def _outlier(tensor: Tensor) -> Any:
    """Return a value unlike those of a tensor, but one that the model may take as it takes them."""
    if tensor.dtype.kind == "f":
        return _OUTLIER
    if tensor.dtype.kind == "b":
        return ~tensor[-1]
    if tensor.dtype.kind == "O" or not tensor.size:
        return tensor[-1]
    limits = np.iinfo(tensor.dtype)
    most = int(tensor.max())
    return most + 1 if most < limits.max else int(tensor.min())


def _last(tensor: Tensor, value: Any) -> Tensor:
    """Put `value` into the last row; NaN only where there is one."""
    is_nan = isinstance(value, float) and np.isnan(value)
    if len(tensor) == 1 or (is_nan and tensor.dtype.kind != "f"):
        return tensor
    changed = tensor.copy()
    with np.errstate(over="ignore"):
        changed[-1] = np.asarray(value).astype(tensor.dtype)
    return changed


def _picked(values: Any, rows: Any) -> Any:
    return [values[row] for row in rows] if isinstance(values, list) else values[rows]


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, list):
        return len(before) == len(after) and all(map(_equal, before, after))
    if isinstance(before, Maps):
        return _equal(before.values, after.values)
    return np.array_equal(before, after, equal_nan=before.dtype.kind in "fc")


def _close(before: Any, after: Any) -> bool:
    """Whether scores differ in their last bits only."""
    if isinstance(before, Maps):
        return _close(before.values, after.values)
    arrays = isinstance(before, np.ndarray) and before.dtype.kind == "f" and before.shape == after.shape
    return arrays and np.allclose(before, after, rtol=1e-3, atol=1e-6, equal_nan=True)


def _by_place(spec: ModelSpec, output: str) -> ModelError:
    return ModelError(
        f"{spec.path}: the last bits of scores of {output} depend on the place of a row in its batch",
        "they would depend on how the input was split: export the model with an open batch dimension "
        "(full batches of 64 rows and more seldom show it), or accept it with --rows-depend",
    )


def _mixed(spec: ModelSpec, output: str, what: str) -> ModelError:
    if what == _AGAIN:
        message = f"{spec.path}: scores of {output} differ when the same rows are run again"
        return ModelError(message, "scores would be random: export the model without its random operators")
    suspects = [f"{op} ({_MIXERS[op]})" for op in operators(spec.path) if op in _MIXERS]
    because = f"; its graph has {', '.join(suspects)}" if suspects else ""
    return ModelError(
        f"{spec.path}: scores of {output} change when rows stand {what}{because}",
        "a score would depend on how the input was split: export a model whose rows are "
        "independent, or accept it with --rows-depend",
    )
