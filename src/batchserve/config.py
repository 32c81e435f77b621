"""The job, validated once; every value knows where it came from: default < file < env < flag."""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypedDict, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from batchserve import machine, spelling
from batchserve.errors import BatchserveError, NotFoundError, UsageError, did_you_mean, raise_all
from batchserve.references import is_reference
from batchserve.storage import translated

FILE_NAME = "batchserve.toml"
ENV_PREFIX = "BATCHSERVE_"

BESIDE_MAY_SET = frozenset(
    {
        "model", "features", "map", "set", "outputs", "prefix", "on_null", "on_nonfinite", "type", "infer",
        "format", "delimiter", "quote", "escape", "header", "skip_lines", "encoding",
    }
)  # fmt: skip
"""What a config found beside the inputs may set: whoever made the data folder wrote it, so it
may describe the data and its model but not run code, connect, or destroy."""

Models = Annotated[str | dict[str, str] | None, BeforeValidator(spelling.models)]
Names = Annotated[tuple[str, ...], BeforeValidator(spelling.items)]
Pairs = Annotated[dict[str, str], BeforeValidator(spelling.pairs)]
Constants = Annotated[dict[str, str], BeforeValidator(spelling.constants)]
Size = Annotated[int, BeforeValidator(spelling.size), Field(ge=1)]
Duration = Annotated[float, BeforeValidator(spelling.duration), Field(gt=0)]


