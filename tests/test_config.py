"""The job's settings: default < file < environment < flag, all problems at once, with lines."""

import os
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main

from batchserve import cli
from batchserve.config import BESIDE_MAY_SET, ENV_PREFIX, FIELDS, Job, Options, load
from batchserve.errors import NotFoundError, UsageError
from batchserve.spelling import size

SEEING = {"json", "quiet", "verbose", "no_progress", "log_json", "profile", "debug"}
"""How a run is shown: of no use to a function, which shows nothing."""

IN_TEXT: dict[str, tuple[str, Any]] = {
    "model": ("m.onnx", "m.onnx"),
    "model_sha256": ("AB" * 32, "ab" * 32),
    "features": ("a, b", ("a", "b")),
    "map": ("x=a,y=b", {"x": "a", "y": "b"}),
    "outputs": ("label", ("label",)),
    "set": ("t=0.5", {"t": "0.5"}),
    "custom_ops": ("libops.so", "libops.so"),
    "device": ("cuda", "cuda"),
    "on_nonfinite": ("reject", "reject"),
    "max_errors": ("0.5%", "0.5%"),
    "rejects": ("bad.jsonl", "bad.jsonl"),
    "format": ("tsv", "tsv"),
    "delimiter": (";", ";"),
    "quote": ("none", "none"),
    "escape": ("none", "none"),
    "header": ("no", "no"),
    "skip_lines": ("2", 2),
    "encoding": ("latin-1", "latin-1"),
    "schema_drift": ("widen", "widen"),
    "add_source": ("1", True),
    "prefix": ("p_", "p_"),
    "rows_depend": ("true", True),
    "keep": ("none", ("none",)),
    "on_null": ("nan,a:fill=1", ("nan", "a:fill=1")),
    "limit": ("7", 7),
    "type": ("zip=text", {"zip": "text"}),
    "infer": ("full", "full"),
    "overwrite": ("1", True),
    "workers": ("3", 3),
    "scheduler": ("tcp://h:1", "tcp://h:1"),
    "cluster": ("big", "big"),
    "batch_rows": ("128", 128),
    "intra_op": ("2", 2),
    "memory_limit": ("2GiB", 2 << 30),
    "stall_timeout": ("5m", 300.0),
    "if_exists": ("skip", "skip"),
    "fresh": ("1", True),
    "log_json": ("run.jsonl", "run.jsonl"),
    "partition_size": ("32MiB", 32 << 20),
    "dashboard": ("yes", True),
    "profile": ("yes", True),
    "json": ("true", True),
    "quiet": ("on", True),
    "verbose": ("1", True),
    "no_progress": ("true", True),
    "debug": ("true", True),
}
"""Every field as a text of the environment, and what it means."""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start in an empty folder, without the caller's own settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)


def flags(command: str) -> dict[str, list[str]]:
    """Return the options of a command: parameter name to its spellings."""
    group: Any = typer.main.get_command(cli.app)
    parameters = group.commands[command].params
    return {p.name: p.opts for p in parameters if p.param_type_name == "option" and p.name != "help"}


# -- one list of fields -----------------------------------------------------------------------


def test_every_flag_of_score_is_a_field() -> None:
    """The flags of `score` are the config's fields, no more and no fewer, and --config."""
    assert set(flags("score")) == {*FIELDS, "config"}


def test_every_flag_of_plan_is_a_field() -> None:
    """`plan` takes every flag that decides what will be done."""
    decides = set(FIELDS) - SEEING - {"stall_timeout", "dashboard"}

    assert set(flags("plan")) == decides | {"json", "config", "debug"}


@pytest.mark.parametrize("command", ["score", "plan"])
def test_a_flag_is_its_field_with_hyphens(command: str) -> None:
    """Each flag is spelled as its field, with hyphens for underscores."""
    assert [
        name for name, spelled in flags(command).items() if f"--{name.replace('_', '-')}" not in spelled
    ] == []


