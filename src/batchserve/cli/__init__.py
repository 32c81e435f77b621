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
from batchserve.cli import clusters, flags, supervisor
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


@app.command()
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
    _score(_settings(ctx, inputs, config), inputs, output)


@app.command()
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
    settings = _settings(ctx, inputs, config)
    from batchserve import console, estimate, job, log, preview, report, runner

    made, found = job.plan(settings.job, inputs, output)
    if settings.job.json_:
        console.out(log.as_json(made.model_dump(mode="json"), indent=1))
        return
    facts = preview.plan_facts(made) | {"runs": runner.where_it_runs(settings.job, made)}
    if workers := runner.workers_here(settings.job, made):
        facts |= {"memory": f"about {report.human_bytes(estimate.peak_bytes(made, workers))} at the peak"}
    console.table("plan", facts | (preview.target_facts(found, made) if found else {}))
    console.table("config", _provenance(settings))


@app.command()
def tune(  # noqa: PLR0913, PLR0917  one parameter per flag
    ctx: typer.Context,
    inputs: flags.Inputs,
    model: flags.ModelPath = None,
    model_sha256: flags.ModelSha256 = None,
    features: flags.Features = None,
    map: flags.Map = None,
    set: flags.Set = None,
    outputs: flags.Outputs = None,
    rows_depend: flags.RowsDepend = None,
    custom_ops: flags.CustomOps = None,
    device: flags.Device = None,
    on_null: flags.OnNull = None,
    format: flags.Format = None,
    delimiter: flags.Delimiter = None,
    quote: flags.Quote = None,
    escape: flags.Escape = None,
    header: flags.Header = None,
    skip_lines: flags.SkipLines = None,
    encoding: flags.Encoding = None,
    type: flags.Type = None,
    workers: flags.Workers = None,
    config: flags.Config = None,
    debug: flags.Debug = None,
) -> None:
    """Measure which batch size and threads the model runs fastest with, and write them to the config.

    Example: batchserve tune flights.csv --model model.onnx
    """
    settings = _settings(ctx, inputs, config)
    from batchserve import console
    from batchserve import tune as tuning
    from batchserve.config import FILE_NAME

    found = tuning.tuned(settings.job, inputs)
    path = settings.file if settings.file and not settings.beside else Path(FILE_NAME)
    console.table("rows/s of the model alone, on all workers", console.trials(found))
    if not found.changes:
        console.out("all stays as it is: nothing is a tenth faster")
        return
    tuning.write(path, found.changes)
    changes = ", ".join(f"{key} = {value}" for key, value in found.changes.items())
    console.out(f"{path}: {changes} ({found.best.rows_per_s / found.now.rows_per_s:.2f} times as fast)")


@app.command()
def compare(  # noqa: PLR0913, PLR0917  one parameter per flag
    ctx: typer.Context,
    first: Annotated[str, typer.Argument(help="An ONNX model.", metavar="A.onnx")],
    second: Annotated[str, typer.Argument(help="The one to compare it with.", metavar="B.onnx")],
    inputs: flags.Inputs,
    tolerance: flags.Allowed = 0.0,
    top: flags.Top = 5,
    model_sha256: flags.ModelSha256 = None,
    features: flags.Features = None,
    map: flags.Map = None,
    set: flags.Set = None,
    outputs: flags.Outputs = None,
    rows_depend: flags.RowsDepend = None,
    custom_ops: flags.CustomOps = None,
    device: flags.Device = None,
    on_null: flags.OnNull = None,
    limit: flags.Limit = None,
    format: flags.Format = None,
    delimiter: flags.Delimiter = None,
    quote: flags.Quote = None,
    escape: flags.Escape = None,
    header: flags.Header = None,
    skip_lines: flags.SkipLines = None,
    encoding: flags.Encoding = None,
    type: flags.Type = None,
    workers: flags.Workers = None,
    batch_rows: flags.BatchRows = None,
    json: flags.Json = None,
    config: flags.Config = None,
    debug: flags.Debug = None,
) -> None:
    """Run two models over the same rows and say where their outputs differ.

    Example: batchserve compare champion.onnx challenger.onnx flights.csv
    """
    settings = _settings(ctx, inputs, config, model={"a": first, "b": second})
    from batchserve import comparison, console, log

    found = comparison.compared(settings.job, inputs, tolerance, top)
    if settings.job.json_:
        console.out(log.as_json(found.facts(), indent=1))
        return
    for title, facts in found.tables().items():
        console.table(title, facts)


@app.command()
def inspect(  # noqa: PLR0913, PLR0917  one parameter per flag
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(help="An ONNX model, or a data file.")],
    format: flags.Format = None,
    delimiter: flags.Delimiter = None,
    quote: flags.Quote = None,
    escape: flags.Escape = None,
    header: flags.Header = None,
    skip_lines: flags.SkipLines = None,
    encoding: flags.Encoding = None,
    custom_ops: flags.CustomOps = None,
    model_sha256: flags.ModelSha256 = None,
    debug: flags.Debug = None,
) -> None:
    """Show what a model takes and gives, or what a data file holds.

    Example: batchserve inspect model.onnx
    """
    from batchserve import console, references, survey

    if not references.is_reference(file) and survey.is_data(file):
        others = {"file", "custom_ops", "model_sha256"}
        said = {name: value for name, value in ctx.params.items() if value is not None and name not in others}
        console.table(file, survey.described(file, **said))
        return
    from batchserve import frames

    console.table(file, frames.described(file, custom_ops, model_sha256))


