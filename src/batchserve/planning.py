"""The plan: made from files and model before any work, hashed, stored, compared.

Everything that changes a byte of the output is in it; nothing that does not (workers, paths
of the model and the output, how the run is shown).
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Self

import pyarrow as pa
from pydantic import BaseModel

from batchserve import __version__, arrays, inputs
from batchserve.config import Job
from batchserve.effort import Effort
from batchserve.errors import ModelError, Problems, naming
from batchserve.inputs import SOURCE_FILE, SOURCE_ROW, Look, Partition, Source, cutting
from batchserve.inputs.dialect import PLAIN, Asked, Dialect, Found
from batchserve.model import runtime_version, session_for
from batchserve.modelfile import ModelSpec
from batchserve.outputs import PLAN_KEY, Amendment
from batchserve.recipes import named_models, recipe_for
from batchserve.scorers import Recipe
from batchserve.storage import patiently

_MIN_PARTITION_BYTES = 8 << 20
_MAX_PARTITION_BYTES = 32 << 20
_PARTITIONS_AIM = 32
_FEW_PARTITIONS = 4
"""Row groups are cut to have so many, no more: of those after the first, each decodes what is before it."""
_LEAST_WORK_S, _MOST_WORK_S = 0.5, 30.0
_DECODING_S = 1e-6
"""What a row may cost the model for every slice of its row group. Decoding one took a fifth of that
(200 bytes), so decoding those before a slice, half of them in the middle, is a tenth of the work at most."""


class Plan(BaseModel, frozen=True):
    """What will be done: immutable, and the same for every run that gives the same bytes."""

    sources: tuple[Source, ...]
    partitions: tuple[Partition, ...]
    recipe: Recipe
    versions: dict[str, str]
    types: dict[str, str]
    """Column types set by the user or by an amendment."""
    amended: dict[str, Amendment] = {}
    """Those of `types` that an amendment set; not part of the id, as the bytes are the same."""
    drift: tuple[str, ...] = ()
    """How files differ from the first one and what is made of it, in words."""
    batch_rows_asked: int | None = None
    """The rows per run that the user asked for, or None; not part of the id either."""
    asked: dict[str, Any] = {}
    """What the user asked of model and rows, to score other rows alike; not part of the id either."""
    dialect: Found = PLAIN
    """How text files are written and how that is known; what changes bytes of it is in the recipe."""

    @cached_property
    def plan_id(self) -> str:
        """The sha256 of all that changes bytes."""
        unseen: dict[str, Any] = {
            "amended": True, "batch_rows_asked": True, "asked": True, "dialect": True,
            "recipe": {"scorers": {"__all__": {"model": {"path", "custom_ops"}}}},
        }  # fmt: skip
        content = self.model_dump_json(exclude=unseen)
        return hashlib.sha256(content.encode()).hexdigest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy; the id is computed anew, as pydantic would take it along."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("plan_id", None)
        return copy

    @property
    def added(self) -> tuple[str, ...]:
        """Columns that rows get besides those of their files: of folders, and of where they are from."""
        folders = [name for name, _ in self.sources[0].folders] if self.sources else []
        parts = (part for partition in self.partitions for part in partition.slices)
        return (*folders, *((SOURCE_FILE, SOURCE_ROW) if any(part.add_source for part in parts) else ()))

    @property
    def bytes_total(self) -> int:
        """Input bytes of all partitions."""
        return sum(partition.size_bytes for partition in self.partitions)


def make(
    job: Job, sources: Sequence[Source], problems: Problems, types: dict[str, str], hints: dict[str, str]
) -> Plan:
    """Look at the model and the files and decide everything.

    Args:
        job: What the user wants.
        sources: The input files in order.
        problems: What was found wrong so far; raised together with what is found here.
        types: Column types: the user's and those amended.
        hints: Column types to begin with: those of the dataset that rows are appended to.

    Raises:
        BatchserveError: Every problem that can be seen before work starts.
    """
    nothing: dict[str, ModelSpec] = {}
    specs = problems.attempt(lambda: named_models(job), nothing)
    for name, spec in specs.items():
        problems.attempt(partial(_opened, name, spec), None)
    empty = Look(pa.schema([]), arrays.empty_batch(pa.schema([])))
    look = empty
    asked = problems.attempt(lambda: Asked.of(job), Asked())
    if sources:
        wish = inputs.Wish(job.infer, types, hints, job.schema_drift == "widen", job.add_source, asked)
        looked = partial(inputs.look, sources, wish)
        look = problems.attempt(lambda: patiently(lambda _: looked()), empty)
    problems.check()
    try:
        recipe = recipe_for(job, specs, look, tuple(types))
    except ModelError as error:
        if look.found.doubtful:  # then the columns may not be what they seem
            hint = f"{error.hint or 'look at its columns'}; the file was read with {look.found}"
            raise type(error)(error.message, hint) from error
        raise
    cut = _partitions(job, sources, look.found.dialect, recipe.effort)
    partitions = cutting.laid_out(cut, look, add_source=job.add_source)
    return Plan(
        sources=tuple(sources), partitions=partitions, recipe=recipe, versions=_versions(),
        types=types, dialect=look.found, drift=look.drift,
        asked=job.model_dump(include=_ASKED, exclude_defaults=True, mode="json"),
    )  # fmt: skip


def _opened(name: str, spec: ModelSpec) -> None:
    with naming(name):
        session_for(spec)


_ASKED = {
    "features", "map", "set", "outputs", "prefix", "custom_ops", "device", "rows_depend", "keep", "on_null",
    "on_nonfinite",
}  # fmt: skip


def _partitions(job: Job, sources: Sequence[Source], dialect: Dialect, work: Effort) -> tuple[Partition, ...]:
    if job.limit is not None:
        return cutting.whole(sources, dialect)  # the first N rows are found by reading on, not by splitting
    total = patiently(lambda _: cutting.total_bytes(sources, dialect))
    aim = min(_MAX_PARTITION_BYTES, max(_MIN_PARTITION_BYTES, total // _PARTITIONS_AIM))
    if work.seconds and total and not job.partition_size:
        aim = min(aim, _bytes_of_work(sources, dialect, work))
    few = -(-_FEW_PARTITIONS // max(1, len(sources)))
    cuts = max(few, int(work.seconds / _DECODING_S))
    return cutting.partitions(sources, job.partition_size or aim, dialect, cuts)


def _bytes_of_work(sources: Sequence[Source], dialect: Dialect, work: Effort) -> int:
    """Return the bytes whose rows are work enough for one partition.

    A thirty-second of all keeps many cores busy to the end; half a second is worth a part of its
    own, and half a minute is lost in a crash. No core is counted: the plan is the same everywhere.
    """
    first = sources[0]
    rows, size = patiently(lambda _: cutting.extent(first, dialect))
    whole_s = work.seconds * rows * sum(each.size_bytes for each in sources) / max(1, first.size_bytes)
    share_s = min(_MOST_WORK_S, max(_LEAST_WORK_S, whole_s / _PARTITIONS_AIM))
    return max(1, int(share_s / work.seconds * size / max(1, rows)))


def _versions() -> dict[str, str]:
    """Return what the bytes depend on besides the plan: libraries and the CPU's instructions."""
    return {
        "batchserve": __version__,
        "pyarrow": pa.__version__,
        "onnxruntime": runtime_version(),
        "simd": str(pa.runtime_info().detected_simd_level),
    }


def footer(plan: Plan) -> dict[str, str]:
    """Return the key-values that every part and the output carry."""
    return {
        PLAN_KEY: plan.plan_id,
        **{f"{_MODEL_KEY}{name and '.'}{name}": digest for name, digest in plan.recipe.digests.items()},
        "batchserve.version": plan.versions["batchserve"],
    }


_MODEL_KEY = "batchserve.model_sha256"
"""In the footer; with `.NAME` for a model that has a name."""
