"""The flags, each once: name, help, what it takes."""

from typing import Annotated, Any

import typer


def option(*names: str, text: str, metavar: str | None = None) -> Any:
    """Build the option `names`."""
    return typer.Option(*names, help=text, metavar=metavar)


Inputs = Annotated[list[str], typer.Argument(help="Files, globs or folders, in order.", metavar="INPUT")]
Paths = Annotated[
    list[str],
    typer.Argument(help="As for score: of several paths the last is the OUTPUT.", metavar="INPUT|OUTPUT"),
]
Output = Annotated[
    str,
    typer.Argument(
        help="A .parquet file; no suffix or a / at the end makes a folder of parts.", metavar="OUTPUT"
    ),
]
ModelPath = Annotated[
    list[str] | None,
    option(
        "--model",
        "-m",
        text="The ONNX model; of several, each by a name.",
        metavar="[NAME=]PATH|REFERENCE|URL",
    ),
]  # fmt: skip
ModelSha256 = Annotated[
    str | None, option("--model-sha256", text="The sha256 that the model must have.", metavar="HEX")
]
Moved = Annotated[
    list[str] | None,
    option("--model", "-m", text="The model, if it was moved.", metavar="[NAME=]PATH"),
]
Features = Annotated[
    list[str] | None,
    option("--features", text="Columns of a wide input, in order.", metavar="A,B"),
]
Map = Annotated[
    list[str] | None,
    option("--map", text="The column for a model input.", metavar="INPUT=COLUMN"),
]
Set = Annotated[
    list[str] | None,
    option("--set", text="The one value that a model input gets for all rows.", metavar="INPUT=VALUE"),
]
Outputs = Annotated[
    list[str] | None,
    option("--outputs", text="Outputs of the model to keep.", metavar="NAMES"),
]
Prefix = Annotated[str | None, option("--prefix", text="Put before prediction columns.", metavar="TEXT")]
RowsDepend = Annotated[
    bool | None,
    option("--rows-depend", text="Accept a model whose rows change each other's scores."),
]
CustomOps = Annotated[
    str | None, option("--custom-ops", text="Library of custom operators; its code is run.", metavar="LIB")
]
Device = Annotated[
    str | None, option("--device", text="Where the model runs [default: cpu].", metavar="cpu|cuda")
]
Keep = Annotated[
    list[str] | None,
    option("--keep", text="Input columns that pass through.", metavar="all|none|A,B"),
]
OnNull = Annotated[
    list[str] | None,
    option("--on-null", text="What a null in a model column becomes: reject (default), nan, fill=V.",
        metavar="[COL:]RULE",
    ),
]  # fmt: skip
OnNonfinite = Annotated[
    str | None,
    option(
        "--on-nonfinite",
        text="What becomes of a row with an infinite or NaN score [default: keep].",
        metavar="keep|reject",
    ),
]
MaxErrors = Annotated[
    str | None, option("--max-errors", text="Rows that may be rejected [default: 0].", metavar="N|P%")
]
RejectsFile = Annotated[
    str | None,
    option("--rejects", text="Where rejected rows go [default: beside the output].", metavar="PATH"),
]
Limit = Annotated[int | None, option("--limit", text="Read only the first N records.", metavar="N")]
Format = Annotated[
    str | None,
    option(
        "--format", text="Format of the inputs [default: by suffix].", metavar="csv|tsv|jsonl|parquet|arrow"
    ),
]
Delimiter = Annotated[
    str | None,
    option("--delimiter", text="Between the fields of a text file [default: found].", metavar="CHAR"),
]
Quote = Annotated[
    str | None,
    option("--quote", text="Quote character of a text file [default: found].", metavar="CHAR|none"),
]
Escape = Annotated[
    str | None,
    option("--escape", text="Escape character of a text file [default: found].", metavar="CHAR|none"),
]
Header = Annotated[
    str | None,
    option("--header", text="Whether the first record names the columns [default: found].", metavar="yes|no"),
]
SkipLines = Annotated[
    int | None, option("--skip-lines", text="Lines before the header [default: found].", metavar="N")
]
Encoding = Annotated[
    str | None, option("--encoding", text="Encoding of text files [default: utf-8].", metavar="NAME")
]
Type = Annotated[
    list[str] | None,
    option("--type", text="The type of a column of a text file.", metavar="COL=TYPE"),
]
Infer = Annotated[
    str | None,
    option("--infer", text="Sample text files for types, or read them all.", metavar="sample|full"),
]
SchemaDrift = Annotated[
    str | None,
    option(
        "--schema-drift",
        text="Files with other columns: refuse them, or fill and cast.",
        metavar="error|widen",
    ),
]
AddSource = Annotated[bool | None, option("--add-source", text="Add columns source_file and source_row.")]
IfExists = Annotated[
    str | None,
    option("--if-exists", text="What to do with an output that is there [default: error].",
        metavar="error|skip|overwrite|append",
    ),
]  # fmt: skip
Overwrite = Annotated[
    bool | None, option("--overwrite", text="Replace what batchserve wrote: --if-exists overwrite.")
]
Fresh = Annotated[bool | None, option("--fresh", text="Drop an unfinished run of another plan.")]
Workers = Annotated[
    int | None,
    option("--workers", text="Partitions scored at once [default: usable CPUs].", metavar="N"),
]
Scheduler = Annotated[
    str | None,
    option("--scheduler", text="A running Dask scheduler.", metavar="ADDRESS"),
]
Cluster = Annotated[
    str | None,
    option("--cluster", text="A cluster that `cluster start` started.", metavar="NAME"),
]
BatchRows = Annotated[
    int | None,
    option("--batch-rows", text="Rows in every run of the model.", metavar="N"),
]
IntraOp = Annotated[
    int | None, option("--intra-op", text="Threads of one run of the model [default: 1].", metavar="N")
]
PartitionSize = Annotated[
    str | None,
    option("--partition-size", text="Input bytes per partition: 64k, 32MiB.", metavar="SIZE"),
]
MemoryLimit = Annotated[
    str | None,
    option("--memory-limit", text="Memory all workers may use [default: what the system allows].",
        metavar="SIZE",
    ),
]  # fmt: skip
StallTimeout = Annotated[
    str | None,
    option("--stall-timeout", text="Stop when no run of the model has ended for this long [default: 10m].",
        metavar="TIME",
    ),
]  # fmt: skip
Weights = Annotated[
    str | None,
    option("--weights", text="Weights for a torch module that a factory makes.", metavar="FILE"),
]
Tolerance = Annotated[
    list[str] | None,
    option(
        "--tolerance",
        text="Difference allowed, as a share of the output's spread [default: 1e-5].",
        metavar="[OUTPUT=]X",
    ),
]
AcceptDrift = Annotated[
    bool | None, option("--accept-drift", text="Write the model whatever the differences are.")
]
Precision = Annotated[
    str | None,
    option("--precision", text="Compute matrix products in float16 or int8.", metavar="float16|int8"),
]
Replace = Annotated[bool | None, option("--overwrite", text="Replace a file that is there.")]
TrustPickle = Annotated[
    bool | None, option("--trust-pickle", text="Read a pickle: that runs the code in it.")
]
Allowed = Annotated[
    float, option("--tolerance", text="Numbers differ if they are further apart than this.", metavar="X")
]
Top = Annotated[int, option("--top", text="Rows that differ most to show, for each output.", metavar="K")]
LogJson = Annotated[str | None, option("--log-json", text="Append events as JSON lines.", metavar="FILE")]
Json = Annotated[bool | None, option("--json", text="Print one JSON object to stdout and nothing else.")]
Quiet = Annotated[bool | None, option("--quiet", "-q", text="Say nothing but errors.")]
Verbose = Annotated[bool | None, option("--verbose", "-v", text="Say more.")]
NoProgress = Annotated[bool | None, option("--no-progress", text="No progress line.")]
Profile = Annotated[bool | None, option("--profile", text="Say where the time went, for each core.")]
Dashboard = Annotated[bool | None, option("--dashboard", text="Serve Dask's dashboard on loopback.")]
Config = Annotated[
    str | None,
    option("--config", text="Config file [default: ./batchserve.toml].", metavar="PATH"),
]
Debug = Annotated[bool | None, option("--debug", text="Show tracebacks.")]

# -- of evaluate ------------------------------------------------------------------------------

Label = Annotated[str, option("--label", text="Column of what was to be predicted.", metavar="COL")]
Prediction = Annotated[str, option("--prediction", text="Column of what was predicted.", metavar="COL")]
TaskName = Annotated[
    str | None,
    option("--task", text="What was predicted [default: by types].", metavar="regression|binary|multiclass"),
]
Threshold = Annotated[
    float, option("--threshold", text="Scores from here on are positive.", metavar="NUMBER")
]
Positive = Annotated[
    str | None, option("--positive", text="The positive class [default: 1, or the second].", metavar="CLASS")
]
Classes = Annotated[
    list[str] | None,
    option("--classes", text="Classes of a list of probabilities, in its order.", metavar="A,B"),
]
By = Annotated[
    list[str] | None, option("--by", text="A column whose values are groups of rows.", metavar="COL")
]
Bins = Annotated[int, option("--bins", text="Bins of the calibration.", metavar="N")]
Plot = Annotated[
    str | None, option("--plot", text="Draw calibration and errors.", metavar="FILE.html|FILE.svg")
]
