"""A model on its way into a recipe: bound to columns, then tried on the first rows, and proven."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from batchserve import arrays, binding, codec, effort, lists, memory, predictions, proof
from batchserve.batches import padded
from batchserve.binding import Binding, Feed, Wish
from batchserve.config import Job
from batchserve.effort import Effort
from batchserve.errors import (
    BatchserveError,
    ModelError,
    Problems,
    UsageError,
    did_you_mean,
    naming,
    raise_all,
)
from batchserve.inputs import Look
from batchserve.model import Signature, Tensor, session_for
from batchserve.modelfile import ModelSpec
from batchserve.predictions import Prediction
from batchserve.runs import Runs
from batchserve.scorers import Scorer

Specs = Mapping[str, ModelSpec]
"""The models of a job by name; the one under an empty name has none."""


@dataclass(frozen=True)
class Candidate:
    """A model that is bound to columns, and not tried yet.

    Attributes:
        outputs: Those of its outputs that are wanted, and the columns that they become.
    """

    name: str
    spec: ModelSpec
    binding: Binding
    outputs: dict[str, str]
    effort: Effort = effort.NONE
    rows: dict[str, Tensor] = field(default_factory=dict)
    """The first rows that it can take, for every input that columns fill; else one made-up row."""

    def settled(self, look: Look) -> "Candidate":
        """Return it with what the first rows tell: open dimensions, its work, and those rows.

        Raises:
            ModelError: A column of texts is to be numbers, and none is.
        """
        settled = codec.settled(self.binding, look.sample)
        return replace(
            self, binding=settled, effort=effort.of(self.spec, settled), rows=_first_rows(look, settled)
        )

    @property
    def fixed_rows(self) -> int | None:
        """The rows of a run that are fixed in the model, or None."""
        return self.binding.fixed_batch

    def fitting(self, job: Job, batch_rows: int, models: int) -> tuple[int, bool]:
        """Lower the rows of a run until all workers' runs fit into memory at once.

        Args:
            job: What the user wants.
            batch_rows: Rows to begin with.
            models: How many models share the memory of a worker.

        Returns:
            The rows, and whether a run of so many was tried and ended well.
        """
        elsewhere = bool(job.cluster or job.scheduler)
        if elsewhere and not job.memory_limit:
            return batch_rows, False
        workers = job.workers_here
        share = memory.share_bytes(workers, job.memory_limit, processes=workers if elsewhere else 1)
        session = self._runs()

        def run(rows: int) -> None:
            tensors = {name: padded(tensor[:rows], rows) for name, tensor in self.rows.items()}
            session.once(list(self.outputs), tensors)

        return memory.fitting_rows(run, batch_rows, share // models, job.stall_timeout)

    def proven(self, job: Job, batch_rows: int, *, worked: bool) -> tuple[Scorer, list[pa.Array]]:
        """See what the model gives, and prove that its rows are independent.

        Args:
            job: What the user wants.
            batch_rows: Rows of every run.
            worked: Whether a run of the first rows is known to end well.

        Returns:
            The model for the recipe, and its columns for the first rows.

        Raises:
            BatchserveError: It gives no columns, mixes its rows, or fails on all of them.
        """
        session, names = self._runs(job.stall_timeout), list(self.outputs)
        tensors = {name: tensor[:batch_rows] for name, tensor in self.rows.items()}
        if not (worked or job.rows_depend):
            tensors = proof.runnable(session, names, tensors, batch_rows)
        values = _observed(session, names, tensors, batch_rows)
        seen = _predictions(job, self, values, batch_rows)
        if not job.rows_depend:
            proof.prove(self.spec, session, values, tensors, batch_rows)
        matters = not self.fixed_rows and proof.size_matters(session, seen, tensors, batch_rows)
        scorer = Scorer(
            name=self.name, model=self.spec, binding=self.binding, predictions=seen, effort=self.effort,
            size_matters=matters,
        )  # fmt: skip
        return scorer, [predictions.decode(each, values[each.output]) for each in seen]

    def _runs(self, timeout_s: float | None = None) -> Runs:
        constants, fixed = self.binding.constant_tensors, self.fixed_rows is not None
        return Runs(session_for(self.spec), timeout_s, constants, fixed=fixed)


# -- bound to columns -------------------------------------------------------------------------


def wish(job: Job) -> Wish:
    """Return what the user said about columns and inputs."""
    return Wish(features=job.features, map=job.map, set=job.set, on_null=job.on_null)


def bound(job: Job, specs: Specs, schema: pa.Schema, problems: Problems) -> list[Candidate]:
    """Bind every model to the columns.

    What the user says of an input, an output or a column is about each model that has it.

    Args:
        job: What the user wants.
        specs: The models.
        schema: The columns of the input files.
        problems: Gets what does not fit; models at fault are left out.
    """
    signatures = {name: session_for(spec).signature() for name, spec in specs.items()}
    call = partial(_bound, job, specs, signatures, schema)
    found = [problems.attempt(partial(call, name), None) for name in specs]
    return [each for each in found if each]


def _bound(
    job: Job, specs: Specs, signatures: Mapping[str, Signature], schema: pa.Schema, name: str
) -> Candidate:
    signature = signatures[name]
    others = [each for other, each in signatures.items() if other != name]
    with naming(name):
        problems = Problems()
        said = _with_others(wish(job), others, schema)
        found = problems.attempt(lambda: binding.bind(signature, schema, said), Binding(feeds=()))
        none: tuple[str, ...] = ()
        outputs = problems.attempt(lambda: _outputs(job, signature, others), none)
        problems.check()
    before = job.prefix + (f"{name}_" if name else "")
    return Candidate(name, specs[name], found, {output: before + output for output in outputs})


def _with_others(said: Wish, others: Sequence[Signature], schema: pa.Schema) -> Wish:
    """Return the wish with what of it may be about another model only."""
    ports = [port.name for each in others for port in (*each.inputs, *each.optional)]
    columns = [name for each in others for name in binding.wanted_columns(each, said, schema.names)]
    return said.model_copy(update={"other_inputs": frozenset(ports), "other_columns": frozenset(columns)})


def _outputs(job: Job, signature: Signature, others: Sequence[Signature]) -> tuple[str, ...]:
    known = [port.name for port in signature.outputs]
    elsewhere = {port.name for each in others for port in each.outputs}
    here = tuple(name for name in job.outputs if name in known or name not in elsewhere)
    named = here or job.outputs
    check_known(named, known, "--outputs {}: the model has no such output", "its outputs are")
    wanted = [port for port in signature.outputs if port.name in (named or known)]
    raise_all([problem for port in wanted if (problem := predictions.refusal(port))])
    return named or tuple(known)


def check_known(named: Sequence[str], known: Sequence[str], message: str, listed: str) -> None:
    """Check that all names are known.

    Args:
        named: What the user named.
        known: What there is.
        message: What is wrong with a name, which goes into its braces.
        listed: What the known names are.

    Raises:
        UsageError: Some are not; every one is told.
    """
    hint = f"{listed}: {', '.join(known)}"
    unknown = [name for name in named if name not in known]
    raise_all([UsageError(message.format(name), did_you_mean(name, known) or hint) for name in unknown])


# -- tried on the first rows ------------------------------------------------------------------


def _first_rows(look: Look, found: Binding) -> dict[str, Tensor]:
    encoded, misfits = codec.encode(look.sample, found, ())
    _check_texts(look, found, misfits)
    good = np.ones(look.sample.num_rows, dtype=bool)
    good[[misfit.row for misfit in misfits]] = False
    if good.any():
        return {name: tensor[good] for name, tensor in encoded.tensors.items()}
    made = {"object": ""}
    return {
        feed.input: np.full(_row_shape(feed), made.get(feed.dtype, 0), feed.dtype) for feed in found.feeds
    }


def _row_shape(feed: Feed) -> tuple[int, ...]:
    if feed.packed:
        return (1, *(dim or 0 for dim in feed.shape))
    return (1, len(feed.columns))[: feed.rank]


def _check_texts(look: Look, found: Binding, misfits: Sequence[codec.Misfit]) -> None:
    """Refuse a text column for numbers if not one of its sampled texts is a number."""
    problems: list[BatchserveError] = []
    for name in found.numeric:
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
    job: Job, candidate: Candidate, values: Mapping[str, Any], batch_rows: int
) -> tuple[Prediction, ...]:
    """Decide the columns that outputs become.

    Independent rows of one run have one size; a run of one row may give any, as may --rows-depend.
    """
    loose = batch_rows == 1 or job.rows_depend
    ports = session_for(candidate.spec).signature().outputs
    free = {port.name for port in ports if loose and predictions.varies(port)}
    return tuple(
        predictions.observe(name, candidate.outputs[name], each, batch_rows, open_sizes=name in free)
        for name, each in values.items()
    )
