"""A model on rows of a sample: bound, proven and run just as a job would do it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchserve import batches, recipes, scoring
from batchserve.config import Job
from batchserve.errors import DataError
from batchserve.inputs import Look
from batchserve.model import Tensor
from batchserve.scorers import Recipe


def rehearsed(model: Path, rows: pa.RecordBatch, *, nan: bool, features: Sequence[str] = ()) -> Recipe:
    """Bind a model to the columns of a sample and prove that its rows are independent, as a job would.

    Args:
        model: Its file.
        rows: The sample.
        nan: Whether a null becomes NaN; else its row is rejected.
        features: The columns of a wide input, where the model does not name them.

    Raises:
        BatchserveError: The two do not fit, or a row's scores depend on other rows.
    """
    on_null = ("nan",) if nan else ()
    job = Job(model=str(model), keep=("none",), on_null=on_null, features=tuple(features))
    return recipes.recipe_for(job, recipes.named_models(job), Look(rows.schema, rows))


def scorable(rows: pa.RecordBatch, recipe: Recipe) -> tuple[pa.RecordBatch, int]:
    """Return the rows that `score` would not reject, and how many it would.

    Raises:
        DataError: It would reject them all.
    """
    if not rows.num_rows:
        return rows, 0
    _, misfits = scoring.encoded(rows, recipe)
    bad = {misfit.row for misfit in misfits}
    if len(bad) == rows.num_rows:
        first = misfits[0]
        raise DataError(f"no row can be scored: column {first.column}: {first.reason}", "give other rows")
    good = [row for row in range(rows.num_rows) if row not in bad]
    return rows.take(pa.array(good, pa.int64())), len(bad)


def tensors(rows: pa.RecordBatch, recipe: Recipe) -> dict[str, Tensor]:
    """Return what goes into the model for rows that can be scored, by input, [rows, ...]."""
    (encoded,), _ = scoring.encoded(rows, recipe)
    return encoded.tensors


def scores(rows: pa.RecordBatch, recipe: Recipe) -> dict[str, Tensor]:
    """Score rows as a job would, each output as one array [rows, ...]."""
    given, _ = scoring.encoded(rows, recipe)
    columns = batches.predicted(scoring.runs_of(recipe), recipe, given, by_codes=False)
    return {p.output: _array(column) for p, column in zip(recipe.predictions, columns, strict=True)}


def shapes(rows: pa.RecordBatch, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Return the shape that one row has in each output, as onnxruntime gives it."""
    names = [p.output for p in recipe.predictions]
    given = {
        name: batches.padded(tensor, recipe.batch_rows)
        for name, tensor in tensors(rows.slice(0, 1), recipe).items()
    }
    (runs,) = scoring.runs_of(recipe)
    values = runs.run(names, given)
    return {name: np.shape(value)[1:] for name, value in zip(names, values, strict=True)}


def _array(column: pa.Array) -> Tensor:
    if isinstance(column, pa.ExtensionArray):
        return np.asarray(column.to_numpy_ndarray())
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)
    return np.asarray(column.to_numpy(zero_copy_only=False))
