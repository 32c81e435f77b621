"""An output that is there: refused, left, replaced or appended to; and what unfinished runs leave."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import batchserve as bs
from batchserve import events, job, scoring, storage, target, verify, workspace
from batchserve.errors import BatchserveError, OutputError, RetryError, UsageError
from workbench import doubler, listing, run

OUTPUTS = pytest.mark.parametrize("output", ["out.parquet", "out"])
ROWS = 40
"""Of each input file: seven bytes a row."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in a folder with a model that doubles `x`, and with the files of two days."""
    doubler(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workspace, "LOCK_WAIT_S", 0.2)
    Path("days").mkdir()
    day("1")
    return tmp_path


def day(name: str, rows: Iterable[object] | None = None, header: str = "x,zip") -> Path:
    """Write the file of a day; by default its zip codes begin with its name."""
    path = Path("days") / f"{name}.csv"
    lines = [f"{i + 10},{name}{i + 10}" for i in range(ROWS)] if rows is None else rows
    path.write_text("\n".join([header, *map(str, lines), ""]))
    return path


class Told:
    """A listener that keeps events, and acts at those of one kind."""

    def __init__(self, kind: type | None = None, act: Callable[[], object] = lambda: None) -> None:
        self._seen: list[events.Event] = []
        self._kind = kind
        self._act = act

    def on(self, event: events.Event) -> None:
        self._seen.append(event)
        if self._kind and isinstance(event, self._kind):
            self._act()

    def of(self, kind: type) -> list[Any]:
        """Return the events of one kind."""
        return [event for event in self._seen if isinstance(event, kind)]


def score(output: str = "out", inputs: str | list[str] = "days", **options: Any) -> bs.Report:
    """Score the days into an output, in this process."""
    settings: dict[str, Any] = {"model": "model.onnx", "workers": 1} | options
    return bs.score(inputs, output, **settings)


def append(inputs: str | list[str] = "days", **options: Any) -> bs.Report:
    """Append the days that are new to the dataset `out`."""
    return score("out", inputs, if_exists="append", **options)


def stamps(folder: str = ".") -> dict[str, tuple[int, int]]:
    """Return inode and time of change of every file and folder below `folder`."""
    found = {str(path): path.stat() for path in sorted(Path(folder).rglob("*"))}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def zips(output: str = "out") -> list[object]:
    """Return the column `zip` of an output, parts in the order of the manifest."""
    found: list[object] = []
    paths = [output]
    if Path(output).is_dir():
        paths = [f"{output}/{part.name}" for part in target.manifest(target.at(output)).parts]
    for path in paths:
        found += pq.read_table(path)["zip"].to_pylist()
    return found


def expected(*names: str) -> list[int]:
    """Return the zip codes of some days."""
    return [int(f"{name}{i + 10}") for name in names for i in range(ROWS)]


class Killed(BaseException):
    """Stands for the end of the process at this very instant."""


def kill(*_: object, **__: object) -> None:
    raise Killed


