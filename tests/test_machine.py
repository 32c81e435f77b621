"""What this process may use of its machine: affinity and quotas count, not what is built in."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchserve import machine
from conftest import environment
from workbench import EXAMPLES

_SCORE = [
    "-m", "batchserve", "score", str(EXAMPLES / "iris/iris.csv"), "out.parquet",
    "--partition-size", "1k", "--json",
]  # fmt: skip


def workers(folder: Path, before: object = None) -> int:
    """Score iris in a process of its own; return how many threads it took."""
    done = subprocess.run(
        [sys.executable, *_SCORE], cwd=folder, env=environment(), preexec_fn=before,  # type: ignore[call-overload]  # any callable will do
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: int = json.loads(done.stdout)["workers"]
    return found


def test_affinity_counts(tmp_path: Path) -> None:
    """A job that is bound to one CPU, as by taskset, scores on one thread."""
    cpu = min(os.sched_getaffinity(0))

    assert workers(tmp_path, lambda: os.sched_setaffinity(0, {cpu})) == 1


def test_every_usable_cpu_gets_a_thread(tmp_path: Path) -> None:
    """By default a job takes as many threads as this process may use CPUs."""
    assert workers(tmp_path) == machine.usable_cpus()


@pytest.fixture
def group() -> Iterator[Path]:
    """Make a cgroup that may use one CPU at a time."""
    path = Path("/sys/fs/cgroup/cpu/batchserve-test-cpus")
    try:
        path.mkdir()
        (path / "cpu.cfs_quota_us").write_text("100000")
    except OSError:
        pytest.skip("this machine lets nobody make a cpu cgroup (version 1)")
    yield path
    path.rmdir()


def test_a_quota_of_a_real_cgroup_counts(group: Path, tmp_path: Path) -> None:
    """In a cgroup that may use one CPU a job scores on one thread, whatever the machine has."""

    def enter() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    assert workers(tmp_path, enter) == 1


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        ("0::/\n", {}, 64),
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000"}, 3),
        ("3:cpu,cpuacct:/a\n0::/\n", {
            "cpu,cpuacct/a/cpu.cfs_quota_us": "400000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
        }, 4),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        (None, {}, 64),
    ],
    ids=["none", "version-2", "above", "version-1", "no-quota", "no-proc"],
)  # fmt: skip
def test_quotas_are_read_of_both_versions(
    membership: str | None, files: dict[str, str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least quota of the cgroup and those above it counts, rounded up; without one the affinity."""
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if membership is not None:
        (tmp_path / "cgroup").write_text(membership)
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "_MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))

    assert machine.usable_cpus() == cpus
