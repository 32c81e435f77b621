"""How far a model's outputs are from those of what it was made of, and what of that is allowed. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from batchserve.model import Tensor

TOLERANCE = 1e-5
"""Of the output's spread: what a model in float32 keeps to, and a wrong branch of a tree does not."""
RECORD_KEY = "batchserve.parity"
"""Key of the model metadata that holds the record of the gate."""


class Gap(BaseModel, frozen=True):
    """How one output differs."""

    output: str
    rows: int
    largest_absolute: float = 0.0
    largest_relative: float = 0.0
    """As a share of the spread; of a row that was added, of its distance from the middle if that is more."""
    spread: float = 0.0
    """From the least to the most that the source gives for the sample, or of its widest column."""
    tolerance: float = 0.0
    flips: int = 0
    """Rows with another label."""
    flips_at_ties: int = 0
    """Such rows whose two highest scores are one float32: allowed."""
    sample_relative: float = 0.0
    """What `largest_relative` is in the sample's own rows."""
    sample_flips: int = 0
    problem: str = ""
    """Why the two cannot be compared at all."""

    @property
    def passes(self) -> bool:
        """Whether the difference is allowed."""
        few = self.flips <= self.tolerance * self.rows
        return not self.problem and few and self.largest_relative <= self.tolerance

    @property
    def badness(self) -> tuple[bool, int, float]:
        """What sorts gaps: the worse one is more."""
        return bool(self.problem), self.flips, self.largest_relative

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        if not self.spread:
            ties = f", {self.flips_at_ties:,} more at ties" if self.flips_at_ties else ""
            allowed = f", allowed {self.tolerance:g} of all" if self.tolerance else ""
            return f"{self.flips:,} of {self.rows:,} labels differ{ties}{allowed}"
        share = f"{self.largest_relative:.2g} of the spread {self.spread:.4g}, allowed {self.tolerance:g}"
        return f"largest difference {self.largest_absolute:.2g} in {self.rows:,} rows ({share})"

    @property
    def in_sample(self) -> str:
        """How the sample's own rows differ, in words: others are made to be hard."""
        if self.problem:
            return self.problem
        if not self.spread:
            return f"{self.sample_flips:,} labels differ"
        return f"{self.sample_relative:.2g} of the spread"


class Reduction(BaseModel, frozen=True):
    """Fewer digits than the source computes with, and what they gain."""

    precision: str
    speed_up: float
    """Times as fast as the same graph before, on the machine that exported it."""
    batch_rows: int
    """Of the runs that were measured."""

    def __str__(self) -> str:
        runs = f"runs of {self.batch_rows:,} rows, measured where it was exported"
        return f"{self.precision}, {self.speed_up:.2f} times as fast ({runs})"


class Parity(BaseModel, frozen=True):
    """What the gate found."""

    made_with: str
    computes_in: str
    sample_rows: int
    added_rows: dict[str, int]
    """Rows beside the sample's, by why they were added."""
    not_scored: int
    """Rows that `score` would reject: they have no prediction to compare."""
    refused: dict[str, tuple[str, ...]]
    """Columns in which the source itself does not take an added value, by why that was added."""
    takes_nan: bool
    gaps: tuple[Gap, ...]
    drift_accepted: bool = False
    reduction: Reduction | None = None
    remark: str = ""
    """In which rows the model may differ though it passes."""
    near_rows: int = 0
    """Rows nearer to jumps of the source's scores than float32 can tell."""
    near_differ: int = 0
    """Such rows that come out across the jump: no graph is refused for them, but others go first."""

    @property
    def passes(self) -> bool:
        """Whether every output is as near as it has to be."""
        return bool(self.gaps) and all(gap.passes for gap in self.gaps)

    @property
    def badness(self) -> tuple[bool, int, float]:
        """What sorts attempts: the worse one is more."""
        return max(gap.badness for gap in self.gaps)

    def facts(self) -> dict[str, str]:
        """Return the record in words."""
        added = ", ".join(f"{trait} {rows:,}" for trait, rows in self.added_rows.items())
        facts = {
            "made with": self.made_with,
            "computes in": self.computes_in,
            "compared": f"{self.sample_rows:,} rows of the sample, and added ones: {added or 'none'}",
        }
        facts |= {"precision": str(self.reduction)} if self.reduction else {}
        for gap in self.gaps:
            facts[f"parity {gap.output}"] = str(gap)
            if self.reduction:
                facts[f"in the sample {gap.output}"] = gap.in_sample
        if self.near_differ:
            facts["beside jumps"] = (
                f"{self.near_differ:,} of {self.near_rows:,} rows within 1e-8 of a jump come out across it"
            )
        facts |= {"remark": self.remark} if self.remark else {}
        facts["nulls"] = "NaN, as in the source (batchserve.on_null)" if self.takes_nan else "are rejected"
        if self.not_scored:
            facts["not compared"] = (
                f"{self.not_scored:,} rows: score rejects them (a null in a column of texts)"
            )
        for trait, columns in self.refused.items():
            facts[f"source refuses {trait}"] = f"in {', '.join(columns)}: there it cannot be compared"
        return facts | ({"drift": "accepted: --accept-drift was said"} if self.drift_accepted else {})


