"""Receipts -> verified -> published in one atomic step; and what is left to do on a resume.

State is derived from files alone. A workspace holds the plan it belongs to, parts, and the
receipts that make parts count. The output appears by one `link` or `rename`; before that it is
complete, synced and checked byte for byte against the receipts.
"""

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from batchserve import glue, outputs, planning, storage
from batchserve.errors import OutputError, StorageError
from batchserve.inputs import Partition, Source
from batchserve.outputs import Amendment, Receipt, RowGroup, Workspace
from batchserve.planning import Plan
from batchserve.storage import translated
from batchserve.target import META_DIR, Manifest, Target, published_plan_id, taken

_PLAN_FILE = "plan.json"


class OutputReceipt(BaseModel, frozen=True):
    """What the output says of itself: enough to check every byte of it later."""

    plan_id: str
    output: str
    rows_in: int
    rows_out: int
    rows_rejected: int
    nulls: dict[str, int]
    """Nulls met in columns of the model, where there were any."""
    null_rules: dict[str, str]
    """What they became: nan or fill=VALUE."""
    row_groups: tuple[RowGroup, ...]
    footer_sha256: str
    """Of everything after the last row group; empty for a dataset."""
    seconds: dict[str, float]
    model_sha256: str
    versions: dict[str, str]
    inputs: tuple[Source, ...]


# -- the workspace ----------------------------------------------------------------------------


@contextmanager
def workspace(found: Target, plan: Plan) -> Iterator[Workspace]:
    """Open the output's workspace for this plan, alone; another plan's is emptied first.

    When the block fails it stays, for the same command to go on from its receipts; without a
    receipt there is nothing to go on from, and it goes.

    Raises:
        RetryError: Another process is writing this output.
        StorageError: The disk fails.
    """
    folder = found.workspace
    with translated(folder):
        storage.make_dir(folder)
        with storage.locked(folder / "lock"):
            _prepare(folder, plan)
            space = Workspace(str(folder), plan.plan_id, tuple(planning.footer(plan).items()))
            try:
                yield space
            except BaseException:
                if not any(folder.glob("p[0-9]*.json")):
                    discard(space)
                raise


def _prepare(folder: Path, plan: Plan) -> None:
    text = plan.model_dump_json(indent=1).encode()
    stored = folder / _PLAN_FILE
    if stored.exists() and _stored_id(stored) == plan.plan_id:
        return
    for entry in folder.iterdir():
        if entry.is_dir():
            storage.remove_tree(entry)
        elif entry.name != "lock":
            storage.remove(entry)
    temporary = folder / f"plan.{uuid.uuid4().hex[:12]}.tmp"
    storage.write_durable(temporary, text)
    storage.replace(temporary, stored)


def _stored_id(stored: Path) -> str:
    try:
        return Plan.model_validate_json(stored.read_bytes()).plan_id
    except ValueError:
        return ""


def discard(space: Workspace) -> None:
    """Remove a workspace: what is in it was published or is of no use."""
    with translated(space.path):
        storage.remove_tree(Path(space.path))


def done(space: Workspace, partitions: Sequence[Partition]) -> list[Receipt]:
    """Return the receipts that an earlier run of the same plan left."""
    with translated(space.path):
        names = {entry.name for entry in Path(space.path).iterdir()}
    here = [p for p in partitions if f"{p.name}.json" in names]
    found = [outputs.committed(space, p.name) for p in here]
    return [receipt for receipt in found if receipt]


# -- do the parts make a whole? ---------------------------------------------------------------


def misguessed(partitions: Sequence[Partition], receipts: dict[int, Receipt]) -> Partition | None:
    """Return the first partition that does not start where the one before it ended, corrected.

    The planned start of a slice inside a text file is a guess; every record is read once only
    if each slice of a file starts exactly where the slice before it stopped.
    """
    ends: dict[str, int] = {}
    for partition in partitions:
        extents = receipts[partition.index].facts.extents
        for part, (start, stop) in zip(partition.slices, extents, strict=False):
            expected = ends.get(part.path, start)
            if part.format != "parquet" and start != expected:
                return _restarted(partition, part.path, expected)
            ends[part.path] = stop
    return None


def amendments(partitions: Sequence[Partition], receipts: dict[int, Receipt]) -> dict[str, Amendment]:
    """Return the column types that must be amended, as far as receipts can be trusted yet.

    A partition that began at a wrong guess may have met nonsense: only those count that follow
    on from the first without a gap.
    """
    trusted = list(itertools.takewhile(lambda p: p.index in receipts, partitions))
    wrong = misguessed(trusted, receipts)
    found: dict[str, Amendment] = {}
    for partition in trusted[: wrong.index if wrong else None]:
        for amendment in receipts[partition.index].facts.amendments:
            found.setdefault(amendment.column, amendment)
    return found


def _restarted(partition: Partition, path: str, start: int) -> Partition:
    slices = [
        part.model_copy(update={"start": start, "exact": True}) if part.path == path else part
        for part in partition.slices
    ]
    return partition.model_copy(update={"slices": tuple(slices), "redone": True})


# -- publish ----------------------------------------------------------------------------------


