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
    """Where the oracle says something else the case fails, and a sweep names it."""
    if broken == "same":
        monkeypatch.setattr(oracle, "same", lambda *_: False)
    else:
        monkeypatch.setattr(oracle, "predict", lambda *_: {})

    with pytest.raises(AssertionError):
        differential.check(COMMON, tmp_path / "case", Figures())
    found = differential.run(tmp_path, 1, seed=1)

    assert len(found.faults) == found.facts()["jobs that differ"] == 1