@dataclass(frozen=True)
class Outputs:
    """What one of the two gives for the sample's rows and then for the added ones.

    Attributes:
        values: By output, [rows, ...].
        sample_rows: How many of the rows are the sample's.
    """

    values: Mapping[str, Tensor]
    sample_rows: int

    def until(self, stop: int) -> "Outputs":
        """Return the first rows alone."""
        return Outputs(
            {name: np.asarray(each)[:stop] for name, each in self.values.items()}, self.sample_rows
        )


def compared(
    source: Outputs, model: Outputs, tolerances: Mapping[str, float]
) -> dict[str, tuple[Gap, Tensor]]:
    """Compare all outputs of a model with what its source gives for the same rows.

    Args:
        source: What it was made of.
        model: What it gives; has no output that the source lacks.
        tolerances: By output; under an empty name that of all others.

    Returns:
        Each output's gap, and how bad each row is [rows]: 0 where the two agree.
    """
    ties = _ties(source)
    return {
        name: _gap(name, source, np.asarray(values), tolerances, ties)
        for name, values in model.values.items()
    }


def _gap(
    name: str, source: Outputs, values: Tensor, tolerances: Mapping[str, float], ties: NDArray[np.bool_]
) -> tuple[Gap, Tensor]:
    expected = np.asarray(source.values[name])
    rows = len(expected)
    if _width(expected) != _width(values):
        problem = f"the source gives {_width(expected)} values per row, the graph {_width(values)}"
        return Gap(output=name, rows=rows, problem=problem), np.ones(rows)
    flat = expected.reshape(rows, -1), values.reshape(rows, -1)
    if name == "label" or expected.dtype.kind in "OUSTiub" or values.dtype.kind in "OUST":
        return _labels(name, *flat, ties, source.sample_rows, tolerances.get(name, 0.0))
    numbers = flat[0].astype(np.float64), flat[1].astype(np.float64)
    tolerance = tolerances.get(name, tolerances.get("", TOLERANCE))
    return _numbers(name, *numbers, source.sample_rows, tolerance)


def _width(values: Tensor) -> int:
    return int(np.prod(values.shape[1:], dtype=int))


def _labels(
    name: str, expected: Tensor, values: Tensor, ties: NDArray[np.bool_], sample_rows: int, tolerance: float
) -> tuple[Gap, Tensor]:
    differ = np.any(_comparable(expected, values) != _comparable(values, expected), axis=1)
    wrong = differ & ~ties
    gap = Gap(
        output=name, rows=len(expected), flips=int(wrong.sum()), flips_at_ties=int((differ & ties).sum()),
        sample_flips=int(wrong[:sample_rows].sum()), tolerance=tolerance,
    )  # fmt: skip
    return gap, wrong.astype(float)


def _comparable(labels: Tensor, others: Tensor) -> Tensor:
    """Return labels as numbers if both are: a converter makes integers of 1.0 and True. Else as texts."""
    texts = any(each.dtype.kind in "OUST" for each in (labels, others))
    return labels.astype(str) if texts else labels.astype(np.float64)


