"""An output against its receipt: every byte, every count, and rows scored again."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchserve import batches, scoring, storage, target
from batchserve.errors import BatchserveError, DataError, NotFoundError, UsageError
from batchserve.inputs import Partition, Source
from batchserve.modelfile import identify
from batchserve.outputs import RowGroup
from batchserve.receipts import OutputReceipt, Run
from batchserve.references import is_reference
from batchserve.rows import Rows, aligned
from batchserve.scorers import Recipe, Scorer
from batchserve.spelling import by_name
from batchserve.storage import translated
from batchserve.tally import Tally
from batchserve.target import Target

ROWS = 1000
PARTITIONS = 10
"""At least so many rows, of at least so many partitions, are scored again."""
_MAGIC = b"PAR1"


@dataclass
class Verdict:
    """What was compared, what differs, and what could not be compared."""

    facts: dict[str, str] = field(default_factory=dict)
    """What agrees, in words."""
    differences: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    rows_scored: int = 0
    """Rows scored again and found equal to the bit."""
    partitions_scored: int = 0

    def check(self, name: str, what: str, differences: Sequence[str]) -> None:
        """Note that `name` agrees, or what differs."""
        if differences:
            self.differences += differences
        else:
            self.facts[name] = what


def verify(output: str, model: str | Mapping[str, str] | None = None) -> Verdict:
    """Compare an output with its receipt.

    Args:
        output: The file or dataset folder.
        model: Where the model is now, if it was moved; of models with names, by these. Its sha256 must be
            the same.

    Raises:
        UsageError: The output has no model of that name.
        NotFoundError: There is no such output, or it has no receipt.
        DataError: Something differs; everything that does is named.
    """
    found = target.at(output)
    receipt = _receipt(output, found)
    moved = by_name(model) if model else {}
    _check_named(receipt, moved)
    verdict = Verdict()
    verdict.check("plan id", receipt.plan_id, _ids(found, receipt))
    verdict.check("bytes", f"{receipt.size_bytes:,}, every one", list(_bytes(found, receipt)))
    verdict.check("rows", f"{receipt.rows_out:,} of {receipt.rows_in:,} read", list(_counts(found, receipt)))
    verdict.check("rejects", f"{receipt.rows_rejected:,}", _rejects(found, receipt))
    if not verdict.differences:
        _score_again(found, receipt, moved, verdict)
    if verdict.differences:
        lines = [f"{output}: differs from its receipt", *verdict.differences]
        raise DataError("\n  ".join(lines), "score it again: --overwrite")
    return verdict


def _check_named(receipt: OutputReceipt, moved: Mapping[str, str]) -> None:
    known = [name for run in receipt.runs for name in run.plan.recipe.digests]
    if unknown := [name for name in moved if name not in known]:
        names = ", ".join(f"{name}=PATH" if name else "PATH" for name in dict.fromkeys(known))
        what = f"--model {unknown[0]}=...: the output has no model of that name" if unknown[0] else _NAMELESS
        raise UsageError(what, f"say one of: {names}")


_NAMELESS = "--model PATH: the models of the output have names"


def _receipt(output: str, found: Target) -> OutputReceipt:
    if not target.taken(found):
        raise NotFoundError(f"{output}: no such output", "check the path")
    path = found.receipt
    if storage.disk.size_bytes(path) is None:
        raise NotFoundError(f"{path}: the output has no receipt", "nothing to compare with: score it again")
    with translated(path):
        data = storage.disk.read(path)
    try:
        return OutputReceipt.model_validate_json(storage.unseal(data))
    except ValueError as error:
        raise DataError(f"{path}: is damaged", "score it again: --overwrite") from error


def _ids(found: Target, receipt: OutputReceipt) -> list[str]:
    there = target.published_plan_id(found)
    if there == receipt.plan_id:
        return []
    return [f"plan id: the output carries {there[:12] or 'none'}, the receipt {receipt.plan_id[:12]}"]


# -- bytes ------------------------------------------------------------------------------------


def _bytes(found: Target, receipt: OutputReceipt) -> Iterator[str]:
    groups = iter(receipt.row_groups)
    if not found.dataset:
        yield from _file_bytes(found.path, list(groups), receipt.footer_sha256)
        return
    try:
        parts = target.manifest(found).parts
    except BatchserveError as error:
        yield error.message
        return
    for part in parts:
        mine = _taken(groups, part.rows)
        path = found.path / part.name
        if storage.disk.size_bytes(path) != part.size_bytes:
            yield f"{path}: is not there or has another size"
        elif storage.file_sha256(path) != part.sha256:
            yield from [*_file_bytes(path, mine, None)] or [f"{path}: other bytes outside its row groups"]
    known = {part.name for part in parts}
    yield from (f"{found.path / name}: is not in the manifest" for name in _files(found) if name not in known)


def _taken(groups: Iterator[RowGroup], rows: int) -> list[RowGroup]:
    """Take the next row groups that together have `rows` rows."""
    mine: list[RowGroup] = []
    while sum(group.rows for group in mine) < rows and (group := next(groups, None)):
        mine.append(group)
    return mine


def _files(found: Target) -> list[str]:
    return [name for name in storage.disk.names(found.path) if name.endswith(".parquet")]


def _file_bytes(path: Path, groups: Sequence[RowGroup], footer_sha256: str | None) -> Iterator[str]:
    """Compare a file with the digests of its row groups, one after the other, and of the rest."""
    with translated(path), path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            yield f"{path}: does not start as a Parquet file"
        offset = len(_MAGIC)
        for i, group in enumerate(groups):
            if storage.range_sha256(file, offset, offset + group.size_bytes) != group.sha256:
                yield f"{path}: row group {i} has other bytes"
            offset += group.size_bytes
        if footer_sha256 and storage.range_sha256(file, offset, path.stat().st_size) != footer_sha256:
            yield f"{path}: the footer has other bytes"


# -- counts -----------------------------------------------------------------------------------


def _counts(found: Target, receipt: OutputReceipt) -> Iterator[str]:
    scored = [part for run in receipt.runs for part in run.scored]
    if receipt.rows_in != receipt.rows_out + receipt.rows_rejected:
        yield "rows: those read are not those written and rejected"
    if receipt.rows_in != sum(part.rows_in for part in scored):
        yield "rows: those read are not those of the partitions"
    if not receipt.rows_out == sum(p.rows_out for p in scored) == sum(g.rows for g in receipt.row_groups):
        yield "rows: those written are not those of the partitions and row groups"
    try:
        rows = sum(target.metadata(path).num_rows for path in _paths(found))
    except (OSError, ValueError, BatchserveError) as error:
        yield f"{found.path}: cannot be read ({error})"
        return
    if rows != receipt.rows_out:
        yield f"rows: the output has {rows:,}, the receipt says {receipt.rows_out:,}"


def _paths(found: Target) -> list[Path]:
    if not found.dataset:
        return [found.path]
    return [found.path / part.name for part in target.manifest(found).parts]


def _rejects(found: Target, receipt: OutputReceipt) -> list[str]:
    kept = receipt.rejects
    if kept is None:
        return (
            [f"{found.rejects}: is there, but no row was rejected"] if target.rejects_plan_id(found) else []
        )
    path = Path(kept.name) if "/" in kept.name else found.rejects
    if storage.disk.size_bytes(path) is None:
        return [f"{path}: is not there, and has {kept.rows:,} rejects"]
    if storage.file_sha256(path) != kept.sha256:
        return [f"{path}: has other bytes"]
    return []


# -- rows scored again ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    """One micro-batch of one partition, and where its rows are in the output."""

    run: Run
    partition: Partition
    first: int
    """Rows of the partition before the micro-batch."""
    rows: int
    row: int
    """Rows of the output before it."""
    refused: tuple[int, ...]
    """Rows of the partition that the model refused."""


def _score_again(found: Target, receipt: OutputReceipt, moved: Mapping[str, str], verdict: Verdict) -> None:
    samples = _samples(receipt)
    usable = [sample for sample in samples if all(map(_unchanged, _sources(sample)))]
    if len(usable) < len(samples):
        some = "some of the inputs are" if usable else "the inputs are"
        verdict.skipped.append(f"rows were not all scored again: {some} gone or changed")
    try:
        for sample in usable:
            verdict.differences += _compared(found, sample, moved)
            verdict.rows_scored += sample.rows
        verdict.partitions_scored = len({(id(s.run), s.partition.index) for s in usable})
    except BatchserveError as error:
        if moved:  # named by hand: it has to fit
            raise
        verdict.skipped.append(f"rows were not all scored again: {error.message}")


def _samples(receipt: OutputReceipt) -> list[_Sample]:
    """Choose micro-batches: of the first and the last partition and of others, by the plan id."""
    chance = random.Random(receipt.plan_id)  # noqa: S311  repeatable on purpose
    every = list(_candidates(receipt, chance))
    middle = every[1:-1]
    chance.shuffle(middle)
    chosen = every[:1] + every[1:][-1:]
    while middle and (len(chosen) < PARTITIONS or sum(s.rows for s in chosen) < ROWS):
        chosen.append(middle.pop())
    return chosen


def _candidates(receipt: OutputReceipt, chance: random.Random) -> Iterator[_Sample]:
    """Give micro-batches of every partition that has rows in the output: one, or more of few."""
    filled = sum(bool(scored.rows_out) for run in receipt.runs for scored in run.scored)
    row = 0
    for run in receipt.runs:
        size = run.plan.recipe.batch_rows
        each = max(1, -(-PARTITIONS // max(1, filled)), -(-ROWS // (size * max(1, filled))))
        for partition, scored in zip(run.plan.partitions, run.scored, strict=True):
            starts = range(0, scored.rows_out, size)
            for first in sorted(chance.sample(starts, min(each, len(starts)))):
                rows = min(size, scored.rows_out - first)
                part = _exact(partition, scored.extents)
                yield _Sample(run, part, first, rows, row + first, scored.refused)
            row += scored.rows_out


def _exact(partition: Partition, extents: Sequence[tuple[int, int]]) -> Partition:
    starts = [start for start, _ in extents]
    slices = [
        replace(part, start=start, exact=True) for part, start in zip(partition.slices, starts, strict=False)
    ]
    slices += partition.slices[len(slices) :]  # a job with --limit stops before their ends
    return replace(partition, slices=tuple(slices))


def _sources(sample: _Sample) -> list[Source]:
    paths = {part.path for part in sample.partition.slices}
    return [source for source in sample.run.plan.sources if source.path in paths]


def _unchanged(source: Source) -> bool:
    try:
        status = Path(source.path).stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (source.size_bytes, source.mtime_ns)


def _compared(found: Target, sample: _Sample, moved: Mapping[str, str]) -> list[str]:
    recipe = sample.run.plan.recipe
    scorers = tuple(each.moved(_found_again(each, moved)) for each in recipe.scorers)
    recipe = recipe.model_copy(update={"scorers": scorers})
    again = _scored(sample, recipe)
    there = _read(found, sample.row, sample.rows)
    return [
        f"column {name}: rows {sample.row:,} to {sample.row + sample.rows:,} are not what the model gives"
        for name in again.schema.names
        if not same(there.column(name).combine_chunks(), again.column(name).combine_chunks())
    ]


def _found_again(scorer: Scorer, moved: Mapping[str, str]) -> str:
    """Return where a model is now."""
    if scorer.name not in moved:
        return scorer.model.path
    name = moved[scorer.name]
    return identify(name, sha256=scorer.model.sha256 if is_reference(name) else None).path


def _scored(sample: _Sample, recipe: Recipe) -> pa.Table:
    """Read the partition up to the micro-batch and run the model on that."""
    sessions = scoring.runs_of(recipe)
    tables, before = [recipe.schema_.empty_table()], 0
    for rows in _accepted(sample, recipe):
        first, last = max(0, sample.first - before), min(len(rows), sample.first + sample.rows - before)
        if first < last:
            piece = rows.slice(first, last)
            columns = batches.predicted(sessions, recipe, piece.encoded, by_codes=False)
            arrays: list[Any] = [*piece.kept.columns, *columns]
            tables.append(pa.Table.from_arrays(arrays, schema=recipe.schema_))
        before += len(rows)
        if before >= sample.first + sample.rows:
            break
    return pa.concat_tables(tables)


def _accepted(sample: _Sample, recipe: Recipe) -> Iterator[Rows]:
    """Read the rows of the partition that the model did not refuse."""
    refused = np.array(sample.refused, np.int64)
    position = 0
    for rows in aligned(scoring.bound(sample.partition, recipe, Tally()), recipe.batch_rows):
        here = refused[(refused >= position) & (refused < position + len(rows))] - position
        good = np.ones(len(rows), dtype=bool)
        good[here] = False
        position += len(rows)
        yield rows.take(good) if here.size else rows


def _read(found: Target, row: int, rows: int) -> pa.Table:
    """Read rows of the output, from the row groups that hold them."""
    tables = []
    for path in _paths(found):
        with translated(path), pq.ParquetFile(path) as file:
            for i in range(file.num_row_groups):
                size = file.metadata.row_group(i).num_rows
                if row < size and rows:
                    tables.append(file.read_row_group(i, use_threads=False).slice(row, rows))
                    rows -= tables[-1].num_rows
                row = max(0, row - size)
    return pa.concat_tables(tables)


def same(left: pa.Array, right: pa.Array) -> bool:
    """Whether two arrays are equal to the bit: a NaN equals itself, and 0.0 is not -0.0.

    Example:
        >>> same(pa.array([float("nan"), None]), pa.array([float("nan"), None]))
        True
    """
    if left.type != right.type or len(left) != len(right) or not left.is_valid().equals(right.is_valid()):
        return False
    if pa.types.is_floating(left.type):
        whole = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[left.type.bit_width]
        return bool(left.drop_null().view(whole).equals(right.drop_null().view(whole)))
    if pa.types.is_struct(left.type):
        return all(map(same, left.flatten(), right.flatten()))
    if isinstance(left, pa.ExtensionArray):
        return same(left.storage, right.storage)
    if pa.types.is_list(left.type) or pa.types.is_fixed_size_list(left.type):
        lengths = left.value_lengths().equals(right.value_lengths())
        return lengths and same(left.flatten(), right.flatten())
    return bool(left.equals(right))
