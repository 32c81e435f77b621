"""Appending to a dataset: which files are new, and whether they make rows of the same kind."""

from collections.abc import Sequence

import pyarrow as pa

from batchserve.binding import Binding
from batchserve.config import Job
from batchserve.errors import OutputError, UsageError, raise_all
from batchserve.inputs import Source
from batchserve.inputs.inference import TYPES
from batchserve.planning import Plan
from batchserve.receipts import OutputReceipt
from batchserve.scorers import Recipe
from batchserve.target import Target
from batchserve.workspace import differences


def new_sources(sources: Sequence[Source], earlier: OutputReceipt) -> list[Source]:
    """Return the files whose rows are not in the dataset: path, size and time decide.

    Raises:
        OutputError: A file was scored and has changed since; its rows would be there twice. Or
            rows were left out by `--limit`: nobody would know of which files.
    """
    if any(run.plan.recipe.limit for run in earlier.runs):
        message = f"{earlier.output}: was scored with --limit, so its files may not be in it whole"
        raise OutputError(message, "score the whole anew with --overwrite")
    known = {source.path: source for source in earlier.inputs}
    changed = [source for source in sources if not known.get(source.path, source).same_file(source)]
    hint = "score the whole anew with --overwrite, or give the new rows as a file of their own"
    raise_all(
        [
            OutputError(f"{source.path}: was scored into this dataset and has changed since", hint)
            for source in changed
        ]
    )
    return [source for source in sources if source.path not in known]


def as_before(job: Job, earlier: OutputReceipt) -> Job:
    """Return the job with the batch size that the dataset has.

    Raises:
        UsageError: Only some rows are wanted: the rest would never be scored.
    """
    if job.limit:
        message = f"--limit {job.limit}: appended files count as scored, whatever is left out of them"
        raise UsageError(message, "leave --limit out, or score into another output")
    batch_rows = job.batch_rows or earlier.runs[-1].plan.recipe.batch_rows
    return job.model_copy(update={"batch_rows": batch_rows})


def types(earlier: OutputReceipt) -> dict[str, str]:
    """Return the types of the dataset's columns, as far as a text file's column can have them."""
    recipe = earlier.runs[-1].plan.recipe
    return words(pa.schema([recipe.schema_.field(name) for name in recipe.keep]))


def words(schema: pa.Schema) -> dict[str, str]:
    """Return the types of columns in the words of `--type`, where there is one."""
    return {field.name: word for field in schema if (word := _word(field.type))}


def _word(kind: pa.DataType) -> str | None:
    return next((word for word, each in TYPES.items() if each.equals(kind)), None)


def _bindings(recipe: Recipe) -> list[Binding]:
    return [scorer.binding for scorer in recipe.scorers]


def check_same_kind(found: Target, earlier: OutputReceipt, made: Plan) -> None:
    """Check that new rows are scored as those in the dataset were.

    Raises:
        OutputError: Another model, other columns, other rules.
    """
    before = earlier.runs[-1].plan
    was, now = before.recipe, made.recipe
    same = (
        was.digests == now.digests and _bindings(was) == _bindings(now)
        and was.predictions == now.predictions and was.schema_.equals(now.schema_)
        and was.batch_rows == now.batch_rows
    )  # fmt: skip
    if not same:
        inputs = tuple(source.path for source in (*before.sources, *made.sources))
        lines = [what for what in differences(before, made) if not what.startswith(("input", *inputs))]
        message = "\n  ".join([f"{found.path}: its rows were scored otherwise", *lines])
        raise OutputError(message, "append with the options of before, or write a new dataset")
