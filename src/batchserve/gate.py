"""The parity gate: source and graph predict the same rows, the graph just as a job would run it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchserve import parity, probes, recipes, scoring, sources, surgery
from batchserve.config import Job
from batchserve.errors import DataError, ModelError, UsageError
from batchserve.inputs import Look
from batchserve.model import FEATURES_KEY, Tensor
from batchserve.parity import Outputs, Parity
from batchserve.probes import Probe
from batchserve.scorers import Recipe
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


def judged(
    source: Source, candidate: Candidate, rows: pa.RecordBatch, file: Path, tolerances: Mapping[str, float]
) -> Verdict:
    """Convert a source in one way, and compare what the two predict.

    Args:
        source: The trained model.
        candidate: The graph that is to predict the same.
        rows: The sample, of the model's columns.
        file: Where the graph may be written to be run.
        tolerances: By output; under an empty name that of all others.

    Raises:
        UsageError: The source cannot predict the sample.
        DataError: No row of the sample can be scored.
        Exception: The graph cannot be made or run.
    """
    graph = _comparable(candidate.make(), tuple(_predicted(source, rows.slice(0, 1))))
    recipe = _recipe(graph, candidate, rows, file)
    rows, left_out = _scorable(rows, recipe)
    found, refused = _taken(source, probes.probes(rows, surgery.thresholds(graph)), rows.schema)
    added, more = _scorable(probes.joined(found, rows.schema), recipe)
    every = pa.concat_batches([rows, added])
    ours = _scores(every, recipe)
    theirs = _predicted(source, every)
    outputs = Outputs(theirs, rows.num_rows), Outputs(ours, rows.num_rows)
    gaps = parity.compared(*outputs, tolerances)
    counts = {trait: sum(each.rows.num_rows for each in group) for trait, group in probes.by_trait(found)}
    record = Parity(
        made_with=source.made_with, computes_in=candidate.how, sample_rows=rows.num_rows, added_rows=counts,
        not_scored=left_out + more, refused=refused, gaps=tuple(gap for gap, _ in gaps.values()),
        takes_nan=_takes_nan(graph, refused, rows.schema) and all(gap.passes for gap, _ in gaps.values()),
    )  # fmt: skip
    shapes = _shapes(rows, recipe)
    shown = tuple(_told(row, every, *outputs) for row in parity.worst_rows(gaps))
    return Verdict(graph, candidate, record, shapes, shown)


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


def _recipe(graph: Any, candidate: Candidate, rows: pa.RecordBatch, file: Path) -> Recipe:
    """Bind the graph to the sample's columns and prove that rows are independent, as a job would."""
    file.write_bytes(surgery.as_bytes(surgery.finished(graph, {}, features(candidate))))
    job = Job(model=str(file), keep=("none",), on_null=("nan",) if _has_nan(graph) else ())
    return recipes.recipe_for(job, recipes.named_models(job), Look(rows.schema, rows))


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


def _scorable(rows: pa.RecordBatch, recipe: Recipe) -> tuple[pa.RecordBatch, int]:
    """Return the rows that `score` would not reject, and how many it would."""
    if not rows.num_rows:
        return rows, 0
    _, misfits = scoring.encoded(rows, recipe)
    bad = {misfit.row for misfit in misfits}
    if len(bad) == rows.num_rows:
        first = misfits[0]
        raise DataError(f"no row can be scored: column {first.column}: {first.reason}", "give other rows")
    good = [row for row in range(rows.num_rows) if row not in bad]
    return rows.take(pa.array(good, pa.int64())), len(bad)


def _scores(rows: pa.RecordBatch, recipe: Recipe) -> dict[str, Tensor]:
    """Score rows as a job would, each output as one array [rows, ...]."""
    given, _ = scoring.encoded(rows, recipe)
    columns = scoring.predicted(scoring.runs_of(recipe), recipe, given, by_codes=False)
    return {p.output: _array(column) for p, column in zip(recipe.predictions, columns, strict=True)}


def _shapes(rows: pa.RecordBatch, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Return the shape that one row has in each output, as onnxruntime gives it."""
    (encoded,), _ = scoring.encoded(rows.slice(0, 1), recipe)
    (session,) = scoring.runs_of(recipe)
    names = [p.output for p in recipe.predictions]
    tensors = {name: scoring.padded(t, recipe.batch_rows) for name, t in encoded.tensors.items()}
    values = session.run(names, tensors)
    return {name: np.shape(value)[1:] for name, value in zip(names, values, strict=True)}


def _array(column: pa.Array) -> Tensor:
    if isinstance(column, pa.ExtensionArray):
        return np.asarray(column.to_numpy_ndarray())
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)
    return np.asarray(column.to_numpy(zero_copy_only=False))


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
