"""Receipts -> verified -> published in one atomic step.

The output appears by one `link` or `rename`; before that it is complete, synced and checked
byte for byte against the receipts of its parts. Its own receipt is published just before it.
"""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from batchserve import glue, ledger, storage, target
from batchserve.errors import OutputError, StorageError
from batchserve.events import Listener, Noted
from batchserve.inputs import Source
from batchserve.outputs import Receipt, RejectsFile, RowGroup, Workspace
from batchserve.planning import Plan
from batchserve.storage import translated, translated_writing
from batchserve.target import META_DIR, DatasetPart, Manifest, Target


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
    model_sha256: str
    versions: dict[str, str]
    inputs: tuple[Source, ...]
    runs: tuple[Run, ...]
    """One; more for a dataset that was appended to."""


# -- the parts --------------------------------------------------------------------------------


def damaged(space: Workspace, receipts: Sequence[Receipt]) -> list[Receipt]:
    """Return the receipts whose part is not, to the bit, what was written.

    Their files are removed, so that the partitions count as not done.
    """
    found = []
    with translated_writing(space.path):
        for receipt in receipts:
            if not all(_whole(space.file(name), sha256) for name, _, sha256 in receipt.files):
                storage.remove(space.file(f"{receipt.part.partition('.')[0]}.json"))
                for name, _, _ in receipt.files:
                    storage.remove(space.file(name))
                found.append(receipt)
    return found


def _whole(path: Path, sha256: str) -> bool:
    return storage.disk.size_bytes(path) is not None and storage.file_sha256(path) == sha256


# -- room -------------------------------------------------------------------------------------

_OUT_PER_BYTE_IN = 0.5
"""Bytes of Parquet per byte of input that passes through; flights (CSV) took 0.40."""
_HOPELESS = 4
"""Below a quarter of the estimate nothing is begun; an estimate is no more than that."""


def check_room(found: Target, plan: Plan, done: Sequence[Receipt], listener: Listener) -> None:
    """Estimate the space the job will need, before it starts.

    Raises:
        StorageError: There is not a quarter of it.
    """
    kept = len(plan.recipe.keep) / max(1, len(plan.recipe.reading.schema_))
    left_bytes = plan.bytes_total - sum(plan.partitions[r.partition].size_bytes for r in done)
    parts = left_bytes * _OUT_PER_BYTE_IN * kept
    output = 0 if found.dataset else parts + sum(r.size_bytes for r in done)
    needed = int(parts + output)
    with translated_writing(found.workspace):
        free = storage.disk.free_bytes(found.workspace)
    words = f"{found.path.parent}: about {needed:,} bytes will be needed, {free:,} are free"
    if free * _HOPELESS < needed:
        raise StorageError(words, "free some space, or keep fewer columns: --keep")
    if free < needed:
        listener.on(Noted(text=words))


# -- publish ----------------------------------------------------------------------------------


def publish(
    found: Target, plan: Plan, space: Workspace, receipts: Sequence[Receipt], *, overwrite: bool,
    earlier: OutputReceipt | None = None,
) -> OutputReceipt:  # fmt: skip
    """Put the parts together, check them, and give the output its name in one step.

    Args:
        found: The output.
        plan: What was done.
        space: Where the parts are.
        receipts: One per partition, in order; their parts were checked.
        overwrite: Replace what is there.
        earlier: The receipt of the dataset that the parts are appended to, or None.

    Raises:
        OutputError: The output appeared meanwhile.
        StorageError: The disk is full or fails.
    """
    with translated_writing(found.path.parent):
        if found.dataset:
            return _publish_dataset(found, plan, space, receipts, overwrite=overwrite, earlier=earlier)
        return _publish_file(found, plan, space, receipts, overwrite=overwrite)


def _publish_file(
    found: Target, plan: Plan, space: Workspace, receipts: Sequence[Receipt], *, overwrite: bool
) -> OutputReceipt:
    with storage.scratch(space.file(f"output.{uuid.uuid4().hex[:12]}.tmp")) as temporary:
        return _named_file(found, plan, space, receipts, temporary, overwrite=overwrite)


