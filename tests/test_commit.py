"""Receipts make parts count, and the output appears whole or not at all."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchserve as bs
from batchserve import commit, events, outputs, scoring, storage, target, workspace
from batchserve.errors import DataError, OutputError, StorageError
from batchserve.outputs import Receipt, Workspace
from batchserve.planning import Plan
from batchserve.target import Target
from workbench import IRIS, IRIS_HEADER, IRIS_MODEL, listing, run

OUTPUTS = pytest.mark.parametrize("output", ["out.parquet", "out"])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in a folder with the iris rows and their model."""
    shutil.copy(IRIS, tmp_path / "iris.csv")
    shutil.copy(IRIS_MODEL, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(output: str, size: str = "1k") -> tuple[Plan, Target]:
    """Return a plan of the iris rows in four partitions and its target."""
    preview = bs.plan("iris.csv", output, model="model.onnx", partition_size=size)
    assert preview.target is not None
    return preview.plan, preview.target


def score(output: str, **options: object) -> bs.Report:
    """Score the iris rows in four partitions."""
    return bs.score("iris.csv", output, model="model.onnx", partition_size="1k", workers=1, **options)  # type: ignore[arg-type]


def scored_parts(plan: Plan, space: Workspace, count: int | None = None) -> list[Receipt]:
    """Score the first partitions of a plan into its workspace."""
    return [scoring.score_partition(p, plan.recipe, space) for p in plan.partitions[:count]]


class Watcher:
    """A listener that keeps events, and acts on those of one kind."""

    def __init__(
        self, kind: type[events.Event] | None = None, act: Callable[[], object] = lambda: None
    ) -> None:
        self.seen: list[events.Event] = []
        self._kind = kind
        self._act = act

    def on(self, event: events.Event) -> None:
        """Keep the event."""
        self.seen.append(event)
        if self._kind is not None and isinstance(event, self._kind):
            self._act()
            self._kind = None


# -- receipts ---------------------------------------------------------------------------------


def test_the_first_receipt_stands() -> None:
    """A partition scored twice has the receipt of the first time and one part."""
    plan, found = planned("out.parquet")
    with workspace.opened(found, plan) as space:
        (first,) = scored_parts(plan, space, 1)
        (second,) = scored_parts(plan, space, 1)

        assert second == replace(first, facts=second.facts)
        assert second.facts == replace(
            first.facts,
            seconds=second.facts.seconds,
            waited_s=second.facts.waited_s,  # the first has more
        )
        assert len(list(found.workspace.glob("*.parquet"))) == 1


def test_of_two_attempts_the_second_gives_way() -> None:
    """Of two attempts that run at once the later one drops its part and returns the other's receipt."""
    plan, found = planned("out.parquet")
    with workspace.opened(found, plan) as space:
        name, schema = plan.partitions[0].name, plan.recipe.schema_
        facts = scored_parts(plan, space, 1)[0].facts
        (found.workspace / f"{name}.json").unlink()
        with outputs.open_part(space, name, schema) as slow, outputs.open_part(space, name, schema) as fast:
            for part in (fast, slow):
                part.finish()
            won = fast.commit(0, facts)
            lost = slow.commit(0, facts)

        assert won == lost
        assert won.part in listing(found.workspace)
        assert (
            len(list(found.workspace.glob(f"{name}.*.parquet"))) == 2
        )  # the winner's, and the litter of before


def test_a_part_that_fails_leaves_nothing() -> None:
    """When scoring fails half-way no part and no receipt is left."""
    plan, found = planned("out.parquet")
    with workspace.opened(found, plan) as space:
        before = listing(found.workspace)
        with pytest.raises(ZeroDivisionError), outputs.open_part(space, "p000000", plan.recipe.schema_):
            raise ZeroDivisionError

        assert listing(found.workspace) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: b"",
        lambda text: text.replace(b'"rows_in":', b'"rows_in":1'),
        lambda text: text.replace(b'"plan_id":"', b'"plan_id":"x'),
    ],
    ids=["cut", "empty", "one number", "another plan"],
)
def test_a_damaged_receipt_does_not_count(damage: Callable[[bytes], bytes]) -> None:
    """A receipt that is not to the bit what was written makes no part: its partition is scored again."""
    score("straight.parquet")
    plan, found = planned("out.parquet")
    with workspace.opened(found, plan) as space:
        scored_parts(plan, space)
    receipt = found.workspace / f"{plan.partitions[1].name}.json"
    receipt.write_bytes(damage(receipt.read_bytes()))
    watcher = Watcher()

    score("out.parquet", listener=watcher)

    assert done_before(watcher) == len(plan.partitions) - 1
    assert parts_of("out.parquet") == parts_of("straight.parquet")


