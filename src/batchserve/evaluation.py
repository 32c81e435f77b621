"""A scored file against its labels: one pass over its rows, in as much memory for any number of them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pyarrow as pa

from batchserve import chart, inputs, labels, outcomes, questions, scorecard, storage
from batchserve.arrays import raw_values
from batchserve.errors import DataError, UsageError, did_you_mean, raise_all
from batchserve.inputs import (
    TEXT_FORMATS,
    BadRecord,
    Block,
    Look,
    Partition,
    Reading,
    Source,
    TypeMisfit,
    Wish,
    cutting,
    files,
)
from batchserve.inputs.files import Given
from batchserve.metrics import GROUP, WHOLE, Bools
from batchserve.metrics.binary import Binary
from batchserve.metrics.multiclass import Multiclass
from batchserve.metrics.regression import Regression
from batchserve.outcomes import Outcome
from batchserve.predictions import filtered
from batchserve.questions import Asked, Question
from batchserve.storage import translated

GROUPS = 100
"""Groups that a column of `--by` may have."""
_BATCH_ROWS, _BATCH_BYTES = 1 << 16, 16 << 20
"""Blocks are put together up to this: adding up costs a millisecond, however few rows there are."""
_READ_ROWS = 1024
_UNREADABLE = "record cannot be read"
_PLOTS = (".html", ".svg")


@dataclass(frozen=True, repr=False)
class Evaluation:
    """How good the predictions of a scored file are.

    Attributes:
        path: The file.
        question: Which columns, which task, which threshold.
        found: The sums over all rows.
        groups: Column of `by` to its values to the sums over their rows.
    """

    path: str
    question: Question
    found: Outcome
    groups: Mapping[str, Mapping[str | None, Outcome]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics by name; None where the rows do not define one."""
        return self.found.measured.metrics()

    @property
    def left_out(self) -> dict[str, int]:
        """Rows that could not be compared, by reason."""
        return dict(self.found.left_out)

    @property
    def calibration(self) -> list[dict[str, Any]]:
        """Rows in bins of their prediction: what was predicted, and what was true."""
        return self.found.measured.calibration(self.question.cut.bins)

    def facts(self) -> dict[str, Any]:
        """Return everything that was found, ready for JSON."""
        asked, rows = self.question, self.found.measured.rows
        said: dict[str, Any] = {"task": asked.task, "label": asked.label, "prediction": asked.prediction}
        if asked.task == "binary":
            said |= {"threshold": asked.cut.threshold, "positive": asked.positive}
        return {
            "path": self.path, "rows": rows + sum(self.left_out.values()), **said, "left_out": self.left_out,
            "metrics": self.metrics, **_more(self.found), "calibration": self.calibration,
            "by": {column: _told(groups) for column, groups in self.groups.items()},
        }  # fmt: skip

    def plot(self, path: str | Path) -> None:
        """Draw what was predicted against what was true into a file.

        Args:
            path: A .svg file; or an .html file, which has the numbers too.

        Raises:
            UsageError: It has another suffix.
            StorageError: It cannot be written.
        """
        check_plot(str(path))
        facts = self.facts()
        text = chart.page(facts, str(self)) if str(path).endswith(".html") else chart.svg(facts)
        _write(Path(path), text)

    def __str__(self) -> str:
        return "\n".join(scorecard.lines(self.facts()))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return chart.fragment(self.facts(), str(self))


def _told(groups: Mapping[str | None, Outcome]) -> list[dict[str, Any]]:
    """Return the metrics of groups, the largest first."""
    found = [
        {"value": value, **each.measured.metrics(), "left_out": each.left_out.total()}
        for value, each in groups.items()
    ]
    return sorted(found, key=lambda group: (-group["rows"], group["value"] or ""))


def _more(found: Outcome) -> dict[str, Any]:
    """Return what only one task has."""
    match found.measured:
        case Regression():
            return {"errors": found.measured.histogram()}
        case Binary():
            return {"confusion": found.measured.confusion()}
        case Multiclass():
            measured = found.measured
            return {
                "classes": measured.classes(), "confusion": measured.confusion(),
                "per_class": measured.per_class(),
            }  # fmt: skip


def evaluate(
    path: str, label: str, prediction: str, asked: Asked | None = None, *, by: Sequence[str] = (),
    given: str | None = None,
) -> Evaluation:  # fmt: skip
    """Compare a column of predictions with a column of labels.

    Args:
        path: A scored file, a dataset folder, or a glob.
        label: The column of what was to be predicted.
        prediction: The column of what was.
        asked: What the user said of the task.
        by: Columns whose every value is a group of rows with metrics of its own.
        given: The format, whatever the suffix is.

    Raises:
        NotFoundError: There is no such file.
        UsageError: There is no such column, or the columns do not fit a task.
        DataError: The file is damaged, or its values do not fit the task.
    """
    sources = files.resolve([path], _format(given))
    look = inputs.look(sources, Wish(infer=_infer(sources)))
    _check_columns(look.schema, {"--label": [label], "--prediction": [prediction], "--by": list(by)})
    sample = [look.sample.column(name) for name in (label, prediction)]
    question = questions.settle(asked or Asked(), sample[0], sample[1], (label, prediction))
    (whole,) = cutting.whole(sources, look.found.dialect)
    wanted = {label, prediction, *by}
    reading = Reading(
        schema_=look.schema, columns=tuple(name for name in look.schema.names if name in wanted),
        batch_rows=_READ_ROWS, dialect=look.found.dialect,
    )  # fmt: skip
    tally = _Tally(question, by, _nothing(question, look))
    for batch in _gathered(_batches(whole, reading, tally)):
        tally.add(batch)
    outcomes.check(question, tally.found, final=True)
    return Evaluation(path, question, tally.found, tally.groups)


