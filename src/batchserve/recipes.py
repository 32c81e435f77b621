"""Models and columns -> the recipe that scores a partition: bound, tried on the first rows, proven."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from batchserve import candidates, spelling
from batchserve.binding import Binding
from batchserve.candidates import Candidate, Specs
from batchserve.config import Job
from batchserve.effort import Effort
from batchserve.errors import BatchserveError, NotFoundError, Problems, StallError, UsageError, naming
from batchserve.inputs import SOURCE_FILE, SOURCE_ROW, Look, Reading, inference
from batchserve.modelfile import ModelSpec, identify
from batchserve.outputs import dictionaries
from batchserve.scorers import Recipe, Scorer

T = TypeVar("T")

BATCH_ROWS = 1024
"""Rows per run of the model. Tree and one-hot models ran twice as fast at 1,024 to 4,096 as at
16,384 and more, where tensors leave the cache."""
_LEAST_BATCH_ROWS = 64
_CACHE_BYTES = 2 << 20
"""Of the widest tensor of one run, unless that would be less than 64 rows: a transformer of 32 kB a row
took 1.4 times as long in batches of 1,024 as of 64."""
_MOST_BATCH_BYTES = 32 << 20
"""Of the inputs of one run, unless that would be less than 64 rows."""


def named_models(job: Job) -> dict[str, ModelSpec]:
    """Return the models that the job names, under their names; one without a name under an empty one.

    Raises:
        UsageError: It names none.
        NotFoundError: There is no such file.
    """
    if not job.model:
        raise UsageError(
            "no model is named", "say --model PATH, set BATCHSERVE_MODEL, or put model = in batchserve.toml"
        )
    problems = Problems()
    found: dict[str, ModelSpec] = {}
    paths = spelling.by_name(job.model)
    digests = _digests(job, list(paths))
    for name, path in paths.items():
        spec = problems.attempt(partial(_identified, job, name, path, digests.get(name)), None)
        found |= {name: spec} if spec else {}
    problems.check()
    return found


def _digests(job: Job, names: Sequence[str]) -> dict[str, str]:
    """Return what the sha256 of models must be; one without a name is for the only model."""
    said = spelling.by_name(job.model_sha256) if job.model_sha256 else {}
    if set(said) == {""} and len(names) == 1:
        return {names[0]: said[""]}
    if unknown := [name for name in said if name not in names]:
        message = f"--model-sha256 {unknown[0] or 'HEX'}: there is no model of that name"
        raise UsageError(message, "of several models say NAME=HEX for each")
    return said


def _identified(job: Job, name: str, path: str, sha256: str | None) -> ModelSpec:
    try:
        return identify(path, job.device, job.custom_ops, job.intra_op, sha256)
    except NotFoundError as error:
        if not name:
            raise
        whole = f"{name}={path}"
        hint = f"a path with = is said with ./ : ./{whole}" if Path(whole).is_file() else error.hint
        # As it was said: what looks like a secret is taken out of KEY=VALUE.
        raise NotFoundError(f"{name}={error.message}", hint) from error
    except BatchserveError as error:
        raise (error.about(name) if name else error) from error


def recipe_for(job: Job, specs: Specs, look: Look, fixed: tuple[str, ...] = ()) -> Recipe:
    """Bind models to columns, see what they give, and prove that their rows are independent.

    Args:
        job: What the user wants.
        specs: The models.
        look: The columns and some rows.
        fixed: Columns whose type the user set.

    Raises:
        BatchserveError: Models, columns and wishes do not fit; all problems are told.
    """
    problems = Problems()
    bound = candidates.bound(job, specs, look.schema, problems)
    none: tuple[str, ...] = ()
    keep = problems.attempt(lambda: _keep(job, look.schema.names), none)
    problems.attempt(lambda: _check_clash([c for each in bound for c in each.outputs.values()], keep), None)
    problems.check()
    numeric = _numeric([each.binding for each in bound])
    look = _as_numbers(look, numeric)
    tried = [problems.attempt(partial(_told, each, partial(each.settled, look)), None) for each in bound]
    problems.check()
    settled = [each for each in tried if each]
    batch_rows, worked = _fitting(job, settled, _batch_rows(job, settled))
    _check_sizes(job, settled, batch_rows)
    proven = [
        _told(each, partial(each.proven, job, each.fixed_rows or batch_rows, worked=each.name in worked))
        for each in settled
    ]
    scorers = tuple(scorer for scorer, _ in proven)
    read = {name for scorer in scorers for name in scorer.binding.columns}
    reading = Reading(
        schema_=look.schema, columns=tuple(n for n in look.schema.names if n in {*keep, *read}),
        numeric=numeric, fixed=fixed, batch_rows=batch_rows, dialect=look.found.dialect,
    )  # fmt: skip
    kept = [look.schema.field(name).with_nullable(nullable=True) for name in keep]
    predicted = [column for _, columns in proven for column in columns]
    names = [prediction.column for scorer in scorers for prediction in scorer.predictions]
    added = [pa.field(name, column.type) for name, column in zip(names, predicted, strict=True)]
    output = pa.schema([*kept, *added])
    return Recipe(
        scorers=scorers, reading=reading, keep=keep, schema_=output, coded=dictionaries(output, look.sample),
        batch_rows=batch_rows, limit=job.limit, rows_depend=job.rows_depend, on_nonfinite=job.on_nonfinite,
        row_bytes=_row_bytes([*look.sample.select(list(keep)).columns, *predicted]),
    )  # fmt: skip


def _row_bytes(columns: Sequence[pa.Array]) -> int:
    return sum(column.nbytes // max(1, len(column)) for column in columns)


def _told(candidate: Candidate, call: Callable[[], T]) -> T:
    """Call something of a candidate; which one it was is told."""
    with naming(candidate.name):
        try:
            return call()
        except StallError as error:
            raise StallError(
                f"{candidate.spec.path}, on the first rows: {error.message}", error.hint
            ) from error


def _keep(job: Job, names: Sequence[str]) -> tuple[str, ...]:
    if job.keep == ("all",):
        return tuple(names)
    source = (SOURCE_FILE, SOURCE_ROW) if job.add_source else ()
    if job.keep == ("none",):
        return source
    candidates.check_known(job.keep, names, "--keep {}: no such column", "columns are")
    return tuple(name for name in names if name in {*job.keep, *source})


def _check_clash(columns: Sequence[str], keep: Sequence[str]) -> None:
    clash = [name for name in columns if name in keep]
    if clash:
        message = f"column {', '.join(clash)}: is in the input and would be an output of the model too"
        raise UsageError(message, "name the predictions apart: --prefix model_")
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        message = f"column {', '.join(twice)}: would be of two models"
        raise UsageError(message, "give one of the models another name: --model NAME=PATH")


# -- columns of numbers -----------------------------------------------------------------------


def _numeric(bindings: Sequence[Binding]) -> tuple[str, ...]:
    """Return the columns that are read as numbers, but for those that another model reads as texts."""
    texts = {name for each in bindings for name in each.columns if name not in each.numeric}
    return tuple(dict.fromkeys(n for each in bindings for n in each.numeric if n not in texts))


def _as_numbers(look: Look, numeric: Sequence[str]) -> Look:
    """Type columns that the models read as numbers by their numbers: a text that is none is a reject.

    So a column does not become text by a bad row that the sample happens to hold.
    """
    kinds = {name: look.numbers[name] for name in numeric if name in look.numbers}
    if not kinds:
        return look
    fields, columns = list(look.schema), list(look.sample.columns)
    for name, kind in kinds.items():
        i = look.schema.get_field_index(name)
        fields[i], columns[i] = fields[i].with_type(kind), inference.as_numbers(columns[i], kind)
    schema = pa.schema(fields)
    return replace(look, schema=schema, sample=pa.RecordBatch.from_arrays(columns, schema=schema))


# -- rows of a run ----------------------------------------------------------------------------


def usual_rows(models: Sequence[Candidate | Scorer]) -> int:
    """Return the rows per run of models, if nobody asks for others and memory is enough.

    What is between two operators is to stay in the cache, and what goes in is to be no giant: of each.
    """
    return min(_usual_rows(each.binding, each.effort) for each in models)


def _usual_rows(binding: Binding, work: Effort) -> int:
    rows = BATCH_ROWS
    while rows > _LEAST_BATCH_ROWS and (
        rows * binding.row_bytes > _MOST_BATCH_BYTES or rows * work.widest_bytes > _CACHE_BYTES
    ):
        rows //= 2
    return rows


def _batch_rows(job: Job, models: Sequence[Candidate]) -> int:
    """Return the rows of every run of models that take any number; without one, the largest that is fixed."""
    fixed = sorted({each.fixed_rows for each in models if each.fixed_rows})
    if anyhow := [each for each in models if not each.fixed_rows]:
        return job.batch_rows or usual_rows(anyhow)
    if job.batch_rows not in {None, *fixed}:
        message = (
            f"--batch-rows {job.batch_rows}: the model takes exactly {' or '.join(map(str, fixed))} rows"
        )
        raise UsageError(message, "leave it out")
    return fixed[-1]


def _fitting(job: Job, models: Sequence[Candidate], batch_rows: int) -> tuple[int, set[str]]:
    """Lower the rows of a run until they fit into memory.

    Returns:
        The rows, and the names of models of which a run was tried and ended well.
    """
    worked = set()
    for each in models if not job.batch_rows else ():
        if not each.fixed_rows:
            batch_rows, well = each.fitting(job, batch_rows, len(models))
            worked |= {each.name} if well else set()
    return batch_rows, worked


def _check_sizes(job: Job, models: Sequence[Candidate], batch_rows: int) -> None:
    """Refuse models whose rows depend on their batch if their batches would be cut at different rows."""
    sizes = {each.fixed_rows or batch_rows for each in models}
    if job.rows_depend and len(sizes) > 1:
        message = f"--rows-depend: the models take {', '.join(map(str, sorted(sizes)))} rows a run"
        raise UsageError(message, "say one --batch-rows for all, or score each model alone")
