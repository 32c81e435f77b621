"""The commands: arguments -> config -> one library call -> console. The only place that exits."""

import gc
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self

import typer

from batchserve import __version__
from batchserve.errors import BatchserveError, NotFoundError, StoppedError, TerminatedError

if TYPE_CHECKING:
    from batchserve.config import Settings
    from batchserve.events import Event, Listener

app = typer.Typer(
    help="Score files with an ONNX model: parallel, exact, restartable.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing help with rich takes longer than all the rest of --help
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _option(*names: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, metavar=metavar)


Inputs = Annotated[list[str], typer.Argument(help="Files, globs or folders, in order.", metavar="INPUT")]
Output = Annotated[
    str,
    typer.Argument(
        help="A .parquet file; no suffix or a / at the end makes a folder of parts.", metavar="OUTPUT"
    ),
]
ModelPath = Annotated[str | None, _option("--model", "-m", text="The ONNX model.", metavar="PATH")]
Features = Annotated[
    list[str] | None,
    _option("--features", text="Columns of a wide input, in order.", metavar="A,B"),
]
Map = Annotated[
    list[str] | None,
    _option("--map", text="The column for a model input.", metavar="INPUT=COLUMN"),
]
Outputs = Annotated[
    list[str] | None,
    _option("--outputs", text="Outputs of the model to keep.", metavar="NAMES"),
]
Prefix = Annotated[str | None, _option("--prefix", text="Put before prediction columns.", metavar="TEXT")]
RowsDepend = Annotated[
    bool | None,
    _option("--rows-depend", text="Accept a model whose rows change each other's scores."),
]
Keep = Annotated[
    list[str] | None,
    _option("--keep", text="Input columns that pass through.", metavar="all|none|A,B"),
]
OnNull = Annotated[
    list[str] | None,
    _option("--on-null", text="What a null in a model column becomes: reject (default), nan, fill=V.",
        metavar="[COL:]RULE",
    ),
]  # fmt: skip
Limit = Annotated[int | None, _option("--limit", text="Read only the first N records.", metavar="N")]
Type = Annotated[
    list[str] | None,
    _option("--type", text="The type of a column of a text file.", metavar="COL=TYPE"),
]
Infer = Annotated[
    str | None,
    _option("--infer", text="Sample text files for types, or read them all.", metavar="sample|full"),
]
Overwrite = Annotated[bool | None, _option("--overwrite", text="Replace an output that batchserve wrote.")]
Workers = Annotated[
    int | None,
    _option("--workers", text="Partitions scored at once [default: usable CPUs].", metavar="N"),
]
Scheduler = Annotated[
    str | None,
    _option("--scheduler", text="A running Dask scheduler.", metavar="ADDRESS"),
]
BatchRows = Annotated[
    int | None,
    _option("--batch-rows", text="Rows in every run of the model.", metavar="N"),
]
PartitionSize = Annotated[
    str | None,
    _option("--partition-size", text="Input bytes per partition: 64k, 32MiB.", metavar="SIZE"),
]
Json = Annotated[bool | None, _option("--json", text="Print one JSON object to stdout and nothing else.")]
Quiet = Annotated[bool | None, _option("--quiet", "-q", text="Say nothing but errors.")]
Verbose = Annotated[bool | None, _option("--verbose", "-v", text="Say more.")]
NoProgress = Annotated[bool | None, _option("--no-progress", text="No progress line.")]
Dashboard = Annotated[bool | None, _option("--dashboard", text="Serve Dask's dashboard on loopback.")]
Config = Annotated[
    str | None,
    _option("--config", text="Config file [default: ./batchserve.toml].", metavar="PATH"),
]
Debug = Annotated[bool | None, _option("--debug", text="Show tracebacks.")]


@app.command()
def score(  # noqa: PLR0913, PLR0917  one parameter per flag
    ctx: typer.Context,
    inputs: Inputs,
    output: Output,
    model: ModelPath = None,
    features: Features = None,
    map: Map = None,  # noqa: A002
    outputs: Outputs = None,
    prefix: Prefix = None,
    rows_depend: RowsDepend = None,
    keep: Keep = None,
    on_null: OnNull = None,
    limit: Limit = None,
    type: Type = None,  # noqa: A002
    infer: Infer = None,
    overwrite: Overwrite = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    batch_rows: BatchRows = None,
    partition_size: PartitionSize = None,
    json: Json = None,
    quiet: Quiet = None,
    verbose: Verbose = None,
    no_progress: NoProgress = None,
    dashboard: Dashboard = None,
    config: Config = None,
    debug: Debug = None,
) -> None:
    """Score every row of the inputs into one Parquet output.

    Example: batchserve score flights.csv flights.parquet --model model.onnx
    """
    _score(_settings(ctx, inputs, config), inputs, output)


@app.command()
def plan(  # noqa: PLR0913, PLR0917  one parameter per flag
    ctx: typer.Context,
    inputs: Inputs,
    model: ModelPath = None,
    features: Features = None,
    map: Map = None,  # noqa: A002
    outputs: Outputs = None,
    prefix: Prefix = None,
    rows_depend: RowsDepend = None,
    keep: Keep = None,
    on_null: OnNull = None,
    limit: Limit = None,
    type: Type = None,  # noqa: A002
    infer: Infer = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    batch_rows: BatchRows = None,
    partition_size: PartitionSize = None,
    json: Json = None,
    config: Config = None,
    debug: Debug = None,
) -> None:
    """Say what scoring the inputs would do, and score nothing.

    Example: batchserve plan flights.csv --model model.onnx
    """
    settings = _settings(ctx, inputs, config)
    from batchserve import console, job, report, runner

    made, _ = job.plan(settings.job, inputs)
    if settings.job.json_:
        console.out(made.model_dump_json(indent=1))
        return
    console.table("plan", report.plan_facts(made) | {"runs": runner.where_it_runs(settings.job, made)})
    console.table("config", _provenance(settings))


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="An ONNX model.")],
    debug: Debug = None,
) -> None:
    """Show what a model takes and gives.

    Example: batchserve inspect model.onnx
    """
    from batchserve import console, frames

    console.table(file, frames.described(file))


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(help="Where the files go.")] = "batchserve-demo",
    debug: Debug = None,
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


