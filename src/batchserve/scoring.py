"""score_partition(): the one function a worker runs. It knows nothing of Dask or terminals.

read -> bind -> run -> encode -> write part -> receipt
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from batchserve import codec, inputs, outputs, predictions
from batchserve.binding import Binding
from batchserve.codec import Encoded, Misfit
from batchserve.errors import MemoryShortError, StallError
from batchserve.inputs import ArrowSchema, BadRecord, Block, Extent, Partition, Reading, TypeMisfit
from batchserve.model import Session, Tensor, session_for
from batchserve.modelfile import ModelSpec
from batchserve.outputs import Amendment, Facts, Receipt, Workspace
from batchserve.predictions import Prediction
from batchserve.rejects import Reject, Rejects
from batchserve.runs import Runs
from batchserve.storage import patiently


class Recipe(BaseModel):
    """Everything a worker must know to turn any partition into the same bytes."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    model: ModelSpec
    reading: Reading
    binding: Binding
    predictions: tuple[Prediction, ...]
    keep: tuple[str, ...]
    """Input columns that pass through, in input order."""
    schema_: ArrowSchema
    """The output: kept columns, then predictions."""
    batch_rows: int
    """Rows of every single run of the model; short ones are padded."""
    limit: int | None = None
    """Records to read, or None for all."""
    size_matters: bool = False
    """Whether bits of scores were seen to depend on how many rows a run has."""


