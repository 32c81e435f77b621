"""The parity gate: source and graph predict the same rows, the graph just as a job would run it."""

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchserve import jumps, parity, probes, reducing, rehearsal, simplifying, sources, surgery, trial
from batchserve.errors import BatchserveError, ModelError, UsageError
from batchserve.jumps import Jumps
from batchserve.model import FEATURES_KEY, Tensor, runtime_version, session_for
from batchserve.modelfile import identify
from batchserve.parity import Outputs, Parity, Reduction
from batchserve.probes import Probe
from batchserve.reducing import Precision
from batchserve.scorers import Recipe
from batchserve.shortcut import same_bits
from batchserve.sources import Candidate, Source


@dataclass(frozen=True)
class Verdict:
    """One graph, and what the gate found of it.

    Attributes:
        shown: The rows that differ most, in words.
    """

    graph: Any
    candidate: Candidate
    parity: Parity
    shapes: Mapping[str, tuple[int, ...]]
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """A source, and rows such as will be scored.

    Attributes:
        rows: Of the source's columns.
    """

    source: Source
    rows: pa.RecordBatch

    @cached_property
    def jumps(self) -> Jumps:
        """Where its scores jump; the same for all its graphs. None are known if it refuses to tell."""
        try:
            return jumps.found(self.source.predict, self.rows)
        except Exception:  # noqa: BLE001  a model refuses a row as it likes
            return Jumps([], self.rows.slice(0, 0), known=False)


def judged(
    candidate: Candidate, sample: Sample, file: Path, tolerances: Mapping[str, float],
    precision: Precision | None = None,
) -> Verdict:  # fmt: skip
    """Convert a source in one way, and compare what the two predict.

    Args:
        candidate: The graph that is to predict as its source does.
        sample: The source, and what both predict.
        file: Where the graph may be written to be run.
        tolerances: By output; under an empty name that of all others.
        precision: What the graph is to multiply in, or None for what it does by itself.

    Raises:
        UsageError: The source cannot predict the sample, or the graph has nothing to reduce.
        DataError: No row of the sample can be scored.
        Exception: The graph cannot be made or run.
    """
    source, rows = sample.source, sample.rows
    graph = _comparable(candidate.make(), tuple(_predicted(source, rows.slice(0, 1))))
    recipe = _rehearsed(graph, candidate, rows, file)
    rows, left_out = rehearsal.scorable(rows, recipe)
    reduction = None
    if precision:
        graph, recipe, reduction = _reduced(graph, recipe, candidate, rows, file, precision)
    probed = [*probes.probes(rows, surgery.thresholds(graph)), *sample.jumps.probes]
    found, refused = _taken(source, probed, rows.schema)
    refused |= {} if sample.jumps.known else {"jump": tuple(rows.schema.names)}
    added, more = rehearsal.scorable(probes.joined(found, rows.schema), recipe)
    near, _ = rehearsal.scorable(sample.jumps.near if precision is None else rows.slice(0, 0), recipe)
    every = pa.concat_batches([rows, added, near])
    ours = rehearsal.scores(every, recipe)
    if not precision:  # of int8 the weights would become float32 again
        graph, recipe = _simplest(graph, recipe, candidate, every, ours, file)
    theirs = _predicted(source, every)
    outputs = Outputs(theirs, rows.num_rows), Outputs(ours, rows.num_rows)
    asked = rows.num_rows + added.num_rows
    gaps = parity.compared(outputs[0].until(asked), outputs[1].until(asked), tolerances)
    beside = parity.compared(*outputs, tolerances)
    counts = {trait: sum(each.rows.num_rows for each in group) for trait, group in probes.by_trait(found)}
    record = Parity(
        made_with=source.made_with, computes_in=_digits(candidate, precision),
        sample_rows=rows.num_rows, added_rows=counts, not_scored=left_out + more, refused=refused,
        gaps=tuple(gap for gap, _ in gaps.values()),
        takes_nan=_takes_nan(graph, refused, rows.schema) and all(gap.passes for gap, _ in gaps.values()),
        reduction=reduction, remark=candidate.remark, near_rows=near.num_rows,
        near_differ=int(np.any([bad[asked:] > 0 for _, bad in beside.values()], axis=0).sum()),
    )  # fmt: skip
    shapes = rehearsal.shapes(rows, recipe)
    shown = tuple(_told(row, every, *outputs) for row in parity.worst_rows(gaps))
    return Verdict(graph, candidate, record, shapes, shown)


def _simplest(
    graph: Any, recipe: Recipe, candidate: Candidate, rows: pa.RecordBatch, scores: Mapping[str, Tensor],
    file: Path,
) -> tuple[Any, Recipe]:  # fmt: skip
    """Return a graph of fewer nodes and what runs it, if it gives the same bits for all rows; else these."""
    found = simplifying.simplified(graph, file)
    if found is None:
        return graph, recipe
    again = _rehearsed(found, candidate, rows, file.with_suffix(".again.onnx"))
    given = rehearsal.scores(rows, again)
    same = all(same_bits(values, given[name]) for name, values in scores.items())
    return (found, again) if same else (graph, recipe)


def _digits(candidate: Candidate, precision: Precision | None) -> str:
    return f"{candidate.how}, matrix products in {precision}" if precision else candidate.how