def done_before(watcher: Watcher) -> int:
    """Return how many partitions the run found done."""
    return next(event for event in watcher.seen if isinstance(event, events.Planned)).partitions_done


def receipt_under(plan_id: str, receipt: Path) -> None:
    """Write a receipt as a task of another plan would have."""
    text = re.sub(r'"plan_id":"\w+"', f'"plan_id":"{plan_id}"', storage.unseal(receipt.read_bytes()))
    receipt.write_bytes(storage.seal(text))


def test_a_receipt_of_another_plan_does_not_count() -> None:
    """A late task of a superseded plan may link its receipt: the partition is scored all the same."""
    score("plain.parquet")
    plan, found = planned("out.parquet")
    with workspace.opened(found, plan) as space:
        scored_parts(plan, space)
    receipt = found.workspace / f"{plan.partitions[1].name}.json"
    receipt_under("another", receipt)
    watcher = Watcher()

    score("out.parquet", listener=watcher)

    assert done_before(watcher) == len(plan.partitions) - 1
    assert pq.read_table("out.parquet").equals(pq.read_table("plain.parquet"))


@OUTPUTS
def test_a_resumed_run_scores_only_what_is_left(output: str) -> None:
    """A run that goes on takes finished parts as they are and gives the bytes of a straight run."""
    score("straight" + Path(output).suffix)
    plan, found = planned(output)
    with workspace.opened(found, plan) as space:
        kept = scored_parts(plan, space, 3)
        (found.workspace / "p000003.litter.parquet").write_bytes(b"half a part")
    watcher = Watcher()

    score(output, listener=watcher)

    started = next(event for event in watcher.seen if isinstance(event, events.Planned))
    resumed = [e.index for e in watcher.seen if isinstance(e, events.PartitionScored) and e.resumed]
    assert (started.partitions, started.partitions_done) == (4, 3)
    assert sorted(resumed) == [receipt.partition for receipt in kept]
    assert parts_of(output) == parts_of("straight" + Path(output).suffix)
    assert not found.workspace.exists()


def parts_of(output: str) -> list[bytes]:
    """Return the bytes of an output's Parquet files, in order."""
    path = Path(output)
    return (
        [part.read_bytes() for part in sorted(path.glob("*.parquet"))]
        if path.is_dir()
        else [path.read_bytes()]
    )


def test_a_partition_that_began_at_a_wrong_place_is_scored_again() -> None:
    """A split inside a quoted text that looks like records is found and put right; no row is lost."""
    text = "5.1,3.5,1.4,0.2,setosa\n" * 20_000
    header, *rows = Path("iris.csv").read_text().splitlines(keepends=True)
    quoted = f'6.0,3.0,4.0,1.0,"{text}"\n'
    Path("quoted.csv").write_text(header + "".join(rows[:75]) + quoted + "".join(rows[75:]))
    split = {"model": "model.onnx", "partition_size": "60k", "workers": 1, "type": {"species": "text"}}
    redone: list[Path] = []
    watcher = Watcher(
        events.Publishing, lambda: redone.extend(Path().glob(".out.parquet.batchserve/*-from*.json"))
    )

    bs.score("quoted.csv", "out.parquet", listener=watcher, **split)  # type: ignore[arg-type]
    bs.score("quoted.csv", "whole.parquet", model="model.onnx", type={"species": "text"})

    assert len(redone) == 7
    assert pq.read_table("out.parquet").num_rows == 151
    assert pq.read_table("out.parquet").equals(pq.read_table("whole.parquet"))


