"""What an output says of itself: the receipts of its parts summed up, written beside it, read again."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from batchserve import storage, target
from batchserve.inputs import Source
from batchserve.outputs import Receipt, RejectsFile, RowGroup
from batchserve.planning import Plan
from batchserve.storage import translated
from batchserve.target import Target


class Scored(BaseModel, frozen=True):
    """What became of one partition."""

    rows_in: int
    rows_out: int
    extents: tuple[tuple[int, int], ...]
    """Exact start and stop of every slice."""
    refused: tuple[int, ...]
    """Rows that the model was given and that were rejected then: how many it was given before each."""


class Run(BaseModel, frozen=True):
    """One plan and what came of it: enough to score any partition again and compare."""

    plan: Plan
    scored: tuple[Scored, ...]
    """One per partition of the plan."""


class OutputReceipt(BaseModel, frozen=True):
    """What the output says of itself: enough to check every byte of it later."""

    plan_id: str
    output: str
    rows_in: int
    rows_out: int
    rows_rejected: int
    rejected_by: dict[str, int]
    """Rejects by class and column: `MISSING age`."""
    rejects: RejectsFile | None
    """The file of rejects, or None if every row was scored."""
    nonfinite: dict[str, int]
    """Rows with an infinite or NaN score, per prediction, rejected ones included."""
    nulls: dict[str, int]
    """Nulls met in columns of the model, where there were any."""
    null_rules: dict[str, str]
    """What they became: nan or fill=VALUE."""
    rounded: dict[str, int] = {}
    """Integers of model columns that lost digits, as the model takes floats, where there were any."""
    size_bytes: int
    """Of the output; of all parts for a dataset."""
    row_groups: tuple[RowGroup, ...]
    footer_sha256: str
    """Of everything after the last row group; empty for a dataset."""
    halved_batches: int
    """Runs of the model that were split because memory ran out."""
    read_retries: int
    """Times a partition was begun again because reading failed for the moment."""
    seconds: dict[str, float]
    model_sha256: str | dict[str, str]
    """Of the model; of models with names, one under each."""
    versions: dict[str, str]
    inputs: tuple[Source, ...]
    runs: tuple[Run, ...]
    """One; more for a dataset that was appended to."""


# -- made --------------------------------------------------------------------------------------


def summed(
    found: Target, plan: Plan, receipts: Sequence[Receipt], groups: Sequence[RowGroup], size_bytes: int
) -> OutputReceipt:
    """Sum the receipts of all parts up.

    Args:
        found: The output.
        plan: What was done.
        receipts: One per partition, in order.
        groups: The row groups of the output.
        size_bytes: Of the output; of all parts for a dataset.
    """
    facts = [receipt.facts for receipt in receipts]
    nulls = _added([f.nulls for f in facts])
    rules = plan.recipe.null_rules
    scored = [
        Scored(rows_in=r.facts.rows_in, rows_out=r.rows_out, extents=r.facts.extents, refused=r.facts.refused)
        for r in receipts
    ]
    return OutputReceipt(
        plan_id=plan.plan_id,
        output=found.path.name,
        rows_in=sum(f.rows_in for f in facts),
        rows_out=sum(r.rows_out for r in receipts),
        rows_rejected=sum(f.rows_rejected for f in facts),
        rejected_by=_counted([f.rejected_by for f in facts]),
        rejects=None,
        nonfinite=_counted([f.nonfinite for f in facts]),
        nulls={name: int(count) for name, count in nulls.items() if count},
        null_rules={name: str(rule) for name, rule in rules.items() if nulls.get(name)},
        rounded=_counted([f.rounded for f in facts]),
        size_bytes=size_bytes,
        row_groups=tuple(groups),
        footer_sha256="",
        halved_batches=sum(f.halved_batches for f in facts),
        read_retries=sum(f.read_retries for f in facts),
        seconds=_added([f.seconds for f in facts]),
        model_sha256=plan.recipe.digests.get("", plan.recipe.digests),
        versions=plan.versions,
        inputs=plan.sources,
        runs=(Run(plan=plan, scored=tuple(scored)),),
    )


def joined(earlier: OutputReceipt, later: OutputReceipt) -> OutputReceipt:
    """Add a run's receipt to that of the dataset it is appended to."""
    return later.model_copy(
        update={
            "rows_in": earlier.rows_in + later.rows_in,
            "rows_out": earlier.rows_out + later.rows_out,
            "rows_rejected": earlier.rows_rejected + later.rows_rejected,
            "rejected_by": _counted([earlier.rejected_by, later.rejected_by]),
            "nonfinite": _counted([earlier.nonfinite, later.nonfinite]),
            "nulls": _counted([earlier.nulls, later.nulls]),
            "rounded": _counted([earlier.rounded, later.rounded]),
            "null_rules": earlier.null_rules | later.null_rules,
            "size_bytes": earlier.size_bytes + later.size_bytes,
            "halved_batches": earlier.halved_batches + later.halved_batches,
            "read_retries": earlier.read_retries + later.read_retries,
            "row_groups": earlier.row_groups + later.row_groups,
            "seconds": _added([earlier.seconds, later.seconds]),
            "inputs": earlier.inputs + later.inputs,
            "runs": earlier.runs + later.runs,
        }
    )


def _added(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Add numbers up by name."""
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def _counted(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: int(count) for name, count in sorted(_added(counts).items())}


# -- read --------------------------------------------------------------------------------------


def receipt_of(found: Target) -> OutputReceipt | None:
    """Return the receipt of an output, or None if there is none that is whole and belongs to it.

    Output and receipt carry the same plan id; a run cut between publishing the two leaves a
    receipt that does not belong to the output yet.
    """
    with translated(found.receipt):
        if storage.disk.size_bytes(found.receipt) is None:
            return None
        data = storage.disk.read(found.receipt)
    try:
        receipt = OutputReceipt.model_validate_json(storage.unseal(data))
    except ValueError:
        return None
    return receipt if target.published_plan_id(found) == receipt.plan_id else None


def receipt_of_plan(found: Target, plan: Plan) -> OutputReceipt | None:
    """Return the receipt of an output that this very plan has published already, else None.

    The sizes of its files are compared with the receipt, not their bytes.
    """
    receipt = receipt_of(found) if target.taken(found) else None
    if receipt is None or receipt.plan_id != plan.plan_id or _size_bytes(found) != receipt.size_bytes:
        return None
    return receipt


def _size_bytes(found: Target) -> int:
    """Return the size of the output; of all parts for a dataset."""
    if not found.dataset:
        return storage.disk.size_bytes(found.path) or 0
    return sum(storage.disk.size_bytes(found.path / part.name) or 0 for part in target.manifest(found).parts)