def _reduced(
    graph: Any, wide: Recipe, candidate: Candidate, rows: pa.RecordBatch, file: Path, precision: Precision
) -> tuple[Any, Recipe, Reduction]:
    """Return the graph in fewer digits, what runs it, and what that gains."""
    given = rehearsal.tensors(rows, wide)
    attempt = partial(_attempted, graph, candidate, rows, file, given, precision)
    try:
        narrow, recipe = attempt(whole=False)
    except Exception:  # if the batch is not the first dimension of a product
        if precision == "float16":
            raise
        narrow, recipe = attempt(whole=True)
    gain = reducing.speed_up((wide, given), (recipe, given))
    return narrow, recipe, Reduction(precision=precision, speed_up=gain, batch_rows=recipe.batch_rows)


def _attempted(  # noqa: PLR0913  what `judged` has in hand
    graph: Any, candidate: Candidate, rows: pa.RecordBatch, file: Path, given: Mapping[str, Tensor],
    precision: Precision, *, whole: bool,
) -> tuple[Any, Recipe]:  # fmt: skip
    narrow = reducing.reduced(graph, file, given, precision, whole=whole)
    small = file.with_suffix(f".{precision}.onnx")
    _write(narrow, candidate, small)
    _check_opens(small, precision)
    return narrow, _rehearsed(narrow, candidate, rows, small)


def _check_opens(file: Path, precision: Precision) -> None:
    """Check in a fork that onnxruntime survives the graph: of some in float16 its optimiser dies.

    Raises:
        ModelError: It does not.
    """
    ended = trial.ended(partial(_opened, file))
    if ended is not None and ended < 0:
        name = signal.Signals(-ended).name
        raise ModelError(f"onnxruntime {runtime_version()} dies of the graph in {precision} ({name})")


def _opened(file: Path) -> int:
    try:
        session_for(identify(str(file)))
    except BatchserveError:  # told when it is opened here
        return 1
    return 0


def _comparable(converted: Any, known: Sequence[str]) -> Any:
    """Return the graph with those outputs that the source gives too.

    Raises:
        ModelError: There is none.
    """
    graph = surgery.with_outputs(converted, known)
    if not graph.graph.output:
        names = ", ".join(port.name for port in converted.graph.output)
        raise ModelError(f"the converter makes {names}, which the model itself does not predict")
    return graph


def _rehearsed(graph: Any, candidate: Candidate, rows: pa.RecordBatch, file: Path) -> Recipe:
    """Bind the graph to the sample's columns and prove that rows are independent, as a job would."""
    _write(graph, candidate, file)
    return rehearsal.rehearsed(file, rows, nan=_has_nan(graph))


def _write(graph: Any, candidate: Candidate, file: Path) -> None:
    file.write_bytes(surgery.as_bytes(surgery.finished(graph, {}, features(candidate))))


def features(candidate: Candidate) -> dict[str, str]:
    """Return the metadata that names the columns of a wide input, if there is one."""
    return {FEATURES_KEY: json.dumps(candidate.features)} if candidate.features else {}


def _has_nan(graph: Any) -> bool:
    """Whether every input of numbers has NaN for a null."""
    return all(port.type.tensor_type.elem_type in _WITH_NAN for port in graph.graph.input)


_WITH_NAN = {1, 8, 10, 11}
"""ONNX's float32, string, float16 and float64; of these strings have none, and nobody gives them one."""


def _takes_nan(graph: Any, refused: Mapping[str, Sequence[str]], schema: pa.Schema) -> bool:
    """Whether source and graph both take NaN in every column of numbers, of which there is one at least."""
    numbers = [name for name, kind in sources.kinds(schema).items() if kind != "text"]
    return bool(numbers) and "nan" not in refused and _has_nan(graph)


def _predicted(source: Source, rows: pa.RecordBatch) -> Mapping[str, Tensor]:
    try:
        return source.predict(rows)
    except Exception as error:  # a model raises what it likes
        message = f"the model itself cannot predict the sample ({sources.reason(error)})"
        raise UsageError(
            message, "give a sample with the columns and types that it was trained on"
        ) from error


def _taken(
    source: Source, found: Sequence[Probe], schema: pa.Schema
) -> tuple[list[Probe], dict[str, tuple[str, ...]]]:
    """Return the probes that the source takes, and the columns where it does not, by trait."""
    taken: list[Probe] = []
    refused: dict[str, tuple[str, ...]] = {}
    for trait, group in probes.by_trait(found):
        fine = list(_fine(source, group, schema))
        taken += fine
        if left := tuple(each.column for each in group if each not in fine):
            refused[trait] = left
    return taken, refused


def _fine(source: Source, group: Sequence[Probe], schema: pa.Schema) -> Iterator[Probe]:
    if _takes(source, probes.joined(group, schema)):
        yield from group
    else:
        yield from (each for each in group if _takes(source, each.rows))


def _takes(source: Source, rows: pa.RecordBatch) -> bool:
    try:
        source.predict(rows)
    except Exception:  # noqa: BLE001  a model refuses a row as it likes
        return False
    return True


def _told(row: int, rows: pa.RecordBatch, source: Outputs, model: Outputs) -> str:
    """Say what goes into a row, and what comes out of both."""
    given = ", ".join(
        f"{name}={value!r}" for name, value in list(rows.slice(row, 1).to_pylist()[0].items())[:12]
    )
    pairs = [(name, source.values[name][row], values[row]) for name, values in model.values.items()]
    out = "; ".join(f"{name} {_short(theirs)}, the graph {_short(ours)}" for name, theirs, ours in pairs)
    return f"{given}: the source gives {out}"


def _short(value: Any) -> str:
    return np.array2string(np.asarray(value), threshold=6, precision=8, separator=", ")
