"""What several test files share: the command, a cluster of processes, the digest of an output."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

Command = Callable[..., subprocess.CompletedProcess[str]]
"""Runs `batchserve` with the arguments in a process of its own, in the test's own folder."""


def environment() -> dict[str, str]:
    """Return the environment without what would configure batchserve or the width of its lines."""
    return {name: text for name, text in os.environ.items() if not name.startswith("BATCHSERVE_")}


@pytest.fixture
def command(tmp_path: Path) -> Command:
    def run(*arguments: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "batchserve", *map(str, arguments)],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    return run


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
