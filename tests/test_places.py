"""Where an output may go and what it then looks like: links, modes, inputs by other names, permissions."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import batchserve as bs
from batchserve import events, target, verify
from batchserve.errors import BatchserveError, NotFoundError, OutputError
from test_bad_input import NO_OVERRIDE
from workbench import IRIS, IRIS_MODEL, Outcome, listing, run, spawn

OUTPUTS = pytest.mark.parametrize("output", ["out.parquet", "out"])

# Defects that these tests found and that are not mended yet.


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in a folder with the iris rows, as CSV and as Parquet, and their model."""
    shutil.copy(IRIS, tmp_path / "iris.csv")
    shutil.copy(IRIS_MODEL, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def score(output: str | Path, inputs: str = "iris.csv", **options: Any) -> bs.Report:
    """Score the iris rows in this process."""
    settings: dict[str, Any] = {"model": "model.onnx", "workers": 1} | options
    return bs.score(inputs, output, **settings)


def parts(output: str) -> list[Path]:
    """Return the files and folders that an output is made of, its receipt included."""
    found = target.at(output)
    return [found.path, found.receipt, *sorted(found.path.rglob("*"))]


def mode(path: str | Path) -> int:
    """Return the permission bits of a path."""
    return stat.S_IMODE(Path(path).stat().st_mode)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set this process's umask for the block."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# -- links ------------------------------------------------------------------------------------


@OUTPUTS
@pytest.mark.parametrize("target_there", [False, True])
def test_a_linked_output_keeps_its_link(output: str, target_there: bool) -> None:
    """Output and receipt go where the link points, dangling or not; the link stays, also when replaced."""
    Path("deep").mkdir()
    Path(output).symlink_to(f"deep/real-{output}")
    if target_there:
        score(f"deep/real-{output}", keep="none")
    before = Path(output).readlink()

    score(output, overwrite=target_there)
    score(output, overwrite=True, keep="species")

    assert Path(output).readlink() == before
    assert not Path(f"deep/real-{output}").is_symlink()
    assert pq.read_table(output).schema.names[0] == "species"
    assert verify.verify(output).rows_scored == 150
    assert [path.name for path in Path().glob("*receipt*")] == []
    assert list(Path().glob(".*")) == list(Path("deep").glob(".*")) == []


def test_appending_through_a_link_keeps_the_link() -> None:
    """A dataset behind a link is appended to where it is."""
    Path("deep").mkdir()
    Path("out").symlink_to("deep/out")
    score("out", if_exists="append")
    shutil.copy("iris.csv", "more.csv")

    score("out", "*.csv", if_exists="append")

    assert Path("out").is_symlink()
    assert pq.read_table("deep/out").num_rows == 300


def test_links_in_a_chain_are_followed() -> None:
    """A link to a link to a folder is followed to its end, and the workspace is there as well."""
    Path("disk").mkdir()
    Path("first").symlink_to("disk")
    Path("second").symlink_to("first")
    seen: list[bool] = []

    class Look:
        def on(self, event: events.Event) -> None:
            if isinstance(event, events.Publishing):
                seen.append(Path("disk/.out.parquet.batchserve").is_dir())

    score("second/out.parquet", listener=Look())

    assert seen == [True]
    assert sorted(path.name for path in Path("disk").iterdir()) == ["out.parquet", "out.receipt.json"]
    assert Path("second").readlink() == Path("first")


def test_a_link_into_no_folder_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A link that points into a folder that is not there is 73, with the command that makes it."""
    Path("out.parquet").symlink_to("gone/out.parquet")

    done = run(capsys, "score", "iris.csv", "out.parquet", "-m", "model.onnx")

    assert done.code == 73
    assert f"hint:  make it first: mkdir -p {Path('gone').resolve()}" in done.err
    assert Path("out.parquet").is_symlink()


def test_a_link_to_itself_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A link that leads back to itself is 73, in words."""
    Path("out.parquet").symlink_to("out.parquet")

    done = run(capsys, "score", "iris.csv", "out.parquet", "-m", "model.onnx")

    assert done.code == 73
    assert "out.parquet" in done.err


# -- modes ------------------------------------------------------------------------------------


@OUTPUTS
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o027], ids=oct)
def test_a_new_output_has_the_modes_of_the_umask(output: str, mask: int) -> None:
    """Files and folders of an output have the modes that `open` and `mkdir` give under this umask."""
    with umask(mask):
        score(output, partition_size="1k")

    made = {path.name: oct(mode(path)) for path in parts(output)}
    assert made == {path.name: oct((0o777 if path.is_dir() else 0o666) & ~mask) for path in parts(output)}


