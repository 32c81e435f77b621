"""The commands: arguments -> config -> one library call -> console. The only place that exits."""

import gc
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from batchserve import __version__
from batchserve.cli import clusters, flags, models, settings, supervisor
from batchserve.cli.stopping import Stop
from batchserve.errors import BatchserveError, NotFoundError, redacted, told

if TYPE_CHECKING:
    from batchserve.config import Job, Settings
    from batchserve.console import Screen
    from batchserve.report import Report

app = typer.Typer(
    help="Score files with an ONNX model: parallel, exact, restartable.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing help with rich takes longer than all the rest of --help
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(clusters.app, name="cluster")


def score(  # noqa: PLR0913, PLR0917  one parameter per flag
    ctx: typer.Context,
    inputs: flags.Inputs,
    output: flags.Output,
    model: flags.ModelPath = None,
    model_sha256: flags.ModelSha256 = None,
    features: flags.Features = None,
    map: flags.Map = None,
    set: flags.Set = None,
    outputs: flags.Outputs = None,
    prefix: flags.Prefix = None,
    rows_depend: flags.RowsDepend = None,
    custom_ops: flags.CustomOps = None,
    device: flags.Device = None,
    keep: flags.Keep = None,
    on_null: flags.OnNull = None,
    on_nonfinite: flags.OnNonfinite = None,
    max_errors: flags.MaxErrors = None,
    rejects: flags.RejectsFile = None,
    limit: flags.Limit = None,
    format: flags.Format = None,
    delimiter: flags.Delimiter = None,
    quote: flags.Quote = None,
    escape: flags.Escape = None,
    header: flags.Header = None,
    skip_lines: flags.SkipLines = None,
    encoding: flags.Encoding = None,
    type: flags.Type = None,
    infer: flags.Infer = None,
    schema_drift: flags.SchemaDrift = None,
    add_source: flags.AddSource = None,
    if_exists: flags.IfExists = None,
    overwrite: flags.Overwrite = None,
    fresh: flags.Fresh = None,
    workers: flags.Workers = None,
    cluster: flags.Cluster = None,
    scheduler: flags.Scheduler = None,
    batch_rows: flags.BatchRows = None,
    intra_op: flags.IntraOp = None,
    partition_size: flags.PartitionSize = None,
    memory_limit: flags.MemoryLimit = None,
    stall_timeout: flags.StallTimeout = None,
    json: flags.Json = None,
    quiet: flags.Quiet = None,
    verbose: flags.Verbose = None,
    no_progress: flags.NoProgress = None,
    log_json: flags.LogJson = None,
    dashboard: flags.Dashboard = None,
    profile: flags.Profile = None,
    config: flags.Config = None,
    debug: flags.Debug = None,
) -> None:
    """Score every row of the inputs into one Parquet output.

    Example: batchserve score flights.csv flights.parquet --model model.onnx
    """
    _score(settings.of(ctx, inputs, config), inputs, output)


def plan(  # noqa: PLR0913, PLR0917  one parameter per flag
    ctx: typer.Context,
    paths: flags.Paths,
    model: flags.ModelPath = None,
    model_sha256: flags.ModelSha256 = None,
    features: flags.Features = None,
    map: flags.Map = None,
    set: flags.Set = None,
    outputs: flags.Outputs = None,
    prefix: flags.Prefix = None,
    rows_depend: flags.RowsDepend = None,
    custom_ops: flags.CustomOps = None,
    device: flags.Device = None,
    keep: flags.Keep = None,
    on_null: flags.OnNull = None,
    on_nonfinite: flags.OnNonfinite = None,
    max_errors: flags.MaxErrors = None,
    rejects: flags.RejectsFile = None,
    limit: flags.Limit = None,
    format: flags.Format = None,
    delimiter: flags.Delimiter = None,
    quote: flags.Quote = None,
    escape: flags.Escape = None,
    header: flags.Header = None,
    skip_lines: flags.SkipLines = None,
    encoding: flags.Encoding = None,
    type: flags.Type = None,
    infer: flags.Infer = None,
    schema_drift: flags.SchemaDrift = None,
    add_source: flags.AddSource = None,
    if_exists: flags.IfExists = None,
    overwrite: flags.Overwrite = None,
    fresh: flags.Fresh = None,
    workers: flags.Workers = None,
    cluster: flags.Cluster = None,
    scheduler: flags.Scheduler = None,
    batch_rows: flags.BatchRows = None,
    intra_op: flags.IntraOp = None,
    partition_size: flags.PartitionSize = None,
    memory_limit: flags.MemoryLimit = None,
    json: flags.Json = None,
    config: flags.Config = None,
    debug: flags.Debug = None,
) -> None:
    """Say what scoring the inputs would do, and score nothing.

    Example: batchserve plan flights.csv flights.parquet --model model.onnx
    """
    inputs, output = (paths[:-1], paths[-1]) if len(paths) > 1 else (paths, None)
    wanted = settings.of(ctx, inputs, config)
    from batchserve import console, estimate, job, log, preview, report, runner

    made, found = job.plan(wanted.job, inputs, output)
    if wanted.job.json_:
        console.out(log.as_json(made.model_dump(mode="json"), indent=1))
        return
    facts = preview.plan_facts(made) | {"runs": runner.where_it_runs(wanted.job, made)}
    if workers := runner.workers_here(wanted.job, made):
        facts |= {"memory": f"about {report.human_bytes(estimate.peak_bytes(made, workers))} at the peak"}
    console.table("plan", facts | (preview.target_facts(found, made) if found else {}))
    console.table("config", settings.provenance(wanted))


def verify(output: flags.Output, model: flags.Moved = None, debug: flags.Debug = None) -> None:
    """Compare an output with its receipt, and score some of its rows again.

    Example: batchserve verify flights.parquet
    """
    from batchserve import console, spelling
    from batchserve import verify as verifying

    verdict = verifying.verify(output, spelling.said_models(model) if model else None)
    again = f"{verdict.rows_scored:,} rows of {verdict.partitions_scored:,} partitions, equal to the bit"
    told = {f"not done {i}": text for i, text in enumerate(verdict.skipped, 1)}
    console.table(output, verdict.facts | {"scored again": again} | told)


def retry(  # noqa: PLR0913, PLR0917  one parameter per flag
    rejects: Annotated[str, typer.Argument(help="A rejects file, its records corrected.", metavar="REJECTS")],
    output: flags.Output,
    model: flags.ModelPath = None,
    on_null: flags.OnNull = None,
    max_errors: flags.MaxErrors = None,
    if_exists: flags.IfExists = None,
    overwrite: flags.Overwrite = None,
    json: flags.Json = None,
    quiet: flags.Quiet = None,
    debug: flags.Debug = None,
) -> None:
    """Score corrected records of a rejects file as their job scored the others.

    Example: batchserve retry flights.rejects.jsonl corrected.parquet
    """
    from batchserve import console, correction, log, spelling

    models = spelling.said_models(model) if model else None
    wishes = {
        "model": models, "on_null": on_null, "max_errors": max_errors, "if_exists": if_exists,
        "overwrite": overwrite, "json": json, "quiet": quiet,
    }  # fmt: skip
    screen = console.Screen(quiet=bool(quiet or json))
    try:
        with Stop(screen) as stop:
            said = {name: value for name, value in wishes.items() if value is not None}
            report = correction.retry(rejects, output, said, stop)
    finally:
        screen.close()
    screen.summary(report)
    if json:
        console.out(log.as_json(report.facts()))


def clean(output: flags.Output, debug: flags.Debug = None) -> None:
    """Remove what an unfinished run left beside an output; the output itself is not touched.

    Example: batchserve clean flights.parquet
    """
    from batchserve import console, target, workspace

    parts = workspace.clean(target.at(output))
    screen = console.Screen()
    if parts is None:
        screen.say(f"{output}: nothing is left of an unfinished run")
    else:
        screen.say(f"{output}: removed an unfinished run ({parts:,} finished part{'s' * (parts != 1)})")


def demo(
    folder: Annotated[str, typer.Argument(help="Where the files go.")] = "batchserve-demo",
    debug: flags.Debug = None,
) -> None:
    """Score a sample of real flights that comes with batchserve.

    Example: batchserve demo
    """
    from importlib import resources

    from batchserve import config
    from batchserve.storage import translated

    home = Path(folder)
    files = resources.files("batchserve").joinpath("demo")
    if not files.is_dir():
        message = "the demo's files are not in this install"
        raise NotFoundError(message, "install it whole: pip install . (without -e)")
    with translated(folder):
        home.mkdir(parents=True, exist_ok=True)
        for entry in files.iterdir():
            shutil.copyfile(str(entry), home / entry.name)
    inputs = [str(home / "flights.csv")]
    # Its own config and nothing else: what stands here or in the environment is about other files.
    wanted = config.load({"overwrite": True}, inputs, config=str(home / "batchserve.toml"), environment={})
    _score(wanted, inputs, str(home / "flights.parquet"))


for command in (
    score, plan, models.tune, models.compare, models.inspect, verify, models.evaluate, retry, models.export,
    clean, demo,
):  # fmt: skip
    app.command()(command)


def _score(wanted: "Settings", inputs: list[str], output: str) -> None:
    from batchserve import console, machine

    wishes = wanted.job
    screen = console.Screen(
        quiet=wishes.quiet or wishes.json_, verbose=wishes.verbose, progress=not wishes.no_progress
    )
    try:
        screen.header(__version__, wanted)
        report = _logged(wanted, inputs, output, screen)
    finally:
        screen.close()
    screen.summary(report)
    if wishes.profile:
        screen.profile(report, machine.process_age_s() - report.seconds)
    if wishes.json_:
        console.out(console.report_json(report, wanted))


def _logged(wanted: "Settings", inputs: list[str], output: str, screen: "Screen") -> "Report":
    """Run the job; with `--log-json` its events go to a file too."""
    from batchserve import job, log
    from batchserve.events import Restarted, Several

    file = log.Log(wanted.job.log_json) if wanted.job.log_json else None
    listeners: list[log.Log | Screen] = [file, screen] if file else [screen]
    if file and (cause := supervisor.begun_again()):
        file.on(Restarted(cause=cause))
    try:
        with Stop(Several(listeners)) as stop, log.MinuteHand(*(each.minute for each in listeners)):
            report = job.score(_continued(wanted.job), inputs, output, stop)
    except Exception as error:
        if file:
            file.failed(error if isinstance(error, BatchserveError) else _bug(error))
        raise
    if file:
        file.finished(report.facts())
    return report


def _continued(job: "Job") -> "Job":
    """After a death, `--fresh` is done with: what there is now is this command's, a whole output too."""
    if not supervisor.begun_again():
        return job
    known = {"if_exists": "skip"} if job.when_exists == "error" else {}
    return job.model_copy(update={"fresh": False} | known)


def _version(wanted: bool | None) -> None:  # noqa: FBT001  Typer calls it so
    if not wanted:
        return
    from importlib import metadata

    from batchserve import console, model

    packages = ("batchserve", "onnxruntime", "onnx", "pyarrow", "dask", "distributed", "pandas", "numpy")
    facts = {name: metadata.version(name) for name in packages}
    facts |= {"python": sys.version.split()[0], "providers": ", ".join(model.available_providers())}
    console.table(f"batchserve {facts.pop('batchserve')}", facts)
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Show versions and providers."),
    ] = None,
) -> None:
    del version


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with a documented code."""
    arguments = sys.argv[1:] if argv is None else argv
    settings.Debug.wanted = "--debug" in arguments
    try:
        with told():
            app(arguments, prog_name="batchserve")
    except BatchserveError as error:
        _fail(error)
    except Exception as error:  # noqa: BLE001  a bug: one line for the user, a traceback on request
        _fail(_bug(error))
    raise SystemExit(0)


def _bug(error: Exception) -> BatchserveError:
    message = f"bug in batchserve: {type(error).__name__}: {error}"
    return BatchserveError(message, "run it with --debug and report what it prints")


def _fail(error: BatchserveError) -> NoReturn:
    from batchserve import console

    if settings.Debug.wanted:
        sys.stderr.write(redacted(traceback.format_exc()))
    console.Screen(progress=False).error(error)
    raise SystemExit(error.exit_code) from None


_LEAN = {"PYDANTIC_DISABLE_PLUGINS": "__all__"}
"""Settings of libraries, where the user has none. pydantic reads the metadata of every installed package
to find plugins of its own."""
if sys.platform == "linux":
    # Arrow's own choice, mimalloc, took three tenths more memory for the same job, at the same speed.
    _LEAN["ARROW_DEFAULT_MEMORY_POOL"] = "jemalloc"


def run() -> NoReturn:
    """Run `main` and leave at once: taking the interpreter down takes longer than a small job.

    Nothing is lost by it: what counts was synced, and the kernel lets go of the lock.
    """
    for name, value in _LEAN.items():
        os.environ.setdefault(name, value)
    supervisor.supervise(restart=sys.argv[1:2] in (["score"], ["demo"]))
    gc.set_threshold(100_000, 20, 20)  # imports make many objects and no garbage
    try:
        main()
    except SystemExit as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 0)