class Job(BaseModel):
    """What the user wants. Every field is a flag, an environment variable and a config key."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    model: Models = None
    """Path of the ONNX model, a URL, `models:/NAME/ALIAS` of MLflow, `hf:OWNER/REPO`; of several by name."""
    model_sha256: Annotated[str | dict[str, str], BeforeValidator(spelling.sha256s)] | None = None
    """The sha256 that the model must have, of several by name; needed for a URL."""
    features: Names = ()
    """Columns of a wide input, in order."""
    map: Pairs = {}
    """Model input name to column name, where they differ."""
    set: Constants = {}
    """Model input name to the one value it always gets: a number, a text, or a JSON list."""
    outputs: Names = ()
    """Outputs of the model to keep; all when empty."""
    prefix: str = ""
    """Put before the names of prediction columns."""
    rows_depend: bool = False
    """Accept a model whose rows change each other's scores."""
    custom_ops: str | None = None
    """Library of custom operators that the model needs: its code runs in every worker."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model runs; there is no fall-back to another."""
    keep: Names = ("all",)
    """Input columns that pass through: all, none, or names."""
    on_null: Names = ()
    """What a null in a model column becomes: [COLUMN:]reject|nan|fill=VALUE."""
    on_nonfinite: Literal["keep", "reject"] = "keep"
    """What becomes of a row whose score is infinite or not a number."""
    max_errors: Annotated[str, Field(pattern=r"^\s*(\d+|\d+(\.\d+)?%)\s*$", coerce_numbers_to_str=True)] = "0"
    """Rows that may be rejected in an output that is published: a number, or a share like 0.1%."""
    rejects: str | None = None
    """File for rows that cannot be scored; beside the output by default."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Read only the first N records."""
    format: Literal["csv", "tsv", "jsonl", "parquet", "arrow"] | None = None
    """Format of the inputs; told from their suffixes by default."""
    delimiter: str | None = None
    """What stands between the fields of a text file; found by default."""
    quote: str | None = None
    """The quote character of a text file, or `none`; found by default."""
    escape: str | None = None
    """The character that takes the meaning from the next one, or `none`; found by default."""
    header: Literal["yes", "no"] | None = None
    """Whether the first record of a text file names the columns; found by default."""
    skip_lines: Annotated[int, Field(ge=0)] | None = None
    """Lines of a text file before its header; found by default."""
    encoding: str | None = None
    """Encoding of text files: utf-8 by default; UTF-16 and UTF-32 are known by their first bytes."""
    type: Pairs = {}
    """Column name to type, for text files."""
    infer: Literal["sample", "full"] = "sample"
    """Sample the files for column types, or read them all first."""
    schema_drift: Literal["error", "widen"] = "error"
    """Files with other columns than the first: refuse them, or fill and cast."""
    add_source: bool = False
    """Add the columns source_file and source_row to the output."""
    if_exists: Literal["error", "skip", "overwrite", "append"] = "error"
    """What to do with an output that is there."""
    overwrite: bool = False
    """Replace an output that batchserve wrote: short for `if_exists = "overwrite"`."""
    fresh: bool = False
    """Drop what an unfinished run of another plan left."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Partitions scored at once; as many as usable CPUs by default."""
    cluster: str | None = None
    """Name of a cluster that `batchserve cluster start` started."""
    scheduler: str | None = None
    """Address of a running Dask scheduler."""
    batch_rows: Annotated[int, Field(ge=64, multiple_of=64)] | None = None
    """Rows per run of the model, a multiple of 64."""
    intra_op: Annotated[int, Field(ge=1)] = 1
    """Threads of one run of the model: bits may depend on it, so it is part of the plan."""
    partition_size: Size | None = None
    """Bytes of input per partition."""
    memory_limit: Size | None = None
    """Bytes that all workers together may use; what the system allows by default."""
    stall_timeout: Duration = 600.0
    """Seconds without a finished run of the model after which a partition is given up."""
    dashboard: bool = False
    """Serve Dask's dashboard on loopback."""
    profile: bool = False
    """Say where the time went, for each core."""
    json_: bool = Field(default=False, alias="json")
    """Print one JSON object and nothing else to stdout."""
    quiet: bool = False
    """Say nothing but errors."""
    verbose: bool = False
    """Say more."""
    no_progress: bool = False
    """Do not draw the progress line."""
    log_json: str | None = None
    """File that events are appended to, as JSON lines."""
    debug: bool = False
    """Show tracebacks."""

    @property
    def workers_here(self) -> int:
        """Partitions that this process scores at once: with the threads of each run, the usable CPUs."""
        return self.workers or max(1, machine.usable_cpus() // self.intra_op)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.overwrite and self.if_exists not in {"error", "overwrite"}:
            raise ValueError(f"--overwrite and --if-exists {self.if_exists} contradict each other")
        if self.cluster and self.scheduler:
            raise ValueError("--cluster and --scheduler name two clusters")
        return self

    @property
    def when_exists(self) -> str:
        """What to do with an output that is there, `overwrite` counted in."""
        return "overwrite" if self.overwrite else self.if_exists


class Options(TypedDict, total=False):
    """The keyword arguments of `batchserve.score` and its kin: the fields of a job."""

    model: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None
    model_sha256: str | Mapping[str, str] | None
    features: Sequence[str]
    map: Mapping[str, str]
    set: Mapping[str, Any]
    outputs: Sequence[str]
    prefix: str
    rows_depend: bool
    custom_ops: str | None
    device: str
    keep: str | Sequence[str]
    on_null: str | Sequence[str]
    on_nonfinite: str
    max_errors: int | str
    rejects: str | None
    limit: int | None
    format: str | None
    delimiter: str | None
    quote: str | None
    escape: str | None
    header: str | None
    skip_lines: int | None
    encoding: str | None
    type: Mapping[str, str]
    infer: str
    schema_drift: str
    add_source: bool
    if_exists: str
    overwrite: bool
    fresh: bool
    workers: int | None
    scheduler: str | None
    batch_rows: int | None
    intra_op: int
    partition_size: int | str | None
    memory_limit: int | str | None
    stall_timeout: float | str
    dashboard: bool


FIELDS = tuple(field.alias or name for name, field in Job.model_fields.items())
"""Names of all keys, as users write them."""


@dataclass(frozen=True)
class Settings:
    """A job, and where each of its values came from."""

    job: Job
    origins: dict[str, str]
    """Key to origin, for every key that is not a default."""
    file: Path | None = None
    beside: bool = False
    """True when `file` was found in the folder of the inputs."""


@dataclass(frozen=True)
class _Layer:
    values: dict[str, Any]
    origin: str
    lines: dict[str, int]
    problems: tuple[BatchserveError, ...] = ()


def load(
    flags: Mapping[str, Any],
    inputs: Sequence[str],
    *,
    config: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Merge config file, environment and flags into one validated job.

    The file is `config`, else BATCHSERVE_CONFIG, else ./batchserve.toml, else the one in the
    folder of the inputs if all share it.

    Args:
        flags: Values given on the command line or to a function, by key.
        inputs: The inputs as given, to find a config beside them.
        config: Path of a config file, or None to look for one.
        environment: The environment, `os.environ` by default.

    Raises:
        UsageError: A key or value is wrong; all of them are named, with their lines.
        NotFoundError: The config file named does not exist.
    """
    env = os.environ if environment is None else environment
    path, beside = _find(config or env.get(f"{ENV_PREFIX}CONFIG"), inputs)
    layers = [_file_layer(path, beside=beside)] if path else []
    layers += [_env_layer(env), _Layer(dict(flags), "flag", {})]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        values = _outdone(values, layer.values) | layer.values
        origins |= {key: layer.origin.replace("*", key.upper()) for key in layer.values}
    origins = {key: origin for key, origin in origins.items() if key in values}
    return Settings(_validated(values, origins, layers), origins, path, beside)


_RIVALS = ({"if_exists", "overwrite"}, {"cluster", "scheduler"})
"""Keys of which one is said: a flag outdoes the other one in a file, too."""


def _outdone(values: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return values without those whose rival a later layer sets."""
    outdone = {key for rivals in _RIVALS if rivals & later.keys() for key in rivals}
    return {key: value for key, value in values.items() if key not in outdone}


def _find(named: str | None, inputs: Sequence[str]) -> tuple[Path | None, bool]:
    if named:
        if not Path(named).is_file():
            raise NotFoundError(f"{named}: no such config file", "check --config or BATCHSERVE_CONFIG")
        return Path(named), False
    here = Path(FILE_NAME)
    if here.is_file():
        return here, False
    folders = {_folder(given) for given in inputs}
    beside = folders.pop() / FILE_NAME if len(folders) == 1 else None
    return (beside, True) if beside and beside.is_file() else (None, False)


def _folder(given: str) -> Path:
    path = Path(given)
    return path if path.is_dir() else path.parent


def _file_layer(path: Path, *, beside: bool) -> _Layer:
    with translated(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: is no TOML: {error}", "mend that line") from None
    lines = {key: _line_of(key, text) for key in values}
    problems = tuple(_key_problems(path, values, lines, beside=beside))
    known = {key: value for key, value in values.items() if key in FIELDS}
    if paths := _model_paths(known.get("model")):
        named = {name: m if is_reference(m) else str(path.parent / m) for name, m in paths.items()}
        known["model"] = named.get("", named)
    return _Layer(known, str(path), lines, problems)


def _model_paths(value: Any) -> dict[str, str]:
    """Return the paths of models in a file, by name; nothing where they are wrong, which is told later."""
    try:
        found = spelling.models(value)
    except ValueError:
        return {}
    paths = spelling.by_name(found) if isinstance(found, str | dict) else {}
    return paths if all(isinstance(path, str) for path in paths.values()) else {}


def _line_of(key: str, text: str) -> int:
    pattern = re.compile(rf"""^\s*\[?\s*["']?{re.escape(key)}["']?\s*[\].=]""")
    return next((i for i, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def _key_problems(
    path: Path, values: Mapping[str, Any], lines: Mapping[str, int], *, beside: bool
) -> Iterator[BatchserveError]:
    for key in values:
        where = f"{path}:{lines[key]}: {key}"
        if key not in FIELDS:
            hint = did_you_mean(key, FIELDS) or f"keys are: {', '.join(FIELDS)}"
            yield UsageError(f"{where}: no such key", hint)
        elif beside and key not in BESIDE_MAY_SET:
            message = f"{where}: may not be set by a config found beside the inputs"
            yield UsageError(message, f"say it as a flag, or trust the file: --config {path}")
        elif beside and key == "model":
            yield from _outside(where, path.parent, _model_paths(values[key]))


def _outside(where: str, folder: Path, models: Mapping[str, str]) -> Iterator[UsageError]:
    for name, model in models.items():
        before = name and f"{name}="
        if is_reference(model):
            message = f"{where}: {model} is fetched, which a config found beside the inputs may not ask for"
            yield UsageError(message, f"to use it all the same: --model {before}{model}")
        elif not _is_under(folder / model, folder):
            message = f"{where}: {model} lies outside the folder of its config"
            yield UsageError(message, f"to use it all the same: --model {before}{folder / model}")


def _is_under(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _env_layer(env: Mapping[str, str]) -> _Layer:
    names = {f"{ENV_PREFIX}{key.upper()}": key for key in FIELDS}
    given = {names[name]: text for name, text in env.items() if name in names and text}
    return _Layer(given, f"env {ENV_PREFIX}*", {})


def _validated(values: dict[str, Any], origins: Mapping[str, str], layers: Sequence[_Layer]) -> Job:
    problems: list[BatchserveError] = [p for layer in layers for p in layer.problems]
    lines = {key: line for layer in layers for key, line in layer.lines.items()}
    try:
        job = Job.model_validate(values)
    except ValidationError as error:
        problems += [_problem(detail, origins, lines) for detail in error.errors()]
        job = Job()
    raise_all(problems)
    return job


def _problem(detail: Any, origins: Mapping[str, str], lines: Mapping[str, int]) -> UsageError:
    if not detail["loc"]:  # two keys contradict each other
        return UsageError(detail["msg"].removeprefix("Value error, "), "say one of the two")
    key = str(detail["loc"][0])
    origin = origins.get(key, "")
    where = {"flag": f"--{key.replace('_', '-')}"}.get(origin, f"{origin}: {key}")
    if origin.endswith(".toml"):
        where = f"{origin}:{lines.get(key, 1)}: {key}"
    if detail["type"] == "extra_forbidden":
        return UsageError(f"{key}: no such option", did_you_mean(key, FIELDS))
    reason = detail["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    return UsageError(f"{where} = {detail['input']!r}: {reason}", _allowed(key))


def _allowed(key: str) -> str:
    field = Job.model_fields.get(key)
    choices = [c for c in _leaves(field.annotation) if isinstance(c, str)] if field else []
    return f"choose {' or '.join(choices)}" if choices else "see batchserve score --help"


def _leaves(annotation: Any) -> Iterator[Any]:
    """Give what a Literal allows, also inside a union."""
    for inner in get_args(annotation):
        yield from _leaves(inner) if get_args(inner) else (inner,)
