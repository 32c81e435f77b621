"""Receipts -> verified -> published in one atomic step.

The output appears by one `link` or `rename`; before that it is complete, synced and checked
byte for byte against the receipts of its parts. Its own receipt is published just before it.
"""

import uuid
from collections.abc import Sequence
from pathlib import Path

from batchserve import glue, ledger, storage, target
from batchserve.errors import OutputError, StorageError
from batchserve.events import Listener, Noted
from batchserve.inputs import TEXT_FORMATS
from batchserve.outputs import Receipt, RejectsFile, Workspace
from batchserve.planning import Plan
from batchserve.receipts import OutputReceipt, joined, summed
from batchserve.storage import translated_writing
from batchserve.target import META_DIR, DatasetPart, Manifest, Target

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
"""Bytes of Parquet per byte of text that passes through; flights (CSV) took 0.40. Of Parquet one."""
_HOPELESS = 4
"""Below a quarter of the estimate nothing is begun; an estimate is no more than that."""


def check_room(found: Target, plan: Plan, done: Sequence[Receipt], listener: Listener) -> None:
    """Estimate the space the job will need, before it starts.

    Raises:
        StorageError: There is not a quarter of it.
    """
    kept = len(plan.recipe.keep) / max(1, len(plan.recipe.reading.schema_))
    left_bytes = plan.bytes_total - sum(plan.partitions[r.partition].size_bytes for r in done)
    parts = left_bytes * _out_per_byte(plan) * kept
    output = 0 if found.dataset else parts + sum(r.size_bytes for r in done)
    needed = int(parts + output)
    with translated_writing(found.workspace):
        free = storage.disk.free_bytes(found.workspace)
    words = f"{found.path.parent}: about {needed:,} bytes will be needed, {free:,} are free"
    if free * _HOPELESS < needed:
        raise StorageError(words, "free some space, or keep fewer columns: --keep")
    if free < needed:
        listener.on(Noted(text=words))


def _out_per_byte(plan: Plan) -> float:
    if any(source.format in TEXT_FORMATS for source in plan.sources):
        return _OUT_PER_BYTE_IN
    return sum(source.size_bytes for source in plan.sources) / max(1, plan.bytes_total)


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
    groups, footer_sha256 = glue.join(
        [space.file(r.part) for r in filled], expected, temporary, plan.recipe.coded
    )
    storage.keep_mode(found.path, temporary)
    storage.disk.sync_file(temporary)
    size = storage.disk.size_bytes(temporary) or 0
    receipt = summed(found, plan, receipts, groups, size).model_copy(update={"footer_sha256": footer_sha256})
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
    receipt = summed(found, plan, receipts, groups, sum(part.size_bytes for part in new))
    receipt = receipt.model_copy(
        update={"rejects": _staged_rejects(found, stage, plan, space, receipts, earlier)}
    )
    receipt = joined(earlier, receipt) if earlier else receipt
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