def _format(given: str | None) -> Given | None:
    if given not in {None, *get_args(Given)}:
        raise UsageError(f"--format {given}: no such format", f"choose {' or '.join(get_args(Given))}")
    return cast("Given | None", given)


def _infer(sources: Sequence[Source]) -> str:
    """Texts are read whole to find types: one that does not fit would come too late."""
    return "full" if sources[0].format in TEXT_FORMATS else "sample"


def _check_columns(schema: pa.Schema, wanted: Mapping[str, Sequence[str]]) -> None:
    known = f"columns are: {', '.join(schema.names)}"
    unknown = [
        UsageError(f"{flag} {name}: no such column", did_you_mean(name, schema.names) or known)
        for flag, names in wanted.items()
        for name in names
        if name not in schema.names
    ]
    nested = [
        UsageError(f"--by {name}: is {schema.field(name).type}", "name a column of single values")
        for name in wanted["--by"]
        if name in schema.names and pa.types.is_nested(schema.field(name).type)
    ]
    raise_all([*unknown, *nested])


def _nothing(question: Question, look: Look) -> Outcome:
    """Return what no rows come to."""
    none = [pa.nulls(0, look.schema.field(name).type) for name in (question.label, question.prediction)]
    return outcomes.outcome(question, none[0], none[1], WHOLE)


def _batches(whole: Partition, reading: Reading, tally: "_Tally") -> Iterator[pa.RecordBatch]:
    """Read all rows; a record that cannot be read is counted."""
    for part in whole.slices:
        for item in inputs.read(part, reading):
            match item:
                case Block():
                    yield item.batch
                case BadRecord():
                    tally.unreadable()
                case TypeMisfit():
                    message = f"{item.place.path}: column {item.column} was another type a moment ago"
                    raise DataError(message, "run it again when nobody writes to it")


def _gathered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Put small batches together."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        rows, size = (sum(getattr(each, name) for each in held) for name in ("num_rows", "nbytes"))
        if rows >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield pa.concat_batches(held)
            held = []
    if held:
        yield pa.concat_batches(held)


class _Tally:
    """What was found up to now, of all rows and of each group."""

    def __init__(self, question: Question, by: Sequence[str], nothing: Outcome) -> None:
        self._question = question
        self.found = nothing
        self.groups: dict[str, dict[str | None, Outcome]] = {name: {} for name in by}

    def unreadable(self) -> None:
        """Count a record that cannot be read."""
        left_out = self.found.left_out + Counter({_UNREADABLE: 1})
        self.found = replace(self.found, left_out=left_out)

    def add(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch."""
        asked = self._question
        label, prediction = batch.column(asked.label), batch.column(asked.prediction)
        self.found += outcomes.outcome(asked, label, prediction, WHOLE)
        outcomes.check(asked, self.found)
        for column, groups in self.groups.items():
            for value, rows in _grouped(batch.column(column), column):
                part = outcomes.outcome(asked, filtered(label, rows), filtered(prediction, rows), GROUP)
                groups[value] = groups[value] + part if value in groups else part
            _check_groups(column, len(groups))


def _grouped(column: pa.Array, name: str) -> Iterator[tuple[str | None, Bools]]:
    """Give each value of a column, and which rows have it; null is one too."""
    column = labels.plain(column)
    encoded = column.dictionary_encode()
    values = [str(value) for value in encoded.dictionary.to_pylist()]
    _check_groups(name, len(values))
    there = raw_values(column.is_valid()).astype(bool)
    codes = np.where(there, raw_values(encoded.indices), -1)
    if not there.all():
        yield None, ~there
    yield from ((value, codes == i) for i, value in enumerate(values))


def _check_groups(column: str, count: int) -> None:
    if count > GROUPS:
        message = f"--by {column}: more than {GROUPS} groups"
        raise UsageError(message, "name a column with fewer values")


# -- the plot ---------------------------------------------------------------------------------


def check_plot(path: str) -> None:
    """Check that a plot can go to a file, before any work.

    Raises:
        UsageError: Its suffix says another kind of picture.
        AccessError: Its folder cannot be written to.
    """
    if Path(path).suffix not in _PLOTS:
        raise UsageError(f"--plot {path}: is neither .html nor .svg", "name a file of one of these")
    storage.check_writable(Path(path).absolute().parent)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with translated(path):
        storage.remove(temporary)
        storage.write_durable(temporary, text.encode())
        storage.replace(temporary, path)