def test_functions_take_every_field_that_is_not_about_showing() -> None:
    """The keyword arguments of the library are the config's fields, but for how a run is shown."""
    assert set(Options.__annotations__) == set(FIELDS) - SEEING - {"cluster"}


def test_what_a_file_beside_may_set_are_fields() -> None:
    """Keys allowed beside the inputs exist, and none of them runs code, connects or destroys."""
    assert set(FIELDS) >= BESIDE_MAY_SET
    assert {
        "cluster",
        "scheduler",
        "overwrite",
        "if_exists",
        "fresh",
        "log_json",
        "dashboard",
        "workers",
    } & BESIDE_MAY_SET == set()


def test_the_table_of_texts_is_complete() -> None:
    """The table below has a text for every field, so that a new field needs a test."""
    assert set(IN_TEXT) == set(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_an_environment_variable(field: str) -> None:
    """BATCHSERVE_<FIELD> sets the field, and the provenance names the variable."""
    text, meant = IN_TEXT[field]
    name = ENV_PREFIX + field.upper()

    settings = load({}, [], environment={name: text})

    assert settings.job.model_dump(by_alias=True)[field] == meant
    assert settings.origins == {field: f"env {name}"}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_a_key_of_a_config_file(field: str, tmp_path: Path) -> None:
    """Every field can be set in a file that was named."""
    text, meant = IN_TEXT[field]
    (tmp_path / "job.toml").write_text(f'{field} = "{text}"\n')

    settings = load({}, [], config="job.toml", environment={})

    assert settings.job.model_dump(by_alias=True)[field] == meant
    assert settings.origins == {field: "job.toml"}


def test_no_setting_is_the_default() -> None:
    """Without file, environment and flags every value is the default and has no origin."""
    settings = load({}, [], environment={})

    assert (settings.job, settings.origins, settings.file) == (Job(), {}, None)


# -- precedence -------------------------------------------------------------------------------


def test_flag_beats_environment_beats_file() -> None:
    """A value comes from the flag, else the environment, else the file, else the default."""
    Path("batchserve.toml").write_text("limit = 1\nworkers = 1\nprefix = 'f_'\n")
    environment = {"BATCHSERVE_LIMIT": "2", "BATCHSERVE_WORKERS": "2"}

    settings = load({"limit": 3}, [], environment=environment)

    assert (settings.job.limit, settings.job.workers, settings.job.prefix) == (3, 2, "f_")
    assert settings.origins == {
        "limit": "flag",
        "workers": "env BATCHSERVE_WORKERS",
        "prefix": "batchserve.toml",
    }


def test_an_empty_variable_sets_nothing() -> None:
    """An environment variable that is there but empty is as one that is not there."""
    assert load({}, [], environment={"BATCHSERVE_LIMIT": ""}).job.limit is None


def test_the_named_file_beats_the_one_here() -> None:
    """--config, then BATCHSERVE_CONFIG, then ./batchserve.toml, then the inputs' own folder."""
    Path("data").mkdir()
    for name, limit in (("a.toml", 1), ("b.toml", 2), ("batchserve.toml", 3), ("data/batchserve.toml", None)):
        Path(name).write_text(f"limit = {limit}\n" if limit else "prefix = 'beside_'\n")
    variable = {"BATCHSERVE_CONFIG": "b.toml"}

    assert load({}, ["data/x.csv"], config="a.toml", environment=variable).job.limit == 1
    assert load({}, ["data/x.csv"], environment=variable).job.limit == 2
    assert load({}, ["data/x.csv"], environment={}).job.limit == 3
    Path("batchserve.toml").unlink()
    assert load({}, ["data/x.csv"], environment={}).job.prefix == "beside_"


def test_a_file_beside_counts_only_if_all_inputs_share_it() -> None:
    """The folder's config is used when all inputs lie in it, whether named as files, glob or folder."""
    Path("data").mkdir()
    Path("else").mkdir()
    Path("data/batchserve.toml").write_text("prefix = 'p_'\n")

    for inputs in (["data/a.csv"], ["data/a.csv", "data/b.csv"], ["data/*.csv"], ["data"], ["data/"]):
        settings = load({}, inputs, environment={})
        assert (settings.job.prefix, settings.beside) == ("p_", True), inputs
    for inputs in (["data/a.csv", "else/b.csv"], ["else/a.csv"], []):
        assert load({}, inputs, environment={}).file is None, inputs


def test_a_model_in_a_file_is_relative_to_that_file() -> None:
    """The model named in a config file is looked for beside the file; one in a flag, here."""
    Path("conf").mkdir()
    Path("conf/job.toml").write_text('model = "models/m.onnx"\n')

    assert load({}, [], config="conf/job.toml", environment={}).job.model == "conf/models/m.onnx"
    assert load({"model": "m.onnx"}, [], config="conf/job.toml", environment={}).job.model == "m.onnx"


# -- a file beside the inputs is not trusted --------------------------------------------------


@pytest.mark.parametrize("key", sorted(set(FIELDS) - BESIDE_MAY_SET))
def test_a_file_beside_may_not_set(key: str) -> None:
    """A key that a config found beside the inputs may not set is refused by name, with its line."""
    Path("data").mkdir()
    Path("data/batchserve.toml").write_text(f'prefix = "p_"\n{key} = "{IN_TEXT[key][0]}"\n')

    with pytest.raises(UsageError) as refused:
        load({}, ["data/a.csv"], environment={})

    assert refused.value.message == (
        f"data/batchserve.toml:2: {key}: may not be set by a config found beside the inputs"
    )
    assert "--config data/batchserve.toml" in refused.value.hint


@pytest.mark.parametrize("model", ["../m.onnx", "/m.onnx", "sub/../../m.onnx", "link.onnx"])
def test_a_file_beside_may_not_name_a_model_elsewhere(model: str) -> None:
    """A model outside the folder of a config found beside the inputs is refused, by symlink too."""
    Path("data/sub").mkdir(parents=True)
    Path("m.onnx").touch()
    Path("data/link.onnx").symlink_to(Path("m.onnx").resolve())
    Path("data/batchserve.toml").write_text(f'model = "{model}"\n')

    with pytest.raises(UsageError, match=r"batchserve\.toml:1: model.* lies outside"):
        load({}, ["data/a.csv"], environment={})


# -- problems ---------------------------------------------------------------------------------


def test_every_wrong_value_is_told_with_its_origin() -> None:
    """Wrong values of file, environment and flags are told together, each with where it came from."""
    Path("batchserve.toml").write_text("# a comment\n\nlimit = 0\n[map]\nx = 1\n")

    with pytest.raises(UsageError) as refused:
        load({"infer": "deep"}, [], environment={"BATCHSERVE_WORKERS": "many"})

    message = refused.value.message
    assert "4 problems" in message
    assert "batchserve.toml:3: limit = 0: " in message
    assert "batchserve.toml:4: map" in message
    assert "env BATCHSERVE_WORKERS: workers = 'many': " in message
    assert "--infer = 'deep': should be 'sample' or 'full'  (choose sample or full)" in message


def test_every_unknown_key_is_told_with_its_line() -> None:
    """Keys that do not exist are told together, with line and the nearest key."""
    Path("batchserve.toml").write_text('modle = "m"\n\n[onnull]\na = "nan"\n\n[zzz]\n')

    with pytest.raises(UsageError) as refused:
        load({}, [], environment={})

    assert "3 problems" in refused.value.message
    assert "batchserve.toml:1: modle: no such key  (did you mean model?)" in refused.value.message
    assert "batchserve.toml:3: onnull: no such key  (did you mean on_null?)" in refused.value.message
    assert "batchserve.toml:6: zzz: no such key  (keys are: model, model_sha256," in refused.value.message


def test_an_unknown_keyword_is_told() -> None:
    """A keyword argument that does not exist is told with the nearest one."""
    with pytest.raises(UsageError, match=r"^overwrit: no such option") as refused:
        load({"overwrit": True}, [], environment={})

    assert refused.value.hint == "did you mean overwrite?"


@pytest.mark.parametrize("text", ["limit 3", "limit = ", "limit = 1\nlimit = 2", "= 3"])
def test_what_is_no_toml_is_told_with_its_place(text: str) -> None:
    """A file that is no TOML is told by name and place."""
    Path("batchserve.toml").write_text(text)

    with pytest.raises(UsageError, match=r"^batchserve\.toml: is no TOML: .*(line \d|end of document)"):
        load({}, [], environment={})


def test_a_config_that_is_not_there_is_told() -> None:
    """A config file that was named but does not exist is exit 66."""
    with pytest.raises(NotFoundError, match=r"^gone\.toml: no such config file"):
        load({}, [], config="gone.toml", environment={})


# -- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("64k", 64_000), ("32MiB", 32 << 20), ("1.5M", 1_500_000), ("2GB", 2_000_000_000), ("1gib", 1 << 30),
        (" 10 ", 10), ("7b", 7), ("1 KiB", 1024),
    ],
)  # fmt: skip
def test_sizes_are_read(text: str, meant: int) -> None:
    """Sizes are decimal (k, M, G) or binary (Ki, Mi, Gi), whatever their case."""
    assert size(text) == meant


