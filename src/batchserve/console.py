"""What people see: the progress line, the plan, errors, the summary. The only rich import.

Messages go to stderr, data (`--json`) to stdout.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from batchserve import events
from batchserve.config import Settings
from batchserve.errors import BatchserveError, redacted
from batchserve.events import Event
from batchserve.log import as_json
from batchserve.meter import Meter
from batchserve.report import Report, human_bytes

if TYPE_CHECKING:
    from batchserve.tune import Tuning


def printable(text: str) -> str:
    r"""Escape control characters: a file name must not be able to drive a terminal.

    Example:
        >>> printable("a\x1b[31mb")
        'a\\x1b[31mb'
    """
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in redacted(text))


def _models(model: str | dict[str, str] | None) -> str:
    if isinstance(model, dict):
        return f"models {', '.join(f'{name}={path}' for name, path in model.items())}"
    return f"model {model}"


class Screen:
    """Listens to a job and shows it: a live line on a terminal, plain lines elsewhere."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, progress: bool = True) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._verbose = verbose
        self._progress = progress and not quiet
        self._meter = Meter()
        self._line: Line | None = None

    def say(self, text: str, style: str = "") -> None:
        """Print one line."""
        self._console.print(Text(printable(text), style=style), soft_wrap=True)

    def header(self, version: str, settings: Settings) -> None:
        """Say which model and which config: the first line of every job."""
        parts = [f"batchserve {version}", _models(settings.job.model)]
        if settings.file:
            where = " (found beside the inputs)" if settings.beside else ""
            parts.append(f"config {settings.file}{where}")
        self.say(" · ".join(parts))
        if self._verbose:
            for key, origin in settings.origins.items():
                self.say(f"  {key} from {origin}", "dim")

    def on(self, event: Event) -> None:
        """Show `event`."""
        self._meter.on(event)
        match event:
            case events.Planned():
                self._start(event)
            case events.RowsScored() | events.PartitionScored() if self._line:
                self._line.show(self._meter.line(), self._meter.share)
            case events.Publishing() if self._line:
                self._line.show("checking and publishing")
            case events.Amended():
                for column, place in event.columns.items():
                    self.say(f"{column}: another type was needed at {place}; starting over")
            case events.Suspected():
                self.say(f"{event.cause}; scored again, each alone: {', '.join(event.places)}")
            case events.Noted():
                self.say(event.text)
            case events.DashboardOpened():
                self.say(f"dashboard {event.url}")

    def _start(self, event: events.Planned) -> None:
        self.close()
        many = f"{event.partitions:,} partition{'s' * (event.partitions != 1)}"
        if event.partitions_done:
            self.say(f"continuing: {event.partitions_done:,} of {many} done")
        elif self._verbose:
            self.say(f"{many} on {event.workers} worker{'s' * (event.workers != 1)}")
        if self._progress and self._console.is_terminal:
            self._line = Line(self._console)

    def minute(self) -> None:
        """Say how far the job is, where no live line does."""
        if self._progress and not self._console.is_terminal:
            self.say(self._meter.minute_line())

    def close(self) -> None:
        """Take the live line away."""
        if self._line:
            self._line.close()
            self._line = None

    def error(self, error: BatchserveError) -> None:
        """Show what is wrong and what to do about it."""
        self.close()
        console = Console(stderr=True, highlight=False)
        console.print(Text.assemble(("error: ", "bold red"), printable(error.message)), soft_wrap=True)
        if error.hint:
            console.print(Text.assemble(("hint:  ", "bold"), printable(error.hint)), soft_wrap=True)

    def summary(self, report: Report) -> None:
        """Say in a few lines what was done."""
        self.close()
        for line in summary_lines(report):
            self.say(line)

    def profile(self, report: Report, before_s: float) -> None:
        """Show where the time went, for each core; `before_s` is what the process took before the job."""
        cores = f"each of {report.workers} workers" if report.workers > 1 else "one worker"
        self.say(f"profile: seconds of {cores}, after {before_s:.2f} s to start Python and import")
        for line in report.profile.lines():
            self.say(f"  {line}")


