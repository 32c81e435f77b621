"""A secret in a path, a URL or an option is in nothing that is printed, logged or handed on."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pyarrow.parquet as pq
import pytest
from distributed import Client
from pyarrow import csv as pacsv

import batchserve as bs
from batchserve import events
from batchserve.cluster.named import Cluster
from batchserve.console import printable
from batchserve.errors import BatchserveError, DataError, redacted
from batchserve.log import Log, as_json
from batchserve.target import at
from conftest import Command
from killing import scripted_cluster
from workbench import IRIS, IRIS_MODEL, Outcome, run

CANARY = "CANARY-5f3a"
FOLDER = f"token={CANARY}"
"""A folder of this name holds input, model and output: their paths look like a secret."""

SHAPES = {
    "userinfo": f"https://me:{CANARY}@host/x",
    "token alone": f"https://{CANARY}@host/x",
    "sig": f"https://host/x?sv=1&sig={CANARY}&se=2",
    "token": f"https://host/x?token={CANARY}",
    "signature": f"s3://bucket/x?X-Amz-Signature={CANARY}&X-Amz-Credential={CANARY}",
    "account key": f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={CANARY}==;EndpointSuffix=b",
    "password": f"host=db password={CANARY}",
    "secret": f"AWS_SECRET_ACCESS_KEY={CANARY}",
}
"""What people paste where a path is expected."""

# Defects that these tests found and that are not mended yet.


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in a folder with the iris rows and their model, once plain and once in FOLDER."""
    for folder in (tmp_path, tmp_path / FOLDER):
        folder.mkdir(exist_ok=True)
        shutil.copy(IRIS, folder / "iris.csv")
        shutil.copy(IRIS_MODEL, folder / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(done: Outcome, *more: str) -> str:
    """Return all that a command printed, and what files hold, if there are such."""
    texts = [Path(name).read_text() for name in more if Path(name).is_file()]
    return "\n".join([done.out, done.err, *texts])


# -- paths and options that cannot be used ----------------------------------------------------

PLACES: dict[str, Callable[[str], tuple[str, ...]]] = {
    "input": lambda x: ("score", f"{x}.csv", "out.parquet", "-m", "model.onnx"),
    "output": lambda x: ("score", "iris.csv", f"{x}/out.parquet", "-m", "model.onnx"),
    "output's suffix": lambda x: ("score", "iris.csv", f"{x}.csv", "-m", "model.onnx"),
    "model": lambda x: ("score", "iris.csv", "out.parquet", "-m", x),
    "config": lambda x: ("score", "iris.csv", "out.parquet", "--config", x),
    "log": lambda x: ("score", "iris.csv", "out.parquet", "-m", "model.onnx", "--log-json", f"{x}/log"),
    "number": lambda x: ("score", "iris.csv", "out.parquet", "-m", "model.onnx", "--limit", x),
    "size": lambda x: ("score", "iris.csv", "out.parquet", "-m", "model.onnx", "--partition-size", x),
    "column": lambda x: ("score", "iris.csv", "out.parquet", "-m", "model.onnx", "--keep", x),
    "null": lambda x: ("score", "iris.csv", "out.parquet", "-m", "model.onnx", "--on-null", f"{x}:nan"),
    "no option": lambda x: ("score", "iris.csv", "out.parquet", "-m", "model.onnx", f"--tokens={x}"),
    "plan": lambda x: ("plan", f"{x}.csv", "out.parquet", "-m", x),
    "verify": lambda x: ("verify", f"{x}/out.parquet"),
    "clean": lambda x: ("clean", f"{x}/out.parquet"),
    "inspect": lambda x: ("inspect", x),
    "cluster": lambda x: ("cluster", "status", "--name", x),
}
"""Where a secret may be pasted."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", PLACES)
def test_a_secret_is_not_repeated(place: str, shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is wrong with a path or value, it is told without the secret in it, and no bug is told."""
    done = run(capsys, *PLACES[place](SHAPES[shape]), *(("-v",) if place in {"input", "model"} else ()))

    assert CANARY not in said(done)
    assert done.code != 1
    assert "Traceback" not in done.err


@pytest.mark.parametrize("shape", SHAPES)
def test_a_secret_in_the_environment_is_not_repeated(
    shape: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong BATCHSERVE_* value, and a path that is not there, are told without the secret."""
    wrong = []
    for key in ("WORKERS", "MODEL", "MAP"):
        with monkeypatch.context() as patch:
            patch.setenv(f"BATCHSERVE_{key}", SHAPES[shape])
            wrong.append(run(capsys, "score", "iris.csv", "out.parquet", "-v"))

    assert wrong[0].code == 2
    assert wrong[1].code in {2, 66}  # a URL needs a sha256, and a path a file
    assert CANARY not in "".join(map(said, wrong))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("key", ["model", "workers", "modle", "keep"])
def test_a_secret_in_a_config_is_not_repeated(
    key: str, shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A config file's values, right and wrong, are shown without the secret, and so is the plan's list."""
    Path("job.toml").write_text(f'{key} = "{SHAPES[shape]}"\n')

    shown = [
        run(capsys, command, "iris.csv", "out.parquet", "--config", "job.toml")
        for command in ("score", "plan")
    ]

    assert CANARY not in "".join(map(said, shown))


def test_a_secret_in_an_address_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    """A scheduler that does not answer is told without the user and password of its address."""
    done = run(
        capsys, "score", "iris.csv", "out.parquet", "-m", "model.onnx",
        "--scheduler", f"tcp://me:{CANARY}@127.0.0.1:9",
    )  # fmt: skip

    assert done.code == 69
    assert CANARY not in said(done)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_log_has_no_secret(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the event of the start, with the output, nor that of the failure, with the rest, has it."""
    paths = f"{SHAPES[shape]}.csv", f"{SHAPES[shape]}.parquet"

    run(capsys, "score", *paths, "-m", SHAPES[shape], "--log-json", "run.jsonl")

    lines = Path("run.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["started", "failed"]
    assert CANARY not in "".join(lines)


def test_the_models_own_words_are_shown_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    """What a model's metadata say of where it came from is shown by `inspect`, redacted."""
    model = onnx.load("model.onnx")
    onnx.helper.set_model_props(model, {"source": SHAPES["userinfo"], "trained_with": SHAPES["token"]})
    onnx.save(model, "told.onnx")

    done = run(capsys, "inspect", "told.onnx")

    assert done.code == 0
    assert "https://***@host/x" in done.out
    assert CANARY not in said(done)


# -- a local path that looks like one ---------------------------------------------------------


def test_a_job_in_such_a_folder_prints_no_secret(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scored, planned, verified, cleaned, refused: neither the screen, nor JSON, nor the log has it."""
    model = ("-m", f"{FOLDER}/model.onnx")
    paths = (f"{FOLDER}/iris.csv", f"{FOLDER}/out.parquet")
    log = ("--log-json", "run.jsonl")

    scored = command("score", *paths, *model, *log, "--partition-size", "1k", "-v", "--json")
    others = [
        run(capsys, "score", *paths, *model, *log),  # exists
        run(capsys, "score", *paths, *model, *log, "--if-exists", "skip", "--keep", "none"),
        run(capsys, "score", *paths, *model, *log, "--overwrite", "--keep", "species"),
        run(capsys, "score", *paths, *model, *log, "--if-exists", "skip", "--keep", "species", "--json"),
        run(capsys, "plan", *paths, *model, "--overwrite"),
        run(capsys, "verify", paths[1]),
        run(capsys, "clean", paths[1]),
        run(capsys, "inspect", model[1]),
        run(capsys, "score", paths[0], f"{FOLDER}/none/out.parquet", *model, *log),
        run(capsys, "score", f"{FOLDER}/iris.csv", f"{FOLDER}/iris.csv", paths[1], *model, *log),
    ]

    assert scored.returncode == 0, scored.stderr
    assert [done.code for done in others] == [73, 73, 0, 0, 0, 0, 0, 0, 73, 73]
    assert json.loads(scored.stdout)["model"] == "token=***"
    assert CANARY not in scored.stdout + scored.stderr
    assert CANARY not in "".join(said(done) for done in others)
    assert CANARY not in Path("run.jsonl").read_text()


def test_rows_that_cannot_be_scored_are_told_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the place of a bad row nor its text, if that looks like a secret, is repeated whole."""
    with Path(FOLDER, "iris.csv").open("a") as file:
        file.write(f"api_key={CANARY},1,1,1,setosa\n")

    done = run(capsys, "score", f"{FOLDER}/iris.csv", "out.parquet", "-m", "model.onnx")

    assert done.code == 65, done.err
    assert "is no number" in done.err
    assert CANARY not in said(done)


def test_an_unfinished_run_of_such_a_folder_is_told_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    """What `plan` and a refusal say of the workspace, with the inputs that differ, is redacted."""

    class Cut:
        def on(self, event: events.Event) -> None:
            if isinstance(event, events.Publishing):
                raise DataError("cut here")

    model = f"{FOLDER}/model.onnx"
    with pytest.raises(DataError, match="cut here"):
        bs.score(f"{FOLDER}/iris.csv", "out.parquet", model=model, listener=Cut())

    planned = run(capsys, "plan", "iris.csv", "out.parquet", "-m", model)
    refused = run(capsys, "score", "iris.csv", "out.parquet", "-m", model)
    continued = run(capsys, "score", f"{FOLDER}/iris.csv", "out.parquet", "-m", model)

    assert "an unfinished run of another plan" in planned.out
    assert (refused.code, continued.code) == (73, 0)
    assert "continuing: 1 of 1" in continued.err
    assert CANARY not in said(planned) + said(refused) + said(continued)


@pytest.mark.parametrize("output", ["out.parquet", "out"])
def test_the_output_itself_has_no_path(output: str) -> None:
    """The Parquet files, footers included, and the manifest know nothing of where the rows came from.

    The receipt does, and so does the plan in the workspace: `verify` and a resumed job open those
    files again. They lie beside the output, and a local path is no secret by itself.
    """
    bs.score(f"{FOLDER}/iris.csv", output, model=f"{FOLDER}/model.onnx", partition_size="1k")

    files = [path for path in Path().glob(f"{output}*/**/*") if path.is_file()] or [Path(output)]
    plain = [path for path in files if path.name != "receipt.json"]
    assert plain
    assert [path for path in plain if CANARY.encode() in path.read_bytes()] == []
    footers = [pq.read_metadata(path).metadata for path in plain if path.suffix == ".parquet"]
    assert set(footers[0]) >= {b"batchserve.plan_id"}
    assert CANARY in at(output).receipt.read_text()


def test_the_plan_as_json_has_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    """What `plan --json` prints is for logs and tickets; what is stored is for the next run."""
    done = run(capsys, "plan", f"{FOLDER}/iris.csv", "-m", "model.onnx", "--json")

    assert json.loads(done.out)["partitions"]
    assert CANARY not in said(done)


def test_a_traceback_has_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    """With --debug the system's own error stands in the traceback, path and all."""
    done = run(
        capsys, "score", "iris.csv", "out.parquet", "-m", "model.onnx",
        "--debug", "--log-json", f"{FOLDER}/none/run.jsonl",
    )  # fmt: skip

    assert "Traceback" in done.err
    assert CANARY not in said(done)


# -- Python -----------------------------------------------------------------------------------


def test_what_python_shows_has_no_secret() -> None:
    """A plan, a report, a model and an error show paths without it."""
    preview = bs.plan(f"{FOLDER}/iris.csv", "out.parquet", model=f"{FOLDER}/model.onnx")
    shown = [repr(preview), str(preview), repr(bs.Model(f"{FOLDER}/model.onnx"))]
    with pytest.raises(BatchserveError) as refused:
        bs.score(f"{FOLDER}/gone.csv", "out.parquet", model=f"{FOLDER}/model.onnx")

    assert CANARY not in "".join([*shown, str(refused.value), repr(refused.value)])


def test_what_a_notebook_shows_has_no_secret() -> None:
    """Notebooks are handed on with all they show."""
    preview = bs.plan(f"{FOLDER}/iris.csv", "out.parquet", model=f"{FOLDER}/model.onnx")

    assert CANARY not in preview._repr_html_()


# -- a cluster --------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two workers in processes of their own."""
    (tmp_path / "cluster").mkdir()
    with scripted_cluster(tmp_path / "cluster", 2, 1 << 30) as (made, _):
        yield made


def test_a_cluster_is_told_no_secret(cluster: Cluster) -> None:
    """Neither keys of tasks, nor what scheduler and workers log or show of them, have it."""
    pq.write_table(pacsv.read_csv(IRIS), f"{FOLDER}/a.parquet", write_page_checksum=True)
    damaged = bytearray(Path(FOLDER, "a.parquet").read_bytes())
    damaged[60] ^= 255
    Path(FOLDER, "b.parquet").write_bytes(damaged)
    told: list[str] = []

    class Asking:
        def on(self, event: events.Event) -> None:
            if isinstance(event, events.PartitionScored):
                told.append(_known(cluster))

    with pytest.raises(DataError, match="cut off") as failed:
        bs.score(
            [f"{FOLDER}/a.parquet", f"{FOLDER}/b.parquet"], f"{FOLDER}/out.parquet", listener=Asking(),
            model=f"{FOLDER}/model.onnx", scheduler=cluster.address, partition_size="1k",
        )  # fmt: skip

    told.append(_known(cluster))
    logs = [path.read_text() for path in cluster.folder.glob("*.log")]
    assert "score_descriptors" in told[0]
    assert "cut off" in "".join(told)  # the failure was logged
    assert CANARY not in str(failed.value) + "".join([*told, *logs])


def _known(cluster: Cluster) -> str:
    """Return what a scheduler and its workers tell whoever asks."""
    with Client(cluster.address, set_as_default=False) as client:
        scheduler: Any = client.run_on_scheduler(_tasks)
        logs = client.get_worker_logs(), client.get_worker_logs(nanny=True), client.get_scheduler_logs()
        return repr((scheduler, logs, client.get_events(), client.processing()))


_tasks: Callable[..., str] = lambda dask_scheduler: repr(  # noqa: E731  goes to the scheduler by value
    [
        [(t.key, t.run_spec, t.exception_text, t.traceback_text) for t in dask_scheduler.tasks.values()],
        list(dask_scheduler.transition_log),
    ]
)


# -- taking secrets out -----------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [redacted, printable, lambda text: as_json({"a": [{"b": text}]})])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_secret_is_taken_out_of_any_text(shape: str, wrap: Callable[[str], str]) -> None:
    """What is left of a text says what it was, and the rest of it stays."""
    text = f"before '{SHAPES[shape]}' after"

    left = wrap(text)

    assert CANARY not in left
    assert "***" in left
    assert "before '" in left
    assert "' after" in left


def test_json_stays_json() -> None:
    """Taking a secret out of a text does not break the JSON around it."""
    log = Log("run.jsonl")
    log.on(events.Noted(text=f'say "token={CANARY}\\" or \\"sig={CANARY}\n"'))

    (line,) = Path("run.jsonl").read_text().splitlines()
    assert json.loads(line)["text"].startswith('say "token=***" or')
    assert CANARY not in line