def _settings(ctx: typer.Context, inputs: list[str], file: str | None) -> "Settings":
    from batchserve import config

    not_fields = {"inputs", "output", "config"}
    given = {k: v for k, v in ctx.params.items() if v not in (None, [], ()) and k not in not_fields}
    settings = config.load(given, inputs, config=file)
    _Debug.wanted = settings.job.debug
    return settings


def _score(settings: "Settings", inputs: list[str], output: str) -> None:
    from batchserve import console, job

    wishes = settings.job
    screen = console.Screen(
        quiet=wishes.quiet or wishes.json_, verbose=wishes.verbose, progress=not wishes.no_progress
    )
    try:
        with _Stop(screen) as stop:
            screen.header(__version__, settings)
            report = job.score(wishes, inputs, output, stop)
    finally:
        screen.close()
    screen.summary(report)
    if wishes.json_:
        console.out(console.report_json(report, settings))


def _provenance(settings: "Settings") -> dict[str, str]:
    values = settings.job.model_dump(by_alias=True)
    said = {key: f"{values[key]}  ({origin})" for key, origin in settings.origins.items()}
    return said | {"default": ", ".join(key for key in values if key not in said)}


class _Stop:
    """Turns the first Ctrl-C or SIGTERM into our error; a second one ends the process at once.

    An exception raised in a signal handler is lost where Python ignores exceptions (a callback
    of the garbage collector, say), so it is raised again at the next event of the job.
    """

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._number = 0
        self._before: dict[int, Any] = {}

    def on(self, event: "Event") -> None:
        """Pass `event` on, unless the job is to stop."""
        if self._number:
            self._raise()
        self._listener.on(event)

    def _caught(self, number: int, frame: object) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)
        self._number = number
        self._raise()

    def _raise(self) -> NoReturn:
        kind = TerminatedError if self._number == signal.SIGTERM else StoppedError
        raise kind("stopped", "the same command continues from the finished parts")

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


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
        app(arguments, prog_name="batchserve")
    except BatchserveError as error:
        _fail(error)
    except Exception as error:  # noqa: BLE001  a bug: one line for the user, a traceback on request
        message = f"bug in batchserve: {type(error).__name__}: {error}"
        _fail(BatchserveError(message, "run it with --debug and report what it prints"))
    raise SystemExit(0)


def _fail(error: BatchserveError) -> NoReturn:
    from batchserve import console

    if _Debug.wanted:
        traceback.print_exc()
    console.Screen(progress=False).error(error)
    raise SystemExit(error.exit_code) from None


def run() -> NoReturn:
    """Run `main` and leave at once: taking the interpreter down takes longer than a small job.

    Nothing is lost by it: what counts was synced, and the kernel lets go of the lock.
    """
    gc.set_threshold(100_000, 20, 20)  # imports make many objects and no garbage
    try:
        main()
    except SystemExit as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 0)