class Line:
    """The live line: a bar and the meter's words, redrawn in place, gone at the end."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(bar_width=12), TextColumn("{task.fields[text]}"))
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=None, text="starting")
        self._bar.start()

    def show(self, text: str, share: float | None = None) -> None:
        """Show `text`, and how much is done: 0 to 1, or None where nobody knows."""
        total = 1.0 if share is not None else None
        self._bar.update(self._task, text=text, total=total, completed=share or 0.0)

    def close(self) -> None:
        """Take the line away."""
        self._bar.stop()


def summary_lines(report: Report) -> list[str]:
    """Return the summary: what came out, how fast, what to know."""
    receipt = report.receipt
    files = receipt.inputs if report.skipped else receipt.runs[-1].plan.sources
    source = Path(files[0].path).name if len(files) == 1 else f"{len(files):,} files"
    shares = ", ".join(f"{name} {share:.0%}" for name, share in report.profile.shares.items())
    sizes = f"{human_bytes(report.bytes_in)} in, {human_bytes(report.size_bytes)} out"
    if report.skipped:
        return [f"{report.path}: nothing to do, its {report.rows:,} rows are from {source}"]
    added = f"{report.rows_added:,} rows"
    if len(receipt.runs) > 1:
        added, sizes = f"{added} added", f"{report.rows:,} in all, {sizes}"
    return [
        f"{report.path}: {added} from {source} ({sizes})",
        f"  {report.seconds:.2f} s · {report.rows_per_s:,.0f} rows/s",
        f"  {shares}",
        *(f"  {note}" for note in _notes(report)),
    ]


def _notes(report: Report) -> Iterator[str]:
    """Give what else is to be known of a finished job."""
    receipt = report.receipt
    if receipt.rejects:
        classes = ", ".join(f"{name} {rows:,}" for name, rows in receipt.rejected_by.items())
        rows = f"{receipt.rows_rejected:,} row{'s were' if receipt.rows_rejected != 1 else ' was'} rejected"
        yield f"{rows} ({classes}): see {report.rejects}"
    for column, count in receipt.nulls.items():
        if (rule := receipt.null_rules[column]) != "reject":
            became = "NaN" if rule == "nan" else rule.removeprefix("fill=")
            yield f"{column}: {count:,} null{'s' * (count != 1)} became {became}"
    for column, count in receipt.nonfinite.items():
        if not any(name == f"NONFINITE {column}" for name in receipt.rejected_by):
            yield f"{column}: {count:,} row{'s have' if count != 1 else ' has'} an infinite or NaN score"
    for column, count in receipt.rounded.items():
        yield f"{column}: {count:,} integer{'s' * (count != 1)} rounded to the model's float"
    if receipt.halved_batches:
        bits = "last bits of their scores may differ" if report.size_matters else "their scores are the same"
        yield f"{receipt.halved_batches:,} runs of the model lacked memory and were halved: {bits}"
    if receipt.read_retries:
        yield f"{receipt.read_retries:,} partitions were read again after reading failed"
    yield from (f"{column} has another type since {place}" for column, place in report.amended.items())
    yield from (f"drift: {line}" for line in report.drift)


def report_json(report: Report, settings: Settings) -> str:
    """Return the summary's facts as one JSON object."""
    config = str(settings.file) if settings.file else None
    return as_json(report.facts() | {"model": settings.job.model, "config": config})


def table(title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values in two columns to stdout."""
    console = Console(highlight=False)
    console.print(Text(printable(title), style="bold"), soft_wrap=True)
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        console.print(Text(printable(f"  {name:<{width}}  {value}")), soft_wrap=True)


def lines(text: str) -> None:
    """Print lines to stdout, the first of them as a title."""
    title, _, rest = text.partition("\n")
    console = Console(highlight=False)
    console.print(Text(printable(title), style="bold"), soft_wrap=True)
    console.print(Text(printable(rest)), soft_wrap=True)


def trials(found: "Tuning") -> dict[str, str]:
    """Return what was tried, and what it gave, as words."""
    told = {found.best: "taken"} | {found.now: "what a job does now"}
    return {
        f"{each.batch_rows:,} rows, {each.intra_op} thread{'s' * (each.intra_op != 1)}":
        f"{each.rows_per_s:12,.0f}  {told.get(each, '')}".rstrip()
        for each in sorted(found.trials, key=lambda trial: (trial.intra_op, trial.batch_rows))
    }  # fmt: skip


def out(text: str) -> None:
    """Print data to stdout as it is."""
    sys.stdout.write(text + "\n")
