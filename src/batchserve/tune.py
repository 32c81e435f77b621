"""The batch size and the threads that a model runs fastest with on this machine, measured on some rows."""

import itertools
import re
import statistics
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from batchserve import job as jobs
from batchserve import machine, scoring, storage
from batchserve.batches import padded
from batchserve.config import Job
from batchserve.errors import DataError, UsageError
from batchserve.model import Tensor
from batchserve.planning import Plan
from batchserve.runs import Runs
from batchserve.scorers import Recipe
from batchserve.storage import translated, translated_writing
from batchserve.tally import Tally

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Rows per run that are tried."""
_ROUNDS, _TRIAL_S = 3, 0.2
_WORTH = 1.1
"""So much faster than now something must be to be taken: less is chance."""


@dataclass(frozen=True)
class Trial:
    """One way to run the model.

    Attributes:
        rows_per_s: Of all workers together, the model alone.
    """

    batch_rows: int
    intra_op: int
    rows_per_s: float


@dataclass(frozen=True)
class Tuning:
    """What was measured.

    Attributes:
        trials: All that was tried.
        now: What a job does as it is configured.
        best: What is worth saying: the fastest, or `now` if that is not much slower.
    """

    trials: tuple[Trial, ...]
    now: Trial
    best: Trial

    @property
    def changes(self) -> dict[str, int]:
        """What a config has to say other than now."""
        wanted = {"batch_rows": self.best.batch_rows, "intra_op": self.best.intra_op}
        return {key: value for key, value in wanted.items() if value != getattr(self.now, key)}


def tuned(job: Job, inputs: Sequence[str], trial_s: float = _TRIAL_S) -> Tuning:
    """Measure how fast a model runs in batches of several sizes, and with several threads a run.

    Each way is taken as a job would take it, on all usable CPUs at once, in turn and three times.

    Args:
        job: What the user wants.
        inputs: Paths, globs and folders.
        trial_s: Seconds of one measurement.

    Raises:
        BatchserveError: As when the job is planned; or there is no row that can be scored.
    """
    made, _ = jobs.plan(job, inputs, None)
    recipe = made.recipe
    fixed = all(scorer.binding.fixed_batch for scorer in recipe.scorers)
    sizes = (recipe.batch_rows,) if fixed else tuple(sorted({*SIZES, recipe.batch_rows}))
    ways = list(itertools.product(sizes, sorted({1, job.intra_op, machine.usable_cpus()})))
    given = _rows(made, max(sizes))
    rates: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
    for _, way in itertools.product(range(_ROUNDS), ways):
        workers = job.model_copy(update={"intra_op": way[1]}).workers_here
        rates[way].append(_rate(recipe, given, *way, workers, trial_s))
    trials = {way: Trial(*way, statistics.median(found)) for way, found in rates.items()}
    now = trials[recipe.batch_rows, job.intra_op]
    fastest = max(trials.values(), key=lambda trial: trial.rows_per_s)
    worth = fastest.rows_per_s >= _WORTH * now.rows_per_s
    return Tuning(tuple(trials.values()), now, fastest if worth else now)


Given = Sequence[dict[str, Tensor]]
"""The same rows as each model takes them."""


def _rows(made: Plan, count: int) -> Given:
    """Return `count` rows: the first ones, over and over if there are fewer."""
    recipe = made.recipe.model_copy(update={"limit": count})
    pieces = (rows for part in made.partitions for rows in scoring.bound(part, recipe, Tally()) if len(rows))
    first = next(pieces, None)
    if first is None:
        raise DataError("there is no row to measure with", "give a file with rows that can be scored")
    again = np.arange(count) % len(first)
    return [{name: t[again] for name, t in each.tensors.items()} for each in first.encoded]


def _rate(
    recipe: Recipe, given: Given, batch_rows: int, intra_op: int, workers: int, trial_s: float
) -> float:
    """Run the models on all workers for a while; return the rows per second of all together."""
    scorers = tuple(each.on_threads(intra_op) for each in recipe.scorers)
    tried = recipe.model_copy(update={"scorers": scorers, "batch_rows": batch_rows})
    run = partial(_run, tried, scoring.runs_of(tried), given)
    run(0)
    begun = time.perf_counter()
    starts = range(0, len(next(iter(given[0].values()))) - batch_rows + 1, batch_rows)
    with ThreadPoolExecutor(workers) as pool:
        batches = pool.map(lambda _: _batches(run, starts, begun + trial_s), range(workers))
        rows = batch_rows * sum(batches)
    return rows / (time.perf_counter() - begun)


def _run(recipe: Recipe, runs: Sequence[Runs], given: Given, start: int) -> None:
    """Run every model over one batch of the rows."""
    stop = start + recipe.batch_rows
    for scorer, session, tensors in zip(recipe.scorers, runs, given, strict=True):
        names, size = [each.output for each in scorer.predictions], recipe.rows_of(scorer)
        for first in range(start, stop, size):
            last = min(first + size, stop)
            session.run(names, {name: padded(tensor[first:last], size) for name, tensor in tensors.items()})


def _batches(run: Callable[[int], None], starts: Sequence[int], until: float) -> int:
    """Run batch after batch until it is time, one at least; return how many."""
    done = 0
    for start in itertools.cycle(starts):
        run(start)
        done += 1
        if time.perf_counter() > until:
            break
    return done


# -- written down -----------------------------------------------------------------------------


def write(path: Path, changes: Mapping[str, int]) -> None:
    """Put values into a config file; the rest of it stays as it is.

    Args:
        path: The file; it is made if it is not there.
        changes: Top-level keys and their values.

    Raises:
        UsageError: The file is no TOML.
    """
    with translated(path):
        text = path.read_text() if path.exists() else ""
    for key, value in changes.items():
        text = _with(text, key, value)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = f"{path}: is no TOML ({error})"
        values = ", ".join(f"{key} = {value}" for key, value in changes.items())
        raise UsageError(message, f"correct it, and write there: {values}") from error
    temporary = path.with_name(f".{path.name}.tmp")
    with translated_writing(path.parent):
        storage.remove(temporary)
        storage.write_durable(temporary, text.encode())
        storage.keep_mode(path, temporary)
        storage.replace(temporary, path)


def _with(text: str, key: str, value: int) -> str:
    """Return the text of a config with a top-level key set: before the first table."""
    table = re.search(r"^\s*\[", text, re.MULTILINE)
    top, rest = (text[: table.start()], text[table.start() :]) if table else (text, "")
    line = f"{key} = {value}"
    found = re.compile(rf"^{key}\s*=.*$", re.MULTILINE)
    if found.search(top):
        return found.sub(line, top) + rest
    return f"{top}{'' if top.endswith(chr(10)) or not top else chr(10)}{line}\n{rest}"
