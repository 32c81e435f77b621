"""An output proves itself against its receipt, and no flipped bit goes unnoticed."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

import batchserve as bs
import flips
from batchserve import batches, receipts, target, verify
from batchserve.errors import DataError, NotFoundError
from batchserve.model import _sessions
from batchserve.verify import Verdict
from workbench import run

FLIPS = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an input of about twelve partitions and its model."""
    return flips.material(tmp_path_factory.mktemp("verified"))


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
    return bs.score("in.csv", output, **(settings | options))  # type: ignore[arg-type]  # any of them


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
    right = batches.predict
    with monkeypatch.context() as patched:
        patched.setattr(batches, "predict", lambda *a: [_changed(column) for column in right(*a)])
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


def test_every_flipped_bit_is_noticed(home: Path) -> None:
    """One bit flipped in whatever file of a job or an output: not published, or found by `verify`."""
    figures = flips.sweep(home, FLIPS, seed=1)

    assert figures.missed == []
    assert sum(figures.noticed.values()) == FLIPS
    assert set(figures.noticed) == set(flips.KINDS)


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
def test_equal_is_equal_to_the_bit(left: pa.Array, right: pa.Array, same: bool) -> None:
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
    assert receipts.receipt_of(target.at("out.parquet")) is None