@pytest.mark.parametrize("output", ["out.parquet", "out"])
@pytest.mark.parametrize("number", [0o600, 0o640, 0o666], ids=oct)
def test_a_replaced_output_keeps_its_mode(output: str, number: int) -> None:
    """--overwrite gives the new file, or folder, the mode of the old one, whatever the umask."""
    score(output)
    before = number | 0o111 * Path(output).is_dir()
    Path(output).chmod(before)

    with umask(0o077):
        score(output, overwrite=True)

    assert oct(mode(output)) == oct(before)


@OUTPUTS
def test_what_belongs_to_a_replaced_output_keeps_its_mode(output: str) -> None:
    """Its receipt, and the parts of a dataset, do not become readable for more people than they were."""
    score(output)
    for path in parts(output):
        path.chmod(0o700 if path.is_dir() else 0o600)

    with umask(0o022):
        score(output, overwrite=True)

    assert {oct(mode(path)) for path in parts(output)} <= {"0o600", "0o700"}


def test_appending_keeps_the_modes_that_are_there() -> None:
    """A dataset's folder and its old parts stay as private, or as shared, as they are."""
    score("out", if_exists="append")
    Path("out").chmod(0o750)
    Path("out/part-000000.parquet").chmod(0o640)
    shutil.copy("iris.csv", "more.csv")

    score("out", "*.csv", if_exists="append")

    assert oct(mode("out")) == "0o750"
    assert oct(mode("out/part-000000.parquet")) == "0o640"


# -- the output is an input -------------------------------------------------------------------

ALIASES = {
    "itself": "rows.parquet",
    "with a dot": "./rows.parquet",
    "up and down": "deep/../rows.parquet",
    "in full": "{home}/rows.parquet",
    "by a link": "soft.parquet",
    "by a link to a link": "softer.parquet",
    "by a hard link": "hard.parquet",
    "through a linked folder": "round/rows.parquet",
}


@pytest.fixture
def rows(home: Path) -> Path:
    """Make an input of our own making, which --overwrite could replace, and other names for it."""
    score("made.parquet", prefix="old_")
    Path("made.receipt.json").unlink()
    Path("made.parquet").rename("rows.parquet")
    Path("deep").mkdir()
    Path("soft.parquet").symlink_to("rows.parquet")
    Path("softer.parquet").symlink_to("soft.parquet")
    Path("hard.parquet").hardlink_to("rows.parquet")
    Path("round").symlink_to(home)
    return Path("rows.parquet")


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("which", ["output", "input"])
def test_an_input_is_never_the_output(alias: str, which: str, rows: Path, home: Path) -> None:
    """By whatever name one of the two is called: 73, even with --overwrite, and the rows are still there."""
    name = ALIASES[alias].format(home=home)
    given, output = (name, str(rows)) if which == "input" else (str(rows), name)
    before = listing(home)

    with pytest.raises(OutputError, match="is the input"):
        score(output, given, overwrite=True, prefix="new_")

    assert listing(home) == before


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("days", "days/out.parquet"),
        ("days", "days/deep/out.parquet"),
        ("days/", "days/../days/out.parquet"),
        ("linked", "days/out.parquet"),
        ("days", "linked/out.parquet"),
        ("days/*.parquet", "days/out.parquet"),
        ("days/[m-z]*.parquet", "days/out.parquet"),
        ("days/**/*.parquet", "days/deep/out.parquet"),
        ("days/**/*.parquet", "days/out.parquet"),
        ("days", "days/out"),
        ("days", "days/deep/out/"),
        ("days/**/*.parquet", "days/out"),
    ],
)
def test_an_output_that_the_next_run_would_read_is_refused(given: str, output: str, home: Path) -> None:
    """Inside an input folder, or where an input glob matches, nothing is written: 73 names the input."""
    Path("days/deep").mkdir(parents=True)
    Path("linked").symlink_to("days")
    score("rows.parquet", prefix="old_")
    for name in ("days/monday.parquet", "days/tuesday.parquet", "days/deep/wednesday.parquet"):
        shutil.copy("rows.parquet", name)
    before = listing(home)

    with pytest.raises(OutputError, match="lies inside the input") as refused:
        score(output, given)

    assert given in refused.value.message
    assert listing(home) == before


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("days/*.csv", "days/out.parquet"),
        ("days/*.csv", "days/out"),
        ("days/[m-n]*.parquet", "days/out.parquet"),
        ("days/monday.csv", "days/out.parquet"),
        ("days", "days.parquet"),
        ("days", "days-scored"),
    ],
)
def test_an_output_beside_its_inputs_is_fine(given: str, output: str) -> None:
    """Where no input names it, an output may stand beside its inputs."""
    Path("days").mkdir()
    shutil.copy("iris.csv", "days/monday.csv")
    if "parquet" in given:
        score("days/monday.parquet", prefix="old_")

    score(output, given)

    assert pq.read_table(output).num_rows == 150