def _named_file(
    found: Target,
    plan: Plan,
    space: Workspace,
    receipts: Sequence[Receipt],
    temporary: Path,
    *,
    overwrite: bool,
) -> OutputReceipt:
    """Make the output under a temporary name, publish its receipt, and give it its own name."""
    filled = [r for r in receipts if r.rows_out] or list(receipts[:1])
    _check_space(found, sum(r.size_bytes for r in filled))
    expected = [group for receipt in filled for group in receipt.row_groups]
    groups, footer_sha256 = glue.join([space.file(r.part) for r in filled], expected, temporary)
    storage.keep_mode(found.path, temporary)
    storage.disk.sync_file(temporary)
    size = storage.disk.size_bytes(temporary) or 0
    receipt = _summed(found, plan, receipts, groups, size).model_copy(update={"footer_sha256": footer_sha256})
    if target.taken(found) and not overwrite:
        raise _appeared(found)
    receipt = receipt.model_copy(update={"rejects": _publish_rejects(found, plan, space, receipts)})
    sealed = space.file("receipt.json.tmp")
    storage.remove(sealed)
    storage.write_durable(sealed, storage.seal(receipt.model_dump_json(indent=1)))
    storage.keep_mode(found.receipt, sealed)
    storage.replace(sealed, found.receipt)
    _name(temporary, found, overwrite=overwrite)
    return receipt


def _publish_rejects(
    found: Target, plan: Plan, space: Workspace, receipts: Sequence[Receipt]
) -> RejectsFile | None:
    """Publish the rejects; without any, remove those of an earlier run."""
    if not any(receipt.rejects for receipt in receipts):
        if target.rejects_plan_id(found):
            storage.remove(found.rejects)
        return None
    elsewhere = found.rejects_path
    temporary = (
        elsewhere.with_name(f".{elsewhere.name}.tmp") if elsewhere else space.file("rejects.jsonl.tmp")
    )
    storage.remove(temporary)  # of a run that was cut
    kept = write_rejects(temporary, plan, space, receipts)
    storage.replace(temporary, found.rejects)
    return kept.file.model_copy(update={"name": str(elsewhere or found.rejects.name)})


def write_rejects(
    path: Path, plan: Plan, space: Workspace, receipts: Sequence[Receipt], before: bytes = b""
) -> ledger.Ledger:
    """Write the rejects of all parts to the new file `path`, after the lines `before`."""
    done = [(plan.partitions[receipt.partition], receipt) for receipt in receipts]
    files = ledger.Files(plan.plan_id, plan.sources, plan.recipe.reading.dialect)
    return ledger.write(path, files, done, space, before)


def _check_space(found: Target, size_bytes: int) -> None:
    """Refuse to begin what cannot end: the parts stay, and the same command goes on from them."""
    free = storage.disk.free_bytes(found.path.parent)
    if free < size_bytes:
        message = f"{found.path.parent}: {size_bytes:,} bytes are needed to publish, {free:,} are free"
        raise StorageError(message, "free some space and run the same command again: the parts are kept")


def _name(temporary: Path, found: Target, *, overwrite: bool) -> None:
    if overwrite:
        storage.replace(temporary, found.path)
    elif not storage.link_first(temporary, found.path):
        raise _appeared(found)


def _appeared(found: Target) -> OutputError:
    message = f"{found.path}: appeared while this job ran"
    return OutputError(message, "replace it with --overwrite, or name another output")


def _summed(
    found: Target, plan: Plan, receipts: Sequence[Receipt], groups: Sequence[RowGroup], size_bytes: int
) -> OutputReceipt:
    facts = [receipt.facts for receipt in receipts]
    nulls = _added([f.nulls for f in facts])
    rules = plan.recipe.binding.null_rules
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
        model_sha256=plan.recipe.model.sha256,
        versions=plan.versions,
        inputs=plan.sources,
        runs=(Run(plan=plan, scored=tuple(scored)),),
    )


