"""What stands at an output already: finished, in the way, of another plan, or left of a run that is over."""

from batchserve import storage, target, workspace
from batchserve.config import Job
from batchserve.errors import AccessError, NotFoundError, OutputError, RetryError, StorageError
from batchserve.events import Listener, Noted
from batchserve.planning import Plan
from batchserve.receipts import OutputReceipt, receipt_of, receipt_of_plan
from batchserve.report import shortest
from batchserve.storage import translated
from batchserve.target import Target


def finished(job: Job, made: Plan, found: Target) -> OutputReceipt | None:
    """Return the receipt if there is nothing left to do; an output in the way is an error.

    A run may have been cut between publishing and removing its workspace: the same command
    finishes that. The plan goes first when a workspace is removed, so one without is finished
    too, even where the output is to be overwritten.
    """
    if not target.taken(found) or job.when_exists == "append":
        return None
    there = receipt_of_plan(found, made)
    with translated(found.workspace):
        left = storage.disk.is_dir(found.workspace)
    if there and left:
        unplanned = workspace.stored(found) is None
        if unplanned or (holds(found, there) and job.when_exists != "overwrite"):
            workspace.clean(found)
            return there
    if job.when_exists == "error":
        raise target.exists(shortest(str(found.path)))
    if job.when_exists == "skip" and there is None:
        raise _of_another_plan(made, found)
    return there if job.when_exists == "skip" else None


def _of_another_plan(made: Plan, found: Target) -> OutputError:
    receipt = receipt_of(found)
    path = shortest(str(found.path))
    if receipt is None:
        return OutputError(f"{path}: its receipt is missing or damaged", "score it again: --overwrite")
    before = receipt.runs[-1].plan
    if before.plan_id == made.plan_id:
        return OutputError(f"{path}: its size differs from its receipt", "score it again: --overwrite")
    lines = [f"{path}: is the output of another plan", *workspace.differences(before, made)]
    return OutputError("\n  ".join(lines), "replace it with --overwrite, or name another output")


def check_still(job: Job, found: Target, earlier: OutputReceipt | None) -> None:
    """Check, now that nobody else can write it, that the output is as it was for the plan."""
    appeared = earlier is None and job.when_exists != "overwrite" and target.taken(found)
    if appeared or (earlier and target.published_plan_id(found) != earlier.plan_id):
        raise RetryError(f"{found.path}: was written to meanwhile", "run the same command again")


def holds(found: Target, receipt: OutputReceipt) -> bool:
    """Whether the workspace is of a run that is published: it was cut before it had removed it."""
    before = workspace.stored(found)
    return before is not None and before.plan_id == receipt.plan_id


def tidy(found: Target, published: OutputReceipt) -> None:
    """Remove what a run that is published left; the plan goes first, so it may be gone already."""
    if workspace.stored(found) is None or holds(found, published):
        workspace.clean(found)


def discard(found: Target, listener: Listener) -> None:
    """Remove the workspace of an output that is published: failing here undoes nothing."""
    try:
        workspace.discard(found.workspace)
    except (StorageError, AccessError, NotFoundError, MemoryError) as error:
        reason = getattr(error, "message", "memory ran out")
        text = f"the output is complete; what is left of the work could not be removed: {reason}"
        listener.on(Noted(text=text))
