"""An output proves itself against its receipt, and no flipped bit goes unnoticed."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import batchserve as bs
import models
from batchserve import commit, model, outputs, scoring, storage, target, verify, workspace
from batchserve.errors import BatchserveError, DataError, NotFoundError
from batchserve.model import _sessions
from batchserve.verify import Verdict
from workbench import run

FLIPS = 200
ROWS = 6_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an input of about twelve partitions and its model."""
    folder = tmp_path_factory.mktemp("verified")
    models.wide(folder)
    numbers = np.random.default_rng(3).random((ROWS, 4))
    rows = [f"{i}," + ",".join(f"{x:.6f}" for x in row) for i, row in enumerate(numbers)]
    (folder / "in.csv").write_text("row,a,b,c,d\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in a folder of its own with the input and the model."""
    for name in ("in.csv", "wide.onnx"):
        shutil.copy2(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def score(output: str, **options: object) -> bs.Report:
    """Score the input in about twelve partitions."""
    settings = {"model": "wide.onnx", "features": ["a", "b", "c", "d"], "partition_size": "20k", "workers": 1}
    return bs.score("in.csv", output, **(settings | options))  # type: ignore[arg-type]


OUTPUTS = pytest.mark.parametrize("output", ["out.parquet", "out"])


@OUTPUTS
def test_a_sound_output_is_proven(output: str) -> None:
    """Counts and bytes agree, and 1,000 rows of 10 partitions are scored again, equal to the bit."""
    report = score(output)

    verdict = verify.verify(output)

    assert report.partitions > verify.PARTITIONS
    assert (verdict.differences, verdict.skipped) == ([], [])
    assert verdict.rows_scored >= 1_000
    assert verdict.partitions_scored >= 10
    assert set(verdict.facts) == {"plan id", "bytes", "rows", "rejects"}


def test_first_and_last_partition_are_always_scored_again() -> None:
    """The sample holds the first and the last partition, and is the same for the same plan."""
    receipt = score("out.parquet").receipt

    samples = verify._samples(receipt)

    assert {0, len(receipt.runs[0].plan.partitions) - 1} <= {s.partition.index for s in samples}
    assert samples == verify._samples(receipt)


def test_a_small_output_is_scored_again_whole() -> None:
    """Of fewer rows than the sample has, every one is scored again."""
    score("out.parquet", limit=300)

    assert verify.verify("out.parquet").rows_scored == 300


def test_without_the_inputs_the_rest_is_done(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    """Where the inputs are gone bytes and counts are compared all the same, and that is said."""
    score("out.parquet")
    (home / "in.csv").unlink()

    done = run(capsys, "verify", "out.parquet")

    assert done.code == 0
    assert "rows were not all scored again: the inputs are gone or changed" in done.out
    assert "every one" in done.out


def test_a_model_that_was_moved_can_be_named(home: Path) -> None:
    """A model that is elsewhere now is named with --model; without it the scores are not compared."""
    score("out.parquet")
    _sessions.clear()
    (home / "wide.onnx").rename(home / "moved.onnx")

    assert verify.verify("out.parquet").skipped
    assert verify.verify("out.parquet", model="moved.onnx").rows_scored >= 1_000


def test_wrong_scores_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that is whole but does not hold what the model gives is exit 65, columns named."""
    right = scoring.predict
    with monkeypatch.context() as patched:
        patched.setattr(scoring, "predict", lambda *a: [_changed(column) for column in right(*a)])
        score("out.parquet")

    with pytest.raises(DataError, match=r"column total: rows .* are not what the model gives"):
        verify.verify("out.parquet")


def _changed(column: pa.Array) -> pa.Array:
    return pa.array([column[0].as_py()] * len(column), column.type)


def test_what_is_not_there_is_told() -> None:
    """No output, or no receipt beside it, is exit 66."""
    with pytest.raises(NotFoundError, match="no such output"):
        verify.verify("gone.parquet")
    score("out.parquet")
    Path("out.receipt.json").unlink()

    with pytest.raises(NotFoundError, match="has no receipt"):
        verify.verify("out.parquet")


def test_a_part_that_is_gone_or_strange_is_told() -> None:
    """A dataset with a part missing, or with a file nobody wrote, differs; each is named."""
    score("out")
    Path("out/part-000003.parquet").rename("out/mine.parquet")

    with pytest.raises(DataError) as told:
        verify.verify("out")

    assert "part-000003.parquet: is not there" in told.value.message
    assert "mine.parquet: is not in the manifest" in told.value.message


def test_rejects_of_another_run_are_told() -> None:
    """A rejects file of ours beside an output without rejects differs; somebody else's is no matter."""
    score("out.parquet")
    Path("out.rejects.jsonl").write_text('{"plan_id": "another", "reason": "null"}\n')

    with pytest.raises(DataError, match="no row was rejected"):
        verify.verify("out.parquet")
    Path("out.rejects.jsonl").write_text("my notes\n")

    assert verify.verify("out.parquet").differences == []


# -- flipped bits -----------------------------------------------------------------------------


def flipped(path: Path, chance: random.Random) -> Iterator[Path]:
    """Flip one bit of a file, and put it back."""
    whole = path.read_bytes()
    position = chance.randrange(len(whole))
    path.write_bytes(_flip(whole, position, chance.randrange(8)))
    yield path
    path.write_bytes(whole)


def _flip(whole: bytes, position: int, bit: int) -> bytes:
    return whole[:position] + bytes([whole[position] ^ (1 << bit)]) + whole[position + 1 :]


def unnoticed(output: str, paths: list[Path], count: int) -> list[Path]:
    """Flip so many single bits in turn in these files of an output; return where none was noticed."""
    chance = random.Random(output)  # noqa: S311  repeatable
    missed = []
    for i in range(count):
        for path in flipped(paths[i % len(paths)], chance):
            try:
                verify.verify(output)
                missed.append(path)
            except BatchserveError:
                pass
    return missed


@OUTPUTS
def test_every_flipped_bit_of_an_output_is_noticed(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever bit of the output, its receipt or its manifest is flipped, `verify` notices."""
    score(output)
    monkeypatch.setattr(verify, "_score_again", lambda *_: None)  # bytes alone must tell
    paths = [Path("out.parquet"), Path("out.receipt.json")]
    if output == "out":
        paths = [*Path("out").glob("*.parquet"), *Path("out/_batchserve").iterdir()]

    assert unnoticed(output, paths, FLIPS // 2) == []


def test_every_flipped_bit_before_publishing_is_noticed() -> None:
    """Whichever bit of a part, a receipt or the plan is flipped before publishing: it is not published."""
    score("right.parquet")
    preview = bs.plan(
        "in.csv", "out.parquet", model="wide.onnx", features=["a", "b", "c", "d"], partition_size="20k"
    )
    plan, found = preview.plan, preview.target
    assert found is not None
    chance = random.Random(1)  # noqa: S311  repeatable
    missed = []
    with workspace.opened(found, plan) as space:
        receipts = [scoring.score_partition(p, plan.recipe, space) for p in plan.partitions]
        paths = sorted(found.workspace.glob("p*"))
        for i in range(FLIPS):
            for path in flipped(paths[i % len(paths)], chance):
                sound = len(workspace.done(space, plan.partitions)) == len(receipts)
                same = workspace.stored(found) == plan
                if sound and same and not _differing(space, receipts):
                    missed.append(path)

    assert missed == []


def _differing(space: outputs.Workspace, receipts: list[outputs.Receipt]) -> list[str]:
    return [r.part for r in receipts if storage.file_sha256(space.file(r.part)) != r.sha256]


def test_every_flipped_bit_of_the_model_is_noticed(home: Path) -> None:
    """A model of which one bit was flipped after planning is not the model that was planned."""
    preview = bs.plan("in.csv", "out.parquet", model="wide.onnx", features=["a", "b", "c", "d"])
    chance = random.Random(2)  # noqa: S311  repeatable
    missed = []
    for _ in range(50):
        _sessions.clear()
        for path in flipped(home / "wide.onnx", chance):
            try:
                model.session_for(preview.plan.recipe.model)
                missed.append(path)
            except BatchserveError as error:
                assert error.exit_code == 70  # noqa: PT017  counting, not asserting, is the point
    _sessions.clear()

    assert missed == []


# -- the comparison itself --------------------------------------------------------------------

SAME = [
    (pa.array([1.5, None, float("nan")]), pa.array([1.5, None, float("nan")]), True),
    (pa.array([0.0]), pa.array([-0.0]), False),
    (pa.array([1.0, None]), pa.array([None, 1.0]), False),
    (pa.array(["a", None]), pa.array(["a", None]), True),
    (pa.array([[1.0], None, [float("nan"), 2.0]]), pa.array([[1.0], None, [float("nan"), 2.0]]), True),
    (pa.array([{"a": float("nan")}]), pa.array([{"a": float("nan")}]), True),
    (pa.array([{"a": 1.0}]), pa.array([{"a": 2.0}]), False),
    (pa.array([1], pa.int32()), pa.array([1], pa.int64()), False),
    (pa.array([[1.0, 2.0], [3.0, 4.0]]), pa.array([[1.0], [2.0, 3.0, 4.0]]), False),
]


@pytest.mark.parametrize(("left", "right", "same"), SAME)
def test_equal_is_equal_to_the_bit(left: pa.Array, right: pa.Array, same: bool) -> None:  # noqa: FBT001
    """NaN equals NaN, zero does not equal minus zero, and nulls and lists must sit in the same places."""
    assert verify.same(left, right) is same


def test_a_verdict_keeps_what_differs() -> None:
    """What agrees is a fact, what differs is a difference."""
    verdict = Verdict()

    verdict.check("a", "fine", [])
    verdict.check("b", "fine", ["b: is not"])

    assert (verdict.facts, verdict.differences) == ({"a": "fine"}, ["b: is not"])


def test_a_receipt_of_another_output_is_noticed() -> None:
    """An output beside the receipt of another plan differs, and does not count as published."""
    score("other.parquet", keep="none")
    score("out.parquet")
    shutil.copy("other.receipt.json", "out.receipt.json")

    with pytest.raises(DataError, match="plan id: the output carries"):
        verify.verify("out.parquet")
    assert commit.receipt_of(target.at("out.parquet")) is None