def _added(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Add numbers up by name."""
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def _counted(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: int(count) for name, count in sorted(_added(counts).items())}


# -- a dataset --------------------------------------------------------------------------------


def _publish_dataset(
    found: Target, plan: Plan, space: Workspace, receipts: Sequence[Receipt], *, overwrite: bool,
    earlier: OutputReceipt | None,
) -> OutputReceipt:  # fmt: skip
    """Stage the whole dataset beside the output, parts as second names of files, and swap it in.

    Appending does the same with the parts that are there: a reader sees the old dataset or the
    new one, never something between.
    """
    stage = space.file("dataset")
    storage.remove_tree(stage)
    storage.make_dir(stage)
    storage.make_dir(stage / META_DIR)
    before = target.manifest(found) if earlier else Manifest(plan_id="", parts=())
    for part in before.parts:
        storage.disk.link(found.path / part.name, stage / part.name)
    new = _staged(stage, space, receipts, len(before.parts))
    manifest = Manifest(plan_id=plan.plan_id, parts=(*before.parts, *new))
    groups = [group for receipt in receipts for group in receipt.row_groups]
    receipt = _summed(found, plan, receipts, groups, sum(part.size_bytes for part in new))
    receipt = receipt.model_copy(
        update={"rejects": _staged_rejects(found, stage, plan, space, receipts, earlier)}
    )
    receipt = _joined(earlier, receipt) if earlier else receipt
    for name, model in (("manifest.json", manifest), ("receipt.json", receipt)):
        storage.write_durable(stage / META_DIR / name, storage.seal(model.model_dump_json(indent=1)))
    storage.disk.sync_dir(stage / META_DIR)
    storage.disk.sync_dir(stage)
    target.drop_refused(found)
    if not target.taken(found):
        storage.replace(stage, found.path)
    elif overwrite or earlier:
        target.check_only_ours(found)
        _keep_modes(found, stage, [part.name for part in new])
        storage.exchange(stage, found.path)
    else:
        raise _appeared(found)
    return receipt


def _staged_rejects(
    found: Target, stage: Path, plan: Plan, space: Workspace, receipts: Sequence[Receipt],
    earlier: OutputReceipt | None,
) -> RejectsFile | None:  # fmt: skip
    """Stage the rejects of the whole dataset: those it has, then those of the new parts."""
    if found.rejects_path:
        return _publish_rejects(found, plan, space, receipts)
    before = storage.disk.read(found.rejects) if earlier and earlier.rejects else b""
    if not before and not any(receipt.rejects for receipt in receipts):
        return None
    return write_rejects(stage / META_DIR / found.rejects.name, plan, space, receipts, before).file


def _keep_modes(found: Target, stage: Path, new: Sequence[str]) -> None:
    """Give what replaces a dataset the permission bits of what is there; new parts those of the first."""
    for name in ("", META_DIR, f"{META_DIR}/manifest.json", f"{META_DIR}/receipt.json"):
        storage.keep_mode(found.path / name, stage / name)
    for old in target.manifest(found).parts[:1]:
        for name in new:
            storage.keep_mode(found.path / old.name, stage / name)


def _staged(stage: Path, space: Workspace, receipts: Sequence[Receipt], first: int) -> list[DatasetPart]:
    """Link the parts that have rows into the staged folder, numbered from `first`."""
    filled = [r for r in receipts if r.rows_out] or list(receipts[:1])
    parts = []
    for i, receipt in enumerate(filled, first):
        name = f"part-{i:06d}.parquet"
        storage.disk.link(space.file(receipt.part), stage / name)
        parts.append(
            DatasetPart(
                name=name, rows=receipt.rows_out, size_bytes=receipt.size_bytes, sha256=receipt.sha256
            )
        )
    return parts


def _joined(earlier: OutputReceipt, later: OutputReceipt) -> OutputReceipt:
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


# -- what is published ------------------------------------------------------------------------


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


def published(found: Target, plan: Plan) -> OutputReceipt | None:
    """Return the receipt of an output that this very plan has published already, else None.

    The sizes of its files are compared with the receipt, not their bytes.
    """
    receipt = receipt_of(found) if target.taken(found) else None
    if receipt is None or receipt.plan_id != plan.plan_id or size_bytes(found) != receipt.size_bytes:
        return None
    return receipt


def size_bytes(found: Target) -> int:
    """Return the size of the output; of all parts for a dataset."""
    if not found.dataset:
        return storage.disk.size_bytes(found.path) or 0
    return sum(storage.disk.size_bytes(found.path / part.name) or 0 for part in target.manifest(found).parts)
