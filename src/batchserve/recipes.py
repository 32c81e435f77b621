"""Model and columns -> the recipe that scores a partition: bound, tried on the first rows, proven."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from batchserve import arrays, codec, effort, lists, memory, predictions, proof
from batchserve.binding import Binding, Feed, Wish, bind
from batchserve.config import Job
from batchserve.effort import Effort
from batchserve.errors import BatchserveError, ModelError, Problems, UsageError, did_you_mean, raise_all
from batchserve.inputs import SOURCE_FILE, SOURCE_ROW, Look, Reading, inference
from batchserve.model import Signature, Tensor, session_for
from batchserve.modelfile import ModelSpec, identify
from batchserve.outputs import dictionaries
from batchserve.predictions import Prediction
from batchserve.runs import Runs
from batchserve.scoring import Recipe, padded

BATCH_ROWS = 1024
"""Rows per run of the model. Tree and one-hot models ran twice as fast at 1,024 to 4,096 as at
16,384 and more, where tensors leave the cache."""
_LEAST_BATCH_ROWS = 64
_CACHE_BYTES = 2 << 20
"""Of the widest tensor of one run, unless that would be less than 64 rows: a transformer of 32 kB a row
took 1.4 times as long in batches of 1,024 as of 64."""
_MOST_BATCH_BYTES = 32 << 20
"""Of the inputs of one run, unless that would be less than 64 rows."""


def named_model(job: Job) -> ModelSpec:
    """Return the model that the job names.

    Raises:
        UsageError: It names none.
        NotFoundError: There is no such file.
    """
    if not job.model:
        raise UsageError(
            "no model is named", "say --model PATH, set BATCHSERVE_MODEL, or put model = in batchserve.toml"
        )
    return identify(job.model, job.device, job.custom_ops, job.intra_op, job.model_sha256)


def wish(job: Job) -> Wish:
    """Return what the user said about columns and inputs."""
    return Wish(features=job.features, map=job.map, set=job.set, on_null=job.on_null)


def recipe_for(job: Job, spec: ModelSpec, look: Look, fixed: tuple[str, ...] = ()) -> Recipe:
    """Bind a model to columns, see what it gives, and prove that its rows are independent.

    Args:
        job: What the user wants.
        spec: The model.
        look: The columns and some rows.
        fixed: Columns whose type the user set.

    Raises:
        BatchserveError: Model, columns and wishes do not fit; all problems are told.
    """
    signature = session_for(spec).signature()
    problems = Problems()
    none: tuple[str, ...] = ()
    bound = problems.attempt(lambda: bind(signature, look.schema, wish(job)), Binding(feeds=()))
    names = problems.attempt(lambda: _outputs(job, signature), none)
    keep = problems.attempt(lambda: _keep(job, look.schema.names), none)
    problems.check()
    look = _as_numbers(look, bound)
    binding = codec.settled(bound, look.sample)
    whole = binding.fixed_batch is not None
    session = Runs(session_for(spec), job.stall_timeout, binding.constant_tensors, fixed=whole)
    work = effort.of(spec, binding)
    batch_rows = _batch_rows(job, binding, work)
    tensors = _first_rows(look, binding, batch_rows)
    worked = False
    if not (job.batch_rows or whole):
        untimed = Runs(session_for(spec), constants=binding.constant_tensors)
        batch_rows, worked = _fitting(job, untimed, names, tensors, batch_rows)
        tensors = {name: tensor[:batch_rows] for name, tensor in tensors.items()}
    if not (worked or job.rows_depend):
        tensors = proof.runnable(session, names, tensors, batch_rows)
    values = _observed(session, names, tensors, batch_rows)
    seen = _predictions(job, signature, values, batch_rows)
    _check_clash(seen, keep)
    if not job.rows_depend:
        proof.prove(spec, session, values, tensors, batch_rows)
    matters = not whole and proof.size_matters(session, seen, tensors, batch_rows)
    wanted = tuple(n for n in look.schema.names if n in {*keep, *binding.columns})
    reading = Reading(
        schema_=look.schema, columns=wanted, numeric=binding.numeric, fixed=fixed, batch_rows=batch_rows,
        dialect=look.found.dialect,
    )  # fmt: skip
    given = [predictions.decode(p, values[p.output]) for p in seen]
    added = [pa.field(p.column, array.type) for p, array in zip(seen, given, strict=True)]
    row_bytes = _row_bytes([*look.sample.select(list(keep)).columns, *given])
    kept = [look.schema.field(name).with_nullable(nullable=True) for name in keep]
    output = pa.schema([*kept, *added])
    return Recipe(
        model=spec, reading=reading, binding=binding, predictions=seen, keep=keep, schema_=output,
        coded=dictionaries(output, look.sample), batch_rows=batch_rows, limit=job.limit,
        rows_depend=job.rows_depend, on_nonfinite=job.on_nonfinite, size_matters=matters, effort=work,
        row_bytes=row_bytes,
    )  # fmt: skip


def _as_numbers(look: Look, binding: Binding) -> Look:
    """Type columns that the model reads as numbers by their numbers: a text that is none is a reject.

    So a column does not become text by a bad row that the sample happens to hold.
    """
    kinds = {name: look.numbers[name] for name in binding.numeric if name in look.numbers}
    if not kinds:
        return look
    fields, columns = list(look.schema), list(look.sample.columns)
    for name, kind in kinds.items():
        i = look.schema.get_field_index(name)
        fields[i], columns[i] = fields[i].with_type(kind), inference.as_numbers(columns[i], kind)
    schema = pa.schema(fields)
    return replace(look, schema=schema, sample=pa.RecordBatch.from_arrays(columns, schema=schema))


def _outputs(job: Job, signature: Signature) -> tuple[str, ...]:
    known = [port.name for port in signature.outputs]
    _check_known(job.outputs, known, "--outputs {}: the model has no such output", "its outputs are")
    wanted = [port for port in signature.outputs if port.name in (job.outputs or known)]
    raise_all([problem for port in wanted if (problem := predictions.refusal(port))])
    return tuple(job.outputs or known)


def _keep(job: Job, names: Sequence[str]) -> tuple[str, ...]:
    if job.keep == ("all",):
        return tuple(names)
    source = (SOURCE_FILE, SOURCE_ROW) if job.add_source else ()
    if job.keep == ("none",):
        return source
    _check_known(job.keep, names, "--keep {}: no such column", "columns are")
    return tuple(name for name in names if name in {*job.keep, *source})


def _check_known(named: Sequence[str], known: Sequence[str], message: str, listed: str) -> None:
    hint = f"{listed}: {', '.join(known)}"
    unknown = [name for name in named if name not in known]
    raise_all([UsageError(message.format(name), did_you_mean(name, known) or hint) for name in unknown])


def usual_rows(binding: Binding, work: Effort) -> int:
    """Return the rows per run of a model, if nobody asks for others and memory is enough.

    What is between two operators is to stay in the cache, and what goes in is to be no giant.
    """
    rows = BATCH_ROWS
    while rows > _LEAST_BATCH_ROWS and (
        rows * binding.row_bytes > _MOST_BATCH_BYTES or rows * work.widest_bytes > _CACHE_BYTES
    ):
        rows //= 2
    return rows


def _batch_rows(job: Job, binding: Binding, work: Effort) -> int:
    fixed = binding.fixed_batch
    if fixed is None:
        return job.batch_rows or usual_rows(binding, work)
    if job.batch_rows not in {None, fixed}:
        message = f"--batch-rows {job.batch_rows}: the model takes exactly {fixed} rows"
        raise UsageError(message, "leave it out")
    return fixed


def _fitting(
    job: Job, session: Runs, names: Sequence[str], tensors: dict[str, Tensor], batch_rows: int
) -> tuple[int, bool]:
    """Lower the rows of a run until all workers' runs fit into memory at once.

    Returns:
        The rows, and whether a run of so many was tried and ended well.
    """
    elsewhere = bool(job.cluster or job.scheduler)
    if elsewhere and not job.memory_limit:
        return batch_rows, False
    workers = job.workers_here
    share = memory.share_bytes(workers, job.memory_limit, processes=workers if elsewhere else 1)

    def run(rows: int) -> None:
        session.once(names, {name: padded(tensor[:rows], rows) for name, tensor in tensors.items()})

    return memory.fitting_rows(run, batch_rows, share, job.stall_timeout)


def _first_rows(look: Look, binding: Binding, batch_rows: int) -> dict[str, Tensor]:
    """Encode the first sampled rows that the model can take; one made-up row if there is none."""
    encoded, misfits = codec.encode(look.sample, binding, ())
    _check_texts(look, binding, misfits)
    good = np.ones(look.sample.num_rows, dtype=bool)
    good[[misfit.row for misfit in misfits]] = False
    if good.any():
        return {name: tensor[good][:batch_rows] for name, tensor in encoded.tensors.items()}
    made = {"object": ""}
    return {
        feed.input: np.full(_row_shape(feed), made.get(feed.dtype, 0), feed.dtype) for feed in binding.feeds
    }


def _row_shape(feed: Feed) -> tuple[int, ...]:
    if feed.packed:
        return (1, *(dim or 0 for dim in feed.shape))
    return (1, len(feed.columns))[: feed.rank]


def _check_texts(look: Look, binding: Binding, misfits: Sequence[codec.Misfit]) -> None:
    """Refuse a text column for numbers if not one of its sampled texts is a number."""
    problems: list[BatchserveError] = []
    for name in binding.numeric:
        if lists.is_list(look.schema.field(name).type):
            continue
        bad = [m for m in misfits if m.column == name and m.kind == "CAST"]
        if not bad:
            continue
        texts = arrays.without_null_texts(look.sample.column(name))
        if len(bad) == len(texts) - texts.null_count:
            message = f"column {name} holds text ({bad[0].value!r}), the model wants numbers"
            problems.append(ModelError(message, "read another column: --map INPUT=COLUMN, or --features"))
    raise_all(problems)


def _observed(
    session: Runs, names: Sequence[str], tensors: dict[str, Tensor], batch_rows: int
) -> dict[str, Any]:
    """Run the model once to see what its outputs really are: shapes may be symbolic."""
    batch = {name: padded(tensor, batch_rows) for name, tensor in tensors.items()}
    return dict(zip(names, session.run(names, batch), strict=True))


def _predictions(
    job: Job, signature: Signature, values: Mapping[str, Any], batch_rows: int
) -> tuple[Prediction, ...]:
    """Decide the columns that outputs become.

    Independent rows of one run have one size; a run of one row may give any, as may --rows-depend.
    """
    loose = batch_rows == 1 or job.rows_depend
    free = {port.name for port in signature.outputs if loose and predictions.varies(port)}
    return tuple(
        predictions.observe(name, job.prefix + name, each, batch_rows, open_sizes=name in free)
        for name, each in values.items()
    )


def _row_bytes(columns: Sequence[pa.Array]) -> int:
    return sum(column.nbytes // max(1, len(column)) for column in columns)


def _check_clash(seen: Sequence[Prediction], keep: Sequence[str]) -> None:
    clash = [p.column for p in seen if p.column in keep]
    if clash:
        message = f"column {', '.join(clash)}: is in the input and would be an output of the model too"
        raise UsageError(message, "name the predictions apart: --prefix model_")
