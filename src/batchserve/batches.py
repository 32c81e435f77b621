"""Rows through models in micro-batches of one shape, whatever their number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from batchserve import predictions
from batchserve.codec import Encoded
from batchserve.errors import naming
from batchserve.lookups import NO_CODES, Codes
from batchserve.model import Session, Tensor
from batchserve.predictions import Prediction
from batchserve.runs import Runs
from batchserve.scorers import Recipe


def predicted(
    runs: Sequence[Runs], recipe: Recipe, given: Sequence[Encoded], *, by_codes: bool = True
) -> list[pa.Array]:
    """Run every model over the same rows.

    Args:
        runs: What runs each model.
        recipe: The models.
        given: The rows, at least one, as each model takes them.
        by_codes: Whether texts may be given as codes.

    Returns:
        One Arrow array per prediction, model after model.

    Raises:
        ModelError: A model fails; its name is told.
    """
    columns = []
    for scorer, session, rows in zip(recipe.scorers, runs, given, strict=True):
        with naming(scorer.name):
            size = recipe.rows_of(scorer)
            codes = rows.codes if by_codes else NO_CODES
            columns += predict(session, scorer.predictions, rows.tensors, size, codes)
    return columns


def predict(
    session: Session | Runs, wanted: Sequence[Prediction], tensors: dict[str, Tensor], batch_rows: int,
    codes: Mapping[str, Codes] = NO_CODES,
) -> list[pa.Array]:  # fmt: skip
    """Run the model over rows, `batch_rows` at a time, always in that one shape.

    A short batch is filled up by repeating its last row and the results are cut again: bits
    then depend neither on how rows were split nor on where in a batch a row stood.

    Args:
        session: The model.
        wanted: The outputs wanted, as planned.
        tensors: One tensor [rows, ...] per input that columns fill; at least one row.
        batch_rows: The batch dimension of every run.
        codes: Of inputs of texts, the same in a shorter form.

    Returns:
        One Arrow array of `rows` entries per prediction.

    Raises:
        ModelError: The model fails, or an output has not one entry per row.
    """
    names = [prediction.output for prediction in wanted]
    rows = len(next(iter(tensors.values())))
    runs: list[list[Any]] = [[] for _ in names]
    for start in range(0, rows, batch_rows):
        size = min(batch_rows, rows - start)
        batch = {name: padded(t[start : start + size], batch_rows) for name, t in tensors.items()}
        short = {
            name: Codes(each.texts, padded(each.rows[start : start + size], batch_rows))
            for name, each in codes.items()
        }
        for name, values, gathered in zip(names, session.run(names, batch, codes=short), runs, strict=True):
            predictions.check_rows(name, values, batch_rows)
            gathered.append(values[:size])
    rows_of = zip(wanted, map(predictions.joined, runs), strict=True)
    return [predictions.decode(prediction, values) for prediction, values in rows_of]


def padded(tensor: Tensor, batch_rows: int) -> Tensor:
    """Fill a tensor up to `batch_rows` rows by repeating its last row.

    Example:
        >>> padded(np.array([1, 2]), 4)
        array([1, 2, 2, 2])
    """
    short = batch_rows - len(tensor)
    return np.concatenate((tensor, np.repeat(tensor[-1:], short, axis=0))) if short else tensor
