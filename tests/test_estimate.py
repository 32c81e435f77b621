"""What `plan` says of memory: by workers, by what is read, by what is collected."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchserve as bs
from batchserve import estimate, memory
from batchserve.planning import Plan
from workbench import run


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A Parquet file of 40 columns, 100,000 rows in one row group."""
    values = np.random.default_rng(1).standard_normal((39, 100_000))
    table = pa.table({"x": range(100_000)} | {f"f{i}": row for i, row in enumerate(values)})
    pq.write_table(table, tmp_path / "wide.parquet", row_group_size=100_000, use_dictionary=False)
    return tmp_path / "wide.parquet"


def planned(paths: Path, model: Path, **options: Any) -> Plan:
    """Plan a job."""
    return bs.plan(paths, model=model, **options).plan


def test_every_worker_takes_its_share(wide: Path, model: Path) -> None:
    """Four workers take three shares more than one, and no share is for what is there already."""
    plan = planned(wide, model)
    resident, _ = memory.used_bytes()

    one, four = estimate.peak_bytes(plan, 1), estimate.peak_bytes(plan, 4)

    assert four - one == pytest.approx(3 * (one - resident), rel=0.1)


def test_what_passes_through_is_collected(wide: Path, model: Path) -> None:
    """A row of 40 numbers and a score takes 8 bytes for each; one that keeps nothing, those of the score."""
    assert planned(wide, model).recipe.row_bytes == 40 * 8 + 4
    assert planned(wide, model, keep="none").recipe.row_bytes == 4


def test_of_a_wide_row_group_what_is_cut_counts(wide: Path, model: Path) -> None:
    """The rows of a partition are read at once: all of them, or those that it was cut to."""
    group_bytes = 100_000 * 40 * 8

    whole = estimate._read_bytes(planned(wide, model, partition_size="64MB"))
    cut = estimate._read_bytes(planned(wide, model, partition_size="8MB"))

    assert whole == pytest.approx(group_bytes, rel=0.02)
    assert cut == pytest.approx(group_bytes / 4, rel=0.02)


def test_plan_tells_the_peak(wide: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plan` prints it for what runs here."""
    told = run(capsys, "plan", wide, "--model", model)

    assert "at the peak" in told.out
    assert "memory" in told.out