@pytest.mark.parametrize("output", ["days", "days/", "days/..", ".", "linked", "days/../days"])
def test_a_dataset_that_holds_an_input_is_refused(output: str, home: Path) -> None:
    """A dataset folder that an input lies in, at any depth and by any name, is 73 even with --overwrite."""
    Path("days/deep").mkdir(parents=True)
    shutil.copy("iris.csv", "days/deep/monday.csv")
    Path("linked").symlink_to("days")
    before = listing(home)

    with pytest.raises(OutputError, match="holds the input"):
        score(output, "days/deep/monday.csv", overwrite=True)

    assert listing(home) == before


# -- permissions ------------------------------------------------------------------------------


def as_somebody(*arguments: str | Path) -> Outcome:
    """Run batchserve as one for whom modes hold, root or not."""
    return spawn(*arguments, before=NO_OVERRIDE)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let nobody change what is in a folder, for the block."""
    before = mode(folder)
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(before)


@OUTPUTS
@pytest.mark.parametrize("if_exists", ["error", "overwrite"])
def test_a_folder_that_is_read_only_is_told(output: str, if_exists: str, home: Path) -> None:
    """Where no file can be made, nothing is begun: 77 names the folder, whether an output is there or not."""
    Path("shared").mkdir()
    if if_exists == "overwrite":
        score(f"shared/{output}")
    before = listing(home)

    with locked(home / "shared"):
        done = as_somebody(
            "score", "iris.csv", f"shared/{output}", "-m", "model.onnx", "--if-exists", if_exists
        )

    assert done.code == 77, done.err
    assert f"error: {home}/shared: Permission denied" in done.err
    assert "hint:  check who owns it and its mode" in done.err
    assert "Traceback" not in done.err
    assert listing(home) == before


@pytest.mark.parametrize("command", ["score", "clean"])
def test_somebody_elses_workspace_is_told(command: str, home: Path) -> None:
    """What another user's unfinished run left is neither continued nor removed: 77, and it is still there."""

    class Cut:
        def on(self, event: events.Event) -> None:
            if isinstance(event, events.Publishing):
                raise BatchserveError("cut here")

    with pytest.raises(BatchserveError, match="cut here"):
        score("out.parquet", listener=Cut())
    found = target.at("out.parquet").workspace
    before = listing(home)
    (found / "lock").chmod(0o444)

    with locked(found):
        more = ("iris.csv", "out.parquet", "-m", "model.onnx") if command == "score" else ("out.parquet",)
        done = as_somebody(command, *more)

    assert done.code == 77, done.err
    assert ".out.parquet.batchserve" in done.err
    assert "Traceback" not in done.err
    assert listing(home) == before


@pytest.mark.parametrize("output", ["gone/out.parquet", "gone/out", "gone/deep/out.parquet", "iris.csv/out"])
def test_a_folder_that_is_not_there_is_told(
    output: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder that an output goes into is not made unasked: 73, with the command that makes it."""
    before = listing(home)

    done = run(capsys, "score", "iris.csv", output, "-m", "model.onnx")

    assert done.code == 73
    assert f"hint:  make it first: mkdir -p {home / Path(output).parent}\n" in done.err
    assert listing(home) == before


def test_an_input_that_goes_meanwhile_is_told() -> None:
    """An input that is removed after planning ends the job in words, and nothing is published."""

    class Gone:
        def on(self, event: events.Event) -> None:
            if isinstance(event, events.Planned):
                Path("iris.csv").unlink()

    with pytest.raises(NotFoundError, match=r"iris\.csv"):
        score("out.parquet", listener=Gone())

    assert not Path("out.parquet").exists()