def _numbers(
    name: str, expected: Tensor, values: Tensor, sample_rows: int, tolerance: float
) -> tuple[Gap, Tensor]:
    middle, spread = _spread(expected[:sample_rows])
    with np.errstate(invalid="ignore", over="ignore"):
        same = (expected == values) | (np.isnan(expected) & np.isnan(values))
        away = np.where(same, 0.0, np.abs(expected - values))
        away[~np.isfinite(away)] = np.inf
        far = np.where(np.isfinite(expected), np.abs(expected - middle), 0.0)
        share = away / np.maximum(spread, far)
    worst = share.max(axis=1, initial=0.0)
    gap = Gap(
        output=name, rows=len(expected), largest_absolute=_largest(away), largest_relative=_largest(share),
        spread=float(spread.max()), tolerance=tolerance, sample_relative=_largest(share[:sample_rows]),
    )  # fmt: skip
    return gap, np.where(worst > tolerance, worst, 0.0)


def _largest(values: Tensor) -> float:
    return float(values.max(initial=0.0))


def _spread(expected: Tensor) -> tuple[Tensor, Tensor]:
    """Return the middle of each column and its spread; scores from 0 to 1 share one.

    A column that is everywhere the same has its size for a spread: there is no other scale to hold it to.
    """
    finite = np.where(np.isfinite(expected), expected, np.nan)
    if np.isnan(finite).all():
        return np.zeros(expected.shape[1]), np.ones(expected.shape[1])
    known = np.where(np.isnan(finite).all(axis=0), 0.0, finite)
    least, most = np.nanmin(known, axis=0), np.nanmax(known, axis=0)
    if least.min() >= 0 and most.max() <= 1:
        least, most = np.full_like(least, least.min()), np.full_like(most, most.max())
    spread = np.where(most > least, most - least, np.maximum(np.abs(most), _TINY))
    return (least + most) / 2, spread


_TINY = float(np.finfo(np.float32).tiny)


def _ties(source: Outputs) -> NDArray[np.bool_]:
    """Return the rows whose two highest scores are the same float32: either label is right."""
    rows = len(next(iter(source.values.values())))
    scores = source.values.get("probabilities")
    if scores is None or scores.ndim != 2 or scores.shape[1] < 2:  # noqa: PLR2004  [rows, classes]
        return np.zeros(rows, dtype=bool)
    top = np.sort(scores.astype(np.float32), axis=1)[:, -2:]
    return np.asarray(top[:, 0] == top[:, 1])


def worst_rows(found: Mapping[str, tuple[Gap, Tensor]], most: int = 3) -> list[int]:
    """Return the rows in which outputs differ most, the worst first; those that agree are not among them."""
    total: Any = sum((np.minimum(bad, _MOST) for _, bad in found.values()), np.zeros(1))
    order = np.argsort(-total, kind="stable")[:most]
    return [int(row) for row in order if total[row] > 0]


_MOST = 1e300


def stored(metadata: Mapping[str, str]) -> Parity | None:
    """Return the record of the gate in a model's metadata, if there is one that can be read."""
    try:
        return Parity.model_validate_json(metadata.get(RECORD_KEY, ""))
    except ValueError:
        return None


def told(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a model's metadata in words: the record of the gate as facts, the rest as it is."""
    record = stored(metadata)
    shown = {key: _cut(text) for key, text in metadata.items() if record is None or key != RECORD_KEY}
    return shown | (record.facts() if record else {})


_SHOWN_CHARACTERS = 400


def _cut(text: str) -> str:
    """Return a text on one line, the end of a long one left out: trainers put whole configurations there."""
    line = " ".join(text.split())
    if len(line) <= _SHOWN_CHARACTERS:
        return line
    return f"{line[:_SHOWN_CHARACTERS]}... ({len(line):,} characters)"


def by_output(tolerances: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Read tolerances as they are said, `[OUTPUT=]X`.

    Raises:
        ValueError: One is no number from 0 on.

    Example:
        >>> dict(by_output(["1e-4", "label=0"]))
        {'': 0.0001, 'label': 0.0}
    """
    for text in tolerances:
        name, _, number = text.rpartition("=")
        value = float(number)
        if not 0 <= value < float("inf"):
            raise ValueError(text)
        yield name, value
