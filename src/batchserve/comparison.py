"""Two models on the same rows, in one scan: how often their outputs differ, how far, and where most."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchserve import differences, scoring
from batchserve import job as jobs
from batchserve.config import Job
from batchserve.differences import Pair, Sums
from batchserve.errors import ModelError, UsageError, told
from batchserve.inputs import OPEN_END, Partition, Slice, cutting
from batchserve.outputs import Amendment
from batchserve.planning import Plan
from batchserve.report import shortest
from batchserve.rows import Rows
from batchserve.scorers import Recipe, Scorer
from batchserve.tally import Tally

TOP = 5
"""Rows that differ most, as many are kept for every output."""
NAMES = ("a", "b")
"""What the two models are called."""


@dataclass(frozen=True)
class Case:
    """A row that differs, where it is, and what the models were given.

    Attributes:
        difference: |b - a|, the largest of a row of several values; 1 for labels; infinite where only
            one of the two is a number.
        record: Number of the record in its file; 1 is the first after the header.
        inputs: The columns that the models read.
    """

    difference: float
    file: str
    record: int
    a: Any
    b: Any
    inputs: dict[str, Any]


@dataclass
class Compared:
    """What is known of one pair of outputs."""

    output: str
    kind: str
    sums: Sums = field(default_factory=Sums)
    most: list[Case] = field(default_factory=list)
    """The rows that differ most, the first of them before later ones that differ as much."""

    def facts(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        sums = self.sums
        known: dict[str, Any] = {
            "output": self.output, "kind": self.kind, "rows": sums.rows, "differ": sums.differ,
        }  # fmt: skip
        if self.kind != "labels":
            known |= {
                "largest_absolute": sums.largest_absolute, "largest_relative": sums.largest_relative,
                "mean_difference": sums.mean, "mean_absolute": sums.mean_absolute,
                "nonfinite": sums.nonfinite,
            }  # fmt: skip
        if self.kind != "numbers":
            flips = [{"a": a, "b": b, "rows": rows} for (a, b), rows in sums.flips.most_common()]
            known |= {"flips": sums.flips.total() + sums.other_flips, "flipped": flips}
        return known | {"most": [vars(case) for case in self.most]}


@dataclass(frozen=True, repr=False)
class Comparison:
    """What two models differ in, over all rows.

    Attributes:
        pairs: For each output that both have.
        not_compared: Other outputs, with the reason.
        rejected_by: Rows that one of the two cannot score, by class and column.
    """

    models: dict[str, str]
    sha256: dict[str, str]
    tolerance: float
    rows_in: int
    rejected_by: dict[str, int]
    pairs: tuple[Compared, ...]
    not_compared: dict[str, str]

    @property
    def rows(self) -> int:
        """Rows that were compared."""
        return self.rows_in - sum(self.rejected_by.values())

    @property
    def differ(self) -> int:
        """The most rows that differ in one output."""
        return max(pair.sums.differ for pair in self.pairs)

    def facts(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        return {
            "models": {name: {"path": self.models[name], "sha256": self.sha256[name]} for name in NAMES},
            "tolerance": self.tolerance, "rows_in": self.rows_in, "rows_compared": self.rows,
            "rows_rejected": sum(self.rejected_by.values()), "rejected_by": self.rejected_by,
            "outputs": [_json(pair.facts()) for pair in self.pairs], "not_compared": self.not_compared,
        }  # fmt: skip

    def tables(self) -> dict[str, dict[str, str]]:
        """Return everything in words: a table of the whole, and one for every output."""
        rejects = ", ".join(f"{name} {rows:,}" for name, rows in self.rejected_by.items())
        facts = {name: f"{self.models[name]} (sha256 {self.sha256[name][:12]})" for name in NAMES}
        facts["rows"] = f"{self.rows:,} compared of {self.rows_in:,} read"
        facts |= {"rejected": rejects} if rejects else {}
        facts |= {f"not compared {name}": reason for name, reason in self.not_compared.items()}
        return {"compare": facts} | {pair.output: _words(pair, self.tolerance) for pair in self.pairs}

    def __str__(self) -> str:
        told = ", ".join(f"{pair.output}: {pair.sums.differ:,} differ" for pair in self.pairs)
        return f"{self.rows:,} rows compared; {told}"

    __repr__ = __str__


@told()
def compared(job: Job, given: Sequence[str], tolerance: float = 0.0, top: int = TOP) -> Comparison:
    """Run two models over all rows and compare their outputs of one name and kind, or the only one of each.

    Rows stream: what is kept are sums, counts and the rows that differ most. The result is the same with
    any number of workers.

    Args:
        job: What the user wants; its models are called `a` and `b`.
        given: Input paths, globs and folders.
        tolerance: Numbers differ if |b - a| is more than this.
        top: How many rows that differ most are kept for every output.

    Raises:
        UsageError: The tolerance is no number from 0 on.
        ModelError: The models have no output that can be compared.
        BatchserveError: As when a job is planned and scored.
    """
    if not tolerance >= 0 or top < 0:
        raise UsageError(f"--tolerance {tolerance}, --top {top}: may not be less than 0", "leave it out")
    amended: dict[str, str] = {}
    while True:
        typed = job.model_copy(update={"type": amended | job.type, "keep": ("none",)})
        made, _ = jobs.plan(typed, given, None)
        pairs, alone = _pairs(made.recipe)
        shown = made.recipe.model_copy(update={"keep": made.recipe.columns})
        scan = partial(_scanned, shown, pairs, tolerance, top, job.stall_timeout)
        with ThreadPoolExecutor(job.workers_here) as pool:
            found = sum(pool.map(scan, _partitions(made)), _Found(pairs, top))
        if not found.amendments:
            return _comparison(made, found, alone, tolerance)
        amended |= {each.column: each.becomes for each in found.amendments}


def _pairs(recipe: Recipe) -> tuple[list[Pair], dict[str, str]]:
    """Pair the outputs of the two models; a column is numbered among those of both."""
    first, second = recipe.scorers
    types = [_types(recipe, scorer) for scorer in (first, second)]
    if len(types[0]) == len(types[1]) == 1 and types[0].keys() != types[1].keys():
        types = _under_one_name(*types)
    kinds, alone = differences.paired(*types)
    if not kinds:
        told = "; ".join(f"{name} {reason}" for name, reason in alone.items())
        hint = "export them with outputs of the same names and types, or choose some: --outputs NAMES"
        raise ModelError(f"the models have no output that can be compared: {told}", hint)
    names = [list(each) for each in types]
    pairs = [
        Pair(name, kind, names[0].index(name), len(names[0]) + names[1].index(name))
        for name, kind in kinds.items()
    ]
    return pairs, alone


def _under_one_name(
    first: dict[str, pa.DataType], second: dict[str, pa.DataType]
) -> list[dict[str, pa.DataType]]:
    """Give the only outputs of both models one name: nothing else could be meant."""
    name = " and ".join((*first, *second))
    return [{name: kind} for kind in (*first.values(), *second.values())]


def _types(recipe: Recipe, scorer: Scorer) -> dict[str, pa.DataType]:
    return {each.output: recipe.schema_.field(each.column).type for each in scorer.predictions}


def _partitions(made: Plan) -> list[Partition]:
    """Return what to scan: exact starts, records numbered; a packed file is one, to be unpacked once."""
    if not any(source.codec for source in made.sources):
        return cutting.settled(made.partitions, made.recipe.reading.dialect)
    parts: dict[str, Slice] = {}
    for part in (part for each in made.partitions for part in each.slices):
        first = parts.setdefault(part.path, part)
        parts[part.path] = replace(first, stop=OPEN_END) if first.codec else first
    if made.recipe.limit:
        return list(made.partitions)
    return [Partition(index=i, slices=(part,)) for i, part in enumerate(parts.values())]


# -- one partition ----------------------------------------------------------------------------


class _Found:
    """What was found in some partitions; `+` puts that of the next one to it."""

    def __init__(self, pairs: Sequence[Pair], top: int) -> None:
        self.pairs = [Compared(pair.output, pair.kind) for pair in pairs]
        self.rows_in = 0
        self.rejected_by: Counter[str] = Counter()
        self.amendments: list[Amendment] = []
        self._top = top

    def __add__(self, other: "_Found") -> "_Found":
        for mine, theirs in zip(self.pairs, other.pairs, strict=True):
            mine.sums += theirs.sums
            mine.most = self._largest([*mine.most, *theirs.most])
        self.rows_in += other.rows_in
        self.rejected_by += other.rejected_by
        self.amendments += other.amendments
        return self

    def _largest(self, cases: Sequence[Case]) -> list[Case]:
        return sorted(cases, key=lambda case: -case.difference)[: self._top]

    def add(self, pair: Compared, sums: Sums, apart: NDArray[Any], case: "_Cases") -> None:
        """Count rows of one pair; build cases of those alone that differ more than what is kept."""
        pair.sums += sums
        least = pair.most[-1].difference if len(pair.most) == self._top and pair.most else 0.0
        rows = np.flatnonzero(apart > least)
        chosen = rows[np.argsort(-apart[rows], kind="stable")][: self._top]
        pair.most = self._largest([*pair.most, *(case.of(int(row), float(apart[row])) for row in chosen)])


@dataclass(frozen=True)
class _Cases:
    """Builds the cases of some rows."""

    partition: Partition
    rows: Rows
    first: pa.Array
    second: pa.Array

    def of(self, row: int, difference: float) -> Case:
        stretch, at = self.rows.origin(row)
        before = self.partition.slices[stretch.slice].first_record
        return Case(
            difference, stretch.block.path, before + stretch.record_of(at) + 1, _plain(self.first, row),
            _plain(self.second, row), self.rows.kept.slice(row, 1).to_pylist()[0],
        )  # fmt: skip


def _plain(column: pa.Array, row: int) -> Any:
    storage = column.storage if isinstance(column, pa.ExtensionArray) else column
    return storage[row].as_py()


def _scanned(
    recipe: Recipe, pairs: Sequence[Pair], tolerance: float, top: int, timeout_s: float, partition: Partition
) -> _Found:
    found, tally = _Found(pairs, top), Tally()
    runs = scoring.runs_of(recipe, timeout_s)
    for rows, columns in scoring.scored(partition, recipe, runs, tally):
        for pair, kept in zip(pairs, found.pairs, strict=True):
            first, second = columns[pair.first], columns[pair.second]
            sums, apart = differences.between(pair.kind, first, second, tolerance)
            found.add(kept, sums, apart, _Cases(partition, rows, first, second))
    facts = tally.facts(partition)
    found.rows_in, found.amendments = facts.rows_in, list(facts.amendments)
    found.rejected_by = Counter(facts.rejected_by)
    return found


# -- told -------------------------------------------------------------------------------------

_FLIPS_SHOWN, _VALUE_CHARACTERS = 10, 60


def _comparison(made: Plan, found: _Found, alone: dict[str, str], tolerance: float) -> Comparison:
    scorers = made.recipe.scorers
    return Comparison(
        models={scorer.name: shortest(scorer.model.path) for scorer in scorers},
        sha256=made.recipe.digests, tolerance=tolerance, rows_in=found.rows_in,
        rejected_by=dict(sorted(found.rejected_by.items())), pairs=tuple(found.pairs), not_compared=alone,
    )  # fmt: skip


def _json(value: Any) -> Any:
    """Return a value as JSON has it: what it has no form for, NaN and infinity too, as a text."""
    if isinstance(value, dict):
        return {name: _json(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_json(each) for each in value]
    known = value is None or isinstance(value, (str, int)) or (isinstance(value, float) and isfinite(value))
    return value if known else str(value)


def _words(pair: Compared, tolerance: float) -> dict[str, str]:
    """Return what is known of one output, in words."""
    sums = pair.sums
    by = f" by more than {tolerance:g}" if tolerance and pair.kind != "labels" else ""
    facts = {"differ": f"{sums.differ:,} of {sums.rows:,} rows ({sums.differ / max(1, sums.rows):.2%}){by}"}
    if pair.kind != "labels":
        facts["largest"] = f"{sums.largest_absolute:g} absolute, {sums.largest_relative:g} relative"
        facts["mean"] = f"{sums.mean:g} of b - a, {sums.mean_absolute:g} of |b - a|"
    if sums.nonfinite:
        facts["not finite"] = f"{sums.nonfinite:,} values that are infinite or NaN in one only"
    if sums.flips:
        facts["flips"] = _flips(sums)
    return facts | {f"most {i}": _case(case) for i, case in enumerate(pair.most, 1)}


def _flips(sums: Sums) -> str:
    shown = [f"{a!r} to {b!r} {rows:,}" for (a, b), rows in sums.flips.most_common(_FLIPS_SHOWN)]
    more = sums.flips.total() + sums.other_flips - sum(n for _, n in sums.flips.most_common(_FLIPS_SHOWN))
    return ", ".join([*shown, *([f"others {more:,}"] if more else [])])


def _case(case: Case) -> str:
    given = ", ".join(f"{name} {_short(value)}" for name, value in case.inputs.items())
    where = f"{shortest(case.file)} record {case.record:,}"
    return f"{case.difference:g} in {where}: a {_short(case.a)}, b {_short(case.b)}; {given}"


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}..."
