"""A trained model to an ONNX model that is proven to predict the same: converted, gated, written."""

import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchserve import config, gate, inputs, parity, reducing, report, sources, storage, surgery
from batchserve.errors import (
    BatchserveError,
    DataError,
    ModelError,
    OutputError,
    UsageError,
    did_you_mean,
    raise_all,
)
from batchserve.gate import Sample, Verdict
from batchserve.inputs import Wish, files
from batchserve.inputs.dialect import Asked
from batchserve.model import COLUMNS_KEY, NULLS_KEY
from batchserve.parity import Parity
from batchserve.reducing import Precision
from batchserve.sources import Opening, Source, opened

__all__ = ["Exported", "Opening", "Terms", "export", "opened", "sample_of", "terms"]


@dataclass(frozen=True)
class Terms:
    """What the user says of an export.

    Attributes:
        features: The model's columns, in order, where neither it nor the sample tells them.
        tolerances: By output, as a share of its spread; under an empty name that of all others.
        accept_drift: Write the model whatever the gate finds.
        overwrite: Replace a file that is there.
        precision: What the graph is to multiply in, or None for what the converter gives.
    """

    features: tuple[str, ...] = ()
    tolerances: Mapping[str, float] = field(default_factory=dict)
    accept_drift: bool = False
    overwrite: bool = False
    precision: Precision | None = None


def terms(
    features: Sequence[str], tolerance: str | float | Sequence[str], precision: str | None = None, *,
    accept_drift: bool, overwrite: bool,
) -> Terms:  # fmt: skip
    """Read what the user says of an export.

    Raises:
        UsageError: A tolerance is no number, or the precision is none that keeps rows apart.
    """
    said = [str(tolerance)] if isinstance(tolerance, str | float | int) else list(tolerance)
    try:
        tolerances = dict(parity.by_output(said))
    except ValueError as error:
        hint = "say a share of the output's spread, like 1e-5 or variable=1e-5"
        raise UsageError(f"--tolerance {', '.join(said)}: not understood", hint) from error
    digits = reducing.named(precision) if precision else None
    return Terms(tuple(features), tolerances, accept_drift, overwrite, digits)


