"""Every partition's receipt, its part sound: scored now, or by an earlier run of the same plan."""

from collections.abc import Sequence

from batchserve import chain, commit, crash, events, workspace
from batchserve.errors import StorageError
from batchserve.events import Listener
from batchserve.outputs import Receipt, Workspace
from batchserve.planning import Plan
from batchserve.rejects import Budget
from batchserve.runner import Runner


def collected(
    made: Plan, done: Sequence[Receipt], running: Runner, listener: Listener,
    crashes: Sequence[crash.Crash] = (), budget: Budget | None = None,
) -> dict[int, Receipt]:  # fmt: skip
    """Gather every partition's receipt; those that began at a wrong guess are scored again.

    It ends before all are there when a column type must be amended, and when there are so many
    rejects that it is of no use to look for more.

    Raises:
        BatchserveError: Of the partitions that crashed, when all others are scored.
    """
    receipts = {receipt.partition: receipt for receipt in done}
    settled = receipts.keys() | {each.partition.index for each in crashes}
    todo = [p for p in made.partitions if p.index not in settled]
    listener.on(
        events.Planned(
            plan_id=made.plan_id, partitions=len(made.partitions), partitions_done=len(receipts),
            bytes_total=made.bytes_total, workers=running.workers,
        )
    )  # fmt: skip
    for receipt in receipts.values():
        listener.on(_told(receipt, resumed=True))
    amending = False
    rejected = sum(receipt.facts.rows_rejected for receipt in done)
    for receipt in running.score(todo):
        receipts[receipt.partition] = receipt
        listener.on(_told(receipt))
        amending = amending or bool(receipt.facts.amendments)
        if amending and chain.amendments(made.partitions, receipts):
            return receipts
        rejected += receipt.facts.rows_rejected
        if (
            budget
            and budget.hopeless(rejected)
            and budget.hopeless(chain.rejected(made.partitions, receipts))
        ):
            return receipts
    if crashes:
        raise crash.error(crashes, len(made.partitions))
    while wrong := chain.misguessed(made.partitions, receipts):
        receipts |= {receipt.partition: receipt for receipt in running.score([wrong])}
    return receipts


def _told(receipt: Receipt, *, resumed: bool = False) -> events.PartitionScored:
    facts = receipt.facts
    return events.PartitionScored(
        index=receipt.partition, rows_in=facts.rows_in, rows_rejected=facts.rows_rejected,
        bytes_in=facts.bytes_in, seconds=facts.seconds, resumed=resumed,
    )  # fmt: skip


def sound(
    made: Plan, space: Workspace, receipts: dict[int, Receipt], running: Runner, listener: Listener
) -> list[Receipt]:
    """Return the receipts in order, every part compared with its own; a damaged one is redone."""
    ordered = [receipts[p.index] for p in made.partitions]
    bad = commit.damaged(space, ordered)
    if not bad:
        return ordered
    listener.on(events.Noted(text=f"{len(bad)} of the parts changed on the disk: scored again"))
    receipts = collected(made, workspace.done(space, made.partitions), running, listener)
    ordered = [receipts[p.index] for p in made.partitions]
    if commit.damaged(space, ordered):
        message = f"{space.path}: parts change after they were written"
        raise StorageError(message, "check the disk, then run the same command again")
    return ordered
