"""The workspace beside an output: who holds it, whose plan it is, which parts are done.

State is derived from files alone: the plan, parts, and the receipts that make parts count.
"""

import errno
import re
import shlex
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from batchserve import outputs, planning, storage
from batchserve.errors import BatchserveError, OutputError
from batchserve.inputs import Partition
from batchserve.outputs import Receipt, Workspace
from batchserve.planning import Plan
from batchserve.storage import translated, translated_writing
from batchserve.target import Target

PLAN_FILE = "plan.json"
REFUSED_FILE = "refused"
"""Says that the run is over and nothing was published: too many rows were rejected."""
LOCK_FILE = "lock"
LOCK_WAIT_S = 5.0
_LATE_S = 10.0
_POLL_S = 0.05
_BRIEF_CHARS = 60
_RECEIPT = re.compile(r"p\d{6}(-from\d+)?\.json")


@contextmanager
def opened(found: Target, plan: Plan, *, fresh: bool = False) -> Iterator[Workspace]:
    """Open the output's workspace for this plan, alone.

    When the block fails it stays, for the same command to go on from its receipts; without a
    receipt there is nothing to go on from, and it goes.

    Args:
        found: The output.
        plan: What the work will be.
        fresh: Drop whatever an earlier run left.

    Raises:
        OutputError: It holds the parts of another plan.
        RetryError: Another process is writing this output.
        StorageError: The disk fails.
    """
    folder = found.workspace
    with held(folder):
        space = Workspace(str(folder), plan.plan_id, tuple(planning.footer(plan).items()))
        try:
            _prepare(found, plan, fresh=fresh)
            yield space
        except BaseException:
            with suppress(OSError, MemoryError, BatchserveError):
                if not receipts_in(folder):
                    discard(folder)
            raise


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a workspace, which is made if it is not there."""
    with translated_writing(folder):
        storage.make_dir(folder)
    with storage.locked(folder / LOCK_FILE, LOCK_WAIT_S):
        yield


def _prepare(found: Target, plan: Plan, *, fresh: bool) -> None:
    """Leave in the workspace what belongs to `plan`, and the plan."""
    folder = found.workspace
    with translated_writing(folder):
        before = stored(found)
        if before and before.plan_id == plan.plan_id and not fresh:
            return
        refused = REFUSED_FILE in storage.disk.names(folder)
        if before and before.plan_id != plan.plan_id and not (fresh or refused) and receipts_in(folder):
            raise _other(found, before, plan)
        mend = before is None and not fresh  # a damaged plan: the receipts say whose they are
        for name in storage.disk.names(folder):
            if name != LOCK_FILE and not (mend and name.startswith("p") and name != PLAN_FILE):
                _remove(folder / name)
        with storage.scratch(folder / f"plan.{uuid.uuid4().hex[:12]}.tmp") as temporary:
            storage.write_durable(temporary, storage.seal(plan.model_dump_json(indent=1)))
            storage.replace(temporary, folder / PLAN_FILE)


def _remove(path: Path) -> None:
    if storage.disk.is_dir(path):
        storage.remove_tree(path)
    else:
        storage.remove(path)


def stored(found: Target) -> Plan | None:
    """Return the plan of an unfinished run, or None if there is none that can be read."""
    path = found.workspace / PLAN_FILE
    with translated(path):
        try:
            data = storage.disk.read(path)
        except FileNotFoundError:
            return None
    try:
        return Plan.model_validate_json(storage.unseal(data))
    except ValueError:
        return None


def receipts_in(folder: Path) -> int:
    """Count the receipts in a workspace."""
    return sum(bool(_RECEIPT.fullmatch(name)) for name in storage.disk.names(folder))


def done(space: Workspace, partitions: Sequence[Partition]) -> list[Receipt]:
    """Return the receipts that an earlier run of the same plan left."""
    with translated_writing(space.path):
        names = set(storage.disk.names(Path(space.path)))
    here = [p for p in partitions if f"{p.name}.json" in names]
    found = [outputs.committed(space, p.name) for p in here]
    return [receipt for receipt in found if receipt]


def refuse(space: Workspace) -> None:
    """Note that the run is over: another plan may take its place without asking."""
    with translated_writing(space.path):
        storage.remove(space.file(REFUSED_FILE))
        storage.write_durable(space.file(REFUSED_FILE), b"too many rejects\n")


def discard(folder: Path) -> None:
    """Remove a workspace: what is in it was published or is of no use.

    The plan goes first: parts without a plan belong to nobody.
    """
    give_up = time.monotonic() + _LATE_S
    with translated(folder):
        while True:
            try:
                return storage.remove_tree(folder, first=[PLAN_FILE])
            except OSError as error:
                if storage.disk.names(folder) == [LOCK_FILE]:
                    return None  # somebody waits for the lock: who has it last, removes it
                if error.errno != errno.ENOTEMPTY or time.monotonic() > give_up:
                    raise
                time.sleep(_POLL_S)  # an attempt that nobody needs any more is still writing


def clean(found: Target) -> int | None:
    """Remove what an abandoned run left.

    Returns:
        How many finished parts were in it, or None if there was no workspace.

    Raises:
        RetryError: A run is still going on.
    """
    folder = found.workspace
    with translated(folder):
        if not storage.disk.is_dir(folder):
            return None
    with held(folder):
        with translated(folder):
            parts = receipts_in(folder)
        discard(folder)
    return parts


# -- is it ours? ------------------------------------------------------------------------------


def left(found: Target, plan: Plan) -> str:
    """Say in words what an earlier run left beside the output; an empty text if nothing."""
    before = stored(found)
    if before is None:
        return ""
    many = f"{receipts_in(found.workspace):,} of {len(before.partitions):,} parts done"
    if before.plan_id == plan.plan_id:
        return f"an unfinished run of this plan: {many}; score continues it"
    return f"an unfinished run of another plan: {many}; differs: {'; '.join(differences(before, plan))}"


def _other(found: Target, before: Plan, plan: Plan) -> BatchserveError:
    many = f"{receipts_in(found.workspace):,} of {len(before.partitions):,} parts"
    lines = [f"{found.path}: holds {many} of an unfinished run of another plan"]
    lines += [f"  {what}" for what in differences(before, plan)]
    hint = "undo the change to continue that run, or drop it: --fresh, or batchserve clean"
    return OutputError("\n".join(lines), f"{hint} {shlex.quote(str(found.path))}")


def differences(before: Plan, after: Plan) -> list[str]:
    """Say in words what makes two plans different."""
    was, now = _facts(before), _facts(after)
    found = list(_source_differences(before, after))
    found += [_difference(name, was.get(name, ""), now[name]) for name in now if now[name] != was.get(name)]
    if not found:
        found = [f"partitions: {len(after.partitions):,} of another size, were {len(before.partitions):,}"]
    return found


def _difference(name: str, was: str, now: str) -> str:
    """Say what a fact is and was; of a list, only the items that differ."""
    old, new = was.split(", "), now.split(", ")
    gained = ", ".join(item for item in new if item not in old)
    lost = ", ".join(item for item in old if item not in new)
    if not (gained or lost):
        return f"{name}: in another order"
    return f"{name}: {_brief(gained) or 'nothing more'}, was {_brief(lost) or 'nothing'}"


def _facts(plan: Plan) -> dict[str, str]:
    """Return what a plan decides, but for its inputs, as words."""
    recipe = plan.recipe
    schema = recipe.reading.schema_
    return {
        **{f"model {name}".rstrip(): f"sha256 {sha256[:12]}" for name, sha256 in recipe.digests.items()},
        "columns of the model": ", ".join(recipe.columns),
        "nulls": ", ".join(f"{name} {rule}" for name, rule in recipe.null_rules.items()),
        "predictions": ", ".join(prediction.column for prediction in recipe.predictions),
        "columns kept": ", ".join(recipe.keep),
        "types": ", ".join(f"{field.name} {field.type}" for field in schema),
        "types fixed": ", ".join(plan.types),
        "batch rows": f"{recipe.batch_rows:,}",
        "limit": f"{recipe.limit}",
        "drift": ", ".join(plan.drift),
        "rows depend": f"{recipe.rows_depend}",
        "non-finite scores": recipe.on_nonfinite,
        **plan.versions,
    }


def _source_differences(before: Plan, after: Plan) -> Iterator[str]:
    was = {source.path: source for source in before.sources}
    now = {source.path: source for source in after.sources}
    yield from (f"input {path}: is new" for path in now if path not in was)
    yield from (f"input {path}: is not among the inputs any more" for path in was if path not in now)
    changed = sorted(path for path in was.keys() & now.keys() if was[path] != now[path])
    yield from (f"input {path}: has changed" for path in changed)
    if was.keys() == now.keys() and list(was) != list(now):
        yield "inputs: are in another order"


def _brief(text: str) -> str:
    return text if len(text) <= _BRIEF_CHARS else f"{text[: _BRIEF_CHARS - 1]}…"