# -- the workspace ----------------------------------------------------------------------------


def test_another_plans_workspace_is_not_emptied_unasked() -> None:
    """Parts of another plan are somebody's work: exit 73 names what differs, and --fresh drops them."""
    other, found = planned("out.parquet", size="2k")
    with workspace.opened(found, other) as space:
        scored_parts(other, space, 1)
        (found.workspace / "folder").mkdir()
    before = listing(found.workspace)

    with pytest.raises(OutputError) as told:
        score("out.parquet")
    kept = listing(found.workspace)
    report = score("out.parquet", fresh=True)

    assert "holds 1 of 2 parts of an unfinished run of another plan" in told.value.message
    assert "partitions: 4 of another size, were 2" in told.value.message
    assert "--fresh" in told.value.hint
    assert kept == before
    assert (report.rows, report.partitions) == (150, 4)
    assert not found.workspace.exists()


def test_another_plans_workspace_without_a_part_is_no_matter() -> None:
    """A workspace of another plan in which nothing was finished does not stand in the way."""
    other, found = planned("out.parquet", size="2k")
    with workspace.opened(found, other):
        pass

    assert score("out.parquet").partitions == 4


DIFFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "keep": ({"keep": "none"}, "columns kept: nothing more, was "),
    "nulls": ({"on_null": "nan"}, "nulls: sepal_length nan"),
    "batch rows": ({"batch_rows": 64}, "batch rows: 64, was 1,024"),
    "limit": ({"limit": 7}, "limit: 7, was None"),
    "prefix": ({"prefix": "m_"}, "predictions: m_label"),
    "types": ({"type": {"species": "string"}}, "types fixed: species, was nothing"),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_a_changed_option_is_named(difference: str) -> None:
    """An unfinished run of other options is not continued, and the option is named."""
    options, words = DIFFERENCES[difference]
    plan, found = planned("out.parquet")
    with workspace.opened(found, plan) as space:
        scored_parts(plan, space, 1)

    with pytest.raises(OutputError) as told:
        score("out.parquet", **options)

    assert words in told.value.message


def test_a_changed_input_is_named(home: Path) -> None:
    """An unfinished run over a file that has changed since is not continued, and the file is named."""
    plan, found = planned("out.parquet")
    with workspace.opened(found, plan) as space:
        scored_parts(plan, space, 1)
    with (home / "iris.csv").open("a") as file:
        file.write("5.1,3.5,1.4,0.2,setosa\n")

    with pytest.raises(OutputError) as told:
        score("out.parquet")

    assert f"input {home / 'iris.csv'}: has changed" in told.value.message


def test_files_more_or_fewer_are_named(home: Path) -> None:
    """An unfinished run over other files is not continued; those new and those gone are named."""
    shutil.copy(IRIS, home / "more.csv")
    plan, found = planned("out.parquet")
    with workspace.opened(found, plan) as space:
        scored_parts(plan, space, 1)

    with pytest.raises(OutputError) as told:
        bs.score("more.csv", "out.parquet", model="model.onnx", partition_size="1k")
    with pytest.raises(OutputError) as told_too:
        bs.score(["iris.csv", "more.csv"], "out.parquet", model="model.onnx", partition_size="1k")

    assert f"input {home / 'more.csv'}: is new" in told.value.message
    assert f"input {home / 'iris.csv'}: is not among the inputs any more" in told.value.message
    assert f"input {home / 'more.csv'}: is new" in told_too.value.message