@pytest.mark.parametrize("text", ["", "many", "-1", "1T", "1,5M", "M"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Anything else is no size."""
    with pytest.raises(ValueError, match="not a size"):
        size(text)


@pytest.mark.parametrize("value", ["0", -1, 0.5, [1]])
def test_a_partition_has_at_least_one_byte(value: Any) -> None:
    """A partition size below one byte, or of another kind, is refused."""
    with pytest.raises(UsageError, match="partition-size"):
        load({"partition_size": value}, [], environment={})


@pytest.mark.parametrize("value", ["a,b", ["a", "b"], ("a,b",), ["a", " b "]])
def test_lists_are_read_from_texts_and_lists(value: Any) -> None:
    """A list may be given as a list, as a text with commas, or as both."""
    assert load({"features": value}, [], environment={}).job.features == ("a", "b")


@pytest.mark.parametrize("value", [{"x": "a=b", "y": "c"}, ["x=a=b", "y=c"], "x=a=b, y = c"])
def test_tables_are_read_from_texts_and_tables(value: Any) -> None:
    """A table may be given as a table or as texts NAME=VALUE; a value may hold =."""
    assert load({"map": value}, [], environment={}).job.map == {"x": "a=b", "y": "c"}


def test_infer_has_two_ways() -> None:
    """The choices that a wrong --infer is told are those the field allows."""
    assert get_args(Job.model_fields["infer"].annotation) == ("sample", "full")


@pytest.mark.parametrize(
    ("said", "means"),
    [
        (["a=1", "b=[1, 2]"], {"a": "1", "b": "[1, 2]"}),
        ("a=1,b=[[1,2],[3,4]],c=x", {"a": "1", "b": "[[1,2],[3,4]]", "c": "x"}),
        ("a=one, two", {"a": "one, two"}),
        ({"a": 1.5, "b": [1, 2], "c": True, "d": "x"}, {"a": "1.5", "b": "[1, 2]", "c": "true", "d": "x"}),
    ],
    ids=str,
)
def test_values_of_inputs_may_be_lists(said: Any, means: dict[str, str]) -> None:
    """A comma parts two inputs only where a name and = follow; a table's values become JSON."""
    assert load({"set": said}, [], environment={}).job.set == means


@pytest.mark.parametrize("said", ["x", ["a=1", "x"], 5])
def test_a_value_without_an_input_is_refused(said: Any) -> None:
    """A value that names no input is a usage error."""
    with pytest.raises(UsageError, match="set"):
        load({"set": said}, [], environment={})