def killed_after_publishing(run_job: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a job that ends at the moment when it would remove its workspace."""
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "discard", kill)
        with pytest.raises(Killed):
            run_job()


# -- skip -------------------------------------------------------------------------------------


@OUTPUTS
def test_skip_leaves_an_output_of_this_plan(output: str) -> None:
    """An output of this very plan stays as it is, nothing is scored, and no workspace is made."""
    score(output)
    before = stamps()
    told = Told()

    report = score(output, if_exists="skip", listener=told)

    assert report.skipped
    assert report.rows == ROWS
    assert told.of(events.Planned) == []
    assert stamps() == before


def test_skip_tells_that_there_is_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """The command says so in a line, `--json` in a field, and both are exit 0."""
    command = ("score", "days", "out.parquet", "-m", "model.onnx", "--if-exists", "skip")
    run(capsys, *command)

    said = run(capsys, *command)
    told = run(capsys, *command, "--json")

    assert (said.code, told.code) == (0, 0)
    assert f"out.parquet: nothing to do, its {ROWS} rows are from 1.csv" in said.err
    assert json.loads(told.out)["skipped"] is True


@OUTPUTS
def test_skip_scores_what_is_not_there(output: str) -> None:
    """Without an output `skip` scores as ever."""
    report = score(output, if_exists="skip")

    assert not report.skipped
    assert zips(output) == expected("1")


CHANGES: dict[str, tuple[Callable[[], object], dict[str, Any], str]] = {
    "model": (lambda: doubler(Path("other.onnx"), "zip"), {"model": "other.onnx"}, "model: sha256"),
    "option": (lambda: None, {"keep": "none"}, "columns kept: nothing more, was x, zip"),
    "batch rows": (lambda: None, {"batch_rows": 64}, "batch rows: 64, was 1,024"),
    "input": (lambda: day("1", ["1,2"]), {}, "days/1.csv: has changed"),
    "touched": (lambda: os.utime("days/1.csv", ns=(1, 1)), {}, "days/1.csv: has changed"),
    "more inputs": (lambda: day("2"), {}, "days/2.csv: is new"),
}


@OUTPUTS
@pytest.mark.parametrize("change", CHANGES)
def test_skip_refuses_an_output_of_another_plan(output: str, change: str) -> None:
    """An output of another model, option or input is neither left nor replaced: 73 names what differs."""
    make, options, words = CHANGES[change]
    score(output)
    make()
    before = stamps()

    with pytest.raises(OutputError, match="is the output of another plan") as refused:
        score(output, if_exists="skip", **options)

    assert words in refused.value.message
    assert stamps() == before


def test_skip_refuses_a_file_of_another_size() -> None:
    """A file that has grown inside is not the one that was written, though its footer says so."""
    score("out.parquet")
    whole = Path("out.parquet").read_bytes()
    Path("out.parquet").write_bytes(whole[:4] + b"more" + whole[4:])

    with pytest.raises(OutputError, match="its size differs from its receipt"):
        score("out.parquet", if_exists="skip")


@pytest.mark.parametrize("damage", ["longer", "gone"])
def test_skip_refuses_a_dataset_of_another_size(damage: str) -> None:
    """A dataset of which a part is longer, or gone, is not what was written."""
    score("out")
    part = Path("out/part-000000.parquet")
    if damage == "gone":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes() + b"more")

    with pytest.raises(OutputError, match="its size differs from its receipt"):
        score("out", if_exists="skip")


@pytest.mark.parametrize("output", ["out.parquet", "out"])
def test_skip_knows_an_output_without_rows(output: str) -> None:
    """An output of no rows is as good as any other."""
    day("1", [])
    score(output, type={"x": "double"})

    assert score(output, type={"x": "double"}, if_exists="skip").skipped


@pytest.mark.parametrize(
    ("output", "if_exists"), [("out.parquet", "skip"), ("out", "skip"), ("out", "append")]
)
@pytest.mark.parametrize("damage", ["gone", "damaged", "of another"])
def test_an_output_without_its_receipt_is_refused(output: str, if_exists: str, damage: str) -> None:
    """Without a whole receipt of its own nobody knows what an output holds: 73, and `--overwrite` helps."""
    score(output)
    receipt = target.at(output).receipt
    whole = receipt.read_bytes()
    other = storage.seal(storage.unseal(whole).replace('"plan_id": "', '"plan_id": "0', 1))
    receipt.write_bytes({"damaged": whole[:-9], "of another": other}.get(damage, b""))
    if damage == "gone":
        receipt.unlink()

    with pytest.raises(OutputError, match="its receipt is missing or damaged") as refused:
        score(output, if_exists=if_exists)

    assert "--overwrite" in refused.value.hint
    assert score(output, overwrite=True).rows == ROWS


def test_skip_finishes_a_run_that_was_cut_after_publishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a run left is removed, and the output stays as it is."""
    killed_after_publishing(lambda: score("out.parquet"), monkeypatch)
    before = Path("out.parquet").stat().st_ino

    report = score("out.parquet", if_exists="skip")

    assert report.skipped
    assert Path("out.parquet").stat().st_ino == before
    assert not target.at("out.parquet").workspace.exists()


# -- overwrite --------------------------------------------------------------------------------


@OUTPUTS
@pytest.mark.parametrize("option", [{"overwrite": True}, {"if_exists": "overwrite"}])
def test_overwrite_scores_again(output: str, option: dict[str, Any]) -> None:
    """Both spellings score the very same plan again; who reads the old output reads on in it."""
    score(output)
    inode = Path(output).stat().st_ino
    file = Path(output) if Path(output).is_file() else Path(output) / "part-000000.parquet"
    told = Told()

    with file.open("rb") as reader:
        first = reader.read(100)
        report = score(output, listener=told, **option)
        old = first + reader.read()

    assert not report.skipped
    assert len(told.of(events.PartitionScored)) == 1
    assert Path(output).stat().st_ino != inode
    assert old == file.read_bytes()  # the same plan gives the same bytes, to another file


@OUTPUTS
def test_the_old_output_is_there_until_it_is_replaced(output: str) -> None:
    """While a job overwrites, its output is the old one, whole."""
    score(output)
    before = listing(Path(output)), Path(output).stat().st_ino
    seen: list[object] = []

    def look() -> None:
        seen.append((listing(Path(output)), Path(output).stat().st_ino))

    score(output, overwrite=True, keep="zip", listener=Told(events.Publishing, look))

    assert seen == [before]
    assert pq.read_table(output).schema.names == ["zip", "y"]


@pytest.mark.parametrize(
    ("output", "if_exists"), [("mine.parquet", "skip"), ("mine", "skip"), ("mine", "append")]
)
def test_what_others_wrote_is_refused(output: str, if_exists: str) -> None:
    """A file or folder of somebody else's is 73 with the command that removes it, whatever is asked for."""
    remove = "rm mine.parquet" if output == "mine.parquet" else "rm -r mine"
    if output == "mine":
        Path(output).mkdir()
    shutil.copy("days/1.csv", output)
    before = stamps()

    with pytest.raises(OutputError, match="was not written by batchserve") as refused:
        score(output, if_exists=if_exists)

    assert refused.value.hint == f"to lose it: {remove}"
    assert stamps() == before


@pytest.mark.parametrize("word", ["skip", "append"])
def test_overwriting_and_something_else_is_a_contradiction(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """--overwrite beside --if-exists skip or append is exit 2, and nothing is written."""
    before = stamps()

    done = run(capsys, "score", "days", "out", "-m", "model.onnx", "--overwrite", "--if-exists", word)

    assert done.code == 2
    assert f"--overwrite and --if-exists {word} contradict each other" in done.err
    assert stamps() == before


@pytest.mark.parametrize(
    ("said", "flags", "rows"),
    [
        ("if_exists = 'skip'", ("--overwrite", "--limit", "7"), 7),
        ("overwrite = true", ("--if-exists", "skip"), ROWS),
    ],
)
def test_a_flag_outdoes_its_rival_in_a_file(
    said: str, flags: tuple[str, ...], rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flags beat a config file also where the file says it by the other of the two keys."""
    Path("batchserve.toml").write_text(f"model = 'model.onnx'\n{said}\n")
    score("out.parquet")

    done = run(capsys, "score", "days", "out.parquet", *flags)

    assert done.code == 0, done.err
    assert pq.read_metadata("out.parquet").num_rows == rows


# -- append -----------------------------------------------------------------------------------


def test_append_scores_only_new_files() -> None:
    """Old parts keep name and inode, new rows come last, and manifest and receipt cover both."""
    score("out", partition_size="150")
    old = stamps("out")
    parts = {name for name in old if name.endswith(".parquet")}
    day("2")
    told = Told()

    report = append(partition_size="150", listener=told)

    assert {told.of(events.Planned)[0].bytes_total} == {
        sum(e.bytes_in for e in told.of(events.PartitionScored))
    }
    new = stamps("out")
    assert len(parts) > 1
    assert {name: new[name] for name in parts} == {name: old[name] for name in parts}
    assert zips() == expected("1", "2")
    assert pq.read_table("out")["zip"].to_pylist() == expected("1", "2")  # by name, too
    assert (report.rows, len(report.receipt.inputs), len(report.receipt.runs)) == (2 * ROWS, 2, 2)
    proven = verify.verify("out")
    assert (proven.rows_scored, proven.skipped) == (2 * ROWS, [])
    assert not target.at("out").workspace.exists()


def test_append_to_nothing_is_a_plain_score() -> None:
    """Without a dataset, or with an empty folder, the first night scores all there is."""
    Path("out").mkdir()

    append()

    assert zips() == expected("1")


def test_three_appends_in_a_row() -> None:
    """Night after night each adds its own file, and the whole is proven."""
    for name in ("1", "2", "3", "4"):
        day(name)
        os.utime(f"days/{name}.csv", ns=(1, 1))
        append()

    assert zips() == expected("1", "2", "3", "4")
    assert len(verify.verify("out").facts) == 4
    assert verify.verify("out").rows_scored == 4 * ROWS


def test_nothing_new_is_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """With no new file the dataset stays as it is: exit 0, and that is said."""
    append()
    before = stamps()

    done = run(capsys, "score", "days", "out", "-m", "model.onnx", "--if-exists", "append")

    assert done.code == 0, done.err
    assert "out: nothing to do" in done.err
    assert stamps() == before


@pytest.mark.parametrize(("inputs", "model"), [("gone.csv", "model.onnx"), ("days", "gone.onnx")])
def test_problems_are_told_where_nothing_is_new(inputs: str, model: str) -> None:
    """A missing input, or model, is told as ever: a night that read nothing must not look like a good one."""
    append()

    with pytest.raises(BatchserveError) as told:
        append(inputs, model=model)

    assert told.value.exit_code == 66


def test_a_file_that_changed_is_not_appended() -> None:
    """Its rows are in the dataset already: 73 names the file, and nothing is scored."""
    append()
    day("1", ["1,2"])
    day("2")
    before = stamps()

    with pytest.raises(OutputError, match=r"days/1\.csv: was scored into this dataset and has changed"):
        append()

    assert stamps() == before


def test_a_file_that_is_gone_does_not_matter() -> None:
    """Rows of files that were removed since stay; when such a file comes back it is known."""
    append()
    Path("days/1.csv").rename("1.csv")
    day("2")
    append()
    Path("1.csv").rename("days/1.csv")

    report = append()

    assert report.skipped
    assert zips() == expected("1", "2")


OTHERWISE: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "other.onnx"}, "model: sha256"),
    "columns kept": ({"keep": "zip"}, "columns kept: nothing more, was x"),
    "prefix": ({"prefix": "p_"}, "predictions: p_y, was y"),
    "nulls": ({"on_null": "nan"}, "nulls: x nan, was x reject"),
    "batch rows": ({"batch_rows": 64}, "batch rows: 64, was 1,024"),
    "types": ({"type": {"zip": "text"}}, "types: zip string, was zip int64"),
}


@pytest.mark.parametrize("difference", OTHERWISE)
def test_rows_scored_otherwise_are_not_appended(difference: str) -> None:
    """Another model, other options, other columns: 73 names what differs; the dataset is not mixed."""
    options, words = OTHERWISE[difference]
    append()
    shutil.copy("model.onnx", "other.onnx")
    doubler(Path("other.onnx"), "zip")
    day("2")
    before = stamps()

    with pytest.raises(OutputError, match="its rows were scored otherwise") as refused:
        append(**options)

    assert words in refused.value.message
    assert "days/2.csv" not in refused.value.message
    assert stamps() == before


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("x,zip,more", "columns kept: more, was nothing"),
        ("zip,x", "columns kept: in another order"),
        ("x,zap", "columns kept: zap, was zip"),
    ],
)
def test_files_of_other_columns_are_not_appended(header: str, words: str) -> None:
    """A new file with a column more, fewer or elsewhere is 73, and the columns are named."""
    append()
    day("2", ["1," * header.count(",") + "2"], header)

    with pytest.raises(OutputError, match="its rows were scored otherwise") as refused:
        append()

    assert words in refused.value.message


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ("1,a", "2,7", "string"),  # looks like integers, the dataset has text
        ("1,007", "2,7", "string"),
        ("1,1.5", "2,7", "double"),
        ("1,7", "2,", "int64"),  # nothing in it, so it might be anything
        ("1,2026-01-31", "2,2026-02-28", "date32[day]"),
    ],
)
def test_columns_keep_the_types_of_the_dataset(first: str, second: str, kind: str) -> None:
    """A new file whose column would be of another type by itself gets the type that the dataset has."""
    day("1", [first])
    append()
    day("2", [second])

    append()

    kinds = {str(pq.read_schema(path).field("zip").type) for path in Path("out").glob("*.parquet")}
    assert kinds == {kind}
    assert pq.read_table("out").num_rows == 2


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("007", 0, 0), ("abc", 0, 0), ("1.5", 0, 0), ("9223372036854775808", 0, 0),
        ("007", 80_000, 500_000), ("abc", 80_000, 500_000),  # where no sample is taken
    ],
)  # fmt: skip
def test_a_text_that_does_not_fit_is_not_appended(text: str, before: int, after: int) -> None:
    """A text that the dataset's type would not give back is 73; no row is altered, no part is mixed in."""
    append()
    there = stamps("out")
    day("2", [*["1,12"] * before, f"1,{text}", *["1,12"] * after])

    with pytest.raises(OutputError, match="its rows were scored otherwise") as refused:
        append()

    assert "types: zip" in refused.value.message
    assert stamps("out") == there


@pytest.mark.parametrize(
    ("value", "zips_after", "code"), [("2.5", [1.5, 2.5], 0), ("8", [1.5, 8.0], 0), ('"007"', [1.5], 65)]
)
def test_json_lines_are_appended_in_the_types_of_the_dataset(
    value: str, zips_after: list[float], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole number becomes the double that its column is; a text is refused, not altered or mixed in."""
    Path("days/1.csv").unlink()
    Path("days/1.jsonl").write_text('{"x": 1, "zip": 1.5}\n')
    append()
    Path("days/2.jsonl").write_text(f'{{"x": 2, "zip": {value}}}\n')

    done = run(capsys, "score", "days", "out", "-m", "model.onnx", "--if-exists", "append")

    assert done.code == code, done.err
    assert zips() == zips_after


def test_a_text_for_the_model_that_is_no_number_is_not_appended() -> None:
    """A row that the model cannot take is 65 with its place, as ever, and the dataset stays."""
    append()
    before = stamps("out")
    day("2", ["1,1", "x,2"])

    with pytest.raises(BatchserveError, match=r"days/2\.csv:3") as refused:
        append()

    assert refused.value.exit_code == 65
    assert stamps("out") == before


def test_the_first_limit_rows_are_no_dataset_to_append_to() -> None:
    """--limit leaves rows out whose file would count as scored: neither before nor now."""
    score("out", limit=3)
    day("2")
    with pytest.raises(OutputError, match="was scored with --limit"):
        append()
    score("out", overwrite=True)
    day("3")

    with pytest.raises(UsageError, match="--limit 3: appended files count as scored"):
        append(limit=3)

    assert pq.read_table("out").num_rows == 2 * ROWS


@pytest.mark.parametrize("then", ["the same", "one file more"])
def test_append_cut_after_publishing(then: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next night finds what was published, drops what was left of the work, and adds what is new."""
    append()
    day("2")
    killed_after_publishing(append, monkeypatch)
    assert zips() == expected("1", "2")
    assert workspace.receipts_in(target.at("out").workspace) == 1
    days = ["1", "2"]
    if then == "one file more":
        day("3")
        days.append("3")

    report = append()

    assert report.skipped == (then == "the same")
    assert zips() == expected(*days)
    assert verify.verify("out").rows_scored == len(days) * ROWS
    assert not target.at("out").workspace.exists()


@pytest.mark.parametrize("moment", [events.PartitionScored, events.Publishing])
def test_append_cut_before_publishing(moment: type, capsys: pytest.CaptureFixture[str]) -> None:
    """The dataset is the old one, and the same command says where it continues and adds the rest once."""
    append()
    day("2")
    with pytest.raises(Killed):
        append(partition_size="150", listener=Told(moment, kill))
    before = zips()
    left = workspace.receipts_in(target.at("out").workspace)

    done = run(
        capsys, "score", "days", "out", "-m", "model.onnx", "--if-exists", "append", "--partition-size", "150"
    )

    assert before == expected("1")
    assert done.code == 0, done.err
    assert f"continuing: {left} of 2 partitions done" in done.err
    assert zips() == expected("1", "2")
    assert verify.verify("out").rows_scored == 2 * ROWS


def test_append_finishes_what_was_cut_before_it_adds_more() -> None:
    """Files that came since an append was cut are added after it is finished: no part is scored again."""
    append()
    day("2")
    with pytest.raises(Killed):
        append(listener=Told(events.Publishing, kill))
    day("3")
    told = Told()

    report = append(listener=told)

    assert [each.partitions_done for each in told.of(events.Planned)] == [1, 0]
    assert (report.rows, len(report.receipt.runs)) == (3 * ROWS, 3)
    assert zips() == expected("1", "2", "3")
    assert verify.verify("out").rows_scored == 3 * ROWS


def test_append_beside_an_unfinished_one_of_other_files() -> None:
    """Parts of files that are not among the inputs any more are not dropped unasked: 73, or --fresh."""
    append()
    day("2")
    with pytest.raises(Killed):
        append(listener=Told(events.Publishing, kill))
    Path("days/2.csv").unlink()
    day("3")

    with pytest.raises(OutputError, match="unfinished run of another plan") as refused:
        append()
    report = append(fresh=True)

    assert "days/3.csv: is new" in refused.value.message
    assert "--fresh" in refused.value.hint
    assert report.rows == 2 * ROWS
    assert zips() == expected("1", "3")


def test_two_nights_at_once_add_no_row_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset that was appended to since the plan was made is not appended to on that plan: 75."""
    append()
    day("2")
    honest = job._planned

    def slowly(*arguments: Any) -> Any:
        made = honest(*arguments)
        monkeypatch.setattr(job, "_planned", honest)
        append()  # another process is faster
        return made

    monkeypatch.setattr(job, "_planned", slowly)
    with pytest.raises(RetryError, match="was written to meanwhile"):
        append()

    assert append().skipped
    assert zips() == expected("1", "2")


@pytest.mark.parametrize("if_exists", ["append", "overwrite"])
def test_files_of_others_in_a_dataset_are_not_lost(if_exists: str) -> None:
    """What somebody put into the folder is still there after the job, or the job is refused."""
    score("out")
    Path("out/notes.txt").write_text("mine")
    day("2")

    try:
        score("out", if_exists=if_exists)
    except OutputError as refused:
        assert "notes.txt" in refused.message  # noqa: PT017  either is fine

    assert Path("out/notes.txt").read_text() == "mine"


# -- plan -------------------------------------------------------------------------------------


def plan(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    done = run(capsys, "plan", "days", "out", "-m", "model.onnx", *more)
    assert done.code == 0, done.err
    return done.out


def test_plan_with_append_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """It shows the new files alone."""
    append()
    day("2")
    day("3")
    before = stamps()

    shown = plan(capsys, "--if-exists", "append")

    assert "2 files" in shown
    assert stamps() == before


def test_plan_with_nothing_to_append(capsys: pytest.CaptureFixture[str]) -> None:
    """With no new file there is no plan to show, and that is no error."""
    append()

    plan(capsys, "--if-exists", "append")


def test_plan_names_the_workspace_that_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """An unfinished run of this plan is continued, one of another plan is told with what differs."""
    with pytest.raises(Killed):
        score("out", partition_size="150", listener=Told(events.Publishing, kill))
    before = listing(Path())

    same = plan(capsys, "--partition-size", "150")
    other = plan(capsys, "--keep", "none")

    assert "an unfinished run of this plan: 2 of 2 parts done; score continues it" in same
    assert "an unfinished run of another plan: 2 of 2 parts done; differs: columns kept" in other
    assert listing(Path()) == before


# -- rejects of an earlier run ----------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
def test_rejects_of_an_earlier_run_go(there: bool) -> None:
    """A run without rejects removes the rejects file that a run of ours left."""
    if there:
        score("out.parquet")
    Path("out.rejects.jsonl").write_text('{"plan_id": "0123", "reason": "null"}\n')

    score("out.parquet", overwrite=there)

    assert not Path("out.rejects.jsonl").exists()


@pytest.mark.parametrize("text", ["my notes\n", '{"reason": "null"}\n', '["plan_id"]\n', ""])
@pytest.mark.parametrize("there", [False, True])
def test_a_rejects_file_of_others_is_never_written_over(text: str, there: bool) -> None:
    """A file that is none of ours where rejects would go is told before any work, and stays."""
    if there:
        score("out.parquet")
    Path("out.rejects.jsonl").write_text(text)

    with pytest.raises(OutputError, match=r"out\.rejects\.jsonl: exists and was not written by batchserve"):
        score("out.parquet", overwrite=there)

    assert Path("out.rejects.jsonl").read_text() == text


# -- clean and fresh --------------------------------------------------------------------------


@OUTPUTS
def test_clean_removes_what_an_unfinished_run_left(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It says how many parts were finished, and the output there is stays as it is."""
    score(output)
    before = stamps()
    with pytest.raises(Killed):
        score(output, overwrite=True, partition_size="150", listener=Told(events.Publishing, kill))

    done = run(capsys, "clean", output)
    again = run(capsys, "clean", output)

    assert (done.code, again.code) == (0, 0)
    assert f"{output}: removed an unfinished run (2 finished parts)" in done.err
    assert f"{output}: nothing is left of an unfinished run" in again.err
    assert stamps() == before


def test_clean_waits_for_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    """While a run holds the workspace it is not removed: exit 75 names the process."""
    preview = bs.plan("days", "out", model="model.onnx")
    assert preview.target
    with workspace.opened(preview.target, preview.plan) as space:
        scoring.score_partition(preview.plan.partitions[0], preview.plan.recipe, space)
        before = listing(Path())

        done = run(capsys, "clean", "out")

        assert done.code == 75
        assert f"process {os.getpid()}" in done.err
        assert listing(Path()) == before


def test_fresh_begins_anew() -> None:
    """--fresh drops the finished parts of this very plan, too."""
    with pytest.raises(Killed):
        score("out", partition_size="150", listener=Told(events.Publishing, kill))
    told = Told()

    score("out", partition_size="150", fresh=True, listener=told)

    assert told.of(events.Planned)[0].partitions_done == 0
    assert len(told.of(events.PartitionScored)) == 2
    assert zips() == expected("1")
