"""Rejected records, corrected by hand in the rejects file, scored as the others were."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from batchserve import append, commit, job, storage, target, workspace
from batchserve.config import Job
from batchserve.errors import DataError, NotFoundError, UsageError, raise_all
from batchserve.events import Listener
from batchserve.planning import Plan
from batchserve.rejects import Line
from batchserve.report import Report, shortest
from batchserve.storage import translated
from batchserve.target import META_DIR, Target

_SUFFIX = ".rejects.jsonl"
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
        receipt = commit.receipt_of(each) if target.taken(each) else None
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
    records = [line.raw.rstrip("\r\n") for line in lines]
    if _form(plan) == "csv":
        header = io.StringIO()
        csv.writer(header, lineterminator="").writerow(plan.recipe.reading.schema_.names)
        records.insert(0, header.getvalue())
    return "\n".join(records) + "\n"


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
    same: dict[str, Any] = dict(plan.asked) | {
        "model": recipe.model.path,
        "type": append.words(recipe.reading.schema_),
    }
    if recipe.batch_rows % _BATCH_ROWS_STEP == 0:
        same["batch_rows"] = recipe.batch_rows
    return Job.model_validate(same | wishes)
