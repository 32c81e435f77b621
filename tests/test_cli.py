"""The command line: what each command and flag does, what goes to stdout, and the exit codes."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import typer.main

import batchserve as bs
from batchserve import cli, events, job
from batchserve.planning import Plan
from workbench import FLIGHTS, IRIS, IRIS_MODEL, doubler, listing, run, spawn

M = ("-m", "model.onnx")
OUT = "out.parquet"
COMMANDS = sorted(getattr(typer.main.get_command(cli.app), "commands", {}))
PREDICTED = ["label", "probability"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in a folder with the iris rows and their model, and no config."""
    shutil.copy(IRIS, tmp_path / "iris.csv")
    shutil.copy(IRIS_MODEL, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def columns() -> list[str]:
    """Return the column names of the output."""
    return list(pq.read_schema(OUT).names)


IRIS_COLUMNS = IRIS.read_text().partition("\n")[0].split(",")


# -- help and version -------------------------------------------------------------------------


def test_version_shows_the_stack(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints batchserve's version, those of what it stands on, and the providers."""
    done = run(capsys, "--version")

    assert done.code == 0
    assert done.out.startswith(f"batchserve {metadata.version('batchserve')}\n")
    for package in ("onnxruntime", "pyarrow", "dask", "numpy"):
        assert re.search(rf"{package} +{re.escape(metadata.version(package))}", done.out), package
    assert "CPUExecutionProvider" in done.out


def test_the_module_is_the_command() -> None:
    """`python -m batchserve` is the same command."""
    done = subprocess.run(
        [sys.executable, "-m", "batchserve", "--version"], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("batchserve ")


def test_the_commands_are_those_of_the_design() -> None:
    """There are twelve commands in this release."""
    assert sorted(COMMANDS) == [
        "clean", "cluster", "compare", "demo", "evaluate", "export", "inspect", "plan", "retry", "score",
        "tune", "verify",
    ]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help says what the command does, gives an example to paste, and explains every flag."""
    group: Any = typer.main.get_command(cli.app)
    known = group.commands[command]

    done = run(capsys, command, "--help")

    assert done.code == 0
    assert done.err == ""
    assert known.help.splitlines()[0] in " ".join(done.out.split())
    assert f"Example: batchserve {command}" in done.out
    for parameter in known.params:
        assert all(name in done.out for name in parameter.opts if name.startswith("-"))
        assert getattr(parameter, "help", "")


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`batchserve` alone lists the commands."""
    done = run(capsys)

    assert all(command in done.out + done.err for command in COMMANDS)


# -- plan -------------------------------------------------------------------------------------


def test_plan_says_what_will_happen_and_writes_nothing(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plan` shows inputs, model, partitions, binding, outputs and where it runs, and scores nothing."""
    before = listing(home)

    done = run(capsys, "plan", "iris.csv", *M)

    assert done.code == 0, done.err
    assert done.err == ""
    for fact in (
        "1 file, 3.9 kB", "model.onnx (sha256 ", "1,024 in every run",
        "float32 from sepal_length (double, null: reject)",
        "column label (string)", "5 of 5 input columns pass through", "independent: proven", "without Dask",
    ):  # fmt: skip
        assert fact in done.out, fact
    assert listing(home) == before


def test_plan_shows_where_every_value_comes_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plan` names file, environment variable or flag for each value, the strongest of the three."""
    Path("batchserve.toml").write_text('model = "model.onnx"\nprefix = "f_"\nlimit = 5\non_null = "nan"\n')
    monkeypatch.setenv("BATCHSERVE_LIMIT", "6")
    monkeypatch.setenv("BATCHSERVE_PREFIX", "e_")

    done = run(capsys, "plan", "iris.csv", "--limit", "7")

    assert done.code == 0, done.err
    said = {line.split()[0]: " ".join(line.split()[1:]) for line in done.out.splitlines() if line.strip()}
    assert said["limit"] == "7 (flag)"
    assert said["prefix"] == "e_ (env BATCHSERVE_PREFIX)"
    assert said["on_null"] == "('nan',) (batchserve.toml)"
    assert "column e_label" in done.out
    assert "null: nan" in done.out


def test_plan_json_is_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """`plan --json` prints the plan itself, whose id is that of the output scored after it."""
    done = run(capsys, "plan", "iris.csv", *M, "--json")
    run(capsys, "score", "iris.csv", OUT, *M)

    plan = Plan.model_validate_json(done.out)
    assert done.err == ""
    assert pq.read_metadata(OUT).metadata[b"batchserve.plan_id"].decode() == plan.plan_id


@pytest.mark.parametrize(
    ("flags", "fact"),
    [
        (("--partition-size", "1k"), "4 of about"),
        (("--partition-size", "1k", "--workers", "3"), "on 3 threads of this process"),
        (("--scheduler", "tcp://h:1"), "on the cluster of tcp://h:1"),
        (("--batch-rows", "64"), "64 in every run of the model"),
        (("--rows-depend",), "may depend on each other"),
        (("--keep", "species"), "1 of 5 input columns"),
        (("--limit", "3", "--partition-size", "1k"), "1 of about"),
        (("--on-null", "petal_width:fill=1"), "petal_width (double, null: fill=1)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_plan_follows_the_flags(
    flags: tuple[str, ...], fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a flag changes is in the plan."""
    done = run(capsys, "plan", "iris.csv", *M, *flags)

    assert done.code == 0, done.err
    assert fact in done.out


# -- inspect and demo -------------------------------------------------------------------------


def test_inspect_shows_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    """`inspect` shows inputs, outputs, metadata and operators of a model."""
    done = run(capsys, "inspect", "model.onnx")

    assert done.code == 0, done.err
    for fact in (
        "tensor(float) [?, 4]",
        "tensor(string) [?]",
        "sepal_length",
        "LinearClassifier x1",
        "sha256",
    ):
        assert fact in done.out


@pytest.mark.parametrize(("name", "code"), [("gone.onnx", 66), ("damaged.onnx", 70)])
def test_inspect_refuses_what_is_no_model(name: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """`inspect` tells a missing file from one that is no model."""
    Path("damaged.onnx").write_bytes(b"\x08 no model")

    done = run(capsys, "inspect", name)

    assert done.code == code
    assert name in done.err
    assert done.out == ""


def test_demo_scores_the_sample(capsys: pytest.CaptureFixture[str]) -> None:
    """`demo` puts data, model and config into a folder and scores all 5,027 flights, twice if asked."""
    first = run(capsys, "demo", "some/folder")
    again = run(capsys, "demo", "some/folder")

    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert "config some/folder/batchserve.toml" in first.err
    assert pq.read_metadata("some/folder/flights.parquet").num_rows == 5_027
    assert (Path("some/folder/flights.csv")).read_bytes() == FLIGHTS.read_bytes()


def test_demo_uses_its_own_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`demo` is the same wherever it is tried: neither ./batchserve.toml nor the environment changes it."""
    Path("batchserve.toml").write_text('model = "model.onnx"\n')
    monkeypatch.setenv("BATCHSERVE_KEEP", "none")

    done = run(capsys, "demo")

    assert done.code == 0, done.err
    names = pq.read_schema("batchserve-demo/flights.parquet").names
    assert (names[0], names[-1]) == ("year", "predicted_delay")


# -- score: columns ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), [*IRIS_COLUMNS, *PREDICTED]),
        (("--keep", "none"), PREDICTED),
        (("--keep", "all"), [*IRIS_COLUMNS, *PREDICTED]),
        (("--keep", "species,sepal_width"), ["sepal_width", "species", *PREDICTED]),
        (("--keep", "species", "--keep", "sepal_width"), ["sepal_width", "species", *PREDICTED]),
        (("--outputs", "label"), [*IRIS_COLUMNS, "label"]),
        (("--outputs", "probability,label", "--keep", "none"), ["probability", "label"]),
        (("--prefix", "p_", "--keep", "none"), ["p_label", "p_probability"]),
    ],
    ids=" ".join,
)
def test_flags_choose_the_columns(
    flags: tuple[str, ...], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """--keep, --outputs and --prefix decide the output's columns: input columns first, in input order."""
    done = run(capsys, "score", "iris.csv", OUT, *M, *flags)

    assert done.code == 0, done.err
    assert columns() == expected
    assert pq.read_metadata(OUT).num_rows == 150


def test_map_feeds_an_input_from_another_column(capsys: pytest.CaptureFixture[str]) -> None:
    """--map INPUT=COLUMN fills the input from that column."""
    doubler(Path("double.onnx"), "x")

    done = run(capsys, "score", "iris.csv", OUT, "-m", "double.onnx", "--map", "x=petal_width")

    assert done.code == 0, done.err
    table = pq.read_table(OUT)
    assert table["y"].to_pylist()[:1] == [pytest.approx(2 * table["petal_width"][0].as_py())]


def test_features_name_the_columns_of_a_wide_input(capsys: pytest.CaptureFixture[str]) -> None:
    """--features decides which columns fill the wide input and in which order."""
    run(capsys, "score", "iris.csv", "right.parquet", *M)
    reverse = "petal_width,petal_length,sepal_width,sepal_length"

    done = run(capsys, "score", "iris.csv", OUT, *M, "--features", reverse)

    assert done.code == 0, done.err
    assert pq.read_table(OUT)["label"] != pq.read_table("right.parquet")["label"]


def test_limit_scores_the_first_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """--limit N scores the first N rows only."""
    done = run(capsys, "score", "iris.csv", OUT, *M, "--limit", "10")

    assert done.code == 0, done.err
    assert pq.read_table(OUT)["species"].to_pylist() == ["setosa"] * 10


def test_running_flags_do_not_change_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """--partition-size, --workers and --infer full give the same rows as none of them."""
    run(capsys, "score", "iris.csv", "plain.parquet", *M)

    done = run(
        capsys, "score", "iris.csv", OUT, *M, "--partition-size", "1k", "--workers", "2", "--infer", "full"
    )

    assert done.code == 0, done.err
    assert pq.read_table(OUT).equals(pq.read_table("plain.parquet"))


def test_a_dataset_is_a_folder_of_parts(capsys: pytest.CaptureFixture[str]) -> None:
    """An output without a suffix, or that ends in /, becomes a folder of parts with a manifest."""
    plain = run(capsys, "score", "iris.csv", "scored", *M, "--partition-size", "1k")
    dotted = run(capsys, "score", "iris.csv", "scored.v1/", *M)

    assert (plain.code, dotted.code) == (0, 0), plain.err + dotted.err
    assert Path("scored/_batchserve/manifest.json").is_file()
    assert pq.read_table("scored")["species"].equals(pq.read_table("scored.v1")["species"])


# -- score: what is printed -------------------------------------------------------------------


def test_the_first_line_names_model_and_config(capsys: pytest.CaptureFixture[str]) -> None:
    """The first line says which version, model and config the job uses."""
    Path("job.toml").write_text('model = "model.onnx"\n')

    plain = run(capsys, "score", "iris.csv", OUT, *M)
    configured = run(capsys, "score", "iris.csv", OUT, "--config", "job.toml", "--overwrite")

    version = metadata.version("batchserve")
    assert plain.err.splitlines()[0] == f"batchserve {version} · model model.onnx"
    assert configured.err.splitlines()[0] == f"batchserve {version} · model model.onnx · config job.toml"


def test_a_config_beside_the_inputs_is_found_and_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The config in the folder of the inputs is used when there is none here, and the first line says so."""
    (home / "data").mkdir()
    for name in ("iris.csv", "model.onnx"):
        shutil.move(name, home / "data" / name)
    (home / "data" / "batchserve.toml").write_text('model = "model.onnx"\n')

    done = run(capsys, "score", "data/iris.csv", OUT)

    assert done.code == 0, done.err
    assert done.err.splitlines()[0].endswith(
        "model data/model.onnx · config data/batchserve.toml (found beside the inputs)"
    )


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """A job says four lines, all on stderr: what it used, what came out, how fast, and with what."""
    done = run(capsys, "score", "iris.csv", OUT, *M)

    assert done.out == ""
    assert len(done.err.splitlines()) == 4
    assert "out.parquet: 150 rows from iris.csv (3.9 kB in, " in done.err
    assert "rows/s" in done.err


def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints one object with the summary's facts to stdout and no other line anywhere."""
    done = run(capsys, "score", "iris.csv", OUT, *M, "--json", "--partition-size", "1k", "--workers", "2")

    facts = json.loads(done.out)
    assert done.err == ""
    assert (facts["rows_in"], facts["rows_out"], facts["rows_rejected"]) == (150, 150, 0)
    assert (facts["output"], facts["model"], facts["config"]) == (OUT, "model.onnx", None)
    assert (facts["partitions"], facts["workers"], facts["in_place"]) == (4, 2, False)
    assert facts["size_bytes"] == Path(OUT).stat().st_size
    assert facts["plan_id"] == json.loads(Path("out.receipt.json").read_text())["plan_id"]
    assert set(facts["stage_seconds"]) == {"read", "bind", "model", "encode", "write", "other"}


def test_json_prints_nothing_when_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json a failure leaves stdout empty and is told on stderr."""
    done = run(capsys, "score", "gone.csv", OUT, *M, "--json")

    assert (done.code, done.out) == (66, "")
    assert "gone.csv" in done.err


def test_quiet_says_nothing_but_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """-q prints nothing when all goes well and the error when it does not."""
    well = run(capsys, "score", "iris.csv", OUT, *M, "-q")
    ill = run(capsys, "score", "iris.csv", OUT, *M, "-q")

    assert (well.code, well.out, well.err) == (0, "", "")
    assert ill.code == 73
    assert ill.err.startswith("error: out.parquet: exists")


def test_verbose_says_more(capsys: pytest.CaptureFixture[str]) -> None:
    """-v adds where values come from and how many partitions on how many workers."""
    done = run(
        capsys,
        "score",
        "iris.csv",
        OUT,
        *M,
        "-v",
        "--partition-size",
        "1k",
        "--workers",
        "2",
        "--no-progress",
    )

    assert done.code == 0, done.err
    assert "model from flag" in done.err
    assert "4 partitions on 2 workers" in done.err


# -- errors and exit codes --------------------------------------------------------------------


def test_no_traceback_unless_debug(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure shows a traceback with --debug only."""
    plain = run(capsys, "score", "gone.csv", OUT, *M)
    debug = run(capsys, "score", "gone.csv", OUT, *M, "--debug")

    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err
    assert (plain.code, debug.code) == (66, 66)


@pytest.mark.parametrize(("text", "tracebacks"), [("1", 1), ("true", 1), ("0", 0), ("false", 0)])
def test_debug_by_environment(
    text: str, tracebacks: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """BATCHSERVE_DEBUG is read like the other switches: 0 and false leave it off."""
    monkeypatch.setenv("BATCHSERVE_DEBUG", text)

    done = run(capsys, "score", "gone.csv", OUT, *M)

    assert done.err.count("Traceback (most recent call last)") == tracebacks


def test_debug_by_config_file(capsys: pytest.CaptureFixture[str]) -> None:
    """`debug = true` in a config file shows tracebacks too."""
    Path("batchserve.toml").write_text('model = "model.onnx"\ndebug = true\n')

    done = run(capsys, "score", "gone.csv", OUT)

    assert "Traceback" in done.err


def test_a_bug_is_exit_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An error that is not ours is told in one line as a bug, with what to report."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(job, "score", broken)

    done = run(capsys, "score", "iris.csv", OUT, *M)

    assert done.code == 1
    assert "error: bug in batchserve: ZeroDivisionError: division by zero" in done.err
    assert "run it with --debug and report what it prints" in done.err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_a_stopped_job_says_so_and_continues(number: signal.Signals, code: int, home: Path) -> None:
    """Ctrl-C and SIGTERM end a job with their codes and no output; the same command finishes it."""
    header, *rows = FLIGHTS.read_text().splitlines(keepends=True)
    (home / "flights.csv").write_text(header + "".join(rows) * 10)
    flights = ("-m", FLIGHTS.parent / "model.onnx", "--on-null", "nan", "--workers", "1")
    command = ("score", "flights.csv", OUT, *flights, "--partition-size", "200k", "--no-progress")
    program = "from batchserve.cli import main\nmain()"
    running = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    workspace = home / ".out.parquet.batchserve"
    while running.poll() is None and not list(workspace.glob("p0*.json")):
        time.sleep(0.01)

    running.send_signal(number)
    _, told = running.communicate()

    assert running.returncode == code, told
    assert "the same command continues from the finished parts" in told
    assert "Traceback" not in told
    assert not (home / OUT).exists()
    again = spawn(*command)
    assert again.code == 0, again.err
    assert re.search(r"continuing: \d+ of \d+ partitions done", again.err)
    assert pq.read_metadata(OUT).num_rows == 10 * 5_027
    assert not workspace.exists()


STOP_WHILE_COLLECTING = """\
import gc, os, pathlib, signal, threading
def stop(phase, info):
    running = pathlib.Path(".out.parquet.batchserve/plan.json").exists()
    if running and threading.current_thread() is threading.main_thread():
        gc.callbacks.remove(stop)
        os.kill(os.getpid(), signal.SIGTERM)
        [i for i in range(1000)]
gc.callbacks.append(stop)
gc.set_threshold(10)
"""
"""Statements that send the process a SIGTERM in a callback from which Python lets no exception out."""


@pytest.mark.parametrize("size", ["64MB", "1k"], ids=["one-partition", "several"])
def test_a_stop_is_never_swallowed(size: str, home: Path) -> None:
    """A SIGTERM that arrives where Python ignores exceptions stops the job all the same."""
    done = spawn("score", "iris.csv", OUT, *M, "--partition-size", size, before=STOP_WHILE_COLLECTING)

    assert done.code == 143, done.err
    assert not (home / OUT).exists()


# -- dashboard and scheduler ------------------------------------------------------------------


class Visitor:
    """A listener that visits the dashboard while the job runs."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 0
        self.page = ""

    def on(self, event: events.Event) -> None:
        """Fetch the page as soon as its address is told."""
        if isinstance(event, events.DashboardOpened):
            self.url = event.url
            with urllib.request.urlopen(event.url) as answer:  # noqa: S310  our own loopback address
                self.status = answer.status
                self.page = answer.read().decode()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_dashboard_answers_while_the_job_runs() -> None:
    """The dashboard is served on loopback and answers over HTTP during the job."""
    visitor = Visitor()

    bs.score("iris.csv", OUT, model="model.onnx", dashboard=True, workers=1, listener=visitor)

    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/status", visitor.url)
    assert visitor.status == 200
    assert "Dask" in visitor.page


def test_the_dashboards_address_is_printed() -> None:
    """--dashboard prints the address before the work starts."""
    done = spawn("score", "iris.csv", OUT, *M, "--dashboard", "--workers", "1")

    assert done.code == 0, done.err
    assert re.search(r"^dashboard http://127\.0\.0\.1:\d+/status$", done.err, re.MULTILINE)


CLUSTER = """\
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0", processes=False
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        input()
"""


@pytest.fixture
def scheduler() -> Iterator[str]:
    """Run a Dask cluster in another process; give its address."""
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER.replace("processes=False", "processes=False, protocol='tcp://'")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as cluster:  # fmt: skip
        assert cluster.stdout is not None
        yield cluster.stdout.readline().strip()
        cluster.communicate("\n")


def test_a_running_scheduler_is_used(scheduler: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--scheduler scores on that cluster, with the bytes a run without it has."""
    run(capsys, "score", "iris.csv", "here.parquet", *M, "--partition-size", "1k", "--workers", "1")

    done = run(
        capsys, "score", "iris.csv", OUT, *M, "--partition-size", "1k", "--scheduler", scheduler, "--json"
    )

    assert done.code == 0, done.err
    assert (json.loads(done.out)["workers"], json.loads(done.out)["partitions"]) == (2, 4)
    assert Path(OUT).read_bytes() == Path("here.parquet").read_bytes()


def test_one_partition_too_goes_to_the_scheduler(scheduler: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A job of one partition is not kept here when --scheduler names a cluster."""
    done = run(capsys, "score", "iris.csv", OUT, *M, "--scheduler", scheduler, "--json")

    assert done.code == 0, done.err
    assert json.loads(done.out)["in_place"] is False


def test_a_dead_scheduler_is_exit_69(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An address where no scheduler answers is told as such, and nothing is written."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    before = listing(home)

    done = run(capsys, "score", "iris.csv", OUT, *M, "--scheduler", address)

    assert done.code == 69, done.err
    assert f"{address}: no Dask scheduler answers" in done.err
    assert "check --scheduler" in done.err
    assert "Traceback" not in done.err
    assert listing(home) == before


def test_nonsense_for_a_scheduler_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A scheduler address of no known kind is exit 69 with an example."""
    done = run(capsys, "score", "iris.csv", OUT, *M, "--scheduler", "nowhere://else")

    assert done.code == 69, done.err
    assert "tcp://host:8786" in done.err


# -- the rows themselves ----------------------------------------------------------------------


def test_input_columns_come_out_as_they_went_in(capsys: pytest.CaptureFixture[str]) -> None:
    """The input columns of the output equal the file read by pyarrow alone."""
    run(capsys, "score", "iris.csv", OUT, *M)

    assert pq.read_table(OUT, columns=IRIS_COLUMNS).equals(pacsv.read_csv("iris.csv"))
