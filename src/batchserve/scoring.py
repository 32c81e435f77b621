"""score_partition(): the one function a worker runs. It knows nothing of Dask or terminals.

read -> bind -> run -> encode -> write part -> receipt
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from batchserve import batches, codec, inputs, outputs, predictions
from batchserve.codec import Encoded, Misfit
from batchserve.errors import CrashError, MemoryShortError, RunError, StallError
from batchserve.inputs import BadRecord, Block, Fault, Partition, TypeMisfit
from batchserve.outputs import Receipt, Workspace
from batchserve.rejects import Reject, RejectClass
from batchserve.rows import Rows, Stretch, aligned
from batchserve.runs import Runs
from batchserve.scorers import Recipe
from batchserve.stopwatch import Stopwatch
from batchserve.storage import patiently
from batchserve.tally import Tally


def score_partition(
    partition: Partition,
    recipe: Recipe,
    workspace: Workspace,
    tick: Callable[[int], None] = lambda _: None,
    stall_timeout_s: float | None = None,
    kind: type[Runs] = Runs,
) -> Receipt:
    """Score one partition into a durable part and return its receipt.

    Running it twice is harmless: a committed partition's receipt is returned at once, and of
    two running attempts the first to link its receipt wins. Where reading fails in a way that
    may pass, the partition is begun again, up to four times, after longer and longer pauses.

    Args:
        partition: What to score.
        recipe: How.
        workspace: Where the part and its receipt go.
        tick: Told now and then how many rows are scored.
        stall_timeout_s: Seconds after which a run of the model is stopped, or None.
        kind: What runs the model.

    Raises:
        DataError: An input is damaged.
        ModelError: The model refuses the data.
        StorageError: A disk is full or fails.
        RetryError: Memory ran out, or the model stalled.
    """
    if receipt := outputs.committed(workspace, partition.name):
        return receipt
    try:
        return patiently(partial(_attempt, partition, recipe, workspace, tick, stall_timeout_s, kind))
    except (MemoryShortError, StallError) as error:
        raise type(error)(f"{partition.place}: {error.message}", error.hint) from error
    except MemoryError as error:
        hint = "give it more, or fewer --workers, or a smaller --partition-size"
        raise MemoryShortError(f"{partition.place}: memory ran out", hint) from error


def _attempt(  # noqa: PLR0913, PLR0917  one more than it should be: the count of earlier tries
    partition: Partition, recipe: Recipe, workspace: Workspace, tick: Callable[[int], None],
    stall_timeout_s: float | None, kind: type[Runs], retries: int,
) -> Receipt:  # fmt: skip
    with outputs.open_part(workspace, partition.name, recipe.schema_, recipe.coded) as part:
        tally = Tally(part.reject)
        tally.retries = retries
        with tally.timed("model"):
            runs = runs_of(recipe, stall_timeout_s, kind)
        for rows, columns in scored(partition, recipe, runs, tally):
            with tally.timed("encode"):
                part.write(rows.kept, columns)
            tick(tally.rows_in)
        with tally.timed("encode"):
            part.finish()
        tally.hand_over("encode", "write", part.writing)
        tally.halved = sum(each.halved for each in runs)
        with (committing := Stopwatch()):
            receipt = part.commit(partition.index, tally.facts(partition))
        return receipt.with_time("write", committing)


def runs_of(recipe: Recipe, timeout_s: float | None = None, kind: type[Runs] = Runs) -> tuple[Runs, ...]:
    """Return what runs the models of a recipe, one for each.

    Raises:
        ModelError: A file is not the model that was planned, or cannot be run.
    """
    return tuple(scorer.opened(timeout_s, kind) for scorer in recipe.scorers)


# -- rows to the model ------------------------------------------------------------------------


def bound(partition: Partition, recipe: Recipe, tally: Tally) -> Iterator[Rows]:
    """Read a partition as rows ready for the model; rows at fault are told and left out."""
    held: list[Stretch] = []
    rows = size_bytes = 0
    for stretch in _read(partition, recipe, tally):
        held.append(stretch)
        rows += stretch.block.batch.num_rows
        size_bytes += stretch.block.batch.nbytes
        if rows >= _BOUND_ROWS or size_bytes >= _BOUND_BYTES:
            yield _bound(held, recipe, tally)
            held, rows, size_bytes = [], 0, 0
    if held:
        yield _bound(held, recipe, tally)


_BOUND_ROWS, _BOUND_BYTES = 8_192, 4 << 20
"""Blocks are put together up to this: every column of each costs a tenth of a millisecond to bind, which
is nothing for a block of a large file, and as much as the model for one of a thousand rows."""


def _read(partition: Partition, recipe: Recipe, tally: Tally) -> Iterator[Stretch]:
    """Read a partition as blocks; records that are none are told."""
    for part in partition.slices:
        tally.begin_slice()
        items = inputs.read(part, recipe.reading)
        while (item := _next(items, tally)) is not None:
            if isinstance(item, Block):
                block = _limited(item, recipe.limit, tally)
                yield Stretch(block, tally.slice, tally.record, range(block.batch.num_rows))
                tally.read(block.batch.num_rows)
            elif isinstance(item, BadRecord):
                _refused(item.reject, tally)
            elif isinstance(item, TypeMisfit):
                tally.amend(item)
            else:
                tally.end_slice(item)
            if recipe.limit is not None and tally.rows_in >= recipe.limit:
                return


def _next(items: Iterator[inputs.Item], tally: Tally) -> inputs.Item | None:
    with tally.timed("read"):
        return next(items, None)


def _refused(reject: Reject, tally: Tally) -> None:
    place = reject.place.model_copy(update={"record": tally.record})
    tally.reject(tally.slice, reject.model_copy(update={"place": place}))
    tally.read(1)


def _limited(block: Block, limit: int | None, tally: Tally) -> Block:
    rows = block.batch.num_rows
    if limit is not None and rows > limit - tally.rows_in:
        return replace(block, batch=block.batch.slice(0, limit - tally.rows_in))
    return block


def _bound(held: Sequence[Stretch], recipe: Recipe, tally: Tally) -> Rows:
    nulls, rounded = Counter[str](), Counter[str]()
    with tally.timed("bind"):
        batches = [stretch.block.batch for stretch in held]
        batch = pa.concat_batches(batches) if len(batches) > 1 else batches[0]
        given, misfits = encoded(batch, recipe)
        for each in given:  # of a column that several models read, once
            nulls |= each.nulls
            rounded |= each.rounded
        tally.nulls += nulls
        tally.rounded += rounded
        rows = Rows(given, tuple(held))
        return _without(rows, misfits, tally) if misfits else rows


def encoded(batch: pa.RecordBatch, recipe: Recipe) -> tuple[tuple[Encoded, ...], list[Misfit]]:
    """Turn columns into what each model is given.

    Args:
        batch: Rows as read; holds every column that a model reads or that passes through.
        recipe: Which columns those are.

    Returns:
        All rows for each model, the first one's beside the columns that pass through; and the cells at
        fault, those of the first model first.
    """
    given, misfits = [], []
    for i, scorer in enumerate(recipe.scorers):
        each, wrong = codec.encode(batch, scorer.binding, () if i else recipe.keep)
        given.append(each)
        misfits += wrong
    return tuple(given), misfits


def _without(rows: Rows, misfits: Sequence[Misfit], tally: Tally) -> Rows:
    """Take the rows at fault out; a row with several faults is told once, by the first."""
    good = np.ones(len(rows), dtype=bool)
    for misfit in sorted(misfits, key=lambda m: m.row):
        if good[misfit.row]:
            good[misfit.row] = False
            fault = Fault(misfit.kind, misfit.column, misfit.value, misfit.reason)
            tally.reject(*rows.reject(misfit.row, fault))
    return rows.take(good)


# -- rows that the model refuses --------------------------------------------------------------

_Found = tuple[Rows, int, list[pa.Array]]
"""Rows, how many the model was given before them, and one array of as many entries per prediction."""


def scored(
    partition: Partition, recipe: Recipe, runs: Sequence[Runs], tally: Tally
) -> Iterator[tuple[Rows, list[pa.Array]]]:
    """Read a partition and run the model; rows that it fails on are told and left out.

    Yields:
        Rows, and one array of as many entries per prediction.

    Raises:
        ModelError: The model does not fit; or it fails, and its rows depend on each other, so that
            none can be left out.
    """
    position = 0
    for rows in aligned(bound(partition, recipe, tally), recipe.batch_rows):
        for found in _apart(rows, position, recipe, runs, tally):
            yield _finite(found, recipe, tally)
        position += len(rows)


def _apart(rows: Rows, position: int, recipe: Recipe, runs: Sequence[Runs], tally: Tally) -> Iterator[_Found]:
    """Run the model; where it fails, over the halves, until only the rows at fault are left.

    Every run is filled up to the same shape, so the other rows keep their bits.
    """
    try:
        with tally.timed("model"):
            columns = batches.predicted(runs, recipe, rows.encoded)
    except RunError as error:
        if recipe.rows_depend:
            raise
        if len(rows) == 1:
            kind: RejectClass = "CRASH" if isinstance(error, CrashError) else "MODEL"
            tally.refuse(position, *rows.reject(0, Fault(kind, "", "", error.message)))
            return
    else:
        yield rows, position, columns
        return
    half = _half(len(rows), recipe.batch_rows)
    yield from _apart(rows.slice(0, half), position, recipe, runs, tally)
    yield from _apart(rows.slice(half, len(rows)), position + half, recipe, runs, tally)


def _half(rows: int, batch_rows: int) -> int:
    runs = -(-rows // batch_rows)
    return runs // 2 * batch_rows if runs > 1 else rows // 2


def _finite(found: _Found, recipe: Recipe, tally: Tally) -> tuple[Rows, list[pa.Array]]:
    """Count scores that are infinite or not a number; take their rows out if that was asked for."""
    rows, position, columns = found
    good = np.ones(len(rows), dtype=bool)
    for prediction, column in zip(recipe.predictions, columns, strict=True):
        wrong = predictions.nonfinite(column)
        if wrong is None:
            continue
        tally.nonfinite[prediction.column] += int(wrong.sum())
        for row in np.flatnonzero(wrong & good) if recipe.on_nonfinite == "reject" else ():
            good[row] = False
            fault = Fault(
                "NONFINITE", prediction.column, str(column[row]), "a score that is no finite number"
            )
            tally.refuse(position + int(row), *rows.reject(int(row), fault))
    if good.all():
        return rows, columns
    return rows.take(good), [predictions.filtered(column, good) for column in columns]