def publish(
    found: Target, plan: Plan, space: Workspace, receipts: Sequence[Receipt], *, overwrite: bool
) -> OutputReceipt:
    """Put the parts together, check them, and give the output its name in one step.

    Raises:
        OutputError: The output appeared meanwhile.
        StorageError: A part is damaged or the disk fails.
    """
    with translated(found.path):
        _check_parts(space, receipts)
        if found.dataset:
            return _publish_dataset(found, plan, space, receipts, overwrite=overwrite)
        return _publish_file(found, plan, space, receipts, overwrite=overwrite)


def _check_parts(space: Workspace, receipts: Sequence[Receipt]) -> None:
    """Compare every part with its receipt; a damaged one loses it, so that it is scored again.

    Raises:
        StorageError: A part is not what was written.
    """
    for receipt in receipts:
        part = space.file(receipt.part)
        if not part.exists() or storage.file_sha256(part) != receipt.sha256:
            storage.remove(space.file(f"{receipt.part.partition('.')[0]}.json"))
            message = f"{part}: differs from what was scored"
            raise StorageError(message, "the same command scores it again; if it recurs, check the disk")


def _publish_file(
    found: Target, plan: Plan, space: Workspace, receipts: Sequence[Receipt], *, overwrite: bool
) -> OutputReceipt:
    temporary = space.file(f"output.{uuid.uuid4().hex[:12]}.tmp")
    filled = [r for r in receipts if r.rows_out] or list(receipts[:1])
    expected = [group for receipt in filled for group in receipt.row_groups]
    groups, footer_sha256 = glue.join([space.file(r.part) for r in filled], expected, temporary)
    receipt = _summed(found, plan, receipts, groups, footer_sha256)
    if found.path.exists() and not overwrite:
        raise _appeared(found)
    _write_receipt(space.file("receipt.json.tmp"), found.receipt, receipt)
    _name(temporary, found, overwrite=overwrite)
    return receipt


def _summed(
    found: Target, plan: Plan, receipts: Sequence[Receipt], groups: Sequence[RowGroup], footer_sha256: str
) -> OutputReceipt:
    facts = [receipt.facts for receipt in receipts]
    nulls = _added([f.nulls for f in facts])
    rules = plan.recipe.binding.null_rules
    return OutputReceipt(
        plan_id=plan.plan_id,
        output=found.path.name,
        rows_in=sum(f.rows_in for f in facts),
        rows_out=sum(r.rows_out for r in receipts),
        rows_rejected=sum(f.rows_rejected for f in facts),
        nulls={name: int(count) for name, count in nulls.items() if count},
        null_rules={name: str(rule) for name, rule in rules.items() if nulls.get(name)},
        row_groups=tuple(groups),
        footer_sha256=footer_sha256,
        seconds=_added([f.seconds for f in facts]),
        model_sha256=plan.recipe.model.sha256,
        versions=plan.versions,
        inputs=plan.sources,
    )


def _added(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Add numbers up by name."""
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def _write_receipt(temporary: Path, path: Path, receipt: OutputReceipt) -> None:
    storage.remove(temporary)
    storage.write_durable(temporary, receipt.model_dump_json(indent=1).encode())
    storage.replace(temporary, path)


def _name(temporary: Path, found: Target, *, overwrite: bool) -> None:
    if overwrite:
        storage.replace(temporary, found.path)
    elif not storage.link_first(temporary, found.path):
        raise _appeared(found)


def _appeared(found: Target) -> OutputError:
    message = f"{found.path}: appeared while this job ran"
    return OutputError(message, "replace it with --overwrite, or name another output")


def _publish_dataset(
    found: Target, plan: Plan, space: Workspace, receipts: Sequence[Receipt], *, overwrite: bool
) -> OutputReceipt:
    stage = space.file("dataset")
    storage.remove_tree(stage)
    storage.make_dir(stage)
    storage.make_dir(stage / META_DIR)
    filled = [r for r in receipts if r.rows_out] or list(receipts[:1])
    parts = []
    for i, receipt in enumerate(filled):
        name = f"part-{i:06d}.parquet"
        storage.link(space.file(receipt.part), stage / name)
        parts.append({"name": name, "rows": receipt.rows_out, "sha256": receipt.sha256})
    manifest = Manifest(plan_id=plan.plan_id, parts=tuple(parts))
    storage.write_durable(stage / META_DIR / "manifest.json", manifest.model_dump_json(indent=1).encode())
    groups = [group for receipt in receipts for group in receipt.row_groups]
    receipt_ = _summed(found, plan, receipts, groups, "")
    storage.write_durable(stage / META_DIR / "receipt.json", receipt_.model_dump_json(indent=1).encode())
    storage.sync_dir(stage / META_DIR)
    storage.sync_dir(stage)
    if taken(found):
        if not overwrite:
            raise _appeared(found)
        storage.exchange(stage, found.path)
    else:
        storage.move_dir(stage, found.path)
    return receipt_


def published(found: Target, plan: Plan) -> OutputReceipt | None:
    """Return the receipt of an output this very plan has published already, else None.

    It happens when a run was cut between publishing and removing its workspace.
    """
    if not found.path.exists() or published_plan_id(found) != plan.plan_id:
        return None
    try:
        return OutputReceipt.model_validate_json(found.receipt.read_bytes())
    except (OSError, ValueError):
        return None  # without its receipt it does not count as published