@dataclass(frozen=True, repr=False)
class Exported:
    """A model that was written, and what the gate found."""

    path: str
    parity: Parity
    size_bytes: int

    def facts(self) -> dict[str, str]:
        """Return what was written and what was found, in words."""
        return {"size": report.human_bytes(self.size_bytes)} | self.parity.facts()

    def __str__(self) -> str:
        lines = [f"  {name:<16} {text}" for name, text in self.facts().items()]
        return "\n".join([f"{self.path}: exported", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return report.table_html("batchserve export", self.facts())


def export(source: Source, path: Path, sample: pa.RecordBatch, terms: Terms) -> Exported:
    """Write a trained model as ONNX, if that is proven to predict as the model does.

    Source and graph predict the sample and rows that are added to it, the graph just as `score`
    would run it. The first graph whose every output is near enough is written, one that is so right beside
    the source's jumps before others; else none.

    Args:
        source: The trained model.
        path: Where the ONNX model goes.
        sample: Rows such as will be scored.
        terms: What else is wanted.

    Raises:
        OutputError: There is a file already.
        UsageError: The model's columns are not in the sample, or nobody knows which they are.
        ModelError: No graph can be made, or none predicts as the model does.
        DataError: The sample has no row that the model takes.
    """
    _check_place(path, terms)
    rows = _columns_of(source, sample, terms.features)
    verdicts: list[Verdict] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix=_FOLDER) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn of what the gate measures
        given = Sample(source, rows)
        for i, candidate in enumerate(source.candidates(rows)):
            try:
                file = Path(folder, f"{i}.onnx")
                verdict = gate.judged(candidate, given, file, terms.tolerances, terms.precision)
            except (DataError, UsageError):  # of the sample: no other graph would do better
                raise
            except Exception as error:  # noqa: BLE001  converters raise classes without a common base
                problems.append(f"{candidate.how}: {_why(error)}")
                continue
            if verdict.parity.passes and not verdict.parity.near_differ:
                return _written(verdict, path, rows.schema)
            verdicts.append(verdict)
    if passed := [each for each in verdicts if each.parity.passes]:
        return _written(passed[0], path, rows.schema)
    if verdicts and terms.accept_drift:
        return _written(_least_bad(verdicts), path, rows.schema, drift_accepted=True)
    raise _refused(source, verdicts, problems)


_SAMPLE_ROWS = 4096


def sample_of(data: Any) -> pa.RecordBatch:
    """Return some rows of a file or a frame.

    Args:
        data: A path, or a pandas, Polars or Arrow frame.

    Raises:
        NotFoundError: There is no such file.
        DataError: It is damaged.
        UsageError: It is no frame.
    """
    if isinstance(data, str | Path):
        job = config.load({}, [str(data)]).job
        return inputs.look(files.resolve([str(data)], job.format), Wish(asked=Asked.of(job))).sample
    table = _as_table(data)
    every = max(1, len(table) // _SAMPLE_ROWS)
    batches = table.take(pa.array(range(0, len(table), every))).combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _as_table(data: Any) -> pa.Table:
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        return data
    kind = type(data).__module__.partition(".")[0]
    if kind == "pandas":
        return pa.Table.from_pandas(data, preserve_index=False)
    if kind == "polars":
        return data.to_arrow()
    raise UsageError(
        f"sample: {type(data).__name__} is not a frame", "give a path, or a pandas, Polars or Arrow frame"
    )


def _check_place(path: Path, terms: Terms) -> None:
    if path.exists() and not terms.overwrite:
        raise OutputError(f"{path}: is there already", "--overwrite replaces it")
    if path.suffix != ".onnx":
        hint = f"did you mean {path.with_suffix('.onnx')}?"
        raise UsageError(f"{path}: export writes ONNX models, their names end in .onnx", hint)
    storage.check_writable(path.absolute().parent)


def _why(error: Exception) -> str:
    """Say why a graph is none; the place of the trial's own file would tell nobody anything."""
    said = error.message if isinstance(error, BatchserveError) else sources.reason(error)
    return re.sub(rf"\S*/{_FOLDER}\S*?\.onnx(: )?", "", said)


_FOLDER = "batchserve-export-"


# -- columns ----------------------------------------------------------------------------------


def _columns_of(source: Source, sample: pa.RecordBatch, said: Sequence[str]) -> pa.RecordBatch:
    """Return the sample's columns that the model takes, in its order and without dictionaries."""
    if not sample.num_rows:
        raise DataError("the sample has no rows", "give some such as will be scored")
    names = tuple(said) or source.names or _guessed(source, sample.schema.names)
    missing = [name for name in names if name not in sample.schema.names]
    raise_all([_no_column(name, sample.schema.names) for name in missing])
    if source.width is not None and source.width != len(names):
        message = f"the model takes {source.width} columns, {len(names)} are named: {', '.join(names)}"
        raise UsageError(message, "name them in order: --features A,B")
    rows = _plain(sample.select(list(names)))
    raise_all([_no_kind(each) for each in rows.schema if each.name not in sources.kinds(rows.schema)])
    return rows


def _guessed(source: Source, names: Sequence[str]) -> tuple[str, ...]:
    if source.width in {None, len(names)}:
        return tuple(names)
    message = (
        f"the model takes {source.width} columns and does not know their names; the sample has {len(names)}"
    )
    raise UsageError(message, f"name them in order: --features {','.join(names[: source.width])}")


def _no_column(name: str, names: Sequence[str]) -> UsageError:
    hint = did_you_mean(name, names) or f"columns are: {', '.join(names)}"
    return UsageError(f"column {name}: the model takes it, the sample has none of that name", hint)


def _no_kind(each: pa.Field) -> UsageError:
    return UsageError(f"column {each.name}: is {each.type}, a model takes numbers or texts", "convert it")


def _plain(rows: pa.RecordBatch) -> pa.RecordBatch:
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in rows.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=rows.schema.names)


# -- the file ---------------------------------------------------------------------------------


def _written(verdict: Verdict, path: Path, schema: pa.Schema, *, drift_accepted: bool = False) -> Exported:
    """Write the graph with all that `score` and `inspect` read of it."""
    record = verdict.parity.model_copy(update={"drift_accepted": drift_accepted})
    columns = {each.name: str(each.type) for each in schema}
    metadata = {parity.RECORD_KEY: record.model_dump_json(), COLUMNS_KEY: json.dumps(columns)}
    if record.takes_nan:
        metadata[NULLS_KEY] = "nan"
    graph = surgery.finished(verdict.graph, verdict.shapes, metadata | gate.features(verdict.candidate))
    data = surgery.as_bytes(graph)
    temporary = path.with_name(f".{path.name}.tmp")
    with storage.translated_writing(path.absolute().parent):
        storage.remove(temporary)
        storage.write_durable(temporary, data)
        storage.replace(temporary, path)
    return Exported(str(path), record, len(data))


def _refused(source: Source, verdicts: Sequence[Verdict], problems: Sequence[str]) -> ModelError:
    """Say what was tried and why none of it will do."""
    if not verdicts:
        tried = "\n".join(f"  {problem}" for problem in dict.fromkeys(problems))
        return ModelError(f"{source.made_with}: cannot be converted\n{tried}", source.instead or _OTHER_PARTS)
    lines = [line for verdict in verdicts for line in _differences(verdict.parity)]
    lines += [f"  {problem}" for problem in problems]
    lines += [f"  {shown}" for shown in _least_bad(verdicts).shown]
    message = f"{source.made_with}: no graph predicts as it does, nothing is written"
    drift = _FEWER_DIGITS if _least_bad(verdicts).parity.reduction else _DRIFT
    hint = f"{source.instead}. Or: {drift}" if source.instead else drift
    return ModelError("\n".join([message, *lines]), hint)


def _differences(record: Parity) -> Iterator[str]:
    """Say how outputs differ; of fewer digits also what they gain: the user weighs the two."""
    for gap in record.gaps:
        if not gap.passes:
            yield f"  {record.computes_in}: {gap.output}: {gap}"
            if record.reduction:
                yield f"    in the sample's own rows: {gap.in_sample}"
    if record.reduction:
        yield f"    gained: {record.reduction}"


_OTHER_PARTS = "docs/export.md says what can be exported, and what to take instead"
_DRIFT = (
    "docs/export.md says why this happens and what helps; "
    "--tolerance allows more, --accept-drift writes it whatever the difference"
)

_FEWER_DIGITS = (
    "weigh the difference against what is gained: --tolerance [OUTPUT=]X allows it, "
    "--accept-drift writes the model whatever it is; docs/export.md says what float16 and int8 do"
)


def _least_bad(verdicts: Sequence[Verdict]) -> Verdict:
    return min(verdicts, key=lambda verdict: verdict.parity.badness)