def score_partition(
    partition: Partition,
    recipe: Recipe,
    workspace: Workspace,
    tick: Callable[[int], None] = lambda _: None,
    stall_timeout_s: float | None = None,
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

    Raises:
        DataError: An input is damaged.
        ModelError: The model refuses the data.
        StorageError: A disk is full or fails.
        RetryError: Memory ran out, or the model stalled.
    """
    if receipt := outputs.committed(workspace, partition.name):
        return receipt
    try:
        return patiently(partial(_attempt, partition, recipe, workspace, tick, stall_timeout_s))
    except (MemoryShortError, StallError) as error:
        raise type(error)(f"{partition.place}: {error.message}", error.hint) from error
    except MemoryError as error:
        hint = "give it more, or fewer --workers, or a smaller --partition-size"
        raise MemoryShortError(f"{partition.place}: memory ran out", hint) from error


def _attempt(
    partition: Partition,
    recipe: Recipe,
    workspace: Workspace,
    tick: Callable[[int], None],
    stall_timeout_s: float | None,
    retries: int,
) -> Receipt:
    tally = Tally()
    tally.retries = retries
    with tally.timed("model"):
        runs = runs_of(recipe, stall_timeout_s)
    with outputs.open_part(workspace, partition.name, recipe.schema_) as part:
        for rows in aligned(encoded(partition, recipe, tally), recipe.batch_rows):
            with tally.timed("model"):
                columns = predict(runs, recipe.predictions, rows.tensors, recipe.batch_rows)
            with tally.timed("write"):
                part.write(rows.kept, columns)
            tick(tally.rows_in)
        with tally.timed("write"):
            part.finish()
        tally.halved = runs.halved
        return part.commit(partition.index, tally.facts(partition))


def runs_of(recipe: Recipe, timeout_s: float | None = None) -> Runs:
    """Return what runs the model of a recipe: it knows the inputs that no column fills.

    Raises:
        ModelError: The file is not the model that was planned, or cannot be run.
    """
    binding = recipe.binding
    fixed = binding.fixed_batch is not None
    return Runs(session_for(recipe.model), timeout_s, binding.constant_tensors, fixed=fixed)


class Tally:
    """What is counted while a partition is read."""

    def __init__(self) -> None:
        self.rows_in = 0
        self.rows_rejected = 0
        self.extents: list[tuple[int, int]] = []
        self.nulls: Counter[str] = Counter()
        self.rounded: Counter[str] = Counter()
        self.rejects = Rejects()
        self.amendments: dict[str, Amendment] = {}
        self.seconds: Counter[str] = Counter()
        self.halved = self.retries = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds the block takes to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start  # type: ignore[assignment]

    def bad_record(self, reject: Reject) -> None:
        """Count a record that could not be read."""
        self.rows_in += 1
        self.rows_rejected += 1
        self.rejects.add(reject.kind, reject.column, lambda: reject)

    def amend(self, misfit: TypeMisfit) -> None:
        """Note that a column needs another type; the first text that says so is kept."""
        self.rows_in += 1
        amendment = Amendment(
            column=misfit.column, becomes=misfit.becomes, place=misfit.place, value=misfit.value
        )
        self.amendments.setdefault(misfit.column, amendment)

    def facts(self, partition: Partition) -> Facts:
        """Return what was counted."""
        return Facts(
            rows_in=self.rows_in, rows_rejected=self.rows_rejected, bytes_in=partition.size_bytes,
            extents=tuple(self.extents), nulls=dict(self.nulls), rounded=dict(self.rounded),
            rejects=self.rejects.groups(),
            amendments=tuple(self.amendments.values()), seconds=dict(self.seconds),
            halved_batches=self.halved, read_retries=self.retries,
        )  # fmt: skip


def encoded(partition: Partition, recipe: Recipe, tally: Tally) -> Iterator[Encoded]:
    """Read a partition as rows ready for the model; rows at fault are counted and left out."""
    for part in partition.slices:
        items = inputs.read(part, recipe.reading)
        while (item := _next(items, tally)) is not None:
            if isinstance(item, Block):
                yield _bound(_limited(item, recipe.limit, tally), recipe, tally)
            elif isinstance(item, BadRecord):
                tally.bad_record(item.reject)
            elif isinstance(item, TypeMisfit):
                tally.amend(item)
            else:
                tally.extents.append((item.start, item.stop))
            if recipe.limit is not None and tally.rows_in >= recipe.limit:
                return


def _next(items: Iterator[inputs.Item], tally: Tally) -> Block | BadRecord | TypeMisfit | Extent | None:
    with tally.timed("read"):
        return next(items, None)


def _limited(block: Block, limit: int | None, tally: Tally) -> Block:
    rows = block.batch.num_rows
    if limit is not None and rows > limit - tally.rows_in:
        batch = block.batch.slice(0, limit - tally.rows_in)
        return Block(batch, block.path, block.base, block.raw, block.format)
    return block


def _bound(block: Block, recipe: Recipe, tally: Tally) -> Encoded:
    with tally.timed("bind"):
        rows, misfits = codec.encode(block.batch, recipe.binding, recipe.keep)
        tally.rows_in += block.batch.num_rows
        tally.nulls += rows.nulls
        tally.rounded += rows.rounded
        return _without(rows, misfits, block, tally) if misfits else rows


def _without(rows: Encoded, misfits: Sequence[Misfit], block: Block, tally: Tally) -> Encoded:
    """Take the rows at fault out; a row with several faults is counted once, by the first."""
    good = np.ones(rows.rows, dtype=bool)
    for misfit in sorted(misfits, key=lambda m: m.row):
        if good[misfit.row]:
            good[misfit.row] = False
            tally.rejects.add(misfit.kind, misfit.column, partial(_reject, misfit, block))
    tally.rows_rejected += int((~good).sum())
    return rows.take(good)


def _reject(misfit: Misfit, block: Block) -> Reject:
    return Reject(
        kind=misfit.kind, column=misfit.column, place=block.place(misfit.row), value=misfit.value,
        reason=misfit.reason,
    )  # fmt: skip


def aligned(rows: Iterable[Encoded], batch_rows: int) -> Iterator[Encoded]:
    """Re-cut rows so that all pieces but the last are whole multiples of `batch_rows`.

    So padding is paid once per partition, not once per block of the reader.
    """
    carry: Encoded | None = None
    for piece in rows:
        start = 0
        if carry is not None:
            start = min(batch_rows - carry.rows, piece.rows)
            carry = carry.joined(piece.slice(0, start))
            if carry.rows < batch_rows:
                continue
            yield carry
        stop = start + (piece.rows - start) // batch_rows * batch_rows
        if stop > start:
            yield piece.slice(start, stop)
        carry = piece.slice(stop, piece.rows) if stop < piece.rows else None
    if carry is not None:
        yield carry


def predict(
    session: Session | Runs, wanted: Sequence[Prediction], tensors: dict[str, Tensor], batch_rows: int
) -> list[pa.Array]:
    """Run the model over rows, `batch_rows` at a time, always in that one shape.

    A short batch is filled up by repeating its last row and the results are cut again: bits
    then depend neither on how rows were split nor on where in a batch a row stood.

    Args:
        session: The model.
        wanted: The outputs wanted, as planned.
        tensors: One tensor [rows, ...] per input that columns fill; at least one row.
        batch_rows: The batch dimension of every run.

    Returns:
        One Arrow array of `rows` entries per prediction.

    Raises:
        ModelError: The model fails, or an output has not one entry per row.
    """
    names = [prediction.output for prediction in wanted]
    rows = len(next(iter(tensors.values())))
    runs: list[list[Any]] = [[] for _ in names]
    for start in range(0, rows, batch_rows):
        size = min(batch_rows, rows - start)
        batch = {name: padded(t[start : start + size], batch_rows) for name, t in tensors.items()}
        for name, values, gathered in zip(names, session.run(names, batch), runs, strict=True):
            predictions.check_rows(name, values, batch_rows)
            gathered.append(values[:size])
    rows_of = zip(wanted, map(predictions.joined, runs), strict=True)
    return [predictions.decode(prediction, values) for prediction, values in rows_of]


def padded(tensor: Tensor, batch_rows: int) -> Tensor:
    """Fill a tensor up to `batch_rows` rows by repeating its last row.

    Example:
        >>> padded(np.array([1, 2]), 4)
        array([1, 2, 2, 2])
    """
    short = batch_rows - len(tensor)
    return np.concatenate((tensor, np.repeat(tensor[-1:], short, axis=0))) if short else tensor