def test_a_damaged_plan_loses_no_part() -> None:
    """Where the plan cannot be read the receipts still say whose they are, and the job goes on."""
    plan, found = planned("out.parquet")
    with workspace.opened(found, plan) as space:
        scored_parts(plan, space, 3)
    (found.workspace / "plan.json").write_bytes(b"{")
    watcher = Watcher()

    score("out.parquet", listener=watcher)

    assert done_before(watcher) == 3


def test_an_amended_plan_is_continued(home: Path) -> None:
    """A run that made a column text on the way and was cut goes on with that column as text."""
    rows = "5,3,1,0,12\n" * 60_000 + "5,3,1,0,0012\n" + "5,3,1,0,12\n" * 90_000
    (home / "zips.csv").write_text(f"{IRIS_HEADER},zip\n{rows}")
    options = {"model": "model.onnx", "partition_size": "500k", "workers": 1}

    def cut() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bs.score("zips.csv", "out.parquet", listener=Watcher(events.Publishing, cut), **options)  # type: ignore[arg-type]
    watcher = Watcher()
    report = bs.score("zips.csv", "out.parquet", listener=watcher, **options)  # type: ignore[arg-type]

    assert done_before(watcher) == report.partitions > 1
    assert report.amended == {"zip": "zips.csv:60002"}
    assert pq.read_table("out.parquet")["zip"][60_000].as_py() == "0012"


def test_the_lock_outlives_the_emptying() -> None:
    """Emptying another plan's workspace keeps the lock file, so that nobody locks a second one."""
    other, found = planned("out.parquet", size="2k")
    plan, _ = planned("out.parquet")
    with workspace.opened(found, other):
        inode = (found.workspace / "lock").stat().st_ino

    with workspace.opened(found, plan):
        assert (found.workspace / "lock").stat().st_ino == inode


def test_a_leftover_workspace_does_not_lose_work_to_a_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    """An output that exists refuses another job at once, and leaves the workspace of an unfinished one."""
    score("out.parquet")
    plan, found = planned_over("out.parquet")
    with workspace.opened(found, plan) as space:
        scored_parts(plan, space)
    before = listing(Path())

    done = run(capsys, "score", "iris.csv", "out.parquet", "-m", "model.onnx", "--keep", "none")

    assert done.code == 73, done.err
    assert listing(Path()) == before


def planned_over(output: str) -> tuple[Plan, Target]:
    """Return a plan that overwrites."""
    preview = bs.plan("iris.csv", output, model="model.onnx", partition_size="2k", overwrite=True)
    assert preview.target is not None
    return preview.plan, preview.target


# -- publish ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("output", "number"), [("out.parquet", 0), ("out.parquet", 2), ("out", 1)])
def test_any_flipped_byte_of_a_part_is_noticed(output: str, number: int) -> None:
    """With any one byte of a part flipped, the partition is scored again and the bytes are the right ones."""
    score("straight" + Path(output).suffix)
    right = parts_of("straight" + Path(output).suffix)
    plan, found = planned(output)
    with workspace.opened(found, plan) as space:
        receipts = scored_parts(plan, space)
    part = found.workspace / receipts[number].part
    whole = part.read_bytes()
    wrong = []
    for position in range(0, len(whole), 23):
        part.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        if [r.partition for r in commit.damaged(space, receipts)] != [number]:
            wrong.append(position)
    assert wrong == []

    score(output)

    assert parts_of(output) == right


@OUTPUTS
@pytest.mark.parametrize("cut", [0, 4, 200, -1, None])
def test_a_part_that_was_cut_is_scored_again(output: str, cut: int | None) -> None:
    """A part that lost its end, or is gone, does not count: the partition is scored again."""
    score("straight" + Path(output).suffix)
    plan, found = planned(output)
    with workspace.opened(found, plan) as space:
        receipts = scored_parts(plan, space)
    part = found.workspace / receipts[0].part
    if cut is None:
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:cut])
    watcher = Watcher()

    score(output, listener=watcher)

    assert done_before(watcher) == 3
    assert parts_of(output) == parts_of("straight" + Path(output).suffix)


