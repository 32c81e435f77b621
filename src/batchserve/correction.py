"""Rejected records, corrected by hand in the rejects file, scored as the others were."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from batchserve import append, job, spelling, storage, target, workspace
from batchserve.config import Job
from batchserve.errors import DataError, NotFoundError, UsageError, raise_all
from batchserve.events import Listener
from batchserve.inputs import SOURCE_FILE, SOURCE_ROW, Layout
from batchserve.inputs.dialect import COMMON
from batchserve.inputs.parsing import text_fields
from batchserve.planning import Plan
from batchserve.receipts import receipt_of
from batchserve.rejects import Line
from batchserve.report import Report, shortest
from batchserve.storage import translated
from batchserve.target import META_DIR, Target

_SUFFIX = ".rejects.jsonl"
_WRITTEN = {
    "delimiter": ",", "quote": '"', "escape": "none", "header": "yes", "skip_lines": 0, "encoding": "utf-8",
}  # fmt: skip
"""How the corrected records are written, whatever their files are."""
_BATCH_ROWS_STEP = 64


def retry(rejects: str, output: str, wishes: dict[str, Any], listener: Listener) -> Report:
    """Score the records of a rejects file again, with the model and the options of their job.

    The text of each record, `raw`, may have been corrected; lines may have been taken out. They
    are written to a file beside the output, which is then scored like any other.

    Args:
        rejects: A rejects file.
        output: Where the rows go; a dataset can be appended to.
        wishes: Options that are to be other than in that job.
        listener: Told what happens.

    Raises:
        NotFoundError: There is no such file, or nothing is left that says how its rows are scored.
        DataError: It is no rejects file, or holds records that were cut.
        BatchserveError: As scoring raises.
    """
    lines = _lines(rejects)
    plan = _plan(Path(rejects), {line.plan_id for line in lines})
    rows = _rows_file(target.at(output), plan)
    _write(rows, _text(lines, plan), Path(rejects))
    return job.score(_job(plan, wishes), [shortest(str(rows))], output, listener)


def _lines(rejects: str) -> list[Line]:
    path = Path(rejects)
    with translated(path):
        data = path.read_bytes()
    problems, lines = [], []
    for number, text in enumerate(data.splitlines(), 1):
        try:
            lines.append(Line.model_validate_json(text))
        except ValidationError:
            problems.append(DataError(f"{rejects}:{number}: is no reject", "take the line out"))
            continue
        if lines[-1].raw_truncated:
            hint = 'put the whole record into "raw" and say "raw_truncated": false, or take the line out'
            problems.append(DataError(f"{rejects}:{number}: its record is cut", hint))
    raise_all(problems)
    if not lines:
        raise DataError(f"{rejects}: holds no rejects", "there is nothing to score again")
    return lines


def _plan(rejects: Path, plan_ids: set[str]) -> Plan:
    """Return the plan that the rejects are of: of the receipt beside them, or of the unfinished run."""
    if len(plan_ids) > 1:
        message = f"{rejects}: holds rejects of {len(plan_ids):,} runs"
        raise UsageError(message, "keep the lines of one plan_id in it, then those of the next")
    (plan_id,) = plan_ids
    for plan in _plans_near(rejects.absolute()):
        if plan.plan_id == plan_id:
            return plan
    message = f"{rejects}: the receipt or the unfinished run that it belongs to is not beside it"
    raise NotFoundError(message, "put it back beside them")


def _plans_near(rejects: Path) -> list[Plan]:
    found = []
    for each in _targets_near(rejects):
        receipt = receipt_of(each) if target.taken(each) else None
        found += [run.plan for run in receipt.runs] if receipt else []
        unfinished = workspace.stored(each)
        found += [unfinished] if unfinished else []
    return found


def _targets_near(rejects: Path) -> list[Target]:
    """Return what the rejects may be of: their name says it."""
    folder, name = rejects.parent, rejects.name
    if folder.name == META_DIR:
        return [Target(folder.parent, dataset=True)]
    if folder.name.endswith(".batchserve"):
        output = folder.parent / folder.name.removeprefix(".").removesuffix(".batchserve")
        return [Target(output, dataset=not output.suffix)]
    stem = folder / name.removesuffix(_SUFFIX)
    files = [Target(stem.with_name(f"{stem.name}.parquet"), dataset=False), Target(stem, dataset=False)]
    return [*files, Target(stem, dataset=True)]


# -- the corrected records as a file ----------------------------------------------------------


def _rows_file(found: Target, plan: Plan) -> Path:
    suffix = "csv" if _form(plan) == "csv" else "jsonl"
    return found.path.with_name(f"{found.path.stem}.retry.{suffix}")


def _form(plan: Plan) -> str:
    return plan.sources[0].format


def _text(lines: Sequence[Line], plan: Plan) -> str:
    """Return the records as one text that has every column of the job, those of no file too."""
    if _form(plan) != "csv":
        return "".join(f"{_object(line, plan)}\n" for line in lines)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(plan.recipe.reading.schema_.names)
    layouts = {part.path: part.layout for each in plan.partitions for part in each.slices if part.layout}
    for line in lines:
        fields = _fields(line, plan, layouts.get(line.file))
        text.write(f"{line.raw.rstrip()}\n") if fields is None else writer.writerow(fields)
    return text.getvalue()


def _fields(line: Line, plan: Plan, layout: Layout | None) -> list[str] | None:
    """Return a record's fields in the order of the job's columns; None to take it as it stands.

    One that is no record in the dialect of its file may be one in ours: it becomes a single
    field, which is none either.
    """
    reading = plan.recipe.reading
    added = _added(line, plan)
    if not (added or layout) and reading.dialect == COMMON:
        return None
    names = [name for name in reading.schema_.names if name not in added]
    own = [name for _, name in layout] if layout else names
    texts = text_fields(line.raw, own, reading.dialect)
    if texts is None:
        return [line.raw, *([""] if len(reading.schema_) == 1 else [])]
    values = dict(zip(own, texts, strict=True)) | {name: str(value) for name, value in added.items()}
    return [values.get(name, "") for name in reading.schema_.names]


def _object(line: Line, plan: Plan) -> str:
    """Return a JSON object with the columns that its file does not hold."""
    raw = line.raw.strip()
    try:
        found = json.loads(raw)
    except ValueError:
        return raw
    added = _added(line, plan)
    missing = {name: added[name] for name in added if isinstance(found, dict) and name not in found}
    if not missing:
        return raw
    return f"{raw[:-1]}{', ' if found else ''}{json.dumps(missing)[1:]}"


def _added(line: Line, plan: Plan) -> dict[str, Any]:
    """Return the values of columns that are of a record's folders and of where it is from."""
    folders = next((dict(source.folders) for source in plan.sources if source.path == line.file), {})
    whole = {f.name for f in plan.recipe.reading.schema_ if f.type in {pa.int64(), pa.int32()}}
    values: dict[str, Any] = {
        name: "" if text is None else int(text) if name in whole else text for name, text in folders.items()
    }
    source = {SOURCE_FILE: line.file, SOURCE_ROW: line.record}
    return values | {name: value for name, value in source.items() if name in plan.added}


def _write(path: Path, text: str, rejects: Path) -> None:
    """Write the file; its time is that of the rejects, so that the same command goes on from its parts."""
    with translated(path):
        if path.exists() and path.read_bytes() != text.encode():
            storage.remove(path)
        if not path.exists():
            storage.write_durable(path, text.encode())
        path.chmod(0o600)
        time_ns = rejects.stat().st_mtime_ns
        os.utime(path, ns=(time_ns, time_ns))


def _job(plan: Plan, wishes: dict[str, Any]) -> Job:
    """Return the job that scores rows as `plan` did."""
    recipe = plan.recipe
    paths = {scorer.name: spelling.unnamed(scorer.model.path) for scorer in recipe.scorers}
    same: dict[str, Any] = dict(plan.asked) | {
        "model": paths.get("", paths),
        "type": append.words(recipe.reading.schema_),
        "keep": recipe.keep or ("none",),
    }
    if _form(plan) == "csv":
        same |= _WRITTEN
    if recipe.batch_rows % _BATCH_ROWS_STEP == 0:
        same["batch_rows"] = recipe.batch_rows
    return Job.model_validate(same | wishes)
