"""What several test files share: the command, a tiny model, a cluster of processes, an output's digest."""

import hashlib
import os
import posix
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from hypothesis import settings

from batchserve import trial
from workbench import Score, ScoreText, doubler, scored

# In its own end of a fork coverage saves what all tests before covered: half a second, thousands of times.
trial.leave = posix._exit

settings.register_profile("tests", deadline=None)  # no test asserts a time
settings.load_profile("tests")

Command = Callable[..., subprocess.CompletedProcess[str]]
"""Runs `batchserve` in a process of its own in the test's folder; keywords are environment variables."""


def environment(**more: str) -> dict[str, str]:
    """Return the environment without what would configure batchserve, and with `more`."""
    plain = {name: text for name, text in os.environ.items() if not name.startswith("BATCHSERVE_")}
    return plain | more


@pytest.fixture
def command(tmp_path: Path) -> Command:
    def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "batchserve", *map(str, arguments)],
            cwd=tmp_path, env=environment(**variables), timeout=120,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that doubles column x."""
    return doubler(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture
def score(model: Path) -> Score:
    """Score inputs into a table with that model."""
    return partial(scored, model)


@pytest.fixture
def score_text(tmp_path: Path, score: Score) -> ScoreText:
    """Score the text of a file into rows with that model."""

    def scored(text: str | bytes, name: str = "in.csv", **options: Any) -> list[dict[str, Any]]:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        rows: list[dict[str, Any]] = score(path, **options).to_pylist()
        return rows

    return scored


@pytest.fixture(scope="session")
def process_cluster() -> Iterator[LocalCluster]:
    """A real Dask cluster: two worker processes with one thread each, on loopback."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1"
    ) as cluster:
        yield cluster


def digest(output: Path) -> str:
    """Return the sha256 of a file, or of the Parquet files of a folder in order of name."""
    whole = hashlib.sha256()
    for path in sorted(output.glob("*.parquet")) if output.is_dir() else [output]:
        whole.update(path.read_bytes())
    return whole.hexdigest()