def test_a_disk_that_spoils_what_was_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that change again after they were scored again end the run: the disk is at fault."""
    monkeypatch.setattr(storage.disk, "sha256", lambda _: "another", raising=True)

    with pytest.raises(StorageError, match="parts change after they were written"):
        score("out.parquet")

    assert not Path("out.parquet").exists()


@OUTPUTS
def test_an_output_that_appears_meanwhile_stays(output: str, home: Path) -> None:
    """What somebody else puts in the output's place during the job stays as it is: exit 73."""
    place = home / output

    def appear() -> None:
        if place.suffix:
            place.write_bytes(b"somebody else's")
        else:
            place.mkdir()
            (place / "file").write_bytes(b"somebody else's")

    with pytest.raises(OutputError, match="appeared while this job ran"):
        score(output, listener=Watcher(events.PartitionScored, appear))

    theirs = place if place.suffix else place / "file"
    assert theirs.read_bytes() == b"somebody else's"


def test_an_output_that_appears_at_the_last_instant_stays(home: Path) -> None:
    """Even between the last look and the link, a name that is taken is not taken over."""
    found = Target(home / "out.parquet", dataset=False)
    found.path.write_bytes(b"somebody else's")
    (home / "temporary").write_bytes(b"ours")

    with pytest.raises(OutputError, match="appeared while this job ran"):
        commit._name(home / "temporary", found, overwrite=False)

    assert found.path.read_bytes() == b"somebody else's"


@OUTPUTS
def test_overwriting_replaces_everything(output: str) -> None:
    """--overwrite leaves the new output alone: no part, receipt or workspace of the old one."""
    score(output)

    report = bs.score("iris.csv", output, model="model.onnx", overwrite=True, limit=5)

    assert report.rows == 5
    assert pq.read_table(output).num_rows == 5
    assert len(parts_of(output)) == 1
    assert list(Path().glob(".*")) == []


def test_an_empty_folder_may_become_a_dataset() -> None:
    """A folder that is there but empty takes the dataset."""
    Path("out").mkdir()

    score("out")

    assert pq.read_table("out").num_rows == 150


@OUTPUTS
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_cut_between_publish_and_clean_up_is_done(output: str, overwrite: bool) -> None:
    """The same command finds what was published, leaves it as it is, and clears the workspace away."""
    plan, found = planned(output)
    with workspace.opened(found, plan) as space:
        commit.publish(found, plan, space, scored_parts(plan, space), overwrite=False)
    inode, before = found.path.stat().st_ino, parts_of(output)

    report = score(output, overwrite=overwrite)

    assert report.rows == 150
    assert parts_of(output) == before
    assert overwrite or found.path.stat().st_ino == inode
    assert not found.workspace.exists()


@OUTPUTS
def test_what_a_published_run_left_is_in_nobodys_way(output: str) -> None:
    """A workspace whose run is published holds nobody's work: another plan may replace the output."""
    plan, found = planned(output)
    with workspace.opened(found, plan) as space:
        commit.publish(found, plan, space, scored_parts(plan, space), overwrite=False)

    report = score(output, overwrite=True, keep="none")

    assert pq.read_schema(parts_paths(output)[0]).names == ["label", "probability"]
    assert report.rows == 150
    assert not found.workspace.exists()


def parts_paths(output: str) -> list[Path]:
    """Return an output's Parquet files, in order."""
    path = Path(output)
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def test_an_output_without_its_receipt_is_not_published() -> None:
    """An output whose receipt is lost does not count as published: the same command writes it again."""
    plan, found = planned("out.parquet")
    with workspace.opened(found, plan) as space:
        commit.publish(found, plan, space, scored_parts(plan, space), overwrite=False)
    found.receipt.unlink()

    score("out.parquet", overwrite=True)

    assert json.loads(found.receipt.read_text())["rows_out"] == 150


