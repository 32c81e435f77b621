"""Files made by chance give what an oracle gives that knows nothing of batchserve, bit for bit."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

import differential
import oracle
from differential import Case, Figures

CASES = 25


@settings(max_examples=CASES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(case=differential.cases())
def test_any_schema_format_codec_split_and_width_equals_the_oracle(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """25 jobs of any kind: columns, their types, values and predictions are the oracle's."""
    differential.check(case, tmp_path_factory.mktemp("case"), Figures())


COMMON = Case(
    model="wide", others=("text", "date", "code"), rows=300, files=1, form="csv", codec="", delimiter=",",
    quote='"', end="\n", encoding="utf-8", told=True, partition_bytes=1_000, workers=2, batch_rows=64,
    chance=5,
)  # fmt: skip


def test_polars_and_duckdb_read_a_csv_alike_and_as_we_do(tmp_path: Path) -> None:
    """On a common CSV with hard texts the two other readers agree, so the comparison is no empty one."""
    figures = Figures()

    differential.check(COMMON, tmp_path / "case", figures)

    assert figures.agreed == 1
    assert figures.partitions > 20
    assert figures.rows == 300


@pytest.mark.parametrize("broken", ["same", "predict"])
def test_another_bit_is_told(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the oracle gives other bits, or none, the case fails."""
    answers = {"same": False, "predict": {}}
    monkeypatch.setattr(oracle, broken, lambda *_: answers[broken])

    with pytest.raises(AssertionError):
        differential.check(COMMON, tmp_path / "case", Figures())


def test_a_case_that_differs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many cases the one that fails is told, as simple as it may be."""

    def check(case: Case, folder: Path, figures: Figures) -> None:  # noqa: ARG001  as the real one
        figures.cases[case.form] += 1
        assert case.rows < 7, "too many"

    monkeypatch.setattr(differential, "check", check)

    found = differential.run(tmp_path, 50, seed=1)

    assert len(found.faults) == found.facts()["jobs that differ"] == 1
    assert "too many" in found.faults[0]
    assert "rows=7," in found.faults[0]