@app.command()
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


@app.command()
def evaluate(  # noqa: PLR0913, PLR0917  one parameter per flag
    scored: Annotated[str, typer.Argument(help="A scored file, dataset folder or glob.", metavar="SCORED")],
    label: flags.Label,
    prediction: flags.Prediction,
    task: flags.TaskName = None,
    threshold: flags.Threshold = 0.5,
    positive: flags.Positive = None,
    classes: flags.Classes = None,
    by: flags.By = None,
    bins: flags.Bins = 10,
    plot: flags.Plot = None,
    format: flags.Format = None,
    json: flags.Json = None,
    debug: flags.Debug = None,
) -> None:
    """Compare predictions with labels: metrics, calibration, groups, a plot.

    Example: batchserve evaluate flights.parquet --label arr_delay --prediction predicted_delay
    """
    from batchserve import api, console, log

    found = api.evaluate(
        scored, label=label, prediction=prediction, task=task, threshold=threshold, positive=positive,
        classes=classes or (), by=by or (), bins=bins, format=format, plot=plot,
    )  # fmt: skip
    if json:
        console.out(log.as_json(found.facts(), indent=1))
    else:
        console.lines(str(found))


@app.command()
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


@app.command()
def export(  # noqa: PLR0913, PLR0917  one parameter per flag
    source: Annotated[
        str, typer.Argument(help="A trained model's file, or package.module:factory.", metavar="SOURCE")
    ],
    path: Annotated[str, typer.Argument(help="Where the ONNX model goes.", metavar="MODEL.onnx")],
    sample: Annotated[str, typer.Option("--sample", help="Data such as will be scored.", metavar="DATA")],
    features: flags.Features = None,
    weights: flags.Weights = None,
    tolerance: flags.Tolerance = None,
    accept_drift: flags.AcceptDrift = None,
    precision: flags.Precision = None,
    trust_pickle: flags.TrustPickle = None,
    overwrite: flags.Replace = None,
    debug: flags.Debug = None,
) -> None:
    """Convert a trained model to ONNX, and write that only if it predicts the same.

    Example: batchserve export pipeline.joblib model.onnx --sample flights.csv --trust-pickle
    """
    from batchserve import api, console, spelling

    names = spelling.items(features or ())
    done = api.export(
        source, path, sample=sample, features=names, weights=weights, tolerance=tolerance or (),
        accept_drift=bool(accept_drift), trust_pickle=bool(trust_pickle), overwrite=bool(overwrite),
        precision=precision,  # type: ignore[arg-type]  # read by the library, with its reasons
    )  # fmt: skip
    console.table(path, done.facts())


@app.command()
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


@app.command()
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
    settings = config.load({"overwrite": True}, inputs, config=str(home / "batchserve.toml"), environment={})
    _score(settings, inputs, str(home / "flights.parquet"))


_NOT_FIELDS = {"inputs", "paths", "output", "config", "first", "second", "tolerance", "top"}


def _settings(ctx: typer.Context, inputs: list[str], file: str | None, **more: object) -> "Settings":
    from batchserve import config

    given = {k: v for k, v in ctx.params.items() if v not in (None, [], ()) and k not in _NOT_FIELDS}
    settings = config.load(given | more, inputs, config=file)
    _Debug.wanted = settings.job.debug
    return settings


def _score(settings: "Settings", inputs: list[str], output: str) -> None:
    from batchserve import console, machine

    wishes = settings.job
    screen = console.Screen(
        quiet=wishes.quiet or wishes.json_, verbose=wishes.verbose, progress=not wishes.no_progress
    )
    try:
        screen.header(__version__, settings)
        report = _logged(settings, inputs, output, screen)
    finally:
        screen.close()
    screen.summary(report)
    if wishes.profile:
        screen.profile(report, machine.process_age_s() - report.seconds)
    if wishes.json_:
        console.out(console.report_json(report, settings))


def _logged(settings: "Settings", inputs: list[str], output: str, screen: "Screen") -> "Report":
    """Run the job; with `--log-json` its events go to a file too."""
    from batchserve import job, log
    from batchserve.events import Restarted, Several

    file = log.Log(settings.job.log_json) if settings.job.log_json else None
    listeners: list[log.Log | Screen] = [file, screen] if file else [screen]
    if file and (cause := supervisor.begun_again()):
        file.on(Restarted(cause=cause))
    try:
        with Stop(Several(listeners)) as stop, log.MinuteHand(*(each.minute for each in listeners)):
            report = job.score(_continued(settings.job), inputs, output, stop)
    except Exception as error:
        if file:
            file.failed(error if isinstance(error, BatchserveError) else _bug(error))
        raise
    if file:
        file.finished(report.facts())
    return report


def _continued(job: "Job") -> "Job":
    """After a death, `--fresh` is done with: what there is now is this command's."""
    return job.model_copy(update={"fresh": False}) if supervisor.begun_again() else job


def _provenance(settings: "Settings") -> dict[str, str]:
    values = settings.job.model_dump(by_alias=True)
    said = {key: f"{values[key]}  ({origin})" for key, origin in settings.origins.items()}
    return said | {"default": ", ".join(key for key in values if key not in said)}


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


class _Debug:
    """Whether the job's settings ask for tracebacks, for `main` to know when it has failed."""

    wanted = False


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with a documented code."""
    arguments = sys.argv[1:] if argv is None else argv
    _Debug.wanted = "--debug" in arguments
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

    if _Debug.wanted:
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