@OUTPUTS
def test_the_receipt_says_what_the_output_holds(output: str) -> None:
    """The receipt beside the output states rows, inputs, versions and the digest of every row group."""
    report = score(output)

    _, found = planned_over(output)
    receipt = json.loads(found.receipt.read_text())
    assert (receipt["rows_in"], receipt["rows_out"], receipt["rows_rejected"]) == (150, 150, 0)
    assert receipt["inputs"][0]["size_bytes"] == Path("iris.csv").stat().st_size
    assert receipt["plan_id"] == report.receipt.plan_id
    assert set(receipt["versions"]) >= {"batchserve", "onnxruntime", "pyarrow"}
    if not found.dataset:
        with found.path.open("rb") as file:
            start = 4
            for group in receipt["row_groups"]:
                stop = start + group["size_bytes"]
                assert storage.range_sha256(file, start, stop) == group["sha256"]
                start = stop
            assert storage.range_sha256(file, start, 10**9) == receipt["footer_sha256"]


def test_the_manifest_says_what_the_parts_are() -> None:
    """The manifest of a dataset names every part in input order, with rows and digest."""
    score("out")

    manifest = json.loads(Path("out/_batchserve/manifest.json").read_text())
    parts = [Path("out") / part["name"] for part in manifest["parts"]]
    assert parts == sorted(Path("out").glob("*.parquet"))
    assert [storage.file_sha256(part) for part in parts] == [part["sha256"] for part in manifest["parts"]]
    rows = pa.concat_tables([pq.read_table(part) for part in parts])
    assert rows["species"].to_pylist() == pq.read_table("out")["species"].to_pylist()
    assert sum(part["rows"] for part in manifest["parts"]) == 150


def test_an_input_that_changes_meanwhile_is_noticed() -> None:
    """An input written to during the job ends it with 65: its rows may be of two versions."""

    def touch() -> None:
        with Path("iris.csv").open("a") as file:
            file.write("5.1,3.5,1.4,0.2,setosa\n")

    with pytest.raises(DataError, match=r"iris\.csv: was changed while it was read"):
        score("out.parquet", listener=Watcher(events.PartitionScored, touch))

    assert not Path("out.parquet").exists()


def test_links_to_an_output_are_followed() -> None:
    """An output named by a symbolic link is written where the link points, and the link stays."""
    Path("deep").mkdir()
    Path("out.parquet").symlink_to("deep/real.parquet")

    score("out.parquet")

    assert Path("out.parquet").is_symlink()
    assert pq.read_table("deep/real.parquet").num_rows == 150


# -- whose output is it? ----------------------------------------------------------------------


def test_ours_is_known_by_its_plan_id() -> None:
    """An output of ours carries its plan id, in the footer or in the manifest."""
    ids = {score(output).receipt.plan_id for output in ("out.parquet", "out")}

    found = {target.published_plan_id(planned_over(output)[1]) for output in ("out.parquet", "out")}
    assert ids == found
    assert len(ids) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b'{"plan_id": 3}'], ids=["empty", "cut", "odd"])
def test_a_dataset_with_a_damaged_manifest_is_not_ours(damage: bytes) -> None:
    """A folder whose manifest cannot be read is not replaced even with --overwrite."""
    score("out")
    Path("out/_batchserve/manifest.json").write_bytes(damage)

    with pytest.raises(OutputError, match="was not written by batchserve"):
        score("out", overwrite=True)

    assert len(list(Path("out").glob("*.parquet"))) == 4


def test_an_output_with_the_inputs_columns_is_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    """A file of ours that has exactly the inputs' columns is taken for a last input, not for the output."""
    score("a.parquet", prefix="p_")
    shutil.copy("a.parquet", "b.parquet")
    before = Path("b.parquet").read_bytes()

    done = run(capsys, "score", "a.parquet", "b.parquet", "-m", "model.onnx", "--overwrite")

    assert done.code == 73, done.err
    assert "has the columns of the inputs" in done.err
    assert Path("b.parquet").read_bytes() == before
